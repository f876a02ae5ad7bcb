//! DaemonSets: one pod on each node that will have it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::pods::{self, is_deleting, is_ready, name};
use super::revisions::{self, HASH_LABEL};
use super::{Action, DAEMON_SETS, PODS, Plan};

/// Taints that pods of DaemonSets put up with: key and effect.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

pub(super) fn plan(
    set: &Arc<Value>,
    owned: &[Arc<Value>],
    nodes: &[Arc<Value>],
    known: &[Arc<Value>],
    now: i64,
) -> Plan {
    let mut plan = Plan::default();
    if is_deleting(set) {
        return plan;
    }
    let revision = revisions::present(set, known, &mut plan);
    let state = State::new(set, owned, nodes, revisions::hash(&revision), now);
    state.wait(&mut plan);
    state.step(&mut plan);
    let used = |one: &Value| {
        let hash = revisions::hash(one);
        let made_from = |pod: &Arc<Value>| pod["metadata"]["labels"][HASH_LABEL] == *hash;
        name(one) == name(&revision) || owned.iter().any(made_from)
    };
    revisions::remove_old(set, known, used, &mut plan);
    plan.status(DAEMON_SETS, set, state.status());
    plan
}

struct State<'a> {
    set: &'a Arc<Value>,
    owned: &'a [Arc<Value>],
    nodes: &'a [Arc<Value>],
    /// Names of the nodes that are to have a pod.
    wanted: Vec<&'a str>,
    /// By node, the oldest first.
    on: BTreeMap<&'a str, Vec<&'a Arc<Value>>>,
    /// Of the present template.
    hash: &'a str,
    now: i64,
}

/// What an update may still do.
struct Budget {
    /// Nodes without a pod that works, and how many there may be.
    unavailable: (i64, i64),
    /// Nodes with an old and a new pod, and how many there may be.
    surging: (i64, i64),
}

impl<'a> State<'a> {
    fn new(
        set: &'a Arc<Value>,
        owned: &'a [Arc<Value>],
        nodes: &'a [Arc<Value>],
        hash: &'a str,
        now: i64,
    ) -> Self {
        let mut on: BTreeMap<&str, Vec<&Arc<Value>>> = BTreeMap::new();
        for pod in owned {
            on.entry(node_of(pod)).or_default().push(pod);
        }
        let created =
            |pod: &Value| pod["metadata"]["creationTimestamp"].as_str().map(str::to_owned);
        for list in on.values_mut() {
            list.sort_by_key(|pod| (created(pod), name(pod).to_owned()));
        }
        let wanted = nodes.iter().filter(|node| should_run(set, node));
        let wanted = wanted.map(|node| name(node)).collect();
        Self { set, owned, nodes, wanted, on, hash, now }
    }

    fn available_in(&self, pod: &Value) -> Option<i64> {
        let min_ready = self.set["spec"]["minReadySeconds"].as_i64().unwrap_or(0);
        pods::available_in(pod, min_ready, self.now)
    }

    fn is_available(&self, pod: &Value) -> bool {
        self.available_in(pod) == Some(0)
    }

    fn is_new(&self, pod: &Value) -> bool {
        pod["metadata"]["labels"][HASH_LABEL] == *self.hash
    }

    /// Looks again when pods have been ready for long enough.
    fn wait(&self, plan: &mut Plan) {
        let waits = self.owned.iter().filter_map(|pod| self.available_in(pod));
        waits.filter(|wait| *wait > 0).for_each(|wait| plan.again(wait));
    }

