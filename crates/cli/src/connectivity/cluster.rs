//! The cluster that is tested: found as kubectl finds it, spoken to through its API server alone.
//!
//! The test's pods are Deployments and a DaemonSet that are applied server-side, so that a second
//! run finds them running and a changed option changes them.

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod as PodObject, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{
    ApiResource, AttachParams, DeleteParams, DynamicObject, ListParams, Patch, PatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Config, ResourceExt};
use model::IpFamily;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::args::{self, Images};
use super::plan::{ECHO_PORT, Executed, Peer, Place, Pod, World, of_family};
use super::policies::{CCNP_1, CCNP_2};
use crate::output::Table;

/// Who applies the test's objects.
const FIELD_MANAGER: &str = "cilium-connectivity-test";
/// Runs until told to stop, and then stops at once: a shell is deaf while it waits for a child in
/// the foreground.
const SLEEP: &str = "trap 'exit 0' TERM INT; sleep 2147483647 & wait $!";
/// The container of every pod.
const CONTAINER: &str = "main";
/// That of an agent, in Cilium's DaemonSet.
const AGENT_CONTAINER: &str = "cilium-agent";
/// The only container runtime with this scheme is the lab's.
const LAB_RUNTIME: &str = "cilium-lab://";
/// Much more than any of our commands prints.
const OUTPUT_LEN_MAX: u64 = 64 * 1024;

/// A cluster and the namespace of the test in it.
pub(crate) struct Cluster {
    client: Client,
    pub(crate) context: String,
    pub(crate) namespace: String,
    agent_namespace: String,
    server: String,
    /// How kubectl finds the cluster, where it would not by itself.
    kubectl: Vec<String>,
}

/// A container that commands run in.
pub(crate) struct InPod<'a> {
    namespace: &'a str,
    name: &'a str,
    container: &'a str,
}

impl<'a> InPod<'a> {
    /// A pod of the test.
    pub(crate) fn of_test(namespace: &'a str, name: &'a str) -> Self {
        Self { namespace, name, container: CONTAINER }
    }
}

/// The nodes to use.
pub(crate) struct Nodes {
    /// Where clients and the near echo pod go, and where the far one.
    near: String,
    far: Option<String>,
    all: Vec<Node>,
    /// Whether this is a lab, which has its own world outside.
    pub(crate) lab: bool,
}

impl Cluster {
    pub(crate) async fn connect(args: &args::Cluster, namespace: &str) -> Result<Self> {
        let file = kubeconfig(args)?;
        let read = match &file {
            Some(path) => Kubeconfig::read_from(path)
                .with_context(|| format!("cannot read the kubeconfig {}", path.display())),
            None => Kubeconfig::read().context(
                "cannot find out which cluster to test; set KUBECONFIG, or use --kubeconfig or --lab",
            ),
        };
        let read = read?;
        let context = args.context.clone().or_else(|| read.current_context.clone());
        let options = KubeConfigOptions { context: context.clone(), ..Default::default() };
        let config = Config::from_custom_kubeconfig(read, &options)
            .await
            .context("the kubeconfig does not describe a cluster")?;
        let server = config.cluster_url.to_string();
        let chosen = file.map(|path| format!("--kubeconfig={}", path.display()));
        let kubectl =
            chosen.into_iter().chain(args.context.iter().map(|c| format!("--context={c}")));
        let kubectl = kubectl.collect();
        Ok(Self {
            client: Client::try_from(config).context("cannot make a client of the API server")?,
            context: context.unwrap_or_else(|| "cluster".to_owned()),
            namespace: namespace.to_owned(),
            agent_namespace: args.namespace.clone(),
            server,
            kubectl,
        })
    }

    /// The lab of this machine that the cluster is, if it is one.
    pub(crate) fn lab_name(&self) -> Option<String> {
        let names = lab::teardown::names().ok()?;
        names.into_iter().find(|name| {
            let path = lab::spec::Paths::new(name).kubeconfig();
            let config = Kubeconfig::read_from(path).ok();
            let servers = config.into_iter().flat_map(|config| config.clusters);
            let mut servers = servers.filter_map(|cluster| cluster.cluster?.server);
            servers.any(|server| server.trim_end_matches('/') == self.server.trim_end_matches('/'))
        })
    }

