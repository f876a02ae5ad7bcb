//! Stock `kubectl` against the API server: every verb, and what users do wrong.
//!
//! Needs no root. Runs the `kubectl` on the PATH, and those that `LAB_TEST_KUBECTL` lists,
//! separated by colons; `scenario` is what each of them goes through.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lab::apiserver::{ApiServer, Config};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - name: web
    image: nginx:1.25
    ports: [{containerPort: 80}, {containerPort: 443}]
---
apiVersion: v1
kind: Pod
metadata: {name: db, labels: {app: db}}
spec:
  nodeName: node-1
  containers: [{name: db, image: postgres}]
";

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd], categories: [things]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status'}
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 1, maximum: 10, description: How large.}
              color: {type: string, enum: [red, green], default: red}
          status:
            type: object
            properties:
              conditions:
                type: array
                items: {type: object, properties: {type: {type: string}, status: {type: string}}}
  - name: v1beta1
    served: true
    storage: false
    deprecated: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;

/// One `kubectl` and the cluster that it talks to.
struct Kubectl<'a> {
    program: PathBuf,
    kubeconfig: &'a Path,
    home: &'a Path,
    modern: bool,
}

struct Said {
    ok: bool,
    text: String,
}

impl Kubectl<'_> {
    fn run(&self, arguments: &str, input: &str) -> Said {
        let mut child = Command::new(&self.program)
            .env("KUBECONFIG", self.kubeconfig)
            .env("HOME", self.home)
            .env("KUBE_EDITOR", "sed -i s/nginx:1.25/nginx:1.26/")
            .args(split(arguments))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("kubectl reads");
        let output = child.wait_with_output().expect("kubectl ends");
        let text = [output.stdout, output.stderr].concat();
        Said { ok: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
    }

    /// Succeeds, and says all of `expected`, which are separated by `|`.
    fn check(&self, arguments: &str, input: &str, expected: &str) {
        self.expect(arguments, input, expected, true);
    }

    /// Fails, and says why.
    fn refused(&self, arguments: &str, input: &str, expected: &str) {
        self.expect(arguments, input, expected, false);
    }

    fn expect(&self, arguments: &str, input: &str, expected: &str, ok: bool) {
        let said = self.run(arguments, input);
        let program = self.program.display();
        assert_eq!(said.ok, ok, "{program} {arguments}\n{input}\n{}", said.text);
        for part in expected.split('|') {
            assert!(
                said.text.contains(part),
                "{program} {arguments}\nlacks {part:?}:\n{}",
                said.text
            );
        }
    }
}

/// Words; single quotes hold them together.
fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().expect("never empty").push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn kubectl_works_unchanged() {
    let also = std::env::var("LAB_TEST_KUBECTL").unwrap_or_default();
    let programs = also.split(':').filter(|path| !path.is_empty());
    let mut tested = 0;
    for program in std::iter::once("kubectl").chain(programs) {
        let version = Command::new(program).args(["version", "--client", "-o", "json"]).output();
        let Ok(version) = version else {
            eprintln!("SKIPPED: kubectl_works_unchanged: {program} cannot be run");
            continue;
        };
        let old = String::from_utf8_lossy(&version.stdout).contains("\"minor\": \"20\"");
        let home =
            std::env::temp_dir().join(format!("lab-kubectl-{}-{tested}", std::process::id()));
        std::fs::create_dir_all(&home).expect("temporary directory");
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let url = format!("https://{}", listener.local_addr().expect("bound"));
        let config = Config {
            listeners: vec![listener],
            server_names: vec!["127.0.0.1".into()],
            ..Config::default()
        };
        let server = runtime.block_on(ApiServer::start(config)).expect("the API server starts");
        let kubeconfig = home.join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig(&url, "test")).expect("kubeconfig");
        scenario(&Kubectl {
            program: program.into(),
            kubeconfig: &kubeconfig,
            home: &home,
            modern: !old,
        });
        runtime.block_on(server.shutdown());
        std::fs::remove_dir_all(&home).expect("temporary directory");
        tested += 1;
    }
}

fn scenario(k: &Kubectl<'_>) {
    discovery(k);
    pods(k);
    patches(k);
    watching(k);
    wrong_input(k);
    deletion(k);
    custom_resources(k);
    namespaces(k);
    plain_objects(k);
    rights(k);
    volumes_and_schedules(k);
    if k.modern {
        server_side_apply(k);
    }
}

