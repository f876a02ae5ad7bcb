//! A small stand-in for Kubernetes' `agnhost` test image: the servers and clients that network
//! tests use, with the same flags, paths and words.
//!
//! Hundreds of these run at once, so there is no runtime: blocking sockets, small stacks.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueEnum};
use nix::sys::signal::{SigSet, Signal};

use super::web::{self, Reply, Request, background};

/// The subcommands that network tests use.
#[derive(Debug, Subcommand)]
pub enum Agnhost {
    /// Serve HTTP and UDP: /hostname, /clientip, /echo?msg=, /healthz; UDP hostname, clientip, echo.
    Netexec(Netexec),
    /// Connect once, to see whether a peer can be reached.
    Connect(Connect),
    /// Answer with the host name.
    ServeHostname(ServeHostname),
    /// Do nothing until told to stop.
    Pause,
    /// Send numbered UDP packets at a steady rate to a netexec and report which were lost.
    Loss(Loss),
}

#[derive(Debug, Args)]
pub struct Netexec {
    #[arg(long, default_value_t = 8080)]
    http_port: u16,
    #[arg(long, default_value_t = 8081)]
    udp_port: u16,
    /// Addresses for UDP; needed where the host has several, so that answers come from the right one.
    #[arg(long, value_delimiter = ',')]
    udp_listen_addresses: Vec<IpAddr>,
}

#[derive(Debug, Args)]
pub struct Connect {
    /// HOST:PORT.
    target: String,
    /// Such as 1s or 500ms; without it the kernel's patience.
    #[arg(long, value_parser = duration, default_value = "0s")]
    timeout: Duration,
    #[arg(long, value_enum, default_value_t = Protocol::Tcp)]
    protocol: Protocol,
    /// What to send with UDP; any answer counts.
    #[arg(long, default_value = "hostname")]
    udp_data: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Protocol {
    Tcp,
    Udp,
}

#[derive(Debug, Args)]
pub struct ServeHostname {
    #[arg(long, default_value_t = 9376)]
    port: u16,
}

#[derive(Debug, Args)]
pub struct Loss {
    /// HOST:PORT of a netexec's UDP server.
    target: String,
    /// Packets per second.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// How long; 0 is until SIGTERM.
    #[arg(long, default_value_t = 0.0)]
    seconds: f64,
    /// How long to wait for the last answers at most.
    #[arg(long, value_parser = duration, default_value = "5s")]
    linger: Duration,
}

impl Agnhost {
    /// Runs the command; the result is the exit code.
    pub fn run(self) -> i32 {
        let result = match self {
            Self::Netexec(args) => netexec(&args),
            Self::Connect(args) => return connect(&args),
            Self::ServeHostname(args) => web::serve(args.port, |_| Reply::ok(hostname())),
            Self::Pause => return pause(),
            Self::Loss(args) => loss(&args),
        };
        match result {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("{error}");
                1
            }
        }
    }
}

/// Waits for SIGTERM or SIGINT.
pub fn pause() -> i32 {
    let _ = stop_signals().wait();
    0
}

/// SIGTERM and SIGINT, blocked in the caller and in every thread it starts later.
fn stop_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    let _ = signals.thread_block();
    signals
}

/// The name of the pod, or of whatever this runs on.
pub fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim_end().to_owned()
}

// ---------------------------------------------------------------------------------------------
// netexec

fn netexec(args: &Netexec) -> io::Result<()> {
    let any = [IpAddr::from([0_u8; 16])];
    let addresses: &[IpAddr] = match args.udp_listen_addresses.as_slice() {
        [] => &any,
        some => some,
    };
    for address in addresses {
        let socket = UdpSocket::bind((*address, args.udp_port))?;
        queue_much(&socket);
        background(move || serve_udp(&socket))?;
    }
    web::serve(args.http_port, answer_http)
}

fn serve_udp(socket: &UdpSocket) {
    let mut buffer = [0_u8; 9000];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let request = String::from_utf8_lossy(&buffer[..length]);
        if let Some(reply) = answer_udp(request.trim_end_matches('\n'), peer) {
            let _ = socket.send_to(reply.as_bytes(), peer);
        }
    }
}

