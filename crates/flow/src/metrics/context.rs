//! Labels that say who: `sourceContext=pod|ip;labelsContext=source_namespace,traffic_direction`.

use api::hubble::flow::TrafficDirection;

use crate::filter::Side;
use crate::row::{Party, Row};

/// Labels that options add to a metric.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    source: Vec<Who>,
    destination: Vec<Who>,
    /// For flows of one direction only; empty is as `source` and `destination`.
    egress: (Vec<Who>, Vec<Who>),
    ingress: (Vec<Who>, Vec<Who>),
    labels: Vec<Label>,
}

/// What stands for an end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Identity,
    Namespace,
    Pod,
    PodName,
    Dns,
    Ip,
    ReservedIdentity,
    Workload,
    WorkloadName,
    App,
}

/// A label of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Of(Side, Part),
    Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Ip,
    Namespace,
    Pod,
    Workload,
    WorkloadKind,
    App,
}

const PARTS: [(&str, &str, Part); 6] = [
    ("source_ip", "destination_ip", Part::Ip),
    ("source_namespace", "destination_namespace", Part::Namespace),
    ("source_pod", "destination_pod", Part::Pod),
    ("source_workload", "destination_workload", Part::Workload),
    ("source_workload_kind", "destination_workload_kind", Part::WorkloadKind),
    ("source_app", "destination_app", Part::App),
];

impl Context {
    pub(super) fn parse(options: &str) -> Result<Self, String> {
        let mut context = Self::default();
        for option in options.split(';').filter(|option| !option.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let named = |reason: String| format!("{key}: {reason}");
            match key {
                "sourceContext" => context.source = whos(value).map_err(named)?,
                "destinationContext" => context.destination = whos(value).map_err(named)?,
                "sourceEgressContext" => context.egress.0 = whos(value).map_err(named)?,
                "destinationEgressContext" => context.egress.1 = whos(value).map_err(named)?,
                "sourceIngressContext" => context.ingress.0 = whos(value).map_err(named)?,
                "destinationIngressContext" => context.ingress.1 = whos(value).map_err(named)?,
                "labelsContext" => context.labels = labels(value).map_err(named)?,
                other => return Err(format!("{other:?} is no option")),
            }
        }
        Ok(context)
    }

    fn has_source(&self) -> bool {
        [&self.source, &self.egress.0, &self.ingress.0].iter().any(|list| !list.is_empty())
    }

    fn has_destination(&self) -> bool {
        [&self.destination, &self.egress.1, &self.ingress.1].iter().any(|list| !list.is_empty())
    }

    /// The names of the labels, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        let ends = [(self.has_source(), "source"), (self.has_destination(), "destination")];
        let ends = ends.into_iter().filter(|(has, _)| *has).map(|(_, name)| name);
        ends.chain(self.labels.iter().map(|label| label.name()))
    }

    /// Adds the values of the labels.
    pub(super) fn extend(&self, row: &Row, values: &mut Vec<String>) {
        let direction = row.direction();
        let special = match direction {
            TrafficDirection::Egress => &self.egress,
            TrafficDirection::Ingress => &self.ingress,
            TrafficDirection::Unknown => &(Vec::new(), Vec::new()),
        };
        let choose = |special: &[Who], general: &[Who], side: Side| {
            let whos = if special.is_empty() { general } else { special };
            let found = whos.iter().map(|who| who.of(row, side)).find(|text| !text.is_empty());
            found.unwrap_or_default()
        };
        if self.has_source() {
            values.push(choose(&special.0, &self.source, Side::Source));
        }
        if self.has_destination() {
            values.push(choose(&special.1, &self.destination, Side::Destination));
        }
        for label in &self.labels {
            values.push(match label {
                Label::Of(side, part) => part.of(row, *side),
                Label::Direction => match direction {
                    TrafficDirection::Egress => "egress".to_owned(),
                    TrafficDirection::Ingress => "ingress".to_owned(),
                    TrafficDirection::Unknown => "unknown".to_owned(),
                },
            });
        }
    }
}

