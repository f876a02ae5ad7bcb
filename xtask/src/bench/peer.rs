//! The two ends of a benchmark's connection: a server, and a client that measures.
//!
//! Both run as processes of their own inside of whatever network namespace is measured, pinned to a
//! CPU, and use blocking calls on plain sockets: what is measured is the path, not a runtime.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::socket::{setsockopt, sockopt};

use super::percentile;

/// The hidden verb `bench-peer`.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerArguments {
    #[command(subcommand)]
    role: Role,
    /// CPU to run on.
    #[arg(long, global = true, default_value_t = 0)]
    cpu: usize,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    /// Answers at this address until killed.
    Server { address: SocketAddr },
    /// Measures against a server, and prints JSON.
    Client {
        address: SocketAddr,
        /// CPU to run on while measuring throughput (the server stays where it is).
        #[arg(long)]
        bulk_cpu: usize,
    },
}

/// Requests of one measurement, one byte each.
const REQUESTS: usize = 15_000;
/// Requests that warm up the path.
const WARM_UP: usize = 2_000;
/// Connections of one measurement.
const CONNECTIONS: usize = 3_000;
/// How long one stream sends.
const BULK: Duration = Duration::from_millis(1_000);
const BULK_BUFFER: usize = 128 << 10;

/// First byte of a connection: what it is for.
const ECHO: u8 = b'e';
const SINK: u8 = b's';

pub(crate) fn command(arguments: &PeerArguments) -> anyhow::Result<()> {
    pin(arguments.cpu)?;
    match &arguments.role {
        Role::Server { address } => serve(*address),
        Role::Client { address, bulk_cpu } => {
            let (connect_p50, connect_p99, connects_s) = connect(*address)?;
            let (rr_p50, rr_p99) = request_response(*address)?;
            pin(*bulk_cpu)?;
            let gbit_s = bulk(*address)?;
            let result = serde_json::json!({
                "connect_p50_us": connect_p50, "connect_p99_us": connect_p99,
                "connects_s": connects_s,
                "rr_p50_us": rr_p50, "rr_p99_us": rr_p99, "gbit_s": gbit_s,
            });
            println!("{result}");
            Ok(())
        }
    }
}

fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
        .with_context(|| format!("cannot run on CPU {cpu}"))
}

/// One connection at a time: a second thread would be a second thing to schedule.
fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
    println!("listening at {address}");
    let mut buffer = vec![0; BULK_BUFFER];
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        // Connections that are only opened end here by a reset.
        let _ = serve_one(&mut stream, &mut buffer);
    }
}

fn serve_one(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<()> {
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    if kind[0] == ECHO {
        loop {
            stream.read_exact(&mut kind)?;
            stream.write_all(&kind)?;
        }
    }
    let mut total = 0_u64;
    loop {
        match stream.read(buffer) {
            // The sender has closed its half: tell it how much has come.
            Ok(0) => return stream.write_all(&total.to_be_bytes()),
            Ok(length) => total += length as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn dial(address: SocketAddr) -> anyhow::Result<TcpStream> {
    TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))
}

/// Microseconds of `connect()`, the first packet's way and the answer's; and connections made and
/// closed per second, one after the other.
fn connect(address: SocketAddr) -> anyhow::Result<(f64, f64, f64)> {
    let mut times = Vec::with_capacity(CONNECTIONS);
    let began = Instant::now();
    for _ in 0..CONNECTIONS {
        let started = Instant::now();
        let stream = dial(address)?;
        times.push(started.elapsed().as_nanos() as f64 / 1e3);
        // Closing by a reset leaves no socket in TIME_WAIT, so ports do not run out.
        setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    }
    let per_second = CONNECTIONS as f64 / began.elapsed().as_secs_f64();
    Ok((percentile(&times, 50.0), percentile(&times, 99.0), per_second))
}

/// Microseconds of one byte there and back.
fn request_response(address: SocketAddr) -> anyhow::Result<(f64, f64)> {
    let mut stream = dial(address)?;
    stream.set_nodelay(true)?;
    stream.write_all(&[ECHO])?;
    let mut byte = [0];
    let mut times = Vec::with_capacity(REQUESTS);
    for request in 0..WARM_UP + REQUESTS {
        let started = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        if request >= WARM_UP {
            times.push(started.elapsed().as_nanos() as f64 / 1e3);
        }
    }
    Ok((percentile(&times, 50.0), percentile(&times, 99.0)))
}

/// Gbit/s of one stream.
fn bulk(address: SocketAddr) -> anyhow::Result<f64> {
    let mut stream = dial(address)?;
    stream.write_all(&[SINK])?;
    let buffer = vec![0; BULK_BUFFER];
    let started = Instant::now();
    while started.elapsed() < BULK {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(u64::from_be_bytes(total) as f64 * 8.0 / seconds / 1e9)
}
