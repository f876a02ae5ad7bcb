//! Which node has which prefixes. Pure.
//!
//! What a node's object already says is kept: it survives restarts of the operator and changes of the
//! pool. Only what is missing is given, to all families or to none. A prefix stays with a node until
//! its object is gone, also while the object does not show it yet.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use model::{IpFamily, NodeName};

use crate::pool::{Exhausted, Pool};

/// What a node's object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The node.
    pub node: NodeName,
    /// Its prefixes, in the order in which they stand there.
    pub cidrs: Vec<IpNet>,
}

/// What a node shall have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Its prefixes.
    pub cidrs: Vec<IpNet>,
    /// Why it lacks one.
    pub error: Option<AssignError>,
}

/// A node cannot have what it needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    /// No prefix is left.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The object claims what another node has.
    #[error(
        "podCIDR {cidr} belongs to node {owner}; remove it from spec.ipam.podCIDRs \
         and another one is assigned"
    )]
    Conflict {
        /// The prefix.
        cidr: IpNet,
        /// Who has it.
        owner: NodeName,
    },
}

/// Who has what.
#[derive(Clone, Debug)]
pub struct Allocator {
    pools: Vec<Pool>,
    held: BTreeMap<NodeName, Vec<IpNet>>,
}

impl Allocator {
    /// An allocator for one pool per family that is on.
    pub fn new(pools: Vec<Pool>) -> Self {
        Self { pools, held: BTreeMap::new() }
    }

    /// What every node shall have, given all there are; `claims` come with the older nodes first,
    /// who win where two claim the same.
    pub fn assign(&mut self, claims: &[Claim]) -> BTreeMap<NodeName, Assignment> {
        self.release_gone(claims);
        // All claims are heard before anything new is given: none may go to two nodes.
        let mut conflicts: BTreeMap<&NodeName, AssignError> = BTreeMap::new();
        for claim in claims {
            if let Err(conflict) = self.hear(claim) {
                conflicts.insert(&claim.node, conflict);
            }
        }
        let assign = |claim: &Claim| match conflicts.remove(&claim.node) {
            // Nothing is changed in an object that people must look at.
            Some(conflict) => Assignment { cidrs: claim.cidrs.clone(), error: Some(conflict) },
            None => self.complete(&claim.node),
        };
        let assignments: Vec<Assignment> = claims.iter().map(assign).collect();
        claims.iter().map(|claim| claim.node.clone()).zip(assignments).collect()
    }

