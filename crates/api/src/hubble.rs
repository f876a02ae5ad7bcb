//! Hubble's gRPC API: messages and services, made from `proto/`, and their JSON.
//!
//! Names and numbers are Hubble's, so that its clients, relays and dashboards talk to our servers and
//! ours to theirs.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::de::DeserializeSeed as _;

/// Flows, filters, and events of the agent.
#[allow(missing_docs, reason = "generated; the documentation is in proto/flow/flow.proto")]
#[allow(clippy::all, unused_qualifications, unreachable_pub, reason = "generated")]
#[allow(
    clippy::allow_attributes_without_reason,
    clippy::str_to_string,
    clippy::use_self,
    clippy::semicolon_if_nothing_returned,
    reason = "generated"
)]
pub mod flow {
    include!(concat!(env!("OUT_DIR"), "/flow.rs"));
}

/// What clients ask.
#[allow(missing_docs, reason = "generated; the documentation is in proto/observer/observer.proto")]
#[allow(clippy::all, unused_qualifications, unreachable_pub, reason = "generated")]
#[allow(
    clippy::allow_attributes_without_reason,
    clippy::str_to_string,
    clippy::use_self,
    clippy::semicolon_if_nothing_returned,
    reason = "generated"
)]
pub mod observer {
    include!(concat!(env!("OUT_DIR"), "/observer.rs"));
}

/// Who else serves Hubble.
#[allow(missing_docs, reason = "generated; the documentation is in proto/peer/peer.proto")]
#[allow(clippy::all, unused_qualifications, unreachable_pub, reason = "generated")]
#[allow(
    clippy::allow_attributes_without_reason,
    clippy::str_to_string,
    clippy::use_self,
    clippy::semicolon_if_nothing_returned,
    reason = "generated"
)]
pub mod peer {
    include!(concat!(env!("OUT_DIR"), "/peer.rs"));
}

/// What a relay says of the nodes behind it.
#[allow(missing_docs, reason = "generated; the documentation is in proto/relay/relay.proto")]
#[allow(clippy::all, unused_qualifications, unreachable_pub, reason = "generated")]
pub mod relay {
    include!(concat!(env!("OUT_DIR"), "/relay.rs"));
}

/// The descriptors of all messages and services, encoded: what gRPC reflection serves.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hubble.bin"));

/// The port of an agent's server.
pub const SERVER_PORT: u16 = 4244;
/// The port of the relay.
pub const RELAY_PORT: u16 = 4245;

/// The descriptors, for whoever needs to find fields by name. Decoded when first used.
pub static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the compiler made valid descriptors")
});

/// A message that has a name, and so a JSON form.
pub trait Named: Message + Default {
    /// Its full name.
    const NAME: &'static str;

    /// Its descriptor.
    fn descriptor() -> MessageDescriptor {
        POOL.get_message_by_name(Self::NAME).expect("a message of ours")
    }
}

macro_rules! named {
    ($($type:ty = $name:literal,)*) => {
        $(impl Named for $type {
            const NAME: &'static str = $name;
        })*
    };
}

named! {
    flow::Flow = "flow.Flow",
    flow::FlowFilter = "flow.FlowFilter",
    flow::LostEvent = "flow.LostEvent",
    observer::ExportEvent = "observer.ExportEvent",
    observer::GetAgentEventsResponse = "observer.GetAgentEventsResponse",
    observer::GetDebugEventsResponse = "observer.GetDebugEventsResponse",
    observer::GetFlowsRequest = "observer.GetFlowsRequest",
    observer::GetFlowsResponse = "observer.GetFlowsResponse",
    observer::GetNamespacesResponse = "observer.GetNamespacesResponse",
    observer::GetNodesResponse = "observer.GetNodesResponse",
    observer::ServerStatusResponse = "observer.ServerStatusResponse",
    peer::ChangeNotification = "peer.ChangeNotification",
}

/// A text is not the JSON of a message.
#[derive(Debug, thiserror::Error)]
#[error("no JSON of {name}")]
pub struct JsonError {
    /// Full name of the message.
    pub name: &'static str,
    /// Why.
    #[source]
    pub source: serde_json::Error,
}