    fn api_in<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The namespace of the test, and those that it has beside it.
    fn namespaces(&self) -> [String; 3] {
        let own = &self.namespace;
        [own.clone(), format!("{own}-ccnp1"), format!("{own}-ccnp2")]
    }

    /// Makes an object what is given.
    async fn apply<K>(&self, api: &Api<K>, object: &Value) -> Result<K>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = api.patch(name, &params, &Patch::Apply(object)).await;
        applied.with_context(|| format!("cannot apply the {} {name}", kind(object)))
    }

    /// Applies a policy, or what policies speak of, and marks it as the test's.
    pub(crate) async fn apply_policy(&self, mut object: Value) -> Result<DynamicObject> {
        object["metadata"]["labels"][POLICY_LABEL] = self.namespace.as_str().into();
        let api =
            self.policies(&resource(&kind(&object))?, object["metadata"]["namespace"].as_str());
        self.apply(&api, &object).await
    }

    /// Removes all policies that a test has applied.
    pub(crate) async fn remove_policies(&self) -> Result<()> {
        let mine = ListParams::default().labels(&format!("{POLICY_LABEL}={}", self.namespace));
        for (kind, ..) in POLICY_KINDS {
            let resource = resource(kind)?;
            let list = match self.policies(&resource, None).list(&mine).await {
                // A cluster need not have every kind.
                Err(kube::Error::Api(error)) if error.code == 404 => continue,
                list => list.with_context(|| format!("cannot list {}", resource.plural))?,
            };
            for object in list {
                let name = object.name_any();
                let api = self.policies(&resource, object.namespace().as_deref());
                match api.delete(&name, &DeleteParams::default()).await {
                    Err(kube::Error::Api(error)) if error.code == 404 => {}
                    deleted => {
                        deleted.with_context(|| format!("cannot delete the {kind} {name}"))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn policies(&self, resource: &ApiResource, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
            None => Api::all_with(self.client.clone(), resource),
        }
    }

    /// Chooses nodes that take pods.
    pub(crate) async fn nodes(&self, selector: &str, single: bool) -> Result<Nodes> {
        let api: Api<Node> = Api::all(self.client.clone());
        let list = api
            .list(&ListParams::default().labels(selector))
            .await
            .with_context(|| format!("cannot list the nodes of {}", self.server))?;
        let lab = list.items.iter().any(is_lab);
        let all: Vec<Node> = list.items.into_iter().filter(takes_pods).collect();
        let mut names = all.iter().map(ResourceExt::name_any);
        let near = names.next().ok_or_else(|| {
            anyhow!("no node is ready and takes pods; look with: kubectl get nodes")
        })?;
        let far = if single { None } else { names.next() };
        Ok(Nodes { near, far, all, lab })
    }

    /// Makes the namespace and everything in it, and waits until it is ready.
    pub(crate) async fn deploy(
        &self,
        nodes: &Nodes,
        images: &Images,
        say: &dyn Fn(String),
        patience: Duration,
    ) -> Result<()> {
        let context = &self.context;
        for name in self.namespaces() {
            say(format!("✨ [{context}] Creating namespace {name}"));
            self.apply(&Api::<Namespace>::all(self.client.clone()), &namespace(&name)).await?;
        }
        let deployments = deployments(nodes, images, &self.namespace);
        for Deployed { namespace, name, object } in &deployments {
            say(format!("✨ [{context}] Deploying {name}"));
            let account = json!({
                "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name},
            });
            self.apply(&self.api_in::<ServiceAccount>(namespace), &account).await?;
            self.apply(&self.api_in::<Deployment>(namespace), object).await?;
        }
        say(format!("✨ [{context}] Deploying {HOST_NETNS}"));
        self.apply(&self.api_in::<DaemonSet>(&self.namespace), &host_netns(images)).await?;
        let ready = async {
            for Deployed { namespace, name, .. } in &deployments {
                say(format!("⌛ [{context}] Waiting for deployment {namespace}/{name}"));
                let api = self.api_in::<Deployment>(namespace);
                await_condition(api, name, |object: Option<&Deployment>| {
                    object.is_some_and(deployment_is_ready)
                })
                .await
                .with_context(|| format!("cannot watch the Deployment {name}"))?;
            }
            say(format!("⌛ [{context}] Waiting for daemonset {}/{HOST_NETNS}", self.namespace));
            let api = self.api_in::<DaemonSet>(&self.namespace);
            await_condition(api, HOST_NETNS, |object: Option<&DaemonSet>| {
                object.is_some_and(daemon_set_is_ready)
            })
            .await
            .with_context(|| format!("cannot watch the DaemonSet {HOST_NETNS}"))?;
            anyhow::Ok(())
        };
        match tokio::time::timeout(patience, ready).await {
            Ok(result) => result,
            Err(_elapsed) => bail!(
                "the test's pods are not ready after {} s; look with: kubectl -n {} describe pods",
                patience.as_secs(),
                self.namespace
            ),
        }
    }

    /// Who takes part, with addresses.
    pub(crate) async fn world(
        &self,
        nodes: &Nodes,
        wanted: &[IpFamily],
        outside: Vec<SocketAddr>,
        agents: Vec<Place>,
    ) -> Result<World> {
        let pods = self.pods().await?;
        let of_kind = |kind: &str| -> Vec<Pod> {
            let mine = pods.iter().filter(|pod| {
                pod.labels().get("kind").is_some_and(|value| value == kind) && is_running(pod)
            });
            let mut mine: Vec<Pod> = mine.map(pod_of).collect();
            mine.sort_by(|a, b| a.name.cmp(&b.name));
            mine
        };
        let (clients, echoes) = (of_kind("client"), of_kind("echo"));
        let peers = nodes
            .all
            .iter()
            .map(|node| Peer { name: node.name_any(), addresses: node_addresses(node) });
        let families = families(wanted, &[&clients[..], &echoes[..]].concat())?;
        Ok(World {
            namespace: self.namespace.clone(),
            families,
            clients,
            echoes,
            hosts: of_kind(HOST_NETNS),
            elsewhere: of_kind(CCNP_KIND),
            nodes: peers.collect(),
            outside,
            agents,
        })
    }

    /// The pods of agents, where agents are pods.
    pub(crate) async fn agent_pods(&self) -> Vec<String> {
        let pods: Api<PodObject> = Api::namespaced(self.client.clone(), &self.agent_namespace);
        let list = pods.list(&ListParams::default().labels("k8s-app=cilium")).await;
        // Who may not look there can test everything else.
        let pods = list.map(|list| list.items).unwrap_or_default();
        pods.iter().filter(|pod| is_running(pod)).map(ResourceExt::name_any).collect()
    }

    /// Runs a command in a pod and waits for its end, but not for ever.
    pub(crate) async fn exec(&self, pod: &InPod<'_>, argv: &[String], limit: Duration) -> Executed {
        match tokio::time::timeout(limit, self.exec_to_end(pod, argv)).await {
            Ok(Ok(executed)) => executed,
            Ok(Err(error)) => Executed::failed(format!("cannot run it: {error:#}")),
            Err(_elapsed) => {
                Executed::failed(format!("the command has not ended after {} s", limit.as_secs()))
            }
        }
    }

    async fn exec_to_end(&self, pod: &InPod<'_>, argv: &[String]) -> Result<Executed> {
        let (namespace, container) = (pod.namespace, pod.container.to_owned());
        let params = AttachParams { container: Some(container), ..AttachParams::default() };
        let pods: Api<PodObject> = Api::namespaced(self.client.clone(), namespace);
        let mut attached = pods.exec(pod.name, argv, &params).await?;
        let (stdout, stderr) = (attached.stdout(), attached.stderr());
        let status = attached.take_status();
        let (stdout, stderr, status) = futures::join!(read(stdout), read(stderr), async {
            match status {
                Some(status) => status.await,
                None => None,
            }
        });
        let error = match status {
            Some(status) => exit_error(&status),
            None => Some(match attached.join().await {
                Err(error) => format!("the stream broke: {error}"),
                Ok(()) => "the stream ended before the command".to_owned(),
            }),
        };
        Ok(Executed { stdout: stdout?, stderr: stderr?, error })
    }

    /// The pod of an agent.
    pub(crate) fn agent_pod<'a>(&'a self, name: &'a str) -> InPod<'a> {
        InPod { namespace: &self.agent_namespace, name, container: AGENT_CONTAINER }
    }

    /// The command line with which a user repeats an action.
    pub(crate) fn by_hand(&self, pod: &InPod<'_>, argv: &[String]) -> String {
        let InPod { namespace, name, container } = *pod;
        let target = ["-n", namespace, "exec", name, "-c", container, "--"].map(str::to_owned);
        let words = [&["kubectl".to_owned()], &self.kubectl[..], &target, argv].concat();
        words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }

    async fn pods(&self) -> Result<Vec<PodObject>> {
        let mut all = Vec::new();
        for namespace in self.namespaces() {
            let list = self.api_in::<PodObject>(&namespace).list(&ListParams::default()).await;
            all.extend(list.with_context(|| format!("cannot list the pods of {namespace}"))?);
        }
        Ok(all)
    }

    /// Pods, nodes and endpoints as they are now, for those who look why something failed.
    pub(crate) async fn describe(&self) -> String {
        let endpoint = ApiResource {
            group: "cilium.io".to_owned(),
            version: "v2".to_owned(),
            api_version: "cilium.io/v2".to_owned(),
            kind: "CiliumEndpoint".to_owned(),
            plural: "ciliumendpoints".to_owned(),
        };
        let endpoints: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.namespace, &endpoint);
        let nodes: Api<Node> = Api::all(self.client.clone());
        let all = ListParams::default();
        let (pods, nodes, endpoints) =
            futures::join!(self.pods(), nodes.list(&all), endpoints.list(&all));
        let mut text = String::new();
        text += &section("Nodes", nodes.map(|list| describe_nodes(&list.items)));
        text += &section("Pods", pods.map(|list| describe_pods(&list)));
        text += &section("Endpoints", endpoints.map(|list| describe_endpoints(&list.items)));
        text
    }
}

// ---------------------------------------------------------------------------------------------
// Which cluster

/// The file to read; `None` is where kubectl looks.
fn kubeconfig(args: &args::Cluster) -> Result<Option<PathBuf>> {
    if let Some(path) = &args.kubeconfig {
        return Ok(Some(path.clone()));
    }
    let of_kubectl = std::env::var_os("KUBECONFIG").is_some()
        || std::env::var_os("HOME")
            .is_some_and(|home| PathBuf::from(home).join(".kube/config").exists());
    if args.lab.is_none() && of_kubectl {
        return Ok(None);
    }
    let labs = lab::teardown::names()?;
    let name = match (&args.lab, labs.as_slice()) {
        (Some(name), labs) if labs.contains(name) => name,
        (Some(name), _) => bail!("there is no lab {name:?}; start it with `cilium lab up`"),
        (None, [only]) => only,
        (None, []) => return Ok(None),
        (None, many) => bail!("there are several labs: {}; choose one with --lab", many.join(", ")),
    };
    Ok(Some(lab::spec::Paths::new(name).kubeconfig()))
}

fn is_lab(node: &Node) -> bool {
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    info.is_some_and(|info| info.container_runtime_version.starts_with(LAB_RUNTIME))
}

/// Ready, not cordoned, and without taints that our pods do not tolerate.
fn takes_pods(node: &Node) -> bool {
    let spec = node.spec.clone().unwrap_or_default();
    let taints = spec.taints.unwrap_or_default();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .is_some_and(|list| list.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    ready
        && spec.unschedulable != Some(true)
        && taints.iter().all(|taint| taint.effect == "PreferNoSchedule")
}

fn node_addresses(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.as_ref().and_then(|status| status.addresses.clone());
    let internal = addresses.into_iter().flatten().filter(|a| a.type_ == "InternalIP");
    internal.filter_map(|address| address.address.parse().ok()).collect()
}

fn pod_addresses(pod: &PodObject) -> Vec<IpAddr> {
    let ips = pod.status.as_ref().and_then(|status| status.pod_ips.clone());
    ips.into_iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect()
}

fn pod_of(pod: &PodObject) -> Pod {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    Pod {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        app: pod.labels().get("name").cloned().unwrap_or_default(),
        node: node.unwrap_or_default(),
        addresses: pod_addresses(pod),
    }
}

fn is_running(pod: &PodObject) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && phase == Some("Running")
}

/// The families that the pods have. A pod that lacks one which others have is an error, not a test
/// that silently does less.
fn families(wanted: &[IpFamily], pods: &[Pod]) -> Result<Vec<IpFamily>> {
    let mut families = Vec::new();
    for family in IpFamily::ALL.into_iter().filter(|family| wanted.contains(family)) {
        let (with, without): (Vec<&Pod>, Vec<&Pod>) =
            pods.iter().partition(|pod| of_family(&pod.addresses, family).is_some());
        match (with.first(), without.first()) {
            (Some(_), None) => families.push(family),
            (Some(with), Some(without)) => bail!(
                "pod {} has no {family:?} address, although {} has one",
                without.name,
                with.name
            ),
            (None, _) => {}
        }
    }
    if families.is_empty() {
        bail!("the test's pods have no address of the families that shall be tested");
    }
    Ok(families)
}

// ---------------------------------------------------------------------------------------------
// Policies

/// Label of what tests apply; the value is the test's namespace.
const POLICY_LABEL: &str = "cilium.io/connectivity-test";
/// Kind, group, version and plural of what tests apply; groups last, for policies speak of them.
const POLICY_KINDS: [(&str, &str, &str, &str); 4] = [
    ("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies"),
    ("CiliumNetworkPolicy", "cilium.io", "v2", "ciliumnetworkpolicies"),
    ("CiliumClusterwideNetworkPolicy", "cilium.io", "v2", "ciliumclusterwidenetworkpolicies"),
    ("CiliumCIDRGroup", "cilium.io", "v2", "ciliumcidrgroups"),
];

fn resource(wanted: &str) -> Result<ApiResource> {
    let mut kinds = POLICY_KINDS.iter();
    let (kind, group, version, plural) = kinds
        .find(|(kind, ..)| *kind == wanted)
        .ok_or_else(|| anyhow!("no test applies a {wanted}"))?;
    Ok(ApiResource {
        group: (*group).to_owned(),
        version: (*version).to_owned(),
        api_version: format!("{group}/{version}"),
        kind: (*kind).to_owned(),
        plural: (*plural).to_owned(),
    })
}

fn kind(object: &Value) -> String {
    object["kind"].as_str().unwrap_or_default().to_owned()
}

// ---------------------------------------------------------------------------------------------
// What is deployed

const HOST_NETNS: &str = "host-netns";

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {
            "app.kubernetes.io/name": "cilium-cli",
            // Pods in the namespace of their node, and raw sockets for ping.
            "pod-security.kubernetes.io/enforce": "privileged",
            "pod-security.kubernetes.io/warn": "privileged",
        }},
    })
}

