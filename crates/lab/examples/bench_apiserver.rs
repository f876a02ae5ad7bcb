//! What the API server does on one core: writes per second, many watches, memory.
//!
//! `cargo run --release -p lab --example bench_apiserver [OBJECTS [WATCHES [WATCHED]]]`
//!
//! The server is a process of its own with one thread (and the one that writes snapshots), and
//! keeps its state on disk as in a lab; its CPU time and memory are what counts. The clients, in
//! this process, speak TLS and HTTP/2 to it and look at no more than they must. The last line is
//! JSON.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use http_body_util::BodyExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Writers at a time.
const WRITERS: usize = 32;
/// Bytes of data in every object; with its metadata it has about a kilobyte.
const DATA_LEN: usize = 600;
/// Changes per second while watches look on, and for how long.
const CHANGES_PER_SECOND: u32 = 100;
const CHANGING: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, directory] = arguments.as_slice()
        && mode == "serve"
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(serve(Path::new(directory)));
    }
    let number = |at: usize, default: usize| {
        arguments.get(at).map_or(Ok(default), |text| text.parse().context("a number"))
    };
    let (objects, watches, watched) = (number(0, 50_000)?, number(1, 200)?, number(2, 10_000)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(objects, watches, watched))
}

async fn serve(directory: &Path) -> Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let url = format!("https://{}", listener.local_addr()?);
    let server = lab::apiserver::ApiServer::start(lab::apiserver::Config {
        listeners: vec![listener],
        server_names: vec!["127.0.0.1".into()],
        persistence: Some(directory.join("state")),
        ..lab::apiserver::Config::default()
    })
    .await?;
    std::fs::write(directory.join("kubeconfig"), server.kubeconfig(&url, "bench"))?;
    println!("serving");
    std::future::pending().await
}

/// The server's process and directory; both go with it.
struct Server {
    child: Child,
    directory: PathBuf,
}

impl Server {
    fn start() -> Result<Self> {
        let directory =
            std::env::temp_dir().join(format!("bench-apiserver-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(&directory)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        anyhow::ensure!(line == "serving\n", "the server has ended");
        Ok(Self { child, directory })
    }

    /// A connection of its own.
    async fn client(&self) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(self.directory.join("kubeconfig"))?;
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        config.read_timeout = None;
        Ok(Client::try_from(config)?)
    }

    /// Seconds of CPU that the process has used.
    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        // The kernel's USER_HZ, the same on all of Linux' architectures that we know.
        Ok(ticks as f64 / 100.0)
    }

    /// Resident memory, MiB.
    fn memory(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("VmRSS")?;
        Ok(kib.trim().parse::<f64>()? / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn send(client: &Client, method: &str, path: &str, body: Value) -> Result<()> {
    let content_type =
        if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", content_type)
        .body(body.to_string().into_bytes())?;
    client.request_text(request).await?;
    Ok(())
}

/// Makes `count` objects; gives the seconds that it took.
async fn fill(server: &Server, path: &'static str, count: usize) -> Result<f64> {
    let mut writers = JoinSet::new();
    let began = Instant::now();
    for writer in 0..WRITERS {
        let client = server.client().await?;
        writers.spawn(async move {
            for n in (writer..count).step_by(WRITERS) {
                let data = json!({ "data": "x".repeat(DATA_LEN) });
                let object = json!({ "metadata": { "name": format!("o-{n}"), "labels": { "app": "bench" } }, "stringData": data.clone(), "data": data });
                let object = match path {
                    SECRETS => json!({ "metadata": object["metadata"], "stringData": object["stringData"] }),
                    _ => json!({ "metadata": object["metadata"], "data": object["data"] }),
                };
                send(&client, "POST", path, object).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(began.elapsed().as_secs_f64())
}

/// Counts lines until the watch has told this many.
struct Watch {
    body: kube::client::Body,
    told: usize,
}

impl Watch {
    async fn open(client: Client) -> Result<Self> {
        let url = format!(
            "{MAPS}?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&labelSelector=app%3Dbench"
        );
        let response =
            client.send(http::Request::get(url).body(kube::client::Body::empty())?).await?;
        Ok(Self { body: response.into_body(), told: 0 })
    }

    async fn until(&mut self, count: usize) -> Result<()> {
        while self.told < count {
            let frame = self.body.frame().await.context("the watch has ended")??;
            let data = frame.into_data().unwrap_or_default();
            self.told += data.iter().filter(|byte| **byte == b'\n').count();
        }
        Ok(())
    }
}

async fn measure(objects: usize, watches: usize, watched: usize) -> Result<()> {
    let server = Server::start()?;
    // Maps are watched, secrets are there for their number.
    let cpu = server.cpu()?;
    let took = fill(&server, MAPS, watched).await?;
    let creates = watched as f64 / took;
    let cpu_per_write = (server.cpu()? - cpu) / watched as f64;
    println!(
        "{creates:.0} creations/s by {WRITERS} clients; {:.0} µs of CPU each",
        cpu_per_write * 1e6
    );

    fill(&server, SECRETS, objects.saturating_sub(watched)).await?;
    let memory = server.memory()?;
    println!("{memory:.0} MiB resident with {objects} objects of a kilobyte");

    let (cpu, began) = (server.cpu()?, Instant::now());
    let mut open = JoinSet::new();
    for _ in 0..watches {
        let client = server.client().await?;
        open.spawn(async move {
            let mut watch = Watch::open(client).await?;
            // The objects, and the bookmark behind them.
            watch.until(watched + 1).await?;
            anyhow::Ok(watch)
        });
    }
    let mut all = Vec::new();
    while let Some(watch) = open.join_next().await {
        all.push(watch??);
    }
    let listing = began.elapsed().as_secs_f64();
    let listing_cpu = server.cpu()? - cpu;
    println!(
        "{watches} watches have {watched} objects each after {listing:.1} s; {listing_cpu:.1} s of CPU"
    );

    let changes = (CHANGES_PER_SECOND * CHANGING.as_secs() as u32) as usize;
    let (cpu, began) = (server.cpu()?, Instant::now());
    let mut following = JoinSet::new();
    for mut watch in all {
        let count = watch.told + changes;
        following.spawn(async move { watch.until(count).await });
    }
    let client = server.client().await?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / CHANGES_PER_SECOND);
    for n in 0..changes {
        ticks.tick().await;
        let patch = json!({ "metadata": { "annotations": { "change": n.to_string() } } });
        send(&client, "PATCH", &format!("{MAPS}/o-{}", n % watched), patch).await?;
    }
    while let Some(done) = following.join_next().await {
        done??;
    }
    let share = (server.cpu()? - cpu) / began.elapsed().as_secs_f64();
    let late = began.elapsed().as_secs_f64() - CHANGING.as_secs_f64();
    println!(
        "{CHANGES_PER_SECOND} changes/s to {watches} watches: {:.0} % of a core, all told {late:.2} s after the last",
        share * 100.0
    );
    let peak = server.memory()?;
    println!(
        "{}",
        json!({ "creations_per_s": creates, "cpu_us_per_write": cpu_per_write * 1e6, "objects": objects,
            "rss_mib": memory, "watches": watches, "watched": watched, "listing_s": listing,
            "listing_cpu_s": listing_cpu, "changes_per_s": CHANGES_PER_SECOND, "watching_cpu_share": share,
            "rss_with_watches_mib": peak })
    );
    Ok(())
}