fn answer_udp(request: &str, peer: SocketAddr) -> Option<String> {
    let (word, rest) = request.split_once(' ').unwrap_or((request, ""));
    match word.to_ascii_lowercase().as_str() {
        "hostname" => Some(hostname()),
        "clientip" => Some(canonical(peer).to_string()),
        "echo" => Some(rest.to_owned()),
        "" => None,
        _ => Some(format!("unknown udp request: {word}")),
    }
}

fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

fn answer_http(request: &Request<'_>) -> Reply {
    let (path, query) = (request.path, request.query);
    match path.to_ascii_lowercase().as_str() {
        "/" => Reply::ok(format!("NOW: {}\n", unix_seconds())),
        "/hostname" => Reply::ok(hostname()),
        "/clientip" => Reply::ok(canonical(request.peer).to_string()),
        "/echo" => Reply::ok(query_value(query, "msg")),
        "/healthz" => Reply::ok(String::new()),
        "/header" => Reply::ok(String::new()),
        _ => Reply::not_found(),
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// One value of a query string, percent-decoded.
fn query_value(query: &str, key: &str) -> String {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let Some((_, value)) = pairs.into_iter().find(|(k, _)| *k == key) else {
        return String::new();
    };
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match (first, hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

// ---------------------------------------------------------------------------------------------
// connect

fn connect(args: &Connect) -> i32 {
    let target = match args.target.to_socket_addrs().map(|mut found| found.next()) {
        Ok(Some(target)) => target,
        Ok(None) => {
            eprintln!("DNS: no address for {}", args.target);
            return 1;
        }
        Err(error) => {
            eprintln!("DNS: {error}");
            return 1;
        }
    };
    let timeout = Some(args.timeout).filter(|t| !t.is_zero());
    let result = match args.protocol {
        Protocol::Tcp => match timeout {
            Some(timeout) => TcpStream::connect_timeout(&target, timeout).map(drop),
            None => TcpStream::connect(target).map(drop),
        },
        Protocol::Udp => ask_udp(target, timeout, &args.udp_data).map(drop),
    };
    let Err(error) = result else { return 0 };
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => eprintln!("TIMEOUT"),
        io::ErrorKind::ConnectionRefused => eprintln!("REFUSED"),
        _ => eprintln!("OTHER: {error}"),
    }
    1
}

/// A receiver that is not scheduled for a while must not look like loss in the network. Needs a
/// privilege that a pod's processes may lack; then the kernel's default has to do.
fn queue_much(socket: &UdpSocket) {
    let bytes = 16 << 20;
    let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::RcvBufForce, &bytes);
}

fn udp_to(target: SocketAddr) -> io::Result<UdpSocket> {
    let any = match target {
        SocketAddr::V4(_) => IpAddr::from([0_u8; 4]),
        SocketAddr::V6(_) => IpAddr::from([0_u8; 16]),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    Ok(socket)
}

fn ask_udp(target: SocketAddr, timeout: Option<Duration>, data: &str) -> io::Result<Vec<u8>> {
    let socket = udp_to(target)?;
    socket.set_read_timeout(timeout)?;
    socket.send(data.as_bytes())?;
    let mut buffer = [0_u8; 2048];
    let length = socket.recv(&mut buffer)?;
    Ok(buffer[..length].to_vec())
}

/// Parses a duration as Go writes it, one unit only.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|e| format!("{text:?} is not a duration: {e}"))?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" | "" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(format!("{text:?} is not a duration: use ms, s, m or h")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|e| format!("{text:?}: {e}"))
}

// ---------------------------------------------------------------------------------------------
// loss

/// Sends `echo <n>` at a steady rate, and prints one line of JSON about what came back.
fn loss(args: &Loss) -> io::Result<()> {
    let target = args.target.to_socket_addrs()?.next();
    let target = target.ok_or_else(|| io::Error::other("no address for the target"))?;
    let signals = stop_signals();
    let (stop_sender, stop) = std::sync::mpsc::channel::<()>();
    if args.seconds == 0.0 {
        background(move || {
            let _ = signals.wait();
            let _ = stop_sender.send(());
        })?;
    } else {
        drop(stop_sender);
    }

    let socket = udp_to(target)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    queue_much(&socket);
    let receiving = socket.try_clone()?;
    let (finish, finished) = std::sync::mpsc::channel::<()>();
    let answered = Arc::new(AtomicU32::new(0));
    let counting = Arc::clone(&answered);
    let receiver = std::thread::spawn(move || receive_echoes(&receiving, &finished, &counting));

    let started = Instant::now();
    let interval = Duration::from_secs(1) / args.rate.max(1);
    let end = (args.seconds > 0.0).then(|| Duration::from_secs_f64(args.seconds));
    let mut sent = 0_u32;
    let mut send_errors = 0_u32;
    let mut sent_at_ms: Vec<u32> = Vec::new();
    while end.is_none_or(|end| started.elapsed() < end) {
        if end.is_none() && stop.try_recv().is_ok() {
            break;
        }
        // An ICMP error answering an earlier packet shows up here: count it, and send again.
        if socket.send(format!("echo {sent}").as_bytes()).is_err() {
            send_errors += 1;
            let _ = socket.send(format!("echo {sent}").as_bytes());
        }
        sent_at_ms.push(started.elapsed().as_millis() as u32);
        sent += 1;
        if let Some(pause) = (interval * sent).checked_sub(started.elapsed()) {
            std::thread::sleep(pause);
        }
    }
    let last = Instant::now();
    while answered.load(Ordering::Relaxed) < sent && last.elapsed() < args.linger {
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = finish.send(());
    let received = receiver.join().unwrap_or_default();

    let has = |n: &u32| received.get(*n as usize).copied().unwrap_or(false);
    let lost: Vec<u32> = (0..sent).filter(|n| !has(n)).collect();
    let lost_at_ms: Vec<u32> = lost.iter().take(20).map(|n| sent_at_ms[*n as usize]).collect();
    let report = serde_json::json!({
        "target": args.target,
        "sent": sent,
        "received": sent - lost.len() as u32,
        "lost": lost.len(),
        "lost_at_ms": lost_at_ms,
        "send_errors": send_errors,
        "seconds": started.elapsed().as_secs_f64(),
    });
    println!("{report}");
    Ok(())
}

/// Marks which numbers came back, until told to finish, and says how many.
fn receive_echoes(
    socket: &UdpSocket,
    finished: &std::sync::mpsc::Receiver<()>,
    answered: &AtomicU32,
) -> Vec<bool> {
    let mut seen = Vec::new();
    let mut buffer = [0_u8; 64];
    while finished.try_recv().is_err() {
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let number = std::str::from_utf8(&buffer[..length]).ok().and_then(|t| t.parse().ok());
        let Some(number): Option<usize> = number else { continue };
        if number >= seen.len() {
            seen.resize(number + 1, false);
        }
        if !std::mem::replace(&mut seen[number], true) {
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_requests_are_answered() {
        let peer: SocketAddr = "[::ffff:10.0.0.7]:4000".parse().unwrap();
        assert_eq!(answer_udp("clientip", peer).as_deref(), Some("10.0.0.7:4000"));
        assert_eq!(answer_udp("echo one two", peer).as_deref(), Some("one two"));
        assert_eq!(answer_udp("", peer), None);
    }

    #[test]
    fn queries_are_decoded() {
        assert_eq!(query_value("a=1&msg=hello%20there+you%2", "msg"), "hello there you%2");
        assert_eq!(query_value("", "msg"), "");
    }

    #[test]
    fn durations_are_those_of_go() {
        assert_eq!(duration("1500ms").unwrap(), Duration::from_millis(1500));
        assert_eq!(duration("2s").unwrap(), Duration::from_secs(2));
        assert!(duration("2parsecs").is_err());
        assert!(duration("-1s").is_err());
    }
}
