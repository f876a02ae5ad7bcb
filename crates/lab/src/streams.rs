//! Streams between `kubectl` and pods: exec, attach, cp (which is exec of `tar`), port-forward, logs.
//!
//! ```text
//!   request ─▶ upgrade: WebSocket or SPDY? ─▶ websocket ─┐
//!                                           ─▶ spdy ──────┴▶ Stream, Stream, … ─▶ exec, attach, forward
//!   request ─▶ logs (no upgrade)
//! ```
//!
//! Both protocols come down to numbered [`Stream`]s of bytes; what runs over them does not know which it is.
//! The API server serves them itself, in the place of a kubelet: nodes are on this machine.

pub mod attach;
pub mod exec;
pub mod forward;
pub mod inside;
pub mod spdy;
pub mod upgrade;
pub mod websocket;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::Request;
use hyper::body::Incoming;
use kernel::cgroup::Cgroup;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::apiserver::{ApiError, PodStreams, Reply};
use crate::logs;
use crate::process::SpawnError;
use crate::spec::Paths;

pub use attach::{Console, Consoles};

/// Messages that wait between two parties.
const QUEUE_LEN: usize = 16;
/// Longest piece of a process's output that is sent at once.
const OUTPUT_LEN_MAX: usize = 32 << 10;
/// How long a client may take to close a connection on which all is said.
const LINGER: Duration = Duration::from_secs(10);

/// Serves the streams of a lab's pods.
#[derive(Clone, Debug)]
pub struct Streams {
    /// The lab's files.
    pub paths: Paths,
    /// Containers that can be typed into.
    pub consoles: Arc<Consoles>,
}

impl PodStreams for Streams {
    fn serve(
        &self,
        pod: Value,
        subresource: String,
        request: Request<Incoming>,
    ) -> BoxFuture<'static, Result<Reply, ApiError>> {
        let streams = self.clone();
        Box::pin(async move {
            let pod = PodView(pod);
            match subresource.as_str() {
                "log" => {
                    let query = request.uri().query().unwrap_or_default();
                    logs::serve(&streams, &pod, query).await
                }
                "exec" => exec::serve(&streams, &pod, request),
                "attach" => attach::serve(&streams, &pod, request),
                "portforward" => forward::serve(&streams, pod, request),
                other => Err(ApiError::not_implemented(format!(
                    "the lab does not serve pods/{other}: use kubectl port-forward or kubectl exec"
                ))),
            }
        })
    }
}

impl Streams {
    /// The cgroup of a container that runs on one of the lab's nodes.
    pub fn cgroup(&self, pod: &PodView, container: &str) -> Result<PathBuf, ApiError> {
        let root = Cgroup::root().map_err(|error| ApiError::internal(error.to_string()))?;
        let node = pod.text("/spec/nodeName");
        let pod_dir = format!("pod{}", pod.text("/metadata/uid"));
        let pods = root.path().join(self.paths.cgroup()).join(node).join("pods");
        Ok(pods.join(pod_dir).join(container))
    }

    /// The way into a running container.
    fn inside(&self, pod: &PodView, container: &str) -> Result<inside::Inside, ApiError> {
        let cgroup = self.cgroup(pod, container)?;
        if Cgroup::at(&cgroup).is_frozen() {
            let node = pod.text("/spec/nodeName");
            return Err(ApiError::internal(SpawnError::Paused(node.to_owned()).to_string()));
        }
        let found = inside::Inside::of(&cgroup);
        // As a kubelet says it.
        found.ok_or_else(|| ApiError::internal(format!("container not found (\"{container}\")")))
    }
}

/// A pod as the API server has it.
#[derive(Debug)]
pub struct PodView(pub Value);

impl PodView {
    /// A text of the object, by its JSON pointer.
    pub fn text(&self, path: &str) -> &str {
        self.0.pointer(path).and_then(Value::as_str).unwrap_or_default()
    }

    /// The specifications of all containers.
    pub fn containers(&self) -> impl Iterator<Item = &Value> {
        let lists = ["/spec/containers", "/spec/initContainers"].map(|list| self.0.pointer(list));
        lists.into_iter().flatten().filter_map(Value::as_array).flatten()
    }

    /// The container that a request means: the named one, the annotated one, or the first.
    pub fn container(&self, asked: Option<&str>) -> Result<&Value, ApiError> {
        let annotations = self.0.pointer("/metadata/annotations");
        let default = annotations
            .and_then(|all| all["kubectl.kubernetes.io/default-container"].as_str())
            .unwrap_or_else(|| self.text("/spec/containers/0/name"));
        let name = asked.filter(|name| !name.is_empty()).unwrap_or(default);
        self.containers().find(|container| container["name"] == name).ok_or_else(|| {
            let pod = self.text("/metadata/name");
            ApiError::bad_request(format!("container {name} is not valid for pod {pod}"))
        })
    }
}

/// Names and values of a query, in order.
pub fn query(text: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

/// One of the streams of a connection.
#[derive(Debug)]
pub struct Stream {
    /// What the client sends; ends when it closes the stream, or goes.
    pub incoming: mpsc::Receiver<Bytes>,
    /// The way to the client.
    pub outgoing: Outgoing,
    /// Cancelled when the client wants no more of this stream, or is gone.
    pub gone: CancellationToken,
}

/// The way to the client.
#[derive(Debug)]
pub struct Outgoing {
    id: u32,
    queue: mpsc::Sender<Message>,
}

impl Outgoing {
    /// Sends; says whether there is still somebody to send to.
    pub async fn send(&self, data: Bytes) -> bool {
        self.queue.send(Message::Data { stream: self.id, data, last: false }).await.is_ok()
    }

    /// Tells that nothing follows.
    pub async fn finish(self) {
        let last = Message::Data { stream: self.id, data: Bytes::new(), last: true };
        let _ = self.queue.send(last).await;
    }
}

/// What is to be written to a connection.
#[derive(Debug)]
enum Message {
    /// Data of a stream, or its end.
    Data { stream: u32, data: Bytes, last: bool },
    /// A frame of the protocol itself.
    Raw(Bytes),
}

/// Keeps a connection open also without streams.
#[derive(Debug)]
pub struct Ends {
    _queue: mpsc::Sender<Message>,
    /// Cancelled when the client is gone.
    pub gone: CancellationToken,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_container_is_the_asked_the_annotated_or_the_first() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        let name = |pod: &Value, asked| {
            let pod = PodView(pod.clone());
            pod.container(asked).map(|c| c["name"].as_str().unwrap_or_default().to_owned())
        };
        assert_eq!(name(&pod, None).unwrap(), "a");
        assert_eq!(name(&pod, Some("i")).unwrap(), "i");
        let error = name(&pod, Some("x")).unwrap_err().to_string();
        assert!(error.contains("container x is not valid for pod p"), "{error}");
        pod["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/default-container": "b"});
        assert_eq!(name(&pod, None).unwrap(), "b");
        assert_eq!(name(&pod, Some("")).unwrap(), "b");
    }

    #[test]
    fn words_of_a_query_are_decoded() {
        let pairs = query("command=sh&command=-c&command=echo+a%26b&stdin=true");
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(k, v)| (&**k, &**v)).collect();
        let command = ["sh", "-c", "echo a&b"].map(|word| ("command", word));
        assert_eq!(pairs, [&command[..], &[("stdin", "true")]].concat());
    }
}
