//! Who is behind an address: one answer for each prefix, from many claims.
//!
//! ```text
//!  local endpoints ──┐
//!  CiliumEndpoints ──┤  claims by owner      winner per prefix      ipcache table ──► kernel
//!  CiliumNodes ──────┼─► (source, name) ───► highest precedence ──►
//!  policies' prefixes ┤
//!  reserved: world ──┘
//! ```
//!
//! An *owner* is one object of a source (an endpoint, a node) and claims any number of prefixes;
//! setting its claims replaces the ones it had. The result depends only on the claims that exist
//! now, never on the order in which they came: a property test holds that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use model::{IdentityId, TunnelEndpoint};

/// Where a claim comes from; the greater one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Follows from configuration: the world.
    Generated,
    /// A prefix that a policy names; see [`Source::is_label`].
    Policy,
    /// A Kubernetes object of the core API.
    Kubernetes,
    /// A `CiliumEndpoint` or `CiliumNode`.
    CustomResource,
    /// The labels of a node; see [`Source::is_label`].
    NodeLabels,
    /// This node itself.
    Local,
    /// The API server, wherever it is; see [`Source::is_label`].
    KubeApiserver,
}

impl Source {
    /// The word that Cilium's API uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Generated | Self::Policy => "generated",
            Self::Kubernetes => "k8s",
            Self::CustomResource | Self::NodeLabels => "custom-resource",
            Self::Local => "local",
            Self::KubeApiserver => "kube-apiserver",
        }
    }

    /// Whether it knows only who is behind a prefix, and others know how to get there.
    pub const fn is_label(self) -> bool {
        matches!(self, Self::Policy | Self::NodeLabels | Self::KubeApiserver)
    }
}

/// One object that claims prefixes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Its kind decides who wins.
    pub source: Source,
    /// Its name: `namespace/pod`, the name of a node, `reserved:world`.
    pub name: Arc<str>,
}

/// What an owner says of a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Security identity of everything behind the prefix.
    pub identity: IdentityId,
    /// How packets get there.
    pub tunnel: TunnelEndpoint,
}

/// All claims, and who wins.
#[derive(Debug, Default)]
pub struct Ipcache {
    by_owner: BTreeMap<Owner, BTreeSet<IpNet>>,
    by_prefix: BTreeMap<IpNet, BTreeMap<Owner, Claim>>,
}

impl Ipcache {
    /// Replaces what `owner` claims; returns the prefixes whose claims changed.
    pub fn set(
        &mut self,
        owner: &Owner,
        claims: impl IntoIterator<Item = (IpNet, Claim)>,
    ) -> BTreeSet<IpNet> {
        let claims: BTreeMap<IpNet, Claim> = claims.into_iter().collect();
        let before = self.by_owner.remove(owner).unwrap_or_default();
        let mut changed = BTreeSet::new();
        for prefix in before.iter().filter(|p| !claims.contains_key(p)) {
            self.withdraw(prefix, owner);
            changed.insert(*prefix);
        }
        if !claims.is_empty() {
            self.by_owner.insert(owner.clone(), claims.keys().copied().collect());
        }
        for (prefix, claim) in claims {
            let claimants = self.by_prefix.entry(prefix).or_default();
            if claimants.get(owner) != Some(&claim) {
                claimants.insert(owner.clone(), claim);
                changed.insert(prefix);
            }
        }
        changed
    }

    /// The claim that counts: of the highest source, and of the first name among equals.
    pub fn winner(&self, prefix: &IpNet) -> Option<(&Owner, &Claim)> {
        let claimants = self.by_prefix.get(prefix)?;
        let source = claimants.last_key_value()?.0.source;
        claimants.iter().find(|(owner, _)| owner.source == source)
    }

    /// How packets get to a prefix: as the one who knows that says, for this prefix or for the
    /// longest one around it.
    pub fn tunnel(&self, prefix: &IpNet) -> TunnelEndpoint {
        let around = (0..=prefix.prefix_len()).rev();
        let around = around.filter_map(|len| IpNet::new(prefix.addr(), len).ok());
        let mut claims = around.filter_map(|net| {
            let claimants = self.by_prefix.get(&net.trunc())?;
            let mut claimants = claimants.iter().rev();
            claimants.find(|(owner, _)| !owner.source.is_label()).map(|(_, claim)| &claim.tunnel)
        });
        claims.next().copied().unwrap_or(TunnelEndpoint::Native)
    }

    /// Every prefix that somebody claims.
    pub fn prefixes(&self) -> impl Iterator<Item = &IpNet> {
        self.by_prefix.keys()
    }

    fn withdraw(&mut self, prefix: &IpNet, owner: &Owner) {
        if let Some(claimants) = self.by_prefix.get_mut(prefix) {
            claimants.remove(owner);
            if claimants.is_empty() {
                self.by_prefix.remove(prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner(source: Source, name: &str) -> Owner {
        Owner { source, name: name.into() }
    }

    fn claim(identity: u32) -> Claim {
        Claim { identity: IdentityId(identity), tunnel: TunnelEndpoint::Native }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_local_endpoint_beats_a_stale_custom_resource() {
        let mut ipcache = Ipcache::default();
        let (cep, local) = (owner(Source::CustomResource, "a/b"), owner(Source::Local, "a/c"));
        let prefix = net("10.0.0.1/32");
        assert_eq!(ipcache.set(&local, [(prefix, claim(300))]), BTreeSet::from([prefix]));
        ipcache.set(&cep, [(prefix, claim(299))]);
        assert_eq!(ipcache.winner(&prefix).unwrap().1, &claim(300));
        ipcache.set(&local, []);
        assert_eq!(ipcache.winner(&prefix).unwrap().1, &claim(299));
        ipcache.set(&cep, []);
        assert_eq!(ipcache.winner(&prefix), None);
        assert_eq!(ipcache.prefixes().count(), 0);
    }

    #[test]
    fn setting_the_same_again_changes_nothing() {
        let mut ipcache = Ipcache::default();
        let node = owner(Source::CustomResource, "node-1");
        let claims = || [(net("10.0.0.1/32"), claim(6)), (net("10.0.0.0/24"), claim(2))];
        assert_eq!(ipcache.set(&node, claims()).len(), 2);
        assert!(ipcache.set(&node, claims()).is_empty());
    }

    proptest! {
        /// After any sequence the winners are those of a cache that only ever saw the end state.
        #[test]
        fn order_does_not_matter(
            steps in proptest::collection::vec((0..4u8, 0..3u8, proptest::collection::vec((0..5u8, 1..9u32), 0..3)), 0..60)
        ) {
            let sources =
                [Source::Generated, Source::Kubernetes, Source::CustomResource, Source::Local];
            let mut incremental = Ipcache::default();
            let mut end_state = BTreeMap::new();
            for (source, name, claims) in steps {
                let owner = owner(sources[usize::from(source)], &name.to_string());
                let claims: Vec<_> = claims
                    .into_iter()
                    .map(|(host, identity)| (net(&format!("10.0.0.{host}/32")), claim(identity)))
                    .collect();
                incremental.set(&owner, claims.clone());
                end_state.insert(owner, claims);
            }
            let mut from_scratch = Ipcache::default();
            for (owner, claims) in end_state.into_iter().rev() {
                from_scratch.set(&owner, claims);
            }
            let winners = |c: &Ipcache| {
                c.prefixes().map(|p| (*p, c.winner(p).unwrap().1.clone())).collect::<Vec<_>>()
            };
            prop_assert_eq!(winners(&incremental), winners(&from_scratch));
        }
    }
}