fn discovery(k: &Kubectl<'_>) {
    k.check("api-resources", "", "pods|configmaps|leases|customresourcedefinitions");
    k.check("api-versions", "", "v1|coordination.k8s.io/v1|apiextensions.k8s.io/v1");
    k.check("version", "", "Server Version");
    k.check("cluster-info", "", "Kubernetes control plane");
    k.check("explain pod.spec.containers", "", "FIELD|image");
    k.check("explain networkpolicy.spec", "", "podSelector");
    k.check("explain role.rules", "", "verbs|apiGroups");
    k.check("get --raw /healthz", "", "ok");
    k.check("auth can-i create pods", "", "yes");
    k.refused("get nonsense", "", "doesn't have a resource type \"nonsense\"");
}

fn pods(k: &Kubectl<'_>) {
    k.check("apply -f -", PODS, "pod/web created|pod/db created");
    k.check("apply -f -", PODS, "pod/web unchanged|pod/db unchanged");
    k.check(
        "apply -f - --dry-run=server",
        &PODS.replace("app: web", "app: x"),
        "configured (server dry run)",
    );
    k.check("get pods", "", "NAME|READY|web|0/1|Pending");
    k.check("get pods -o wide", "", "NOMINATED NODE|node-1");
    k.check("get pods -A", "", "NAMESPACE|default");
    k.check("get pods -o name -l app=web", "", "pod/web");
    k.check("get pods -l 'app in (db,x)' --no-headers", "", "db");
    k.check("get pods --field-selector spec.nodeName=node-1 -o name", "", "pod/db");
    k.check("get pods --field-selector metadata.name!=db -o name", "", "pod/web");
    k.check("get pod web -o jsonpath={.spec.containers[0].image}", "", "nginx:1.25");
    k.check("get pod web -o yaml", "", "restartPolicy: Always|protocol: TCP|qosClass: BestEffort");
    k.check("get pod web -o json", "", "\"kind\": \"Pod\"");
    k.check("get pods --sort-by=.metadata.name", "", "db");
    k.check("get pods --chunk-size=1 -A -o name", "", "pod/db|pod/web");
    k.check("describe pod web", "", "Name:|nginx:1.25|Events:");
    k.refused("wait pod/web --for=condition=Ready --timeout=1s", "", "timed out");
    k.check("run once --image=busybox --restart=Never --labels=app=once", "", "pod/once created");
    k.check("delete pod once", "", "deleted");
}

