//! How many questions cluster DNS answers per second on one core.
//!
//! `cargo run --release -p lab --example bench_dns [SERVICES] [SECONDS]`
//!
//! The server has one thread, whose CPU time is what counts: other threads ask, over UDP on the
//! loopback device, for names of a cluster of 10,000 Services. The last line is JSON.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};
use lab::image::dns::cluster::{Cluster, Endpoint, PodNames, Port, Service, ServiceKind, Slice};
use lab::image::dns::message::{Flags, Request, Transport};
use lab::image::dns::server::{Server, bind};
use lab::image::dns::zone::{Outcome, resolve};
use nix::sys::resource::{UsageWho, getrusage};

/// Questions that each asker has under way at a time.
const WINDOW: usize = 32;
const ASKERS: usize = 2;
/// Different questions that are asked in turn.
const QUESTIONS: usize = 4096;

fn main() {
    let mut args = std::env::args().skip(1).filter_map(|arg| arg.parse::<u32>().ok());
    let services = args.next().unwrap_or(10_000).max(1);
    let seconds = args.next().unwrap_or(3).max(1);
    let cluster = cluster(services);
    let questions: Arc<Vec<Vec<u8>>> =
        Arc::new((0..QUESTIONS as u32).map(|n| question(n, services)).collect());

    let engine = engine_rate(&cluster, &questions);
    println!("engine alone: {engine:.0} queries/s");

    let (sender, address) = std::sync::mpsc::channel();
    let busy = Arc::new(AtomicU64::new(0));
    let measured = busy.clone();
    std::thread::spawn(move || serve(cluster, &sender, &measured));
    let address: SocketAddr = address.recv().expect("the server starts");

    let stop = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let busy_before = busy.load(Ordering::Relaxed);
    let askers: Vec<_> = (0..ASKERS)
        .map(|n| {
            let (stop, questions) = (stop.clone(), questions.clone());
            std::thread::spawn(move || ask(address, &questions, n * QUESTIONS / ASKERS, &stop))
        })
        .collect();
    std::thread::sleep(Duration::from_secs(seconds.into()));
    stop.store(true, Ordering::Relaxed);
    let answered: u64 = askers.into_iter().map(|asker| asker.join().unwrap_or_default()).sum();
    let elapsed = began.elapsed().as_secs_f64();
    let cpu = (busy.load(Ordering::Relaxed) - busy_before) as f64 / 1e6;
    let report = serde_json::json!({
        "services": services,
        "answered": answered,
        "seconds": elapsed,
        "server_cpu_seconds": cpu,
        "queries_per_second": (answered as f64 / elapsed).round(),
        "queries_per_cpu_second": (answered as f64 / cpu).round(),
        "engine_queries_per_second": engine.round(),
    });
    println!("{report}");
}

/// Every fourth service is headless, with two endpoints.
fn cluster(services: u32) -> Cluster {
    let domain = Name::from_ascii("cluster.local.").expect("a name");
    let mut cluster = Cluster::new(domain, 5, PodNames::Insecure);
    for number in 0..services {
        let namespace = format!("ns-{}", number % 100);
        let name = format!("service-{number}");
        let ports = vec![Port { name: "http".to_owned(), protocol: "tcp".to_owned(), number: 80 }];
        let kind = match number % 4 {
            0 => ServiceKind::Headless,
            _ => ServiceKind::ClusterIp(vec![Ipv4Addr::from(0x0a60_0000 + number).into()]),
        };
        if kind == ServiceKind::Headless {
            let endpoint = |n: u32| Endpoint {
                addresses: vec![Ipv4Addr::from(0x0af4_0000 + 2 * number + n).into()],
                hostname: Some(format!("{name}-{n}")),
                ready: true,
            };
            let endpoints = vec![endpoint(0), endpoint(1)];
            let slice = Slice { service: name.clone(), endpoints, ports: ports.clone() };
            cluster.set_slice(&namespace, &name, Some(slice));
        }
        cluster.set_namespace(&namespace, true);
        let service = Service { kind, ports, publish_not_ready: false };
        cluster.set_service(&namespace, &name, Some(service));
    }
    cluster
}

/// What a pod's resolver asks: mostly addresses, some of them of names that do not exist.
fn question(n: u32, services: u32) -> Vec<u8> {
    let number = n.wrapping_mul(2_654_435_761) % services;
    let service = format!("service-{number}.ns-{}.svc.cluster.local.", number % 100);
    let (name, kind) = match n % 8 {
        0 | 1 => (service, RecordType::AAAA),
        2 => (format!("_http._tcp.{service}"), RecordType::SRV),
        3 => (format!("www.example.com.ns-{}.svc.cluster.local.", number % 100), RecordType::A),
        _ => (service, RecordType::A),
    };
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(Name::from_ascii(&name).expect("a name"), kind)];
    message.edns = Some(Edns::new());
    message.to_vec().expect("a question")
}

fn engine_rate(cluster: &Cluster, questions: &[Vec<u8>]) -> f64 {
    let began = Instant::now();
    let mut bytes = 0;
    let mut count = 0;
    while began.elapsed() < Duration::from_millis(500) {
        for (turn, question) in questions.iter().enumerate() {
            let request = Request::parse(question, Transport::Udp).expect("a question");
            let outcome = resolve(cluster, &request.query.name, request.query.query_type, turn);
            let Outcome::Done(answer) = outcome else { continue };
            bytes += request.respond(answer, Flags::default()).len();
            count += 1;
        }
    }
    assert!(bytes > 0);
    f64::from(count) / began.elapsed().as_secs_f64()
}

fn serve(cluster: Cluster, started: &std::sync::mpsc::Sender<SocketAddr>, busy_us: &AtomicU64) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (udp, _) = bind(([127, 0, 0, 1], 0).into()).await.expect("a socket");
        let address = udp.local_addr().expect("an address");
        tokio::spawn(Arc::new(Server::new(cluster, None)).serve_udp(udp));
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        let _ = started.send(address);
        loop {
            ticks.tick().await;
            let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("this thread's usage");
            let (user, system) = (usage.user_time(), usage.system_time());
            let us =
                (user.tv_sec() + system.tv_sec()) * 1_000_000 + user.tv_usec() + system.tv_usec();
            busy_us.store(us as u64, Ordering::Relaxed);
        }
    });
}

/// Asks with [`WINDOW`] questions under way until told to stop; says how many were answered.
fn ask(server: SocketAddr, questions: &[Vec<u8>], first: usize, stop: &AtomicBool) -> u64 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(server).expect("the server's address");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    let mut next = questions.iter().cycle().skip(first);
    let mut send = |count: usize| {
        for question in next.by_ref().take(count) {
            let _ = socket.send(question);
        }
    };
    send(WINDOW);
    let mut answered = 0;
    let mut buffer = [0_u8; 2048];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut buffer) {
            Ok(_) => {
                answered += 1;
                send(1);
            }
            // Something was lost: begin anew.
            Err(_) => send(WINDOW),
        }
    }
    answered
}
