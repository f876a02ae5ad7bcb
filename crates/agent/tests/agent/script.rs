//! Scripts in `testdata/`: Kubernetes objects and commands in, tables and maps out.
//!
//! A line that begins with `> ` is a command. What follows it is, for `> apply`, YAML; for all others
//! what the command must print. `UPDATE_EXPECT=1` writes what it printed into the file. Commands:
//!
//! ```text
//! apply                        objects as the API server would send them
//! delete KIND [NAMESPACE/]NAME
//! sync                         every watch has listed once
//! create NAMESPACE/POD[@UID] IFINDEX   the CNI plugin's ADD
//! remove ID                    the CNI plugin's DEL
//! device-gone IFINDEX          a network namespace went without DEL
//! collect                      the periodic search for such endpoints
//! stale ADDRESS                puts a row into the maps that nobody wants
//! fail N | heal                every Nth map operation fails | no more failures
//! refuse | accept              the kernel refuses programs | accepts them again
//! api-away | api-back          the API server creates no identities | creates them again
//! native                       native routing, from the next restart on
//! restart                      kill the agent, start another one
//! wait                         time passes: retries and periodic passes happen
//! audit on|off                 the option PolicyAuditMode of the agent
//! mode default|always|never    the option enable-policy
//! policy-max N                 the option bpf-policy-map-max, from the next restart on
//! show policy | endpoint-policies | prefixes
//! show lxc | lxc-devices | ipcache | endpoints | identities | routes | ipam | published | attached
//! ```

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use abi::endpoint::EndpointInfo;
use abi::ipcache::RemoteEndpointInfo;
use agent::k8s::convert;
use agent::policy::watch;
use agent::tables::LabelledPrefix;
use api::policy::{
    CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy, Context, NetworkPolicy, PolicyObject,
};
use kernel::map::Map;
use model::NodeName;
use policy::{EnforcementMode, PolicyId, PolicyKind};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::world::{Machine, World};

#[test]
fn scripts() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "there are scripts in {}", dir.display());
    let mut failed = Vec::new();
    for path in paths {
        let expected = std::fs::read_to_string(&path).unwrap();
        let actual = run(&path.file_stem().unwrap().to_string_lossy(), &expected);
        if actual == expected {
            continue;
        }
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&path, &actual).unwrap();
        } else {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            failed.push(format!("== {name}, as it came out:\n{actual}"));
        }
    }
    assert!(failed.is_empty(), "UPDATE_EXPECT=1 accepts these:\n{}", failed.join("\n"));
}

/// Runs a script and returns it with what its commands printed.
fn run(name: &str, script: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut machine = Machine::new(name);
        let mut world = World::start(&machine);
        let mut output = String::new();
        let mut lines = script.lines().peekable();
        while let Some(line) = lines.next() {
            writeln!(output, "{line}").unwrap();
            let Some(command) = line.strip_prefix("> ") else { continue };
            let mut body = String::new();
            while let Some(next) = lines.next_if(|next| !is_boundary(next)) {
                writeln!(body, "{next}").unwrap();
            }
            let printed = if command == "apply" {
                apply(&world, &body);
                world.settle().await;
                body
            } else if command == "restart" {
                world.stop().await;
                world = World::start(&machine);
                world.settle().await;
                String::new()
            } else {
                let printed = execute(&mut world, &mut machine, command).await;
                world.settle().await;
                printed
            };
            output.push_str(&printed);
        }
        world.stop().await;
        output
    })
}

/// Where the body of a command ends: at the next command, a comment or an empty line.
fn is_boundary(line: &str) -> bool {
    line.starts_with("> ") || line.starts_with('#') || line.is_empty()
}

async fn execute(world: &mut World, machine: &mut Machine, command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["sync"] => world.synchronise(machine),
        ["create", pod, ifindex] => {
            let (pod, uid) = pod.split_once('@').unwrap_or((pod, ""));
            let (pod, ifindex) = (pod.parse().unwrap(), ifindex.parse().unwrap());
            return match world.create(machine, &pod, uid, ifindex).await {
                Ok(endpoint) => format!("endpoint {} is {}\n", endpoint.id, endpoint.state),
                Err(error) => format!("error: {error}\n"),
            };
        }
        ["remove", id] => {
            if !world.remove(machine, id.parse().unwrap()).await {
                return "there is no such endpoint\n".to_owned();
            }
        }
        ["delete", kind, name] => delete(world, kind, name),
        ["device-gone", ifindex] => {
            machine.devices.links.lock().unwrap().remove(&ifindex.parse().unwrap());
        }
        ["collect"] => world.endpoints.forget_gone().await.unwrap(),
        ["stale", address] => {
            let address: std::net::IpAddr = address.parse().unwrap();
            machine.maps.lxc.update(&address.into(), &EndpointInfo::default()).unwrap();
            let info = RemoteEndpointInfo { sec_identity: 999, ..RemoteEndpointInfo::default() };
            machine.maps.hosts.update(&address.into(), &info).unwrap();
        }
        ["fail", nth] => machine.maps.fail_every(nth.parse().unwrap()),
        ["heal"] => machine.maps.heal(),
        ["refuse"] => *machine.devices.refuse.lock().unwrap() = true,
        ["accept"] => *machine.devices.refuse.lock().unwrap() = false,
        ["api-away"] => *machine.store.away.lock().unwrap() = true,
        ["api-back"] => *machine.store.away.lock().unwrap() = false,
        ["native"] => machine.tunnel = false,
        ["policy-max", most] => machine.config.bpf_policy_map_max = most.parse().unwrap(),
        ["audit", word] => {
            world.policies.engine.lock().set_audit(*word == "on");
            world.policies.engine.recompute();
        }
        ["mode", word] => {
            let mode = match *word {
                "always" => EnforcementMode::Always,
                "never" => EnforcementMode::Never,
                _ => EnforcementMode::Default,
            };
            world.policies.engine.lock().set_mode(mode);
            world.policies.engine.recompute();
        }
        ["wait"] => world.wait_long().await,
        ["show", what] => return show(world, machine, what),
        _ => panic!("unknown command {command:?}"),
    }
    String::new()
}