fn whos(text: &str) -> Result<Vec<Who>, String> {
    text.split('|')
        .map(|word| {
            Ok(match word {
                "identity" => Who::Identity,
                "namespace" => Who::Namespace,
                "pod" => Who::Pod,
                "pod-name" => Who::PodName,
                "dns" => Who::Dns,
                "ip" => Who::Ip,
                "reserved-identity" => Who::ReservedIdentity,
                "workload" => Who::Workload,
                "workload-name" => Who::WorkloadName,
                "app" => Who::App,
                other => return Err(format!("{other:?} is no context")),
            })
        })
        .collect()
}

fn labels(text: &str) -> Result<Vec<Label>, String> {
    text.split(',')
        .map(|word| {
            if word == "traffic_direction" {
                return Ok(Label::Direction);
            }
            let part = PARTS.iter().find_map(|(source, destination, part)| {
                if *source == word {
                    return Some(Label::Of(Side::Source, *part));
                }
                (*destination == word).then_some(Label::Of(Side::Destination, *part))
            });
            part.ok_or_else(|| format!("{word:?} is no label"))
        })
        .collect()
}

impl Label {
    fn name(self) -> &'static str {
        match self {
            Self::Direction => "traffic_direction",
            Self::Of(side, part) => PARTS.iter().find(|(_, _, known)| *known == part).map_or(
                "",
                |(source, destination, _)| match side {
                    Side::Source => source,
                    Side::Destination => destination,
                },
            ),
        }
    }
}

fn party(row: &Row, side: Side) -> &Party {
    match side {
        Side::Source => &row.source,
        Side::Destination => &row.destination,
    }
}

impl Part {
    fn of(self, row: &Row, side: Side) -> String {
        let peer = party(row, side).peer.as_deref();
        let workload = peer.and_then(|peer| peer.workloads.first());
        match self {
            Self::Ip => Who::Ip.of(row, side),
            Self::Namespace => Who::Namespace.of(row, side),
            Self::Pod => peer.map(|peer| peer.pod.clone()).unwrap_or_default(),
            Self::Workload => workload.map(|w| w.name.clone()).unwrap_or_default(),
            Self::WorkloadKind => workload.map(|w| w.kind.clone()).unwrap_or_default(),
            Self::App => Who::App.of(row, side),
        }
    }
}

impl Who {
    /// A text for an end; empty where there is none, and the next kind is tried.
    fn of(self, row: &Row, side: Side) -> String {
        let party = party(row, side);
        let peer = party.peer.as_deref();
        let labels = party.labels.as_deref().map(|l| l.labels.as_slice()).unwrap_or_default();
        let joined = |namespace: &str, name: &str| match (namespace, name) {
            (_, "") => String::new(),
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        };
        match self {
            Self::Identity => labels.join(","),
            Self::Namespace => peer.map(|peer| peer.namespace.clone()).unwrap_or_default(),
            Self::Pod => peer.map(|peer| joined(&peer.namespace, &peer.pod)).unwrap_or_default(),
            Self::PodName => peer.map(|peer| peer.pod.clone()).unwrap_or_default(),
            Self::Dns => party.names.as_deref().map(|names| names.join(",")).unwrap_or_default(),
            Self::Ip => {
                let address = match side {
                    Side::Source => row.source_ip(),
                    Side::Destination => row.destination_ip(),
                };
                address.map(|address| address.to_string()).unwrap_or_default()
            }
            Self::ReservedIdentity => {
                let reserved = labels.iter().find(|label| label.starts_with("reserved:"));
                reserved.cloned().unwrap_or_default()
            }
            Self::Workload => peer
                .and_then(|peer| {
                    let workload = peer.workloads.first()?;
                    Some(joined(&peer.namespace, &workload.name))
                })
                .unwrap_or_default(),
            Self::WorkloadName => peer
                .and_then(|peer| peer.workloads.first())
                .map(|workload| workload.name.clone())
                .unwrap_or_default(),
            Self::App => app(labels),
        }
    }
}

/// The application that labels name, in the order of how usual they are.
fn app(labels: &[String]) -> String {
    const KEYS: [&str; 3] = ["k8s:app.kubernetes.io/name=", "k8s:k8s-app=", "k8s:app="];
    let value = |key: &str| labels.iter().find_map(|label| label.strip_prefix(key));
    KEYS.iter().find_map(|key| value(key)).unwrap_or_default().to_owned()
}
