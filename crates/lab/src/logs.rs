//! `kubectl logs`: what a container has printed.

use std::collections::HashMap;

use futures::future::BoxFuture;
use http::{Request, Response, header};
use hyper::body::Incoming;
use serde_json::Value;

use crate::apiserver::{ApiError, PodStreams, Reply, full};
use crate::spec::Paths;

/// Serves the logs of a lab's pods.
#[derive(Debug)]
pub struct Logs {
    /// Where they are.
    pub paths: Paths,
}

impl PodStreams for Logs {
    fn serve(
        &self,
        pod: Value,
        subresource: String,
        request: Request<Incoming>,
    ) -> BoxFuture<'static, Result<Reply, ApiError>> {
        let answer = match subresource.as_str() {
            "log" => self.log(&pod, request.uri().query().unwrap_or_default()),
            _ => Err(ApiError::not_implemented(format!(
                "the lab does not serve {subresource}: use `cilium lab exec POD -- COMMAND`"
            ))),
        };
        Box::pin(std::future::ready(answer))
    }
}

impl Logs {
    fn log(&self, pod: &Value, query: &str) -> Result<Reply, ApiError> {
        let options: HashMap<&str, &str> =
            query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        if options.get("follow") == Some(&"true") {
            return Err(ApiError::not_implemented(
                "the lab does not follow logs: read them again, or use tail -f on the lab's directory logs/",
            ));
        }
        let text = |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let first = text("/spec/containers/0/name");
        let container = options.get("container").copied().unwrap_or(first);
        let lists = ["/spec/containers", "/spec/initContainers"].map(|list| pod.pointer(list));
        let mut known = lists.into_iter().flatten().filter_map(Value::as_array).flatten();
        if !known.any(|c| c["name"] == container) {
            let name = text("/metadata/name");
            return Err(ApiError::bad_request(format!(
                "container {container} is not valid for pod {name}"
            )));
        }
        let file = self.paths.log(&log_name(
            text("/metadata/namespace"),
            text("/metadata/name"),
            container,
        ));
        // A container that has not started has printed nothing.
        let content = std::fs::read(&file).unwrap_or_default();
        let lines = options.get("tailLines").and_then(|n| n.parse().ok());
        let content = lines.map_or(content.as_slice(), |lines| tail(&content, lines)).to_vec();
        let reply =
            Response::builder().header(header::CONTENT_TYPE, "text/plain").body(full(content));
        reply.map_err(|error| ApiError::internal(error.to_string()))
    }
}

/// Name of a container's log file.
pub fn log_name(namespace: &str, pod: &str, container: &str) -> String {
    format!("{namespace}_{pod}_{container}")
}

/// The last lines of a text.
fn tail(text: &[u8], lines: usize) -> &[u8] {
    let end = text.strip_suffix(b"\n").unwrap_or(text);
    let mut breaks =
        end.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    match lines.checked_sub(1) {
        None => &[],
        Some(skipped) => breaks.nth(skipped).map_or(text, |at| &text[at + 1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines() {
        for (lines, expected) in
            [(0, ""), (1, "c\n"), (2, "b\nc\n"), (3, "a\nb\nc\n"), (9, "a\nb\nc\n")]
        {
            assert_eq!(tail(b"a\nb\nc\n", lines), expected.as_bytes());
        }
        assert_eq!(tail(b"a\nb", 1), b"b");
    }
}