/// A message as protobuf's JSON, with the names of the `.proto` files; what is default is left out.
pub fn to_json<M: Named>(message: &M) -> String {
    let mut dynamic = DynamicMessage::new(M::descriptor());
    dynamic.transcode_from(message).expect("a message fits its own descriptor");
    let mut text = Vec::new();
    let options = SerializeOptions::new().use_proto_field_name(true);
    dynamic
        .serialize_with_options(&mut serde_json::Serializer::new(&mut text), &options)
        .expect("writing to memory does not fail");
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// Reads what [`to_json`] writes, and protobuf's JSON in general.
pub fn from_json<M: Named>(text: &str) -> Result<M, JsonError> {
    let error = |source| JsonError { name: M::NAME, source };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let dynamic = M::descriptor().deserialize(&mut deserializer).map_err(error)?;
    deserializer.end().map_err(error)?;
    dynamic.transcode_to().map_err(|source| error(serde::de::Error::custom(source)))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn example() -> flow::Flow {
        flow::Flow {
            time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5_000 }),
            verdict: flow::Verdict::Dropped.into(),
            drop_reason_desc: flow::DropReason::PolicyDenied.into(),
            ip: Some(flow::Ip { source: "10.0.0.1".into(), ..flow::Ip::default() }),
            is_reply: Some(false),
            socket_cookie: 1 << 60,
            egress_denied_by: vec![flow::Policy { name: "deny".into(), ..flow::Policy::default() }],
            ..flow::Flow::default()
        }
    }

    #[test]
    fn json_has_the_names_of_the_proto_files() {
        let json = to_json(&example());
        expect![[r#"{"time":"2023-11-14T22:13:20.000005Z","verdict":"DROPPED","IP":{"source":"10.0.0.1"},"drop_reason_desc":"POLICY_DENIED","is_reply":false,"socket_cookie":"1152921504606846976","egress_denied_by":[{"name":"deny"}]}"#]].assert_eq(&json);
        assert_eq!(from_json::<flow::Flow>(&json).unwrap(), example());
    }

    #[test]
    fn bad_json_names_the_message() {
        let error = from_json::<flow::FlowFilter>(r#"{"source_pot": []}"#).unwrap_err();
        assert_eq!(error.to_string(), "no JSON of flow.FlowFilter");
        assert!(error.source.to_string().contains("source_pot"), "{}", error.source);
    }

    /// The numbers are the wire: one that changes breaks every client.
    #[test]
    fn numbers_are_those_of_hubble() {
        let numbers = |message: &str, fields: &[(&str, u32)]| {
            let descriptor = POOL.get_message_by_name(message).expect(message);
            for (name, number) in fields {
                let field = descriptor.get_field_by_name(name).expect(name);
                assert_eq!(field.number(), *number, "{message}.{name}");
            }
        };
        numbers(
            "flow.Flow",
            &[
                ("time", 1),
                ("verdict", 2),
                ("ethernet", 4),
                ("IP", 5),
                ("l4", 6),
                ("source", 8),
                ("destination", 9),
                ("Type", 10),
                ("node_name", 11),
                ("source_names", 13),
                ("destination_names", 14),
                ("l7", 15),
                ("event_type", 19),
                ("source_service", 20),
                ("destination_service", 21),
                ("traffic_direction", 22),
                ("policy_match_type", 23),
                ("trace_observation_point", 24),
                ("drop_reason_desc", 25),
                ("is_reply", 26),
                ("debug_capture_point", 27),
                ("interface", 28),
                ("proxy_port", 29),
                ("trace_context", 30),
                ("sock_xlate_point", 31),
                ("socket_cookie", 32),
                ("cgroup_id", 33),
                ("uuid", 34),
                ("auth_type", 35),
                ("trace_reason", 36),
                ("node_labels", 37),
                ("file", 38),
                ("tunnel", 39),
                ("ip_trace_id", 40),
                ("emitter", 41),
                ("egress_allowed_by", 21001),
                ("ingress_allowed_by", 21002),
                ("egress_denied_by", 21004),
                ("ingress_denied_by", 21005),
                ("policy_log", 21006),
                ("aggregate", 21007),
                ("Summary", 100_000),
                ("extensions", 150_000),
            ],
        );
        numbers(
            "flow.FlowFilter",
            &[
                ("source_ip", 1),
                ("source_pod", 2),
                ("destination_ip", 3),
                ("destination_pod", 4),
                ("verdict", 5),
                ("event_type", 6),
                ("source_fqdn", 7),
                ("destination_fqdn", 8),
                ("http_status_code", 9),
                ("source_label", 10),
                ("destination_label", 11),
                ("protocol", 12),
                ("source_port", 13),
                ("destination_port", 14),
                ("reply", 15),
                ("source_service", 16),
                ("destination_service", 17),
                ("dns_query", 18),
                ("source_identity", 19),
                ("destination_identity", 20),
                ("http_method", 21),
                ("http_path", 22),
                ("tcp_flags", 23),
                ("node_name", 24),
                ("ip_version", 25),
                ("source_workload", 26),
                ("destination_workload", 27),
                ("trace_id", 28),
                ("uuid", 29),
                ("traffic_direction", 30),
                ("http_url", 31),
                ("http_header", 32),
                ("drop_reason_desc", 33),
                ("source_ip_xlated", 34),
                ("interface", 35),
                ("node_labels", 36),
                ("source_cluster_name", 37),
                ("destination_cluster_name", 38),
                ("ip_trace_id", 39),
                ("encrypted", 40),
                ("experimental", 999),
            ],
        );
        numbers(
            "observer.GetFlowsRequest",
            &[
                ("number", 1),
                ("follow", 3),
                ("blacklist", 5),
                ("whitelist", 6),
                ("since", 7),
                ("until", 8),
                ("first", 9),
                ("field_mask", 10),
                ("experimental", 999),
                ("extensions", 150_000),
            ],
        );
        numbers(
            "observer.GetFlowsResponse",
            &[
                ("flow", 1),
                ("node_status", 2),
                ("lost_events", 3),
                ("node_name", 1000),
                ("time", 1001),
            ],
        );
        numbers(
            "observer.ServerStatusResponse",
            &[
                ("num_flows", 1),
                ("max_flows", 2),
                ("seen_flows", 3),
                ("uptime_ns", 4),
                ("num_connected_nodes", 5),
                ("num_unavailable_nodes", 6),
                ("unavailable_nodes", 7),
                ("version", 8),
                ("flows_rate", 9),
            ],
        );
        numbers(
            "flow.LostEvent",
            &[("source", 1), ("num_events_lost", 2), ("cpu", 3), ("first", 4), ("last", 5)],
        );
        numbers("relay.NodeStatusEvent", &[("state_change", 1), ("node_names", 2), ("message", 3)]);
        numbers("peer.ChangeNotification", &[("name", 1), ("address", 2), ("type", 3), ("tls", 4)]);
    }
}