fn show(world: &World, machine: &Machine, what: &str) -> String {
    match what {
        "lxc" => machine.maps.lxc_text(),
        "lxc-devices" => machine.maps.devices_text(),
        "policy" => machine.maps.policy_text(),
        "endpoint-policies" => world.policies.table.snapshot().to_string(),
        "prefixes" => {
            let engine = world.policies.engine.lock();
            let rows = engine.labelled_prefixes();
            let line = |row: &LabelledPrefix| {
                let labels = engine.identities().labels(row.identity).cloned().unwrap_or_default();
                format!("{} {} {labels}\n", row.prefix, row.identity)
            };
            rows.iter().map(line).collect()
        }
        "ipcache" => machine.maps.ipcache_text(),
        "endpoints" => world.endpoints.table().snapshot().to_string(),
        "identities" => world.endpoints.identities().table().snapshot().to_string(),
        "routes" => world.routes.snapshot().to_string(),
        "published" => {
            let (table, writer) = statedb::Table::new("published");
            writer.replace(world.published());
            table.snapshot().to_string()
        }
        "attached" => {
            let attached = machine.devices.attached.lock().unwrap();
            attached.iter().map(|(ifindex, times)| format!("{ifindex} {times} times\n")).collect()
        }
        "ipam" => {
            let ipam = world.endpoints.ipam();
            let used = ipam.pools().flat_map(|pool| pool.used());
            used.map(|(address, owner)| format!("{address} {owner}\n")).collect()
        }
        _ => panic!("cannot show {what:?}"),
    }
}

/// Writes objects as their watch would.
fn apply(world: &World, yaml: &str) {
    for document in yaml.split("---\n").filter(|document| !document.trim().is_empty()) {
        let object: Value = serde_saphyr::from_str(document).unwrap();
        match object["kind"].as_str().unwrap() {
            "Pod" => {
                let pod = parse(&object);
                match convert::local_pod(&pod) {
                    Some(row) => world.pods.upsert(row),
                    None => world.pods.delete(&convert::pod_name(&pod.metadata)),
                };
            }
            "Namespace" => {
                world.namespaces.upsert(convert::namespace(&parse(&object)));
            }
            "CiliumNode" => {
                world.nodes.upsert(convert::node(&parse(&object), &NodeName::new("node-1")));
            }
            "CiliumEndpoint" => {
                world.cluster.upsert(convert::cluster_endpoint(&parse(&object)));
            }
            "NetworkPolicy" => put_policy::<NetworkPolicy>(world, &object),
            "CiliumNetworkPolicy" => put_policy::<CiliumNetworkPolicy>(world, &object),
            "CiliumClusterwideNetworkPolicy" => {
                put_policy::<CiliumClusterwideNetworkPolicy>(world, &object);
            }
            "CiliumCIDRGroup" => {
                world.policy.groups.upsert(watch::group(&parse(&object)).unwrap());
            }
            "Service" => {
                world.policy.services.upsert(watch::service(&parse(&object)));
            }
            "EndpointSlice" => {
                world.policy.backends.upsert(watch::backends(&parse(&object)).unwrap());
            }
            "Node" => {
                world.policy.nodes.upsert(watch::node_labels(&parse(&object)));
            }
            "CiliumIdentity" => {
                world.identities.upsert(convert::identity(&parse(&object)).unwrap());
            }
            kind => panic!("cannot apply a {kind}"),
        }
    }
}

/// Writes a policy as its watch would.
fn put_policy<K>(world: &World, object: &Value)
where
    K: kube::Resource<DynamicType = ()> + PolicyObject + DeserializeOwned,
{
    let context = Context { cluster_name: "test".to_owned(), ..Context::default() };
    let row = watch::policy(&parse::<K>(object), &context);
    world.policy.of(row.id.kind).upsert(row);
}

fn delete_policy(world: &World, kind: PolicyKind, name: &str) -> statedb::Revision {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let id = PolicyId { kind, namespace: namespace.to_owned(), name: name.to_owned() };
    world.policy.of(kind).delete(&id)
}

fn parse<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).unwrap()
}

fn delete(world: &World, kind: &str, name: &str) {
    match kind {
        "pod" => world.pods.delete(&name.parse().unwrap()),
        "namespace" => world.namespaces.delete(&name.to_owned()),
        "ciliumnode" => world.nodes.delete(&NodeName::new(name)),
        "ciliumendpoint" => world.cluster.delete(&name.parse().unwrap()),
        "networkpolicy" => delete_policy(world, PolicyKind::NetworkPolicy, name),
        "cnp" => delete_policy(world, PolicyKind::CiliumNetworkPolicy, name),
        "ccnp" => delete_policy(world, PolicyKind::CiliumClusterwideNetworkPolicy, name),
        "ciliumcidrgroup" => world.policy.groups.delete(&name.to_owned()),
        "ciliumidentity" => world.identities.delete(&name.parse().unwrap()),
        _ => panic!("cannot delete a {kind}"),
    };
}
