//! `/healthz` and `/config`: how the agent is, and what it was told.

use std::collections::BTreeMap;

use abi::event::EventType;
use api::config::{Config, RoutingMode};
use api::rest::{
    BpfMapProperties, BpfMapStatus, ClusterStatus, CniChainingStatus, ControllerStatus,
    ControllerStatusValue, DaemonConfiguration, DaemonConfigurationSpec, DaemonConfigurationStatus,
    EncryptionStatus, HostFirewall, HubbleObserver, HubbleStatus, IdentityRange, IpamStatus,
    K8sStatus, KubeProxyReplacement, Masquerading, MonitorStatus, Routing, Status, StatusResponse,
    StatusState,
};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use model::IdentityId;
use policy::EnforcementMode;
use statedb::job::{Health, State as JobState};

use super::listing::describe_node;
use super::policy::{AUDIT_OPTION, parse_switch};
use super::{Agent, Refused, Shared, host_addressing};

/// `GET /healthz`; with the header `brief: true` only the sum.
pub(super) async fn healthz(State(agent): Shared, headers: HeaderMap) -> Json<StatusResponse> {
    let brief = headers.get("brief").is_some_and(|value| value == "true");
    Json(if brief {
        StatusResponse { cilium: sum(&agent), ..StatusResponse::default() }
    } else {
        full(&agent)
    })
}

