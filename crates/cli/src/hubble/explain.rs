//! `hubble explain`: what was done with a flow, why, and what would have to change.

use anyhow::{Result, bail};
use api::hubble::flow::{DropReason, Flow, FlowFilter, Policy, TrafficDirection, Verdict};
use api::hubble::observer::get_flows_response::ResponseTypes;
use api::hubble::observer::observer_client::ObserverClient;
use api::hubble::observer::{GetFlowsRequest, GetFlowsResponse};
use clap::ArgMatches;

use super::config::Settings;
use super::observe::{failed, request_timeout};
use super::print::policy_name;
use super::{connect, filters};

/// `hubble explain UUID`, `hubble explain --last-drop`.
pub(super) async fn run(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let flow = matches.get_one::<String>("flow");
    let filter = match flow {
        Some(uuid) => FlowFilter { uuid: vec![uuid.clone()], ..FlowFilter::default() },
        None if matches.get_flag("last-drop") => {
            FlowFilter { verdict: vec![Verdict::Dropped.into()], ..FlowFilter::default() }
        }
        None => bail!("name a flow by its uuid, or give --last-drop"),
    };
    let (others, blacklist) = filters::lists(matches)?;
    let both = |other: FlowFilter| FlowFilter {
        uuid: filter.uuid.clone(),
        verdict: filter.verdict.clone(),
        ..other
    };
    let whitelist =
        if others.is_empty() { vec![filter] } else { others.into_iter().map(both).collect() };
    let request = GetFlowsRequest { number: 1, whitelist, blacklist, ..GetFlowsRequest::default() };
    let (channel, server) = connect(settings).await?;
    let newest = tokio::time::timeout(request_timeout(settings)?, newest(channel, request)).await;
    let found = match newest {
        Ok(found) => found.map_err(|status| failed(&server, &status))?,
        Err(_) => bail!("{server} does not answer in time (--request-timeout)"),
    };
    match found {
        Some(flow) => crate::output::print(&explain(&flow)),
        None if flow.is_some() => {
            bail!("{server} has no such flow any more; it keeps only the newest")
        }
        None => bail!("{server} has seen no such drop"),
    }
}

/// The newest of what the nodes give, one each.
async fn newest(
    channel: tonic::transport::Channel,
    request: GetFlowsRequest,
) -> Result<Option<Flow>, tonic::Status> {
    let mut stream = ObserverClient::new(channel).get_flows(request).await?.into_inner();
    let mut newest = None;
    while let Some(GetFlowsResponse { response_types, .. }) = stream.message().await? {
        if let Some(ResponseTypes::Flow(flow)) = response_types {
            newest = Some(flow);
        }
    }
    Ok(newest)
}

fn end(name: &str, end: Option<&api::hubble::flow::Endpoint>, address: &str) -> String {
    let Some(end) = end else { return format!("{name}: {address}\n") };
    let who = match (end.pod_name.as_str(), abi::identity::reserved_name(end.identity)) {
        ("", Some(reserved)) => format!("{address} ({reserved})"),
        ("", None) => format!("{address} (identity {})", end.identity),
        (pod, _) => format!("{}/{pod} ({address}, identity {})", end.namespace, end.identity),
    };
    let labels: Vec<&str> = end.labels.iter().map(String::as_str).collect();
    match labels.is_empty() {
        true => format!("{name}: {who}\n"),
        false => format!("{name}: {who}\n             {}\n", labels.join(", ")),
    }
}

fn explain(flow: &Flow) -> String {
    let ip = flow.ip.clone().unwrap_or_default();
    let time = flow.time.as_ref().map_or_else(String::new, ToString::to_string);
    let mut text = format!("Flow {} on {}, {time}\n", flow.uuid, flow.node_name);
    text += &end("Source", flow.source.as_ref(), &ip.source);
    text += &end("Destination", flow.destination.as_ref(), &ip.destination);
    if !flow.summary.is_empty() {
        text += &format!("Packet: {}\n", flow.summary);
    }
    let verdict = flow.verdict();
    let reason = match flow.drop_reason {
        0 => String::new(),
        number => format!(": {}", flow::reason_text(u8::try_from(number).unwrap_or(u8::MAX))),
    };
    text += &format!("Verdict: {}{reason}\n", verdict.as_str_name());
    text += &why(flow);
    text
}

fn names(policies: &[Policy]) -> String {
    let described =
        policies.iter().map(|policy| format!("{} {}", policy.kind, policy_name(policy)));
    described.collect::<Vec<_>>().join(", ")
}

