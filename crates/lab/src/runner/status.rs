//! What a kubelet would say about a pod, computed from what the runner has seen. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What is known about one container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    /// Identifies this run of the container.
    pub id: Option<String>,
    /// Waiting, running or ended.
    pub state: State,
    /// How the run before ended.
    pub last: Option<Terminated>,
    /// How often it was started again.
    pub restarts: i32,
    /// Whether its readiness probe is content; without a probe, whether it runs.
    pub ready: bool,
    /// Whether its startup probe has been content; without a probe, whether it runs.
    pub started: bool,
}

/// What a container does now.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Not started, for this reason.
    Waiting {
        /// One word, as kubelets write it.
        reason: &'static str,
        /// A sentence, possibly empty.
        message: String,
    },
    /// Started and not ended.
    Running {
        /// Since when.
        started_at: Time,
    },
    /// Ended, and not to be started again before long.
    Terminated(Terminated),
}

impl Default for State {
    fn default() -> Self {
        Self::Waiting { reason: "ContainerCreating", message: String::new() }
    }
}

/// How a run of a container ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Terminated {
    /// Exit code, 128 plus the signal when killed.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// When the run began.
    pub started_at: Time,
    /// When it ended.
    pub finished_at: Time,
    /// Which run it was.
    pub id: String,
    /// What it has left to say.
    pub message: String,
}

impl Terminated {
    fn reason(&self) -> &'static str {
        if self.code == 0 { "Completed" } else { "Error" }
    }
}

/// What is known about a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// When the runner took the pod on.
    pub start_time: Time,
    /// The pod's network is there.
    pub sandbox_ready: bool,
    /// The pod's addresses, the primary one first.
    pub addresses: Vec<IpAddr>,
    /// The node's addresses.
    pub host_addresses: Vec<IpAddr>,
    /// In the order of the specification.
    pub init_containers: Vec<Container>,
    /// In the order of the specification.
    pub containers: Vec<Container>,
}

/// Reasons for which containers wait. One that has another reason is about to be looked at.
const WAITING: [&str; 7] = [
    "PodInitializing",
    "CrashLoopBackOff",
    "ErrImagePull",
    "ImagePullBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// What an earlier runner has seen, by the status that it has written.
pub fn restore(pod: &Pod, host_addresses: &[IpAddr]) -> Option<Seen> {
    let status = pod.status.as_ref()?;
    let spec = pod.spec.as_ref()?;
    let containers = |specs: &[k8s_openapi::api::core::v1::Container],
                      known: &Option<Vec<ContainerStatus>>| {
        let find = |name: &str| known.iter().flatten().find(|status| status.name == name);
        specs.iter().map(|spec| find(&spec.name).map(restored).unwrap_or_default()).collect()
    };
    let init = spec.init_containers.as_deref().unwrap_or_default();
    Some(Seen {
        start_time: status.start_time.clone()?,
        sandbox_ready: false,
        addresses: Vec::new(),
        host_addresses: host_addresses.to_vec(),
        init_containers: containers(init, &status.init_container_statuses),
        containers: containers(&spec.containers, &status.container_statuses),
    })
}

fn restored(status: &ContainerStatus) -> Container {
    let id = |text: &Option<String>| {
        text.as_deref().and_then(|id| id.strip_prefix("lab://")).map(str::to_owned)
    };
    let ended = |end: &ContainerStateTerminated| {
        let unseen = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        Terminated {
            code: end.exit_code,
            signal: end.signal,
            started_at: end.started_at.clone().unwrap_or_else(|| unseen.clone()),
            finished_at: end.finished_at.clone().unwrap_or(unseen),
            id: id(&end.container_id).unwrap_or_default(),
            message: end.message.clone().unwrap_or_default(),
        }
    };
    let state = status.state.clone().unwrap_or_default();
    Container {
        id: id(&status.container_id),
        state: match (state.running, state.terminated, state.waiting) {
            (Some(running), ..) => {
                let began = running.started_at;
                State::Running {
                    started_at: began.unwrap_or_else(|| Time(k8s_openapi::jiff::Timestamp::now())),
                }
            }
            (_, Some(end), _) => State::Terminated(ended(&end)),
            (.., waiting) => {
                let waiting = waiting.unwrap_or_default();
                let reason = waiting.reason.unwrap_or_default();
                let reason = WAITING.into_iter().find(|known| *known == reason);
                let message = waiting.message.unwrap_or_default();
                State::Waiting { reason: reason.unwrap_or("ContainerCreating"), message }
            }
        },
        last: status.last_state.as_ref().and_then(|last| last.terminated.as_ref()).map(ended),
        restarts: status.restart_count,
        ready: status.ready,
        started: status.started.unwrap_or_default(),
    }
}

/// Computes a pod's status. Conditions keep their time of transition from `before`.
pub fn pod_status(pod: &Pod, seen: &Seen, before: &PodStatus, now: &Time) -> PodStatus {
    let spec = pod.spec.clone().unwrap_or_default();
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let initialized = seen.init_containers.iter().all(succeeded);
    let phase = phase(seen, policy, initialized);
    let finished = matches!(phase, "Succeeded" | "Failed");
    let containers_ready = !finished && seen.containers.iter().all(|c| c.ready);

    let not_ready = |what: &str| match phase {
        "Succeeded" => Some(("PodCompleted", String::new())),
        "Failed" => Some(("PodFailed", String::new())),
        _ => Some((
            "ContainersNotReady",
            format!("containers with {what}: {}", unready(&spec, seen)),
        )),
    };
    let unready_reason = (!containers_ready).then(|| not_ready("unready status")).flatten();
    let uninitialized = (!initialized)
        .then(|| ("ContainersNotInitialized", "init containers have not completed".to_owned()));
    let generation = pod.metadata.generation;
    let condition = |kind: &str, status: bool, why: Option<(&str, String)>| {
        let status = if status { "True" } else { "False" };
        let old =
            before.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == status);
        PodCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            last_transition_time: old
                .and_then(|c| c.last_transition_time.clone())
                .or_else(|| Some(now.clone())),
            reason: why.as_ref().map(|(reason, _)| (*reason).to_owned()),
            message: why.map(|(_, message)| message).filter(|m| !m.is_empty()),
            observed_generation: generation,
            ..PodCondition::default()
        }
    };
    let conditions = vec![
        condition("PodReadyToStartContainers", seen.sandbox_ready && !finished, None),
        condition("Initialized", initialized, uninitialized),
        condition("Ready", containers_ready, unready_reason.clone()),
        condition("ContainersReady", containers_ready, unready_reason),
        condition("PodScheduled", true, None),
    ];
    let statuses = |specs: &[k8s_openapi::api::core::v1::Container], seen: &[Container]| {
        let all = specs.iter().zip(seen).map(|(spec, seen)| container_status(spec, seen));
        Some(all.collect::<Vec<_>>()).filter(|all| !all.is_empty())
    };
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions),
        start_time: Some(seen.start_time.clone()),
        pod_ip: seen.addresses.first().map(IpAddr::to_string),
        pod_ips: list(seen.addresses.iter().map(|ip| PodIP { ip: ip.to_string() })),
        host_ip: seen.host_addresses.first().map(IpAddr::to_string),
        host_ips: list(seen.host_addresses.iter().map(|ip| HostIP { ip: ip.to_string() })),
        container_statuses: statuses(&spec.containers, &seen.containers),
        init_container_statuses: statuses(
            spec.init_containers.as_deref().unwrap_or_default(),
            &seen.init_containers,
        ),
        qos_class: Some(before.qos_class.clone().unwrap_or_else(|| "BestEffort".to_owned())),
        observed_generation: generation,
        ..PodStatus::default()
    }
}