/// A Deployment, and where it goes.
struct Deployed {
    namespace: String,
    name: &'static str,
    object: Value,
}

/// Label of clients in namespaces of their own.
const CCNP_KIND: &str = "ccnp-client";

/// The Deployments: Cilium's names and labels, one pod each, with a service account of its own.
fn deployments(nodes: &Nodes, images: &Images, own: &str) -> Vec<Deployed> {
    let near = nodes.hostname_label(&nodes.near);
    let far = nodes.far.as_ref().map(|far| nodes.hostname_label(far));
    let mut all = Vec::new();
    let mut add = |name: &'static str, place: Option<&Value>, labels: Value, container: Value| {
        let Some(place) = place else { return };
        let namespace = match name {
            CCNP_1 => format!("{own}-ccnp1"),
            CCNP_2 => format!("{own}-ccnp2"),
            _ => own.to_owned(),
        };
        all.push(Deployed { namespace, name, object: deployment(name, &labels, place, container) });
    };
    let client_labels = |other: &str| json!({"kind": "client", "other": other});
    add("client", Some(&near), json!({"kind": "client"}), client(images));
    add("client2", Some(&near), client_labels("client"), client(images));
    add("echo-same-node", Some(&near), json!({"kind": "echo", "other": "echo"}), echo(images));
    add("client3", far.as_ref(), client_labels("client-other-node"), client(images));
    add("echo-other-node", far.as_ref(), json!({"kind": "echo", "first": "echo"}), echo(images));
    add(CCNP_1, Some(&near), json!({"kind": CCNP_KIND}), client(images));
    add(CCNP_2, Some(far.as_ref().unwrap_or(&near)), json!({"kind": CCNP_KIND}), client(images));
    all
}