fn patches(k: &Kubectl<'_>) {
    k.check("label pod web tier=front", "", "labeled");
    k.refused("label pod web tier=back", "", "already has a value");
    k.check("label pod web tier-", "", "label");
    k.check("annotate pod web note='some text'", "", "annotate");
    k.check(r#"patch pod web -p '{"metadata":{"labels":{"s":"1"}}}'"#, "", "patched");
    k.check(r#"patch pod web --type=merge -p '{"metadata":{"labels":{"m":"1"}}}'"#, "", "patched");
    k.check(
        r#"patch pod web --type=json -p '[{"op":"add","path":"/metadata/labels/j","value":"1"}]'"#,
        "",
        "patched",
    );
    k.check("get pods --show-labels", "", "app=web,j=1,m=1,s=1");
    // A strategic merge patch finds the container by its name.
    k.check(
        r#"patch pod web -p '{"spec":{"containers":[{"name":"web","image":"nginx:1.24"}]}}'"#,
        "",
        "patched",
    );
    k.check("get pod web -o jsonpath={.spec.containers[*].ports[*].containerPort}", "", "80 443");
    k.check("apply -f -", PODS, "pod/web configured");
    k.check("edit pod web", "", "pod/web edited");
    k.check("get pod web -o jsonpath={.spec.containers[0].image}", "", "nginx:1.26");
    k.refused(
        r#"patch pod web -p '{"spec":{"nodeName":"x","hostname":"y"}}'"#,
        "",
        "pod updates may not change fields other than",
    );
    k.refused(
        r#"patch pod web --type=json -p '[{"op":"remove","path":"/nothing"}]'"#,
        "",
        "invalid",
    );
    k.check("set image pod/web web=nginx:1.27", "", "image updated");
}

fn watching(k: &Kubectl<'_>) {
    let mut watch = Command::new(&k.program)
        .env("KUBECONFIG", k.kubeconfig)
        .env("HOME", k.home)
        .args(["get", "configmaps", "-w", "-o", "name", "--request-timeout=60s"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let output = watch.stdout.take().expect("piped");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
    assert_eq!(lines.next().expect("a line").expect("text"), "configmap/kube-root-ca.crt");
    k.check("create configmap seen --from-literal=a=b", "", "created");
    assert_eq!(lines.next().expect("a line").expect("text"), "configmap/seen");
    watch.kill().expect("kubectl is there");
    watch.wait().expect("kubectl ends");
    k.check("delete configmap seen", "", "deleted");
}

fn wrong_input(k: &Kubectl<'_>) {
    k.refused("apply -f -", "kind: Pod\napiVersion: v1\nmetadata: {name: [x}\n", "error");
    k.refused("apply -f -", &PODS.replace("kind: Pod", "kind: Pot"), "no matches for kind \"Pot\"");
    k.refused("apply -f -", &PODS.replace("image: nginx:1.25", "imagx: nginx"), "unknown field \"");
    k.refused("apply -f -", &PODS.replace("containerPort: 80", "containerPort: x"), "ontainerPort");
    k.refused("create -f -", &PODS.replace("name: web,", "name: Web,"), "RFC 1123 subdomain");
    k.refused("create -f -", PODS, "pods \"web\" already exists");
    k.refused("get pod missing", "", "pods \"missing\" not found");
    k.refused("get pods -l 'a in (b'", "", "unable to parse requirement");
    k.refused(
        "get pods --field-selector spec.bogus=x",
        "",
        "field label not supported: spec.bogus",
    );
    k.refused("-n nowhere create configmap c", "", "namespaces \"nowhere\" not found");
    k.refused(
        "create -f -",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: empty}\nspec: {containers: []}\n",
        "spec.containers: Required value",
    );
    k.refused("logs web", "", "pods/log is not served");
    k.refused("delete namespace default", "", "may not be deleted");
}

fn deletion(k: &Kubectl<'_>) {
    // `db` has a node, so it stays until that node is done with it.
    k.check("delete pod db --wait=false", "", "deleted");
    k.check("get pod db", "", "Terminating");
    k.check("get pod db -o jsonpath={.metadata.deletionGracePeriodSeconds}", "", "30");
    k.check("delete pod db --force --grace-period=0", "", "force deleted");
    let gone = k.run("wait --for=delete pod/db --timeout=5s", "");
    assert!(gone.ok || gone.text.contains("no matching resources"), "{}", gone.text);
    k.check("delete pods --all", "", "pod \"web\" deleted");
    k.check("get pods", "", "No resources found");
    k.check(
        "apply -f -",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: held, finalizers: [example.com/hold]}\n",
        "created",
    );
    k.check("delete configmap held --wait=false", "", "deleted");
    k.check("get configmap held -o jsonpath={.metadata.deletionTimestamp}", "", "T");
    k.check(
        r#"patch configmap held --type=merge -p '{"metadata":{"finalizers":null}}'"#,
        "",
        "patched",
    );
    k.refused("get configmap held", "", "not found");
}

fn custom_resources(k: &Kubectl<'_>) {
    let widget = "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: a}\nspec: {size: 3}\n";
    k.refused(
        "apply -f -",
        &DEFINITION.replace("name: widgets.example.com", "name: x.example.com"),
        "must be spec.names.plural",
    );
    k.check("apply -f -", DEFINITION, "created");
    k.check(
        "wait crd/widgets.example.com --for=condition=Established --timeout=5s",
        "",
        "condition met",
    );
    k.check("apply -f -", widget, "widget.example.com/a created");
    k.check("get wd", "", "NAME|SIZE|READY|a");
    k.check("get things -o name", "", "widget.example.com/a");
    k.check("get wd a -o jsonpath={.spec.color}", "", "red");
    k.check("explain widget.spec.size", "", "How large.");
    k.check("get widgets.v1beta1.example.com a -o yaml", "", "example.com/v1beta1");
    k.check(r#"patch wd a --type=merge -p '{"spec":{"size":4}}'"#, "", "patched");
    k.check("get wd a -o jsonpath={.metadata.generation}", "", "2");
    k.refused(
        "apply -f -",
        &widget.replace("size: 3", "size: 30"),
        "should be less than or equal to 10",
    );
    k.refused(
        "apply -f -",
        &widget.replace("size: 3", "size: 3, color: blue"),
        "supported values: \"red\", \"green\"",
    );
    k.refused("apply -f -", &widget.replace("size: 3", "color: red"), "size");
    k.refused("apply -f -", &widget.replace("size: 3", "size: 3, bogus: 1"), "unknown field \"");
    if k.modern {
        let status = r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#;
        k.check(
            &format!("patch wd a --type=merge --subresource=status -p '{status}'"),
            "",
            "patched",
        );
        k.check("wait wd/a --for=condition=Ready --timeout=5s", "", "condition met");
        k.check("wait wd/a --for=jsonpath={.spec.size}=4 --timeout=5s", "", "condition met");
    }
    k.check("delete wd a", "", "deleted");
    k.check("delete crd widgets.example.com", "", "deleted");
    k.refused("get widgets.example.com", "", "error");
}

fn namespaces(k: &Kubectl<'_>) {
    k.check("create namespace team", "", "created");
    k.check("-n team create configmap c --from-literal=a=b", "", "created");
    k.check("-n team get serviceaccounts", "", "default");
    k.check("delete namespace team", "", "deleted");
    k.refused("get namespace team", "", "not found");
    k.refused("-n team get configmap c", "", "not found");
}

fn plain_objects(k: &Kubectl<'_>) {
    k.check("create secret generic s --from-literal=password=x", "", "created");
    k.check("get secret s -o jsonpath={.data.password}", "", "eA==");
    k.check("create serviceaccount robot", "", "created");
    k.check("create service clusterip svc --tcp=80:8080", "", "created");
    k.check("get services", "", "svc|ClusterIP|80/TCP");
    k.check("get secret s -o yaml", "", "type: Opaque");
    k.check(
        "replace -f -",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {password: z}\n",
        "replaced",
    );
    k.check("get secret s -o jsonpath={.data.password}", "", "eg==");
    let event = "apiVersion: v1\nkind: Event\nmetadata: {name: e.1}\ninvolvedObject: {kind: Pod, name: web, namespace: default}\nreason: Tested\nmessage: all is well\ntype: Normal\n";
    k.check("create -f -", event, "created");
    k.check("get events", "", "Tested|pod/web|all is well");
    k.check("delete secret/s serviceaccount/robot service/svc", "", "deleted");
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\nspec: {podCIDRs: [10.0.0.0/24]}\nstatus: {addresses: [{type: InternalIP, address: 172.18.1.1}], conditions: [{type: Ready, status: \"True\"}]}\n";
    k.check("create -f -", node, "created");
    k.check("get nodes -o wide", "", "node-1|Ready|172.18.1.1");
    k.check("describe node node-1", "", "InternalIP:  172.18.1.1");
    k.check("cordon node-1", "", "cordoned");
    k.check("get nodes", "", "SchedulingDisabled");
}

fn rights(k: &Kubectl<'_>) {
    k.check("create role reader --verb=get,list,watch --resource=pods,pods/log", "", "created");
    k.check("create rolebinding readers --role=reader --user=jane --group=dev", "", "created");
    k.check("auth can-i list pods --as=jane", "", "yes");
    k.check("auth can-i get pods/log --as=somebody --as-group=dev", "", "yes");
    k.refused("auth can-i delete pods --as=jane", "", "no");
    k.check("auth can-i --list --as=jane", "", "Resources|pods/log|[get list watch]");
    k.check("get pods --as=jane", "", "No resources found");
    k.refused(
        "delete pod x --as=jane",
        "",
        "Error from server (Forbidden): pods \"x\" is forbidden: User \"jane\" cannot delete resource \"pods\" in API group \"\" in the namespace \"default\"",
    );
    k.refused(
        "get nodes --as=jane",
        "",
        "nodes is forbidden: User \"jane\" cannot list resource \"nodes\" in API group \"\" at the cluster scope",
    );
    k.check("get rolebindings -o wide", "", "ROLE|readers|Role/reader|jane|dev");
    k.check("describe role reader", "", "Resources|pods/log|[get list watch]");
    k.check("describe rolebinding readers", "", "reader|jane");
    k.check("describe clusterrole view", "", "networkpolicies");
    k.check("create serviceaccount robot", "", "created");
    k.check(
        "create clusterrole scaler --verb=patch --resource=deployments.apps --resource=deployments.apps/scale",
        "",
        "created",
    );
    k.check(
        "create clusterrolebinding scalers --clusterrole=scaler --serviceaccount=default:robot",
        "",
        "created",
    );
    let robot = "--as=system:serviceaccount:default:robot";
    k.check(&format!("auth can-i patch deployments.apps {robot}"), "", "yes");
    k.refused(&format!("auth can-i create deployments.apps {robot}"), "", "no");
    k.check("delete clusterrolebinding/scalers clusterrole/scaler", "", "deleted");
    k.refused(
        "apply -f -",
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {name: readers}\nroleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: other}\n",
        "cannot change roleRef",
    );
    k.refused("top pods", "", "etrics");
    k.check("get --raw /openid/v1/jwks", "", "ES256");
    k.check("get --raw /.well-known/openid-configuration", "", "/openid/v1/jwks");
    if k.modern {
        k.check("auth whoami", "", "kubernetes-admin|system:masters");
        k.check("create token robot --duration=15m", "", "eyJ");
        k.refused("create token nobody", "", "serviceaccounts \"nobody\" not found");
        k.refused(
            "create token robot --duration=1m",
            "",
            "may not specify a duration less than 10 minutes",
        );
        let token = k.run("create token robot", "").text;
        let as_robot = format!("--token={} auth whoami", token.trim());
        // The certificate of the kubeconfig counts before a token.
        k.check(&as_robot, "", "kubernetes-admin");
    }
    k.check("delete role/reader rolebinding/readers serviceaccount/robot", "", "deleted");
}

fn volumes_and_schedules(k: &Kubectl<'_>) {
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: disk}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n";
    k.check("apply -f -", claim, "created");
    k.check("get pvc", "", "disk|Pending|STORAGECLASS");
    k.check("describe pvc disk", "", "Status:        Pending");
    k.refused("apply -f -", &claim.replace("ReadWriteOnce", "Sometimes"), "supported values");
    k.check("delete pvc disk", "", "deleted");
    let cron = "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: tick}\nspec:\n  schedule: '*/5 * * * *'\n  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}\n";
    k.check("apply -f -", cron, "created");
    k.check("get cronjobs", "", "SCHEDULE|tick|*/5 * * * *|False");
    k.refused("apply -f -", &cron.replace("*/5 * * * *", "often"), "expected exactly 5 fields");
    k.check("delete cronjob tick", "", "deleted");
    if k.modern {
        k.check(
            "create cronjob tock --image=busybox:1 --schedule='0 * * * *' -- date -u",
            "",
            "created",
        );
        k.check("create job now --from=cronjob/tock", "", "created");
        k.check(
            "get job now -o jsonpath={.spec.template.spec.containers[0].command}",
            "",
            r#"["date","-u"]"#,
        );
        // Its job goes along.
        k.check("delete cronjob tock", "", "deleted");
    }
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\nspec: {podSelector: {matchLabels: {app: web}}}\n";
    k.check("apply -f -", policy, "created");
    k.check("get networkpolicies", "", "POD-SELECTOR|web|app=web");
    k.check("describe networkpolicy web", "", "app=web|Policy Types: Ingress");
    k.check("delete networkpolicy web", "", "deleted");
}

fn server_side_apply(k: &Kubectl<'_>) {
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shared}\ndata: {a: '1', b: '2'}\n";
    k.check("apply --server-side --field-manager=one -f -", map, "serverside-applied");
    k.check("get configmap shared --show-managed-fields -o yaml", "", "manager: one|f:a: {}");
    let other = map.replace("a: '1', b: '2'", "a: '9'");
    k.refused(
        "apply --server-side --field-manager=two -f -",
        &other,
        "conflict with \"one\": .data.a",
    );
    k.check(
        "apply --server-side --field-manager=two --force-conflicts -f -",
        &other,
        "serverside-applied",
    );
    k.check("get configmap shared -o jsonpath={.data}", "", r#"{"a":"9","b":"2"}"#);
    // What its only owner no longer applies goes; what another one owns stays.
    k.check(
        "apply --server-side --field-manager=one -f -",
        &map.replace("a: '1', b: '2'", "c: '3'"),
        "serverside-applied",
    );
    k.check("get configmap shared -o jsonpath={.data}", "", r#"{"a":"9","c":"3"}"#);
    // From client-side to server-side apply.
    let plain = map.replace("shared", "moved");
    k.check("apply -f -", &plain, "created");
    k.check("apply --server-side -f -", &plain.replace("b: '2'", "b: '3'"), "serverside-applied");
    k.check("get configmap moved -o jsonpath={.data.b}", "", "3");
    k.check("delete configmap shared moved", "", "deleted");
}