fn list<T>(items: impl Iterator<Item = T>) -> Option<Vec<T>> {
    Some(items.collect::<Vec<_>>()).filter(|items| !items.is_empty())
}

fn succeeded(container: &Container) -> bool {
    matches!(&container.state, State::Terminated(end) if end.code == 0)
}

fn phase(seen: &Seen, policy: &str, initialized: bool) -> &'static str {
    if !initialized {
        let failed = |c: &Container| matches!(&c.state, State::Terminated(end) if end.code != 0);
        let hopeless = policy == "Never" && seen.init_containers.iter().any(failed);
        return if hopeless { "Failed" } else { "Pending" };
    }
    let waiting_first =
        |c: &Container| matches!(c.state, State::Waiting { .. }) && c.last.is_none();
    if seen.containers.iter().any(waiting_first) {
        return "Pending";
    }
    let ended = |c: &Container| matches!(c.state, State::Terminated(_));
    if policy == "Always" || !seen.containers.iter().all(ended) {
        return "Running";
    }
    match seen.containers.iter().all(succeeded) {
        true => "Succeeded",
        false if policy == "OnFailure" => "Running",
        false => "Failed",
    }
}

fn unready(spec: &k8s_openapi::api::core::v1::PodSpec, seen: &Seen) -> String {
    let pairs = spec.containers.iter().zip(&seen.containers);
    let names: Vec<&str> = pairs.filter(|(_, c)| !c.ready).map(|(s, _)| s.name.as_str()).collect();
    format!("[{}]", names.join(" "))
}

fn container_status(
    spec: &k8s_openapi::api::core::v1::Container,
    seen: &Container,
) -> ContainerStatus {
    let image = spec.image.clone().unwrap_or_default();
    ContainerStatus {
        name: spec.name.clone(),
        image_id: seen.id.as_ref().map_or(String::new(), |_| image.clone()),
        image,
        container_id: seen.id.as_ref().map(|id| format!("lab://{id}")),
        ready: seen.ready,
        started: Some(seen.started),
        restart_count: seen.restarts,
        state: Some(match &seen.state {
            State::Waiting { reason, message } => ContainerState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some((*reason).to_owned()),
                    message: Some(message.clone()).filter(|m| !m.is_empty()),
                }),
                ..ContainerState::default()
            },
            State::Running { started_at } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(started_at.clone()) }),
                ..ContainerState::default()
            },
            State::Terminated(end) => terminated(end),
        }),
        last_state: Some(seen.last.as_ref().map(terminated).unwrap_or_default()),
        ..ContainerStatus::default()
    }
}