impl Nodes {
    /// Most nodes have their name as this label, but not all.
    fn hostname_label(&self, name: &str) -> Value {
        let node = self.all.iter().find(|node| node.name_any() == name);
        match node.and_then(|node| node.labels().get("kubernetes.io/hostname")) {
            Some(label) => json!({"nodeSelector": {"kubernetes.io/hostname": label}}),
            None => json!({"nodeName": name}),
        }
    }
}

fn deployment(name: &str, labels: &Value, place: &Value, container: Value) -> Value {
    let mut labels = labels.clone();
    merge(&mut labels, &json!({"name": name}));
    let mut spec = json!({
        "terminationGracePeriodSeconds": 5, "containers": [container], "serviceAccountName": name,
    });
    merge(&mut spec, place);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"kind": labels["kind"], "name": name}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    })
}

/// A pod on every node, in the node's own network namespace.
fn host_netns(images: &Images) -> Value {
    let labels = json!({"kind": HOST_NETNS, "name": HOST_NETNS});
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": HOST_NETNS, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "hostNetwork": true,
                "terminationGracePeriodSeconds": 5,
                "containers": [client(images)],
            }},
        },
    })
}

fn client(images: &Images) -> Value {
    json!({
        "name": CONTAINER, "image": images.curl_image, "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", SLEEP],
        "securityContext": {"capabilities": {"add": ["NET_RAW"]}},
    })
}

