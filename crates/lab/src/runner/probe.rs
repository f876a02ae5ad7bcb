//! Startup, readiness and liveness probes: exec, TCP, HTTP and gRPC, from the node as a kubelet does.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::container::Sandbox;
use crate::place::CgroupDir;
use crate::process::{Command, PATH};

/// Pause after the first probe; each one after it is twice as long, up to the probe's period.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whether the container has started: until then the others wait.
    Startup,
    /// Whether the container may be sent work.
    Readiness,
    /// Whether the container must be started again.
    Liveness,
}

/// Probes one container.
#[derive(Debug)]
pub struct Prober {
    /// What for.
    pub kind: Kind,
    /// The specification.
    pub probe: k8s::Probe,
    /// Ports that the probe may name.
    pub ports: Vec<k8s::ContainerPort>,
    /// Where the container is.
    pub sandbox: Arc<Sandbox>,
    /// The container's name.
    pub container: String,
    /// The container's process.
    pub pid: i32,
}

impl Prober {
    /// Probes for ever, once the container has started; `verdicts` gets every change of mind.
    pub async fn run(
        self,
        mut started: watch::Receiver<bool>,
        verdicts: mpsc::Sender<(Kind, bool)>,
    ) {
        let seconds = |n: Option<i32>, default: u64| {
            Duration::from_secs(n.and_then(|n| u64::try_from(n).ok()).unwrap_or(default))
        };
        let period = seconds(self.probe.period_seconds, 10).max(Duration::from_secs(1));
        let patience = seconds(self.probe.timeout_seconds, 1).max(Duration::from_secs(1));
        let needed_good = self.probe.success_threshold.unwrap_or(1).max(1);
        let needed_bad = self.probe.failure_threshold.unwrap_or(3).max(1);
        if self.kind != Kind::Startup && started.wait_for(|started| *started).await.is_err() {
            return;
        }
        sleep(seconds(self.probe.initial_delay_seconds, 0)).await;
        let (mut good, mut bad) = (0, 0);
        // A container that is just starting is asked more often than was agreed, and that must not
        // be held against it: what counts until it answers is time.
        let (began, starting) = (Instant::now(), period * (needed_bad - 1).max(1) as u32);
        let mut told = None;
        let mut pause = FIRST_PAUSE;
        loop {
            // What is frozen cannot answer, and whoever asks is frozen as well.
            self.sandbox.node.place.awake().await;
            let success = timeout(patience, self.once(patience)).await.unwrap_or(false);
            (good, bad) = if success { (good + 1, 0) } else { (0, bad + 1) };
            let verdict = match () {
                () if good >= needed_good => Some(true),
                () if told.is_none() && began.elapsed() < starting => None,
                () if bad >= needed_bad => Some(false),
                () => told,
            };
            if verdict != told {
                told = verdict;
                if verdicts.send((self.kind, success)).await.is_err() {
                    return;
                }
                if self.kind == Kind::Startup {
                    return;
                }
            }
            sleep(if told.is_none() { pause.min(period) } else { period }).await;
            pause = (pause * 2).min(period);
        }
    }

    async fn once(&self, patience: Duration) -> bool {
        if let Some(exec) = &self.probe.exec {
            return self.exec(exec.command.clone().unwrap_or_default()).await;
        }
        if let Some(grpc) = &self.probe.grpc {
            let service = grpc.service.clone().unwrap_or_default();
            return self
                .grpc(&IntOrString::Int(grpc.port), &service, patience)
                .await
                .unwrap_or(false);
        }
        let http = self.probe.http_get.clone();
        let tcp = self.probe.tcp_socket.as_ref();
        let port = http.as_ref().map(|h| &h.port).or_else(|| tcp.map(|t| &t.port));
        let Some(port) = port.and_then(|port| self.port(port)) else { return false };
        let own = self.sandbox.addresses.first().copied();
        let Some(address) = own else { return false };
        let sandbox = self.sandbox.clone();
        let target = SocketAddr::new(address, port);
        let probing = tokio::task::spawn_blocking(move || {
            sandbox
                .node
                .place
                .netns
                .run(|| connect(target, patience, http.as_ref()))
                .unwrap_or(false)
        });
        probing.await.unwrap_or(false)
    }

