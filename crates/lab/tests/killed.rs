//! A server that is killed comes back with everything that it has told anybody.
//!
//! The server is a process of its own, which gets SIGKILL while clients write: this program again,
//! told by a variable to serve.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Client, Config};
use lab::apiserver::ApiServer;
use serde_json::json;

/// Long enough for anything that should happen at all.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where the server keeps its state, and where it listens.
const DIRECTORY: &str = "LAB_TEST_DIRECTORY";
const PORT: &str = "LAB_TEST_PORT";
/// What it says when it serves.
const SERVING: &str = "serving";

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A server in a process of its own, which does not outlive the test.
struct Server(Child);

impl Server {
    /// Returns when it serves.
    fn start(directory: &Path, port: u16) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new(program)
            .args(["--exact", "serve_if_told", "--nocapture"])
            .env(DIRECTORY, directory)
            .env(PORT, port.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.map(Result::unwrap).any(|line| line.contains(SERVING));
        assert!(ready, "the server has ended");
        Self(child)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The server's side; in a plain run of the tests it has nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_if_told() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let port: u16 = std::env::var(PORT).unwrap().parse().unwrap();
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = ApiServer::start(lab::apiserver::Config {
        listeners: vec![listener],
        server_names: vec!["127.0.0.1".into()],
        persistence: Some(directory.clone()),
        ..lab::apiserver::Config::default()
    });
    let server = server.await.unwrap();
    std::fs::write(directory.join("kubeconfig"), server.kubeconfig(&url, "test")).unwrap();
    println!("{SERVING}");
    std::future::pending::<()>().await;
}

async fn connect(directory: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(directory.join("kubeconfig")).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    Client::try_from(config).unwrap()
}

/// A port that nobody is given while our server is away: below those that the kernel gives out.
fn free_port() -> u16 {
    let first = 20_000 + u16::try_from(std::process::id() % 8_000).unwrap();
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (first..30_000).find(is_free).expect("a free port")
}

fn map(name: String) -> ConfigMap {
    serde_json::from_value(json!({ "metadata": { "name": name, "labels": { "test": "yes" } } }))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_outlives_a_kill() {
    let scratch = Scratch(std::env::temp_dir().join(format!("lab-killed-{}", std::process::id())));
    std::fs::create_dir_all(&scratch.0).unwrap();
    let port = free_port();
    let mut server = Server::start(&scratch.0, port);
    let client = connect(&scratch.0).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let (store, writer) = reflector::store();
    let config = watcher::Config::default().labels("test=yes");
    let stream = reflector(writer, watcher(maps.clone(), config)).default_backoff();
    let follower = tokio::spawn(stream.for_each(|_| async {}));
    tokio::time::timeout(PATIENCE, store.wait_until_ready()).await.unwrap().unwrap();

    // Two rounds: also what a server has restored outlives it.
    let (mut acknowledged, mut watched) = (Vec::new(), String::new());
    for round in 0..2 {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let maps = maps.clone();
                tokio::spawn(async move {
                    let mut names = Vec::new();
                    for n in 0.. {
                        let name = format!("m-{round}-{writer}-{n}");
                        match maps.create(&PostParams::default(), &map(name.clone())).await {
                            Ok(created) => {
                                names.push((name, created.metadata.resource_version.unwrap()));
                            }
                            // Killed.
                            Err(_) => break,
                        }
                    }
                    names
                })
            })
            .collect();
        let at_least = 50 * (round + 1);
        let some = async {
            while store.state().len() < at_least {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, some).await.expect("the reflector sees objects");
        server.kill();
        for writer in writers {
            acknowledged.extend(writer.await.unwrap());
        }
        server = Server::start(&scratch.0, port);
        let listed = maps.list(&ListParams::default().labels("test=yes")).await.unwrap();
        let version: u64 = listed.metadata.resource_version.unwrap().parse().unwrap();
        for (name, at) in &acknowledged {
            let found = listed.items.iter().find(|one| one.metadata.name.as_ref() == Some(name));
            let found = found.unwrap_or_else(|| panic!("{name} is lost"));
            assert_eq!(found.metadata.resource_version.as_ref(), Some(at));
            assert!(at.parse::<u64>().unwrap() <= version, "versions go on");
        }
        watched = acknowledged[0].1.clone();
    }
    // A watch from a version of the first server is told to list again.
    let mut events = maps.watch(&WatchParams::default(), &watched).await.unwrap().boxed();
    let told = tokio::time::timeout(PATIENCE, events.try_next()).await.unwrap().unwrap();
    assert!(matches!(told, Some(WatchEvent::Error(status)) if status.code == 410));
    // Whoever watched all the time has seen everything.
    let last = map("last".to_owned());
    maps.create(&PostParams::default(), &last).await.unwrap();
    let seen = async {
        let listed =
            maps.list(&ListParams::default().labels("test=yes")).await.unwrap().items.len();
        while store.state().len() != listed {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.expect("the reflector catches up");
    follower.abort();
}