    /// Pods on a node that are not about to go.
    fn live(&self, node: &str) -> impl Iterator<Item = &'a Arc<Value>> + Clone {
        let here = self.on.get(node).map(Vec::as_slice).unwrap_or_default();
        here.iter().copied().filter(|pod| !is_deleting(pod)).collect::<Vec<_>>().into_iter()
    }

    /// The next step towards what is wanted, on every node.
    fn step(&self, plan: &mut Plan) {
        let mut budget = self.budget();
        for node in &self.wanted {
            self.step_on(node, &mut budget, plan);
        }
        let gone = |pod: &&Arc<Value>| {
            let node = self.nodes.iter().find(|node| name(node) == node_of(pod));
            !self.wanted.contains(&node_of(pod))
                && node.is_none_or(|node| !may_stay(self.set, node))
        };
        let elsewhere = self.owned.iter().filter(|pod| !is_deleting(pod)).filter(gone);
        elsewhere.for_each(|pod| self.delete(pod, plan));
    }

    fn budget(&self) -> Budget {
        let parameters = &self.set["spec"]["updateStrategy"]["rollingUpdate"];
        let total = i64::try_from(self.wanted.len()).unwrap_or(i64::MAX);
        let limit = |name: &str| pods::int_or_percent(&parameters[name], total, true);
        let count = |test: &dyn Fn(&str) -> bool| {
            i64::try_from(self.wanted.iter().filter(|node| test(node)).count()).unwrap_or(i64::MAX)
        };
        let idle = count(&|node| !self.live(node).any(|pod| self.is_available(pod)));
        let double = count(&|node| self.live(node).count() > 1);
        Budget {
            unavailable: (idle, limit("maxUnavailable")),
            surging: (double, limit("maxSurge")),
        }
    }

    fn step_on(&self, node: &str, budget: &mut Budget, plan: &mut Plan) {
        if self.on.get(node).is_none_or(Vec::is_empty) {
            plan.push(create(self.set, node, self.hash));
            return;
        }
        let is_over = |pod: &&Arc<Value>| ["Succeeded", "Failed"].contains(&pods::phase(pod));
        let mut over = self.live(node).filter(is_over).peekable();
        if over.peek().is_some() {
            over.for_each(|pod| self.delete(pod, plan));
            return;
        }
        let (new, old): (Vec<_>, Vec<_>) = self.live(node).partition(|pod| self.is_new(pod));
        new.iter().skip(1).chain(old.iter().skip(1)).for_each(|pod| self.delete(pod, plan));
        let rolling = self.set["spec"]["updateStrategy"]["type"] == "RollingUpdate";
        let Some(old) = old.first().filter(|_| rolling || !new.is_empty()) else { return };
        let works = self.is_available(old);
        match new.first() {
            Some(new) if self.is_available(new) || !works => self.delete(old, plan),
            Some(_) => {}
            // What does not work is replaced at no cost.
            None if !works => self.delete(old, plan),
            None if budget.surging.0 < budget.surging.1 => {
                budget.surging.0 += 1;
                plan.push(create(self.set, node, self.hash));
            }
            None if budget.surging.1 == 0 && budget.unavailable.0 < budget.unavailable.1 => {
                budget.unavailable.0 += 1;
                self.delete(old, plan);
            }
            None => {}
        }
    }

    fn delete(&self, pod: &Arc<Value>, plan: &mut Plan) {
        plan.push(Action::Delete { resource: PODS, object: pod.clone() });
        plan.event(self.set, "SuccessfulDelete", format!("Deleted pod: {}", name(pod)));
    }

    fn status(&self) -> Value {
        let first = |node: &&str| {
            self.live(node).find(|pod| self.is_new(pod)).or_else(|| self.live(node).next())
        };
        let running: Vec<&Arc<Value>> = self.wanted.iter().filter_map(first).collect();
        let count = |test: &dyn Fn(&Value) -> bool| running.iter().filter(|pod| test(pod)).count();
        let available = count(&|pod| self.is_available(pod));
        let misscheduled = self.on.keys().filter(|node| {
            !self.wanted.contains(*node) && self.nodes.iter().any(|one| name(one) == **node)
        });
        json!({
            "observedGeneration": self.set["metadata"]["generation"],
            "currentNumberScheduled": running.len(),
            "desiredNumberScheduled": self.wanted.len(),
            "numberMisscheduled": misscheduled.count(),
            "numberReady": count(&is_ready),
            "updatedNumberScheduled": count(&|pod| self.is_new(pod)),
            "numberAvailable": available,
            "numberUnavailable": self.wanted.len() - available,
        })
    }
}