fn terminated(end: &Terminated) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: end.code,
            signal: end.signal,
            reason: Some(end.reason().to_owned()),
            started_at: Some(end.started_at.clone()),
            finished_at: Some(end.finished_at.clone()),
            container_id: Some(format!("lab://{}", end.id)),
            message: Some(end.message.clone()).filter(|message| !message.is_empty()),
        }),
        ..ContainerState::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn running() -> Container {
        Container {
            id: Some("c1".to_owned()),
            state: State::Running { started_at: time(1) },
            ready: true,
            ..Container::default()
        }
    }

    fn ended(code: i32) -> Container {
        let end = Terminated {
            code,
            signal: None,
            started_at: time(1),
            finished_at: time(2),
            id: "c1".to_owned(),
            message: String::new(),
        };
        Container { state: State::Terminated(end), ..Container::default() }
    }

    fn waiting(reason: &'static str) -> Container {
        let state = State::Waiting { reason, message: String::new() };
        Container { state, ..Container::default() }
    }

    fn status(policy: &str, init: &[Container], containers: &[Container]) -> PodStatus {
        let named = |n: usize| serde_json::json!({"name": format!("c{n}"), "image": "i"});
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "spec": {
                "restartPolicy": policy,
                "initContainers": (0..init.len()).map(named).collect::<Vec<_>>(),
                "containers": (0..containers.len()).map(named).collect::<Vec<_>>(),
            }
        }))
        .unwrap();
        let seen = Seen {
            start_time: time(0),
            sandbox_ready: true,
            addresses: vec![[10, 0, 0, 1].into()],
            host_addresses: vec![[172, 18, 1, 1].into()],
            init_containers: init.to_vec(),
            containers: containers.to_vec(),
        };
        pod_status(&pod, &seen, &PodStatus::default(), &time(9))
    }

    fn check(policy: &str, init: &[Container], containers: &[Container], expected: (&str, &str)) {
        let status = status(policy, init, containers);
        let conditions = status.conditions.unwrap();
        let ready = conditions.iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!((status.phase.as_deref().unwrap(), ready.status.as_str()), expected);
    }

    #[test]
    fn phases_are_those_of_a_kubelet() {
        check("Always", &[], &[running()], ("Running", "True"));
        check("Always", &[], &[running(), waiting("ContainerCreating")], ("Pending", "False"));
        check("Always", &[], &[ended(0)], ("Running", "False"));
        check("Never", &[], &[ended(0), ended(0)], ("Succeeded", "False"));
        check("Never", &[], &[ended(0), ended(3)], ("Failed", "False"));
        check("OnFailure", &[], &[ended(3)], ("Running", "False"));
        check("Always", &[running()], &[waiting("PodInitializing")], ("Pending", "False"));
        check("Never", &[ended(1)], &[waiting("PodInitializing")], ("Failed", "False"));
        check("Always", &[ended(0)], &[running()], ("Running", "True"));
        check("Always", &[], &[waiting("ErrImagePull")], ("Pending", "False"));
        let crashing = Container {
            last: Some(match ended(1).state {
                State::Terminated(end) => end,
                _ => unreachable!(),
            }),
            ..waiting("CrashLoopBackOff")
        };
        check("Always", &[], &[crashing], ("Running", "False"));
    }

    #[test]
    fn a_status_is_read_as_it_was_written() {
        let crashed = Container {
            last: Some(match ended(2).state {
                State::Terminated(end) => end,
                _ => unreachable!(),
            }),
            restarts: 3,
            id: Some("c1".to_owned()),
            ..waiting("CrashLoopBackOff")
        };
        let (init, containers) = ([ended(0)], [running(), crashed, waiting("ContainerCreating")]);
        let named = |n: usize| serde_json::json!({"name": format!("c{n}"), "image": "i"});
        let mut pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "initContainers": [named(0)], "containers": [named(0), named(1), named(2)]}}))
        .unwrap();
        pod.status = Some(status("Always", &init, &containers));
        let seen = restore(&pod, &[]).unwrap();
        assert_eq!(seen.containers, containers);
        assert_eq!(seen.init_containers[0].state, init[0].state);
        assert_eq!(seen.start_time, time(0));
    }

    #[test]
    fn transitions_keep_their_time_until_the_status_changes() {
        let first = status("Always", &[], &[waiting("ContainerCreating")]);
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "spec": {"containers": [{"name": "c0", "image": "i"}]}
        }))
        .unwrap();
        let seen = Seen {
            start_time: time(0),
            sandbox_ready: true,
            addresses: vec![],
            host_addresses: vec![],
            init_containers: vec![],
            containers: vec![running()],
        };
        let second = pod_status(&pod, &seen, &first, &time(20));
        let when = |status: &PodStatus, kind: &str| {
            let conditions = status.conditions.as_ref().unwrap();
            conditions.iter().find(|c| c.type_ == kind).unwrap().last_transition_time.clone()
        };
        assert_eq!(when(&second, "Initialized"), Some(time(9)));
        assert_eq!(when(&second, "Ready"), Some(time(20)));
    }
}