/// `GET /healthz` on the health port: 200 or 503.
pub(super) async fn health_probe(State(agent): Shared) -> (StatusCode, Json<StatusResponse>) {
    let cilium = sum(&agent);
    let code = match cilium.state {
        StatusState::Failure => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    (code, Json(StatusResponse { cilium, ..StatusResponse::default() }))
}

/// The agent in one word: not ready is a failure, a job in trouble is a warning.
fn sum(agent: &Agent) -> Status {
    if agent.ready.serves_without_cluster() {
        let reason = agent.ready.reason();
        let words = format!("{reason}; pods are connected with what was known before the restart");
        return Status::new(StatusState::Warning, words);
    }
    if !agent.ready.is_ready() {
        return Status::new(StatusState::Failure, agent.ready.reason());
    }
    let jobs = agent.health.snapshot();
    let troubled: Vec<&str> =
        jobs.rows().filter(|job| is_troubled(job)).map(|job| job.name.as_str()).collect();
    let version = env!("CARGO_PKG_VERSION");
    if troubled.is_empty() {
        Status::new(StatusState::Ok, version)
    } else {
        Status::new(StatusState::Warning, format!("{version}, in trouble: {}", troubled.join(", ")))
    }
}

fn is_troubled(job: &Health) -> bool {
    matches!(job.state, JobState::Degraded | JobState::Failed)
}

pub(super) fn full(agent: &Agent) -> StatusResponse {
    let config = &agent.config;
    let tunnel = config.routing_mode == RoutingMode::Tunnel;
    let disabled = || "Disabled".to_owned();
    StatusResponse {
        cilium: sum(agent),
        kubernetes: Some(kubernetes(agent)),
        kvstore: Some(Status::new(StatusState::Disabled, "Disabled")),
        node_monitor: Some(node_monitor(agent)),
        cluster: Some(ClusterStatus {
            cilium_health: agent.prober.as_ref().map(|prober| prober.last().sum()),
            self_name: format!("{}/{}", config.cluster_name, agent.node.name),
            nodes: agent.nodes.snapshot().rows().map(|node| describe_node(agent, node)).collect(),
        }),
        ipam: Some(ipam(agent)),
        controllers: agent.health.snapshot().rows().map(|job| controller(job)).collect(),
        hubble: Some(hubble(agent)),
        masquerading: Some(Masquerading { enabled: false, mode: String::new() }),
        routing: Some(Routing {
            intra_host_routing_mode: "BPF".to_owned(),
            inter_host_routing_mode: if tunnel { "Tunnel" } else { "Native" }.to_owned(),
            tunnel_protocol: if tunnel {
                config.tunnel_protocol.to_string()
            } else {
                String::new()
            },
        }),
        kube_proxy_replacement: Some(KubeProxyReplacement { mode: "False".to_owned() }),
        host_firewall: Some(HostFirewall { mode: disabled() }),
        encryption: Some(EncryptionStatus { mode: disabled(), msg: String::new() }),
        bpf_maps: Some(bpf_maps(agent)),
        cni_chaining: Some(CniChainingStatus { mode: "none".to_owned() }),
        cni_file: config.write_cni_conf_when_ready.as_ref().map(|path| {
            let state = if path.exists() { StatusState::Ok } else { StatusState::Failure };
            Status::new(state, path.display().to_string())
        }),
        identity_range: Some(IdentityRange {
            min_identity: IdentityId::CLUSTER_MIN.0.into(),
            max_identity: IdentityId::CLUSTER_MAX.0.into(),
        }),
        attach_mode: Some(if agent.datapath.uses_tcx() { "TCX" } else { "Legacy TC" }.to_owned()),
        datapath_mode: Some(config.datapath_mode.to_string()),
        stale: BTreeMap::new(),
    }
}

/// A ring per CPU.
fn node_monitor(agent: &Agent) -> MonitorStatus {
    let events = &agent.datapath.maps.events;
    MonitorStatus {
        cpus: events.info().map_or(0, |info| info.max_entries.into()),
        npages: (abi::names::EVENTS_RING_BYTES / PAGE_BYTES).into(),
        pagesize: PAGE_BYTES.into(),
        lost: events.lost().map_or(0, |lost| lost.cast_signed()),
        unknown: 0,
    }
}

const PAGE_BYTES: u32 = 4096;

/// Jobs that follow the API server.
const WATCH_PREFIX: &str = "watch-";

fn hubble(agent: &Agent) -> HubbleStatus {
    let Some(observer) = agent.monitor.observer() else {
        return HubbleStatus { state: StatusState::Disabled, ..HubbleStatus::default() };
    };
    let figures = observer.figures();
    let percent = figures.kept as f64 * 100.0 / figures.capacity.max(1) as f64;
    HubbleStatus {
        state: StatusState::Ok,
        msg: format!(
            "Current/Max Flows: {}/{} ({percent:.2}%), Flows/s: {:.2}",
            figures.kept, figures.capacity, figures.rate
        ),
        observer: Some(HubbleObserver {
            current_flows: figures.kept,
            max_flows: figures.capacity,
            seen_flows: figures.seen,
            uptime: format!("{}s", figures.uptime.as_secs()),
        }),
    }
}

fn kubernetes(agent: &Agent) -> K8sStatus {
    let jobs = agent.health.snapshot();
    let watches: Vec<_> = jobs.rows().filter(|job| job.name.starts_with(WATCH_PREFIX)).collect();
    let broken = watches.iter().find(|job| is_troubled(job));
    K8sStatus {
        state: if broken.is_some() { StatusState::Failure } else { StatusState::Ok },
        msg: broken.map(|job| job.message.clone()).unwrap_or_default(),
        k8s_api_versions: watches
            .iter()
            .map(|job| job.name.trim_start_matches(WATCH_PREFIX).to_owned())
            .collect(),
    }
}

fn ipam(agent: &Agent) -> IpamStatus {
    let ipam = agent.endpoints.ipam();
    let mut status = IpamStatus::default();
    let mut words = Vec::new();
    for pool in ipam.pools() {
        let is_ipv4 = pool.cidrs()[0].addr().is_ipv4();
        let cidrs: Vec<_> = pool.cidrs().iter().map(ToString::to_string).collect();
        words.push(format!(
            "{}: {}/{} allocated from {}",
            if is_ipv4 { "IPv4" } else { "IPv6" },
            pool.used().len(),
            pool.capacity(),
            cidrs.join(","),
        ));
        let list = if is_ipv4 { &mut status.ipv4 } else { &mut status.ipv6 };
        for (address, owner) in pool.used() {
            list.push(address.to_string());
            status.allocations.insert(address.to_string(), owner.to_owned());
        }
    }
    status.status = words.join(", ");
    status
}

fn controller(job: &Health) -> ControllerStatus {
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    ControllerStatus {
        name: job.name.clone(),
        status: ControllerStatusValue {
            success_count: count(job.successes),
            failure_count: count(job.failures),
            consecutive_failure_count: count(job.failures_in_a_row),
            last_failure_msg: if is_troubled(job) { job.message.clone() } else { String::new() },
        },
    }
}

fn bpf_maps(agent: &Agent) -> BpfMapStatus {
    let infos = agent.datapath.maps.infos().unwrap_or_default();
    let maps = infos
        .into_iter()
        .map(|info| BpfMapProperties { name: info.name, size: info.max_entries.into() });
    BpfMapStatus { maps: maps.collect() }
}

/// `GET /config`: the CNI plugin takes MTU and addresses from it.
pub(super) async fn config(State(agent): Shared) -> Json<DaemonConfiguration> {
    let spec = mutable_options(&agent);
    Json(DaemonConfiguration {
        spec: spec.clone(),
        status: DaemonConfigurationStatus {
            addressing: host_addressing(&agent),
            datapath_mode: agent.config.datapath_mode.to_string(),
            device_mtu: agent.node.device_mtu,
            route_mtu: agent.node.route_mtu,
            ipam_mode: agent.config.ipam.to_string(),
            daemon_configuration_map: agent.config_set.clone(),
            realized: spec,
        },
    })
}

/// `PATCH /config`: what can be changed at run time: where policy is enforced, whether what it denies
/// passes, and which events the datapath sends, of those that its programs were loaded with. Everything is done, or nothing.
pub(super) async fn patch_config(
    State(agent): Shared,
    Json(wanted): Json<DaemonConfigurationSpec>,
) -> Result<StatusCode, Refused> {
    let current = mutable_options(&agent);
    let mut changes = Vec::new();
    let mut audit = None;
    for (key, value) in &wanted.options {
        if current.options.get(key) == Some(value) {
            continue;
        }
        if key == AUDIT_OPTION {
            audit = Some(parse_switch(key, value)?);
            continue;
        }
        let option = event_options(&agent.config).into_iter().find(|option| option.key == key);
        changes.push(change(key, value, option).map_err(Refused::bad_request)?);
    }
    let mode = parse_mode(&wanted.policy_enforcement)?;
    let mut engine = agent.policies.engine.lock();
    mode.into_iter().for_each(|mode| engine.set_mode(mode));
    audit.into_iter().for_each(|audit| engine.set_audit(audit));
    drop(engine);
    agent.policies.engine.recompute();
    for (option, on) in changes {
        option.events.iter().for_each(|event| agent.monitor.set_wanted(*event, on));
        tracing::info!(option = option.key, on, "Changed an option");
    }
    Ok(StatusCode::OK)
}

/// A mode of enforcement; none for the empty word.
fn parse_mode(word: &str) -> Result<Option<EnforcementMode>, Refused> {
    match word {
        "" => Ok(None),
        "default" => Ok(Some(EnforcementMode::Default)),
        "always" => Ok(Some(EnforcementMode::Always)),
        "never" => Ok(Some(EnforcementMode::Never)),
        other => Err(Refused::bad_request(format!(
            "policy-enforcement: {other:?} is no mode; write default, always or never"
        ))),
    }
}

/// An option that decides about events.
struct EventOption {
    key: &'static str,
    /// The key of the configuration that decides whether the programs have these events at all.
    loaded_by: &'static str,
    is_loaded: bool,
    events: &'static [EventType],
}

fn event_options(config: &Config) -> [EventOption; 3] {
    [
        EventOption {
            key: "Debug",
            loaded_by: "debug",
            is_loaded: config.debug,
            events: &[EventType::Debug, EventType::DebugCapture],
        },
        EventOption {
            key: "DropNotification",
            loaded_by: "bpf-events-drop-enabled",
            is_loaded: config.bpf_events_drop_enabled,
            events: &[EventType::Drop],
        },
        EventOption {
            key: "TraceNotification",
            loaded_by: "bpf-events-trace-enabled",
            is_loaded: config.bpf_events_trace_enabled,
            events: &[EventType::Trace],
        },
    ]
}

/// What is to be done for `key=value`, or why it cannot be.
fn change(
    key: &str,
    value: &str,
    option: Option<EventOption>,
) -> Result<(EventOption, bool), String> {
    let Some(option) = option else {
        return Err(format!(
            "option {key} cannot be changed while the agent runs; set it in the ConfigMap cilium-config and restart the agent"
        ));
    };
    let on = match value.to_ascii_lowercase().as_str() {
        "enabled" | "enable" | "true" | "on" | "1" => true,
        "disabled" | "disable" | "false" | "off" | "0" => false,
        _ => return Err(format!("option {key}: {value:?} is neither Enabled nor Disabled")),
    };
    if on && !option.is_loaded {
        return Err(format!(
            "option {key}: the datapath was loaded without it; set {}=true in the ConfigMap cilium-config and restart the agent",
            option.loaded_by
        ));
    }
    Ok((option, on))
}

fn mutable_options(agent: &Agent) -> DaemonConfigurationSpec {
    let word = |on: bool| if on { "Enabled" } else { "Disabled" }.to_owned();
    let state = |option: &EventOption| {
        option.is_loaded && option.events.iter().all(|event| agent.monitor.wants(*event))
    };
    let events = event_options(&agent.config);
    let aggregation = ("MonitorAggregationLevel", agent.config.monitor_aggregation.to_string());
    let options = events.iter().map(|option| (option.key, word(state(option))));
    let engine = agent.policies.engine.lock();
    let policy_enforcement = match engine.options().repository.mode {
        EnforcementMode::Default => "default",
        EnforcementMode::Always => "always",
        EnforcementMode::Never => "never",
    };
    let audit = (AUDIT_OPTION, word(engine.options().audit));
    DaemonConfigurationSpec {
        options: options
            .chain([aggregation, audit])
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
        policy_enforcement: policy_enforcement.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `DropNotification` is loaded, `TraceNotification` is not.
    fn check(key: &str, value: &str) -> Result<bool, String> {
        let config = Config {
            bpf_events_drop_enabled: true,
            bpf_events_trace_enabled: false,
            ..Config::default()
        };
        let option = event_options(&config).into_iter().find(|option| option.key == key);
        change(key, value, option).map(|(_, on)| on)
    }

    #[test]
    fn events_that_are_loaded_can_be_switched() {
        assert_eq!(check("DropNotification", "Disabled"), Ok(false));
        assert_eq!(check("DropNotification", "true"), Ok(true));
        assert_eq!(check("TraceNotification", "off"), Ok(false));
    }

    #[test]
    fn refusals_name_the_key_and_what_to_do() {
        for (key, value, words) in [
            ("TraceNotification", "Enabled", "set bpf-events-trace-enabled=true in the ConfigMap"),
            ("DropNotification", "maybe", "\"maybe\" is neither Enabled nor Disabled"),
            ("MonitorAggregationLevel", "none", "cannot be changed while the agent runs"),
        ] {
            let refusal = check(key, value).unwrap_err();
            assert!(refusal.contains(key) && refusal.contains(words), "{refusal}");
        }
    }
}