    /// Gives back what nodes had that are gone.
    fn release_gone(&mut self, claims: &[Claim]) {
        let present: BTreeSet<&NodeName> = claims.iter().map(|claim| &claim.node).collect();
        let held = std::mem::take(&mut self.held);
        let (kept, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
            held.into_iter().partition(|(node, _)| present.contains(node));
        self.held = kept;
        for cidr in gone.into_values().flatten() {
            self.release(&cidr);
        }
    }

    /// Notes what a node's object says. Where it names prefixes of a family, it replaces what we
    /// thought the node has; where it names none, our assignment may be on its way.
    fn hear(&mut self, claim: &Claim) -> Result<(), AssignError> {
        if self.held.get(&claim.node).is_some_and(|held| held.starts_with(&claim.cidrs)) {
            return Ok(());
        }
        for cidr in &claim.cidrs {
            if let Some(owner) = self.owner_of(cidr, &claim.node) {
                return Err(AssignError::Conflict { cidr: *cidr, owner: owner.clone() });
            }
        }
        let mine = self.held.remove(&claim.node).unwrap_or_default();
        let says = |family| claim.cidrs.iter().any(|cidr| IpFamily::of_net(cidr) == family);
        let (replaced, on_its_way): (Vec<IpNet>, Vec<IpNet>) =
            mine.into_iter().partition(|cidr| says(IpFamily::of_net(cidr)));
        for cidr in &replaced {
            self.release(cidr);
        }
        for cidr in &claim.cidrs {
            self.pools.iter_mut().for_each(|pool| pool.take(cidr));
        }
        let held = claim.cidrs.iter().copied().chain(on_its_way).collect();
        self.held.insert(claim.node.clone(), held);
        Ok(())
    }

    /// Gives a node a prefix of each family that it lacks, or none.
    fn complete(&mut self, node: &NodeName) -> Assignment {
        let mut cidrs = self.held.get(node).cloned().unwrap_or_default();
        let mut given = Vec::new();
        for pool in &mut self.pools {
            let family = pool.family();
            if cidrs.iter().any(|cidr| IpFamily::of_net(cidr) == family) {
                continue;
            }
            match pool.allocate() {
                Ok(cidr) => given.push(cidr),
                Err(exhausted) => {
                    for cidr in &given {
                        self.release(cidr);
                    }
                    return Assignment { cidrs, error: Some(exhausted.into()) };
                }
            }
        }
        cidrs.extend(given);
        self.held.insert(node.clone(), cidrs.clone());
        Assignment { cidrs, error: None }
    }

    /// Another node that has part of `cidr`.
    fn owner_of(&self, cidr: &IpNet, asking: &NodeName) -> Option<&NodeName> {
        let overlaps = |held: &IpNet| held.contains(cidr) || cidr.contains(held);
        let mut others = self.held.iter().filter(|(node, _)| *node != asking);
        others.find(|(_, held)| held.iter().any(overlaps)).map(|(node, _)| node)
    }

    /// Gives `cidr` back, but for parts that a node still has.
    fn release(&mut self, cidr: &IpNet) {
        for pool in &mut self.pools {
            pool.release(cidr);
            // A prefix longer than a part may share it with another node's.
            self.held.values().flatten().for_each(|held| pool.take(held));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn claim(node: &str, cidrs: &[&str]) -> Claim {
        Claim { node: node.into(), cidrs: cidrs.iter().map(|cidr| net(cidr)).collect() }
    }

    /// Two IPv4 prefixes, four IPv6 ones.
    fn dual_stack() -> Allocator {
        Allocator::new(vec![
            Pool::new(IpFamily::Ipv4, &[net("10.0.0.0/23")], 24).unwrap(),
            Pool::new(IpFamily::Ipv6, &[net("fd00::/118")], 120).unwrap(),
        ])
    }

    #[track_caller]
    fn check(assignments: &BTreeMap<NodeName, Assignment>, node: &str, expected: &[&str]) {
        let assignment = &assignments[&node.into()];
        assert_eq!(assignment.error, None);
        let cidrs: Vec<String> = assignment.cidrs.iter().map(IpNet::to_string).collect();
        assert_eq!(cidrs, expected);
    }

    #[test]
    fn nodes_are_given_both_families_and_keep_them() {
        let mut allocator = dual_stack();
        let assigned = allocator.assign(&[claim("a", &[])]);
        check(&assigned, "a", &["10.0.0.0/24", "fd00::/120"]);
        // The object of a does not show it yet.
        let assigned = allocator.assign(&[claim("0", &[]), claim("a", &[])]);
        check(&assigned, "a", &["10.0.0.0/24", "fd00::/120"]);
        check(&assigned, "0", &["10.0.1.0/24", "fd00::100/120"]);
    }

    #[test]
    fn a_restarted_operator_reads_what_was_given() {
        let mut allocator = dual_stack();
        let assigned = allocator.assign(&[
            claim("new", &[]),
            claim("old", &["fd00::/120", "10.0.0.0/24"]),
            claim("foreign", &["192.168.7.0/25"]),
        ]);
        check(&assigned, "old", &["fd00::/120", "10.0.0.0/24"]);
        check(&assigned, "new", &["10.0.1.0/24", "fd00::100/120"]);
        check(&assigned, "foreign", &["192.168.7.0/25", "fd00::200/120"]);
    }

    #[test]
    fn an_exhausted_pool_gives_nothing_by_halves() {
        let mut allocator = dual_stack();
        let full = [claim("a", &[]), claim("b", &[]), claim("c", &[])];
        let assigned = allocator.assign(&full);
        let c = &assigned[&"c".into()];
        assert_eq!(c.cidrs, []);
        let error = c.error.as_ref().unwrap().to_string();
        assert!(
            error.starts_with("the IPv4 pool is exhausted: every /24 of 10.0.0.0/23"),
            "{error}"
        );
        // The node that goes makes room.
        let assigned = allocator.assign(&full[1..]);
        check(&assigned, "c", &["10.0.0.0/24", "fd00::/120"]);
    }

    #[test]
    fn the_second_claim_of_a_prefix_is_refused() {
        let mut allocator = dual_stack();
        let assigned =
            allocator.assign(&[claim("a", &["10.0.0.0/24"]), claim("b", &["10.0.0.0/25"])]);
        check(&assigned, "a", &["10.0.0.0/24", "fd00::/120"]);
        let b = &assigned[&"b".into()];
        assert_eq!(b.cidrs, [net("10.0.0.0/25")], "it is left as it is");
        let error = b.error.as_ref().unwrap().to_string();
        assert!(error.starts_with("podCIDR 10.0.0.0/25 belongs to node a; remove it"), "{error}");
    }

    #[test]
    fn a_prefix_that_people_change_is_followed() {
        let mut allocator = dual_stack();
        allocator.assign(&[claim("a", &["10.0.0.0/24", "fd00::/120"])]);
        let assigned =
            allocator.assign(&[claim("a", &["10.0.1.0/24", "fd00::/120"]), claim("b", &[])]);
        check(&assigned, "a", &["10.0.1.0/24", "fd00::/120"]);
        check(&assigned, "b", &["10.0.0.0/24", "fd00::100/120"]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// A node appears, or appears again, without prefixes.
        Join(u8),
        Leave(u8),
        /// The object of a node shows what it was given.
        Show(u8),
        /// The operator starts anew: it knows what the objects say.
        Restart,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..12u8).prop_map(Step::Join),
            2 => (0..12u8).prop_map(Step::Leave),
            4 => (0..12u8).prop_map(Step::Show),
            1 => Just(Step::Restart),
        ];
        proptest::collection::vec(step, 0..80)
    }

    fn small() -> Allocator {
        Allocator::new(vec![
            Pool::new(IpFamily::Ipv4, &[net("10.0.0.0/22"), net("10.1.0.0/23")], 24).unwrap(),
            Pool::new(IpFamily::Ipv6, &[net("fd00::/117")], 120).unwrap(),
        ])
    }

    proptest! {
        /// Whatever nodes come and go, and whenever the operator restarts: prefixes do not overlap,
        /// a node has all or an error, and keeps what its object showed.
        #[test]
        fn assignments_are_sound(steps in steps()) {
            let mut allocator = small();
            let mut objects: BTreeMap<NodeName, Vec<IpNet>> = BTreeMap::new();
            for step in steps {
                let name = |n: u8| NodeName::new(format!("node-{n}"));
                let claims = |objects: &BTreeMap<NodeName, Vec<IpNet>>| -> Vec<Claim> {
                    let claim = |(node, cidrs): (&NodeName, &Vec<IpNet>)| {
                        Claim { node: node.clone(), cidrs: cidrs.clone() }
                    };
                    objects.iter().map(claim).collect()
                };
                match step {
                    Step::Join(n) => { objects.entry(name(n)).or_default(); }
                    Step::Leave(n) => { objects.remove(&name(n)); }
                    Step::Show(n) => {
                        let assigned = allocator.assign(&claims(&objects));
                        if let Some(object) = objects.get_mut(&name(n)) {
                            *object = assigned[&name(n)].cidrs.clone();
                        }
                    }
                    Step::Restart => allocator = small(),
                }
                let assigned = allocator.assign(&claims(&objects));
                prop_assert_eq!(assigned.len(), objects.len());
                let mut seen: Vec<IpNet> = Vec::new();
                for (node, assignment) in &assigned {
                    let shown = &objects[node];
                    prop_assert!(assignment.cidrs.starts_with(shown), "what was shown stays");
                    match &assignment.error {
                        None => prop_assert_eq!(assignment.cidrs.len(), 2),
                        Some(_) => prop_assert!(assignment.cidrs.is_empty(), "not by halves"),
                    }
                    for cidr in &assignment.cidrs {
                        let apart = |other: &IpNet| !other.contains(cidr) && !cidr.contains(other);
                        prop_assert!(seen.iter().all(apart), "{} is given twice", cidr);
                        seen.push(*cidr);
                    }
                }
                // Six prefixes of IPv4 there are: none is withheld while one is free.
                let satisfied = assigned.values().filter(|a| a.error.is_none()).count();
                prop_assert_eq!(satisfied, objects.len().min(6));
            }
        }
    }
}