fn echo(images: &Images) -> Value {
    json!({
        "name": CONTAINER, "image": images.echo_image, "imagePullPolicy": "IfNotPresent",
        "args": ["netexec", format!("--http-port={ECHO_PORT}")],
        "ports": [{"name": "http-8080", "containerPort": ECHO_PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": ECHO_PORT}},
    })
}

fn merge(object: &mut Value, more: &Value) {
    if let (Some(object), Some(more)) = (object.as_object_mut(), more.as_object()) {
        object.extend(more.clone());
    }
}

/// The controller has seen our object, and the pods of the object before are gone.
fn deployment_is_ready(object: &Deployment) -> bool {
    let Some(status) = &object.status else { return false };
    let wanted = object.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    status.observed_generation >= object.metadata.generation
        && status.updated_replicas == Some(wanted)
        && status.available_replicas == Some(wanted)
        && status.replicas == Some(wanted)
}

fn daemon_set_is_ready(object: &DaemonSet) -> bool {
    let Some(status) = &object.status else { return false };
    let wanted = status.desired_number_scheduled;
    status.observed_generation >= object.metadata.generation
        && wanted > 0
        && status.updated_number_scheduled == Some(wanted)
        && status.number_available == Some(wanted)
}

// ---------------------------------------------------------------------------------------------
// Commands in pods

async fn read(stream: Option<impl AsyncRead + Unpin>) -> Result<String> {
    let Some(mut stream) = stream else { return Ok(String::new()) };
    let mut bytes = Vec::new();
    (&mut stream).take(OUTPUT_LEN_MAX).read_to_end(&mut bytes).await?;
    // Who writes more is not blocked, but not listened to either.
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Why a command failed, as the API server tells it.
fn exit_error(status: &Status) -> Option<String> {
    if status.status.as_deref() == Some("Success") {
        return None;
    }
    let causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    let mut codes = causes.filter(|cause| cause.reason.as_deref() == Some("ExitCode"));
    Some(match codes.next().and_then(|cause| cause.message.as_deref()) {
        Some(code) => format!("exit code {code}"),
        None => status.message.clone().unwrap_or_else(|| "no reason given".to_owned()),
    })
}

/// A word as a shell wants it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

// ---------------------------------------------------------------------------------------------
// The world, for those who look for the fault

fn section<E: std::fmt::Display>(title: &str, table: Result<Table, E>) -> String {
    match table {
        Ok(table) => format!("{title}:\n{table}\n"),
        Err(error) => format!("{title}: {error:#}\n\n"),
    }
}

fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn describe_nodes(nodes: &[Node]) -> Table {
    let mut table = Table::new(&["NAME", "TAKES PODS", "ADDRESSES"]);
    for node in nodes {
        let takes = if takes_pods(node) { "yes" } else { "no" };
        table.row(vec![node.name_any(), takes.to_owned(), list(&node_addresses(node))]);
    }
    table
}

fn describe_pods(pods: &[PodObject]) -> Table {
    let mut table = Table::new(&["NAME", "STATUS", "READY", "RESTARTS", "NODE", "ADDRESSES"]);
    for pod in pods {
        let status = pod.status.clone().unwrap_or_default();
        let containers = status.container_statuses.unwrap_or_default();
        let ready = containers.iter().filter(|container| container.ready).count();
        // What a container waits for says more than that the pod is pending.
        let waiting = containers.iter().filter_map(|container| container.state.as_ref());
        let mut waiting = waiting.filter_map(|state| state.waiting.as_ref()?.reason.clone());
        table.row(vec![
            pod.name_any(),
            waiting.next().or(status.phase).unwrap_or_default(),
            format!("{ready}/{}", containers.len()),
            containers.iter().map(|c| c.restart_count).sum::<i32>().to_string(),
            pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            list(&pod_addresses(pod)),
        ]);
    }
    table
}

fn describe_endpoints(endpoints: &[DynamicObject]) -> Table {
    let mut table = Table::new(&["NAME", "ID", "IDENTITY", "STATE"]);
    for endpoint in endpoints {
        let status = &endpoint.data["status"];
        let word = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        table.row(vec![
            endpoint.name_any(),
            word(&status["id"]),
            word(&status["identity"]["id"]),
            word(&status["state"]),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_the_shell() {
        let check = |word: &str, expected: &str| assert_eq!(quoted(word), expected);
        check("ping", "ping");
        check("10.0.0.1:80", "10.0.0.1:80");
        check("", "''");
        check("http://[fd00::1]:80/", "'http://[fd00::1]:80/'");
        check("echo 'a'; b", r"'echo '\''a'\''; b'");
    }

    #[test]
    fn how_commands_end() {
        let check = |status: Value, expected: Option<&str>| {
            let status: Status = serde_json::from_value(status).unwrap();
            assert_eq!(exit_error(&status).as_deref(), expected);
        };
        check(json!({"status": "Success"}), None);
        check(
            json!({
                "status": "Failure", "reason": "NonZeroExitCode", "message": "command terminated",
                "details": {"causes": [{"reason": "ExitCode", "message": "28"}]},
            }),
            Some("exit code 28"),
        );
        check(json!({"status": "Failure", "message": "no such file"}), Some("no such file"));
    }

    #[test]
    fn nodes_that_take_pods() {
        let check = |spec: Value, ready: &str, expected: bool| {
            let node = json!({
                "metadata": {"name": "n"}, "spec": spec,
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            });
            assert_eq!(takes_pods(&serde_json::from_value(node).unwrap()), expected, "{spec}");
        };
        let tainted = |effect: &str| json!({"taints": [{"key": "k", "effect": effect}]});
        check(json!({}), "True", true);
        check(json!({}), "False", false);
        check(json!({"unschedulable": true}), "True", false);
        check(tainted("NoSchedule"), "True", false);
        check(tainted("NoExecute"), "True", false);
        check(tainted("PreferNoSchedule"), "True", true);
    }

    #[test]
    fn pods_say_what_they_wait_for() {
        let pod = |name: &str, phase: &str, state: Value| -> PodObject {
            let container = json!({
                "name": "main", "image": "i", "imageID": "", "ready": phase == "Running",
                "restartCount": 2, "state": state,
            });
            let ips = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]);
            let status = json!({"phase": phase, "podIPs": ips, "containerStatuses": [container]});
            let spec = json!({"nodeName": "node-1", "containers": []});
            let pod = json!({"metadata": {"name": name}, "spec": spec, "status": status});
            serde_json::from_value(pod).unwrap()
        };
        let table = describe_pods(&[
            pod("a", "Running", json!({"running": {}})),
            pod("b", "Pending", json!({"waiting": {"reason": "ErrImagePull"}})),
        ]);
        expect_test::expect![[r"
            NAME   STATUS         READY   RESTARTS   NODE     ADDRESSES
            a      Running        1/1     2          node-1   10.0.0.1, fd00::1
            b      ErrImagePull   0/1     2          node-1   10.0.0.1, fd00::1
        "]]
        .assert_eq(&table.to_string());
    }

    #[test]
    fn families_of_pods() {
        let pod = |name: &str, addresses: &[&str]| Pod {
            namespace: "test".to_owned(),
            name: name.to_owned(),
            app: name.to_owned(),
            node: "node-1".to_owned(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        };
        let check = |wanted: &[IpFamily], pods: &[Pod], expected: Result<&[IpFamily], &str>| {
            let got = families(wanted, pods).map_err(|error| error.to_string());
            assert_eq!(got.as_deref().map_err(String::as_str), expected);
        };
        let (both, v4) = (pod("a", &["10.0.0.1", "fd00::1"]), pod("b", &["10.0.0.2"]));
        check(&IpFamily::ALL, &[both.clone(), both.clone()], Ok(&IpFamily::ALL));
        check(&[IpFamily::Ipv6], std::slice::from_ref(&both), Ok(&[IpFamily::Ipv6]));
        check(&IpFamily::ALL, std::slice::from_ref(&v4), Ok(&[IpFamily::Ipv4]));
        let lacks = "pod b has no Ipv6 address, although a has one";
        check(&IpFamily::ALL, &[both, v4.clone()], Err(lacks));
        let none = "the test's pods have no address of the families that shall be tested";
        check(&[IpFamily::Ipv6], &[v4], Err(none));
    }

    #[test]
    fn what_is_deployed_is_what_kubernetes_knows() {
        let node = |name: &str, labels: Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
        };
        let nodes = Nodes {
            near: "one".to_owned(),
            far: Some("two".to_owned()),
            all: vec![
                node("one", json!({"kubernetes.io/hostname": "host-1"})),
                node("two", json!({})),
            ],
            lab: false,
        };
        let images = Images { curl_image: "curl:1".to_owned(), echo_image: "agnhost:1".to_owned() };
        let all = deployments(&nodes, &images, "test");
        let places: Vec<String> =
            all.iter().map(|one| format!("{}/{}", one.namespace, one.name)).collect();
        let expected = [
            "test/client",
            "test/client2",
            "test/echo-same-node",
            "test/client3",
            "test/echo-other-node",
            "test-ccnp1/ccnp-client-1",
            "test-ccnp2/ccnp-client-2",
        ];
        assert_eq!(places, expected);
        for Deployed { name, object, .. } in &all {
            let typed: Deployment = serde_json::from_value(object.clone()).unwrap();
            let spec = typed.spec.unwrap().template.spec.unwrap();
            let near = spec.node_selector.is_some_and(|s| s["kubernetes.io/hostname"] == "host-1");
            let far = spec.node_name.as_deref() == Some("two");
            let expected = ["client3", "echo-other-node", "ccnp-client-2"].contains(name);
            assert_eq!((near, far), (!expected, expected), "{name}");
        }
        let _: DaemonSet = serde_json::from_value(host_netns(&images)).unwrap();
        let alone = Nodes { far: None, ..nodes };
        assert_eq!(deployments(&alone, &images, "test").len(), 5);
    }
}