/// The node that a pod is on or meant for.
fn node_of(pod: &Value) -> &str {
    let assigned = pod["spec"]["nodeName"].as_str().filter(|name| !name.is_empty());
    let required =
        &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let meant = required["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].as_str();
    assigned.or(meant).unwrap_or_default()
}

fn create(set: &Arc<Value>, node: &str, hash: &str) -> Action {
    let mut pod = pods::from_template(set);
    pod["metadata"]["labels"][HASH_LABEL] = json!(hash);
    let field = json!({ "key": "metadata.name", "operator": "In", "values": [node] });
    let required = &mut pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    match required["nodeSelectorTerms"].as_array_mut() {
        Some(terms) if !terms.is_empty() => {
            terms.iter_mut().for_each(|term| term["matchFields"] = json!([field]));
        }
        _ => *required = json!({ "nodeSelectorTerms": [{ "matchFields": [field] }] }),
    }
    pod["spec"]["tolerations"] = json!(tolerations(set));
    Action::Create { resource: PODS, object: pod }
}

fn tolerations(set: &Value) -> Vec<Value> {
    let spec = &set["spec"]["template"]["spec"];
    let mut all = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let mut tolerated = TOLERATED.to_vec();
    if spec["hostNetwork"] == true {
        tolerated.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    for (key, effect) in tolerated {
        let toleration = json!({ "key": key, "operator": "Exists", "effect": effect });
        if !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

/// Whether a node gets a pod.
fn should_run(set: &Value, node: &Value) -> bool {
    fits(set, node) && !taints(node).any(|taint| repels(set, taint, &["NoSchedule", "NoExecute"]))
}

/// Whether a pod that is on a node already may stay there.
fn may_stay(set: &Value, node: &Value) -> bool {
    fits(set, node) && !taints(node).any(|taint| repels(set, taint, &["NoExecute"]))
}

fn taints(node: &Value) -> impl Iterator<Item = &Value> {
    node["spec"]["taints"].as_array().into_iter().flatten()
}

fn repels(set: &Value, taint: &Value, effects: &[&str]) -> bool {
    let empty = |value: &Value| value.as_str().unwrap_or_default().is_empty();
    let tolerates = |one: &Value| {
        let exists = one["operator"] == "Exists";
        (empty(&one["effect"]) || one["effect"] == taint["effect"])
            && (one["key"] == taint["key"] || (empty(&one["key"]) && exists))
            && (exists
                || one["value"] == taint["value"]
                || (empty(&one["value"]) && empty(&taint["value"])))
    };
    effects.contains(&taint["effect"].as_str().unwrap_or_default())
        && !tolerations(set).iter().any(tolerates)
}

/// Whether node selector and required affinity of the template let a pod go there.
fn fits(set: &Value, node: &Value) -> bool {
    let spec = &set["spec"]["template"]["spec"];
    let labels = &node["metadata"]["labels"];
    let named =
        spec["nodeName"].as_str().is_none_or(|wanted| wanted.is_empty() || wanted == name(node));
    let selector = json!({ "matchLabels": spec["nodeSelector"] });
    let required =
        &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let field = |term: &Value| {
        let mut fields = term["matchFields"].as_array().into_iter().flatten();
        fields.all(|one| {
            let listed = one["values"]
                .as_array()
                .is_some_and(|list| list.contains(&node["metadata"]["name"]));
            listed == (one["operator"] == "In")
        })
    };
    let mut terms = required["nodeSelectorTerms"].as_array().into_iter().flatten();
    let affine =
        required.is_null() || terms.any(|term| super::selects(term, labels) && field(term));
    named && super::selects(&selector, labels) && affine
}