    /// Asks a server of `grpc.health.v1.Health` whether it serves.
    async fn grpc(&self, port: &IntOrString, service: &str, patience: Duration) -> Option<bool> {
        let target = SocketAddr::new(self.sandbox.addresses.first().copied()?, self.port(port)?);
        let sandbox = self.sandbox.clone();
        let connecting = tokio::task::spawn_blocking(move || {
            let connect = || TcpStream::connect_timeout(&target, patience);
            sandbox.node.place.netns.run(connect).ok()?.ok()
        });
        let stream = connecting.await.ok()??;
        stream.set_nonblocking(true).ok()?;
        let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream).ok()?);
        let handshake = http2::handshake(TokioExecutor::new(), stream).await;
        let (mut sender, connection) = handshake.ok()?;
        // Ends with the sender.
        tokio::spawn(connection);
        let request = Request::post(format!("http://{target}/grpc.health.v1.Health/Check"))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .header(USER_AGENT, "kube-probe")
            .body(Full::new(Bytes::from(health_request(service))))
            .ok()?;
        let answer = sender.send_request(request).await.ok()?;
        let body = answer.into_body().collect().await.ok()?.to_bytes();
        Some(is_serving(&body))
    }

    fn port(&self, port: &IntOrString) -> Option<u16> {
        match port {
            IntOrString::Int(number) => u16::try_from(*number).ok(),
            IntOrString::String(name) => {
                let port = self.ports.iter().find(|p| p.name.as_deref() == Some(name))?;
                u16::try_from(port.container_port).ok()
            }
        }
    }

    /// Runs a command beside the container's process.
    async fn exec(&self, argv: Vec<String>) -> bool {
        let Ok(cgroup) = CgroupDir::create(&self.sandbox.cgroup, &self.container) else {
            return false;
        };
        let open = |kind: &str| std::fs::File::open(format!("/proc/{}/ns/{kind}", self.pid));
        let (Ok(net), Ok(mnt), Ok(uts)) = (open("net"), open("mnt"), open("uts")) else {
            return false;
        };
        let command = Command {
            argv,
            env: vec![("PATH".to_owned(), PATH.to_owned())],
            netns: Some(net.as_fd()),
            mntns: Some(mnt.as_fd()),
            utsns: Some(uts.as_fd()),
            ..self.sandbox.node.place.command(&cgroup)
        };
        let Ok(process) = self.sandbox.node.place.spawn(&command) else { return false };
        // A probe that is given up is killed with its container at the latest.
        process.wait().await.is_ok_and(|exit| exit.code() == 0)
    }
}

/// A `HealthCheckRequest` as gRPC frames it.
fn health_request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    // Names of services are short; one that is not names none.
    if let len @ 1..=127 = service.len() {
        message.extend([0x0a, len as u8]);
        message.extend(service.as_bytes());
    }
    let len = message.len() as u32;
    [&[0][..], &len.to_be_bytes(), &message].concat()
}

/// Whether a framed `HealthCheckResponse` says SERVING.
fn is_serving(body: &[u8]) -> bool {
    // Not compressed, length, then field 1 with the value 1.
    matches!(body, [0, _, _, _, _, 0x08, 0x01, ..])
}

/// Connects, and for HTTP asks: any answer from 200 to 399 is good.
fn connect(target: SocketAddr, patience: Duration, http: Option<&k8s::HTTPGetAction>) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&target, patience) else { return false };
    let Some(http) = http else { return true };
    let path = http.path.as_deref().unwrap_or("/");
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: kube-probe\r\nConnection: close\r\n\r\n"
    );
    let mut head = [0_u8; 12];
    let asked = stream.set_read_timeout(Some(patience)).is_ok()
        && stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut head).is_ok();
    let code = std::str::from_utf8(&head[9..]).ok().and_then(|code| code.parse::<u16>().ok());
    asked && code.is_some_and(|code| (200..400).contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_asked_in_frames() {
        assert_eq!(health_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("a.b"), [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'.', b'b']);
        assert!(is_serving(&[0, 0, 0, 0, 2, 0x08, 1]));
        for other in
            [&[0, 0, 0, 0, 2, 0x08, 2][..], &[0, 0, 0, 0, 0], &[], &[1, 0, 0, 0, 2, 0x08, 1]]
        {
            assert!(!is_serving(other), "{other:?}");
        }
    }
}