/// Why, and what would have to change.
fn why(flow: &Flow) -> String {
    let (direction, subject, verb) = match flow.traffic_direction() {
        TrafficDirection::Ingress => ("ingress", "destination", "from the source"),
        TrafficDirection::Egress => ("egress", "source", "to the destination"),
        TrafficDirection::Unknown => ("either direction", "pod", "of the flow"),
    };
    let denied: Vec<Policy> =
        flow.egress_denied_by.iter().chain(&flow.ingress_denied_by).cloned().collect();
    let allowed: Vec<Policy> =
        flow.egress_allowed_by.iter().chain(&flow.ingress_allowed_by).cloned().collect();
    match flow.drop_reason_desc() {
        DropReason::PolicyDenied if denied.is_empty() => format!(
            "Why: policies select the {subject}, and none of their {direction} rules allows this packet.\n\
             To allow it: add a rule for {direction} {verb} to one of them. `cilium policy trace` on {} \
             names the nearest rule.\n",
            flow.node_name
        ),
        DropReason::PolicyDenied => format!(
            "Why: selected by {}, of which no {direction} rule allows this packet.\n\
             To allow it: add a rule for {direction} {verb} to one of them.\n",
            names(&denied)
        ),
        DropReason::PolicyDeny => format!(
            "Why: a rule of {} denies it, and what is denied no other rule can allow.\n\
             To allow it: change that rule.\n",
            if denied.is_empty() { "a policy".to_owned() } else { names(&denied) }
        ),
        DropReason::Unknown if !allowed.is_empty() => {
            format!("Why: allowed by {}.\n", names(&allowed))
        }
        DropReason::Unknown => String::new(),
        other => format!("Why: {}\n", advice(other)),
    }
}

/// What reasons other than policies mean to whoever sees them.
fn advice(reason: DropReason) -> &'static str {
    match reason {
        DropReason::InvalidSourceIp => {
            "the pod sent with an address that is not its own; only its own is let through."
        }
        DropReason::UnsupportedL3Protocol => {
            "neither IPv4, IPv6 nor ARP, or a family that is switched off (enable-ipv4, enable-ipv6)."
        }
        DropReason::CtMapInsertionFailed => {
            "the table of connections is full: raise bpf-ct-global-tcp-max or bpf-ct-global-any-max."
        }
        DropReason::StaleOrUnroutableIp => {
            "nobody has the destination address any more: a pod that is gone."
        }
        DropReason::TtlExceeded => {
            "the packet went in circles, or was sent with a hop limit too low."
        }
        DropReason::ServiceBackendNotFound => "the service has no backend that is ready.",
        DropReason::InvalidPacketDropped | DropReason::CtTruncatedOrInvalidHeader => {
            "its headers are broken or cut off."
        }
        _ => "see the reason above; the drop counters of the node say how often it happens.",
    }
}

#[cfg(test)]
mod tests {
    use api::hubble::from_json;
    use expect_test::{Expect, expect};

    use super::*;

    #[track_caller]
    fn check(flow: &str, expected: Expect) {
        expected.assert_eq(&explain(&from_json(flow).expect("a flow")));
    }

    #[test]
    fn drops_are_explained() {
        check(
            r#"{"uuid": "u", "node_name": "node-1", "time": "2023-11-14T22:13:20Z", "verdict": "DROPPED",
                "drop_reason": 133, "drop_reason_desc": "POLICY_DENIED", "traffic_direction": "INGRESS",
                "IP": {"source": "10.0.0.1", "destination": "10.0.0.2"}, "Summary": "TCP Flags: SYN",
                "source": {"identity": 2}, "destination": {"identity": 300, "namespace": "prod",
                "pod_name": "web", "labels": ["k8s:app=web"]}}"#,
            expect![[r#"
                Flow u on node-1, 2023-11-14T22:13:20Z
                Source: 10.0.0.1 (world)
                Destination: prod/web (10.0.0.2, identity 300)
                             k8s:app=web
                Packet: TCP Flags: SYN
                Verdict: DROPPED: Policy denied
                Why: policies select the destination, and none of their ingress rules allows this packet.
                To allow it: add a rule for ingress from the source to one of them. `cilium policy trace` on node-1 names the nearest rule.
            "#]],
        );
        check(
            r#"{"uuid": "u", "verdict": "DROPPED", "drop_reason": 181, "drop_reason_desc": "POLICY_DENY",
                "egress_denied_by": [{"name": "no-web", "namespace": "prod", "kind": "CiliumNetworkPolicy"}],
                "IP": {"source": "10.0.0.1", "destination": "10.0.0.2"}}"#,
            expect![[r#"
                Flow u on , 
                Source: 10.0.0.1
                Destination: 10.0.0.2
                Verdict: DROPPED: Policy denied by denylist
                Why: a rule of CiliumNetworkPolicy prod/no-web denies it, and what is denied no other rule can allow.
                To allow it: change that rule.
            "#]],
        );
        check(
            r#"{"uuid": "u", "verdict": "DROPPED", "drop_reason": 132, "drop_reason_desc": "INVALID_SOURCE_IP"}"#,
            expect![[r#"
                Flow u on , 
                Source: 
                Destination: 
                Verdict: DROPPED: Invalid source ip
                Why: the pod sent with an address that is not its own; only its own is let through.
            "#]],
        );
    }
}
