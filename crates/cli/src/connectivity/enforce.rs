//! Policies of a test: applied, and waited for until every agent says that its endpoints enforce
//! them; removed likewise.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use api::rest::{Policy, path};
use kube::ResourceExt as _;
use serde_json::Value;

use super::cluster::Cluster;
use super::plan::{Place, World};
use super::policies::Test;
use crate::nodes::Nodes;

/// Between two looks at an agent, which has no way to call.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How long an agent may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Whose policies, and who enforces them.
pub(crate) struct Policies<'a> {
    pub(crate) cluster: &'a Cluster,
    /// The agents of this machine, in a lab.
    pub(crate) here: Option<&'a Nodes>,
    pub(crate) world: &'a World,
}

/// An object of which agents must have this version.
#[derive(Debug)]
struct Wanted {
    uid: String,
    generation: i64,
    name: String,
}

impl Policies<'_> {
    /// Applies the policies of a test and waits until they are enforced everywhere.
    pub(crate) async fn apply(&self, test: &Test, patience: Duration) -> Result<()> {
        let manifest = test.manifest(self.world);
        let objects: Vec<Value> =
            serde_saphyr::from_multiple(&manifest).context("cannot read the test's manifest")?;
        let mut wanted = Vec::new();
        for object in objects {
            let is_policy = object["kind"] != "CiliumCIDRGroup";
            let applied = self.cluster.apply_policy(object).await?;
            if is_policy {
                wanted.push(Wanted {
                    uid: applied.uid().unwrap_or_default(),
                    generation: applied.metadata.generation.unwrap_or_default(),
                    name: applied.name_any(),
                });
            }
        }
        self.everywhere(patience, |policy| lack(policy, &wanted)).await
    }

    /// Removes them, and waits until no agent knows them.
    pub(crate) async fn remove(&self, patience: Duration) -> Result<()> {
        let namespace = &self.world.namespace;
        let is_mine = |one: &api::rest::PolicyElement| {
            // Clusterwide policies of the test begin with its namespace.
            one.namespace == *namespace
                || one.namespace.is_empty() && one.name.starts_with(&format!("{namespace}-"))
        };
        self.cluster.remove_policies().await?;
        self.everywhere(patience, |policy| {
            if let Some(one) = policy.policies.iter().find(|one| is_mine(one)) {
                return Some(format!("still has {} {}", one.kind, one.name));
            }
            lack(policy, &[])
        })
        .await
    }

    /// Waits until nothing lacks at any agent.
    async fn everywhere(
        &self,
        patience: Duration,
        lack: impl Fn(&Policy) -> Option<String>,
    ) -> Result<()> {
        let began = Instant::now();
        for place in &self.world.agents {
            loop {
                let policy = self.policy_at(place).await?;
                let Some(lack) = lack(&policy) else { break };
                if began.elapsed() >= patience {
                    let seconds = patience.as_secs();
                    bail!("after {seconds} s {} {lack}", place_name(place));
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
        Ok(())
    }

    async fn policy_at(&self, place: &Place) -> Result<Policy> {
        match place {
            Place::AgentHere(name) => {
                let mut nodes = self.here.iter().flat_map(|nodes| &nodes.all);
                let node = nodes
                    .find(|node| node.label() == *name)
                    .ok_or_else(|| anyhow!("the lab has no node {name:?}"))?
                    .clone();
                let ask = move || node.client().with_timeout(ANSWER_TIMEOUT).get(path::POLICY);
                let answer =
                    tokio::task::spawn_blocking(ask).await.context("cannot ask the agent")?;
                answer.with_context(|| format!("cannot ask the agent of {name}"))
            }
            Place::Pod(_, name) | Place::AgentPod(name) => {
                let argv = ["cilium", "policy", "get", "-o", "json"].map(str::to_owned);
                let pod = self.cluster.agent_pod(name);
                let executed = self.cluster.exec(&pod, &argv, ANSWER_TIMEOUT).await;
                match executed.error {
                    Some(error) => bail!("cannot ask {name}: {error}: {}", executed.stderr),
                    None => serde_json::from_str(&executed.stdout)
                        .with_context(|| format!("cannot understand what {name} says of policies")),
                }
            }
        }
    }
}

fn place_name(place: &Place) -> String {
    match place {
        Place::AgentHere(node) => format!("the agent of {node}"),
        Place::Pod(_, name) | Place::AgentPod(name) => name.clone(),
    }
}

/// What an agent has not done yet.
fn lack(policy: &Policy, wanted: &[Wanted]) -> Option<String> {
    for Wanted { uid, generation, name } in wanted {
        match policy.policies.iter().find(|one| one.uid == *uid) {
            None => return Some(format!("does not know the policy {name}")),
            Some(one) if !one.errors.is_empty() => {
                return Some(format!("refuses the policy {name}: {}", one.errors.join("; ")));
            }
            Some(one) if one.generation < *generation => {
                return Some(format!("has an older version of the policy {name}"));
            }
            Some(_) => {}
        }
    }
    (policy.realized_revision < policy.revision).then(|| {
        format!(
            "has endpoints that do not enforce revision {} yet, but {}",
            policy.revision, policy.realized_revision
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn agents_lack_what_they_do_not_enforce() {
        let policy = |element: Value, realized: i64| -> Policy {
            serde_json::from_value(
                json!({"revision": 3, "realized-revision": realized, "policies": [element]}),
            )
            .unwrap()
        };
        let wanted = [Wanted { uid: "u".to_owned(), generation: 2, name: "db".to_owned() }];
        let check = |element: Value, realized, expected: Option<&str>| {
            assert_eq!(lack(&policy(element, realized), &wanted).as_deref(), expected);
        };
        let good = json!({"uid": "u", "generation": 2});
        check(good.clone(), 3, None);
        check(good, 2, Some("has endpoints that do not enforce revision 3 yet, but 2"));
        check(json!({"uid": "v"}), 3, Some("does not know the policy db"));
        check(
            json!({"uid": "u", "generation": 1}),
            3,
            Some("has an older version of the policy db"),
        );
        check(
            json!({"uid": "u", "generation": 2, "errors": ["spec: bad"]}),
            3,
            Some("refuses the policy db: spec: bad"),
        );
    }
}
