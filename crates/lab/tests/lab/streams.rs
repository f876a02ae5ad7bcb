//! kubectl exec, cp, attach, port-forward and logs, with every kubectl there is.
//!
//! `LAB_TEST_KUBECTL=/path/one:/path/two` adds binaries to the one in the path: versions before 1.30 speak SPDY,
//! later ones WebSockets.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::AttachParams;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{Lab, can_run, pod, server, text};

/// For what takes a moment, on a machine that does other things as well.
const PATIENCE_S: &str = "90";

fn kubectls() -> Vec<String> {
    let more = std::env::var("LAB_TEST_KUBECTL").unwrap_or_default();
    let more = more.split(':').filter(|path| !path.is_empty()).map(str::to_owned);
    ["kubectl".to_owned()].into_iter().chain(more).collect()
}

/// One kubectl and the lab it speaks to.
struct Kubectl<'a> {
    lab: &'a Lab,
    program: &'a str,
}

impl Kubectl<'_> {
    fn start(&self, args: &[&str]) -> Running {
        Running(self.command(args).spawn().unwrap())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args([PATIENCE_S, self.program]).args(args);
        command.env("KUBECONFIG", self.lab.dir().join("kubeconfig"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str], stdin: &[u8]) -> Output {
        let mut child = self.command(args).spawn().unwrap();
        // One that needs no input may be gone already.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        // It ends by itself: `timeout` sees to that.
        child.wait_with_output().unwrap()
    }

    fn check(&self, args: &[&str], stdin: &str, stdout: &str, stderr: &str, code: i32) {
        let output = self.run(args, stdin.as_bytes());
        let all = format!("{} {args:?}: {}", self.program, text(&output));
        assert_eq!(output.status.code(), Some(code), "{all}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).replace('\r', ""), stdout, "{all}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(stderr), "{all}");
    }
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // To `timeout`, which passes it on.
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn pods() -> Vec<Value> {
    let mut web = server("web", 1);
    let printer = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done";
    web["spec"]["containers"].as_array_mut().unwrap().push(json!({
        "name": "side", "image": "x", "command": ["sh", "-c", printer], "workingDir": "/tmp",
        "env": [{"name": "GREETING", "value": "hello"}],
    }));
    let mut typed = pod("typed", Some(1));
    typed["spec"]["containers"] = json!([
        {"name": "cat", "image": "x", "command": ["cat"], "stdin": true},
        {"name": "shell", "image": "x", "command": ["sh"], "stdin": true, "tty": true},
    ]);
    let mut crash = pod("crash", Some(1));
    crash["spec"]["containers"][0] = json!(
        {"name": "c", "image": "x", "command": ["sh", "-c", "echo mine; exit 4"]});
    vec![web, typed, crash]
}

#[test]
fn kubectl_reaches_into_pods() {
    if !can_run("kubectl_reaches_into_pods") {
        return;
    }
    let lab = Lab::up(1, &[], &[]);
    lab.apply(&pods());
    lab.wait_ready(&["web", "typed"]);
    for program in kubectls() {
        let kubectl = Kubectl { lab: &lab, program: &program };
        commands(&kubectl);
        files(&kubectl);
        ports(&kubectl);
        logs(&kubectl);
        attached(&kubectl);
    }
}

fn commands(kubectl: &Kubectl<'_>) {
    let script = "hostname; echo $GREETING; pwd; echo oops >&2; exit 3";
    let side = ["exec", "web", "-c", "side", "--"];
    let with = |words: &[&'static str]| [&side[..], words].concat();
    kubectl.check(&with(&["sh", "-c", script]), "", "web\nhello\n/tmp\n", "oops\n", 3);
    kubectl.check(
        &["exec", "-i", "web", "-c", "side", "--", "cat"],
        "in\nout\n",
        "in\nout\n",
        "",
        0,
    );
    kubectl.check(&with(&["sh", "-c", "kill -9 $$"]), "", "", "exit code 137", 137);
    kubectl.check(&with(&["no-such-program"]), "", "", "executable file not found", 1);
    let other = ["exec", "web", "-c", "no", "--", "true"];
    assert!(!kubectl.run(&other, b"").status.success());
    // Whatever is left in the background does not hold it up.
    kubectl.check(&with(&["sh", "-c", "sleep 100 & echo done"]), "", "done\n", "", 0);
    // A lot of output arrives whole.
    let output = kubectl.run(&with(&["head", "-c", "5000000", "/dev/zero"]), b"");
    assert_eq!(output.stdout.len(), 5_000_000, "{}", kubectl.program);
    // A terminal, with the size of the one that kubectl has.
    let inner = format!(
        "stty rows 33 cols 99; {} exec -it web -c side -- sh -c 'until stty size | grep 33.99; do sleep 0.1; done; tty; echo $TERM; exit 5'",
        kubectl.program
    );
    let output = Command::new("timeout")
        .args([PATIENCE_S, "script", "-qec", &inner, "/dev/null"])
        .env("KUBECONFIG", kubectl.lab.dir().join("kubeconfig"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    assert!(stdout.contains("/dev/pts/") && stdout.contains("33 99"), "{}", text(&output));
    kubectl.check(&["exec", "crash", "--", "true"], "", "", "container not found", 1);
}

fn files(kubectl: &Kubectl<'_>) {
    let dir = std::env::temp_dir().join(format!("{}-cp", kubectl.lab.name));
    fs::create_dir_all(&dir).unwrap();
    let name = |name: &str| dir.join(name).display().to_string();
    let content: Vec<u8> =
        (0..2_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(name("from"), &content).unwrap();
    for (source, target) in [
        (name("from"), format!("web:{}", name("there"))),
        (format!("web:{}", name("there")), name("back")),
    ] {
        let output = kubectl.run(&["cp", &source, &target, "-c", "side"], b"");
        assert!(output.status.success(), "{}", text(&output));
    }
    assert!(fs::read(name("back")).unwrap() == content, "what comes back is what was sent");
    fs::remove_dir_all(&dir).unwrap();
}

fn ports(kubectl: &Kubectl<'_>) {
    let mut forward = kubectl.start(&["port-forward", "web", ":8080"]);
    let mut line = String::new();
    // Kept: kubectl goes on to print, and ends when it cannot.
    let mut printed = BufReader::new(forward.0.stdout.take().unwrap());
    printed.read_line(&mut line).unwrap();
    let local: u16 = line
        .strip_prefix("Forwarding from 127.0.0.1:")
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("{}: {line:?}", kubectl.program));
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", local)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
            .write_all(b"GET /hostname HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("web"), "{}: {answer:?}", kubectl.program);
    };
    ask();
    // Several at the same time, over one connection to the API server.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(ask);
        }
    });
}

fn logs(kubectl: &Kubectl<'_>) {
    let mut follow = kubectl.start(&["logs", "-f", "web", "-c", "side", "--tail=1"]);
    let lines = BufReader::new(follow.0.stdout.take().unwrap()).lines();
    let numbers =
        lines.map(|line| line.unwrap().strip_prefix("line ").unwrap().parse::<u32>().unwrap());
    let numbers: Vec<u32> = numbers.take(5).collect();
    let first = numbers[0];
    assert_eq!(numbers, (first..first + 5).collect::<Vec<_>>(), "{}", kubectl.program);
    kubectl.check(&["logs", "web", "-c", "side", "--limit-bytes=7"], "", "line 1\n", "", 0);
    for flags in [&["--timestamps"][..], &["--timestamps", "--since=1h"]] {
        let log = kubectl
            .run(&[&["logs", "web", "-c", "side", "--limit-bytes=200"], flags].concat(), b"");
        let first = String::from_utf8_lossy(&log.stdout).into_owned();
        let (time, line) =
            first.lines().next().and_then(|line| line.split_once(' ')).unwrap_or_default();
        assert_eq!(line, "line 1", "{}", text(&log));
        assert!(time.parse::<k8s_openapi::jiff::Timestamp>().is_ok(), "{}", text(&log));
    }
    let tomorrow = k8s_openapi::jiff::Timestamp::now() + std::time::Duration::from_secs(86_400);
    let since = format!("--since-time={}", tomorrow.strftime("%Y-%m-%dT%H:%M:%SZ"));
    kubectl.check(&["logs", "web", "-c", "side", &since], "", "", "", 0);
    kubectl.check(&["logs", "web", "-c", "side", "-p"], "", "", "not found", 1);
    // Each run has a log of its own; following one that has ended ends.
    kubectl.lab.eventually("the container has run twice", Duration::from_secs(90), || {
        let pod = kubectl.lab.pod("crash");
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"].as_i64() >= Some(1) && status["state"]["running"].is_null()
    });
    kubectl.check(&["logs", "crash", "-p"], "", "mine\n", "", 0);
    kubectl.check(&["logs", "-f", "crash"], "", "mine\n", "", 0);
}

fn attached(kubectl: &Kubectl<'_>) {
    let mut attach = kubectl.start(&["attach", "-i", "typed", "-c", "cat"]);
    let mut lines = BufReader::new(attach.0.stdout.take().unwrap()).lines();
    let stdin = attach.0.stdin.as_mut().unwrap();
    stdin.write_all(b"typed\n").unwrap();
    let said = lines.find(|line| line.as_ref().is_ok_and(|line| line == "typed"));
    assert!(said.is_some(), "{}", kubectl.program);
    let refused = kubectl.run(&["attach", "-i", "web", "-c", "side"], b"");
    assert!(!refused.status.success(), "{}", text(&refused));
}

#[test]
fn kube_rs_reaches_into_pods() {
    if !can_run("kube_rs_reaches_into_pods") {
        return;
    }
    let lab = Lab::up(1, &[], &[]);
    lab.create(vec![server("web", 1)]);
    let kubeconfig = Kubeconfig::read_from(lab.dir().join("kubeconfig")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let patience = Duration::from_secs(90);
    runtime.block_on(async {
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let pods: Api<Pod> = Api::default_namespaced(config.try_into().unwrap());
        tokio::time::timeout(patience, exec_by_kube_rs(&pods)).await.unwrap();
        tokio::time::timeout(patience, forward_by_kube_rs(&pods)).await.unwrap();
    });
}

async fn exec_by_kube_rs(pods: &Api<Pod>) {
    let params = AttachParams::default().stdin(true).stderr(true);
    let script = "cat; echo oops >&2; exit 3";
    let mut process = pods.exec("web", ["sh", "-c", script], &params).await.unwrap();
    let mut stdin = process.stdin().unwrap();
    let (mut stdout, mut stderr) = (process.stdout().unwrap(), process.stderr().unwrap());
    let status = process.take_status().unwrap();
    stdin.write_all(b"typed").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    let (a, b) = tokio::join!(stdout.read_to_string(&mut out), stderr.read_to_string(&mut err));
    (a.unwrap(), b.unwrap());
    assert_eq!((out.as_str(), err.as_str()), ("typed", "oops\n"));
    let status = status.await.unwrap();
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"));
    process.join().await.unwrap();
}

async fn forward_by_kube_rs(pods: &Api<Pod>) {
    let mut forwarder = pods.portforward("web", &[8080, 9]).await.unwrap();
    let mut stream = forwarder.take_stream(8080).unwrap();
    let refused = forwarder.take_error(9).unwrap();
    let request = b"GET /hostname HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // In this protocol a stream does not end before the connection does.
    while !answer.ends_with(b"web") {
        let len = stream.read_buf(&mut answer).await.unwrap();
        assert!(len > 0, "{:?}", String::from_utf8_lossy(&answer));
    }
    let why = refused.await.unwrap_or_default();
    assert!(why.contains("refused"), "{why:?}");
}
