//! Which pod has which address: the node's allocator.
//!
//! A [`Pool`] hands out addresses of one family from the node's pod CIDRs, in ascending order and
//! round the ring, so that an address is reused as late as possible: peers may still know the pod
//! that had it. [`Ipam`] is both families, and gives all addresses of a pod or none.
//!
//! An address is *reserved* when the CNI plugin asks for it and *confirmed* when an endpoint uses
//! it. A reservation whose endpoint never comes expires: the plugin may have been killed between
//! the two. Time is an argument; nothing here does I/O.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;

/// A reservation without an endpoint lives this long.
pub const RESERVATION_AGE_MAX: Duration = Duration::from_secs(600);

/// Why no address was given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Every address of the CIDRs is in use.
    #[error(
        "no {family} address left: all {capacity} of {cidrs} are in use; give the node a larger pod CIDR or run fewer pods on it"
    )]
    Exhausted {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// Addresses that could be handed out.
        capacity: u128,
        /// The CIDRs, separated by commas.
        cidrs: String,
    },
    /// The node has no CIDR of this family.
    #[error("the node has no {family} pod CIDR")]
    NoCidr {
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// The address was asked for by name and somebody has it.
    #[error("address {address} is in use by {owner}")]
    InUse {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: String,
    },
    /// The address was asked for by name and is not ours to give.
    #[error("address {address} is in none of the node's pod CIDRs {cidrs}")]
    NotInPool {
        /// The address.
        address: IpAddr,
        /// The CIDRs, separated by commas.
        cidrs: String,
    },
}

/// The addresses of both families.
#[derive(Debug, Default, Clone)]
pub struct Ipam {
    /// IPv4, where it is on.
    pub v4: Option<Pool>,
    /// IPv6, where it is on.
    pub v6: Option<Pool>,
}

/// The families a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// Whatever the node has.
    All,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl Ipam {
    /// Pools over those of `cidrs` whose family is enabled.
    pub fn new(cidrs: &[IpNet], enable_ipv4: bool, enable_ipv6: bool) -> Self {
        let pool = |enabled: bool, is_v4: bool| {
            let mine: Vec<_> =
                cidrs.iter().copied().filter(|c| c.addr().is_ipv4() == is_v4).collect();
            (enabled && !mine.is_empty()).then(|| Pool::new(mine))
        };
        Self { v4: pool(enable_ipv4, true), v6: pool(enable_ipv6, false) }
    }

    /// One address of each wanted family, or none at all and the reason.
    pub fn allocate(
        &mut self,
        families: Families,
        owner: &str,
        now: Instant,
    ) -> Result<Vec<IpAddr>, IpamError> {
        let mut given = Vec::with_capacity(2);
        for (is_ipv4, other, name) in [(true, Families::V6, "IPv4"), (false, Families::V4, "IPv6")]
        {
            if families == other {
                continue;
            }
            let allocated = match if is_ipv4 { &mut self.v4 } else { &mut self.v6 } {
                Some(pool) => pool.allocate(owner, now),
                None if families == Families::All => continue,
                None => Err(IpamError::NoCidr { family: name }),
            };
            match allocated {
                Ok(address) => given.push(address),
                Err(error) => {
                    for address in given {
                        self.release(address);
                    }
                    return Err(error);
                }
            }
        }
        if given.is_empty() {
            return Err(IpamError::NoCidr { family: "IPv4 or IPv6" });
        }
        Ok(given)
    }

    /// Takes this very address.
    pub fn reserve(&mut self, address: IpAddr, owner: &str, now: Instant) -> Result<(), IpamError> {
        match self.pool_mut(address) {
            Some(pool) => pool.reserve(address, owner, now),
            None => Err(IpamError::NoCidr { family: family_name(address) }),
        }
    }

    /// An endpoint takes an address that was reserved for it, or that nobody has: it no longer
    /// expires. An address outside of the pools is not ours to keep account of.
    pub fn take(&mut self, address: IpAddr, owner: &str, now: Instant) -> Result<(), IpamError> {
        let Some(pool) = self.pool_mut(address) else { return Ok(()) };
        match pool.used.get(&address) {
            Some(theirs) if theirs.confirmed && theirs.owner != owner => {
                return Err(IpamError::InUse { address, owner: theirs.owner.clone() });
            }
            None if !pool.contains(address) => return Ok(()),
            _ => {}
        }
        let allocation = Allocation { owner: owner.to_owned(), since: now, confirmed: true };
        pool.used.insert(address, allocation);
        Ok(())
    }

    /// The endpoint of `owner` that took these addresses failed: they are merely reserved again.
    pub fn unconfirm(&mut self, addresses: &[IpAddr], owner: &str, now: Instant) {
        for address in addresses {
            let allocation = self.pool_mut(*address).and_then(|p| p.used.get_mut(address));
            if let Some(allocation) = allocation.filter(|a| a.owner == owner) {
                allocation.confirmed = false;
                allocation.since = now;
            }
        }
    }

    /// Whether an endpoint uses the address.
    pub fn is_confirmed(&self, address: IpAddr) -> bool {
        let pool = if address.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() };
        pool.and_then(|p| p.used.get(&address)).is_some_and(|a| a.confirmed)
    }

    /// Gives the address back; false where nobody had it.
    pub fn release(&mut self, address: IpAddr) -> bool {
        self.pool_mut(address).is_some_and(|p| p.used.remove(&address).is_some())
    }

    /// Who has the address.
    pub fn owner(&self, address: IpAddr) -> Option<&str> {
        let pool = if address.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() };
        pool.and_then(|p| p.used.get(&address)).map(|a| a.owner.as_str())
    }

    /// Gives back what was reserved before `now - age` and never confirmed.
    pub fn expire(&mut self, now: Instant, age: Duration) -> Vec<(IpAddr, String)> {
        let mut expired = Vec::new();
        for pool in [&mut self.v4, &mut self.v6].into_iter().flatten() {
            pool.used.retain(|address, allocation| {
                let keep =
                    allocation.confirmed || now.saturating_duration_since(allocation.since) < age;
                if !keep {
                    expired.push((*address, allocation.owner.clone()));
                }
                keep
            });
        }
        expired
    }

    /// The pools there are.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        [&self.v4, &self.v6].into_iter().flatten()
    }

    fn pool_mut(&mut self, address: IpAddr) -> Option<&mut Pool> {
        if address.is_ipv4() { self.v4.as_mut() } else { self.v6.as_mut() }
    }
}

/// Addresses of one family.
#[derive(Debug, Clone)]
pub struct Pool {
    cidrs: Vec<IpNet>,
    used: BTreeMap<IpAddr, Allocation>,
    /// The address that was given last; the search goes on behind it.
    last: Option<IpAddr>,
}

/// An address somebody has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// `namespace/pod`, `router`, or what the caller said.
    pub owner: String,
    since: Instant,
    confirmed: bool,
}

impl Pool {
    /// A pool over CIDRs of one family.
    fn new(cidrs: Vec<IpNet>) -> Self {
        let cidrs: Vec<_> = cidrs.into_iter().map(|c| c.trunc()).collect();
        assert!(
            cidrs.iter().all(|c| c.addr().is_ipv4() == cidrs[0].addr().is_ipv4()),
            "a pool has one family"
        );
        Self { cidrs, used: BTreeMap::new(), last: None }
    }

    /// The CIDRs, in the order of the node's spec.
    pub fn cidrs(&self) -> &[IpNet] {
        &self.cidrs
    }

    /// Addresses in use, in order, with their owners.
    pub fn used(&self) -> impl ExactSizeIterator<Item = (IpAddr, &str)> {
        self.used.iter().map(|(address, allocation)| (*address, allocation.owner.as_str()))
    }

    /// How many addresses can be handed out.
    pub fn capacity(&self) -> u128 {
        self.cidrs
            .iter()
            .map(usable)
            .map(|(first, last)| (last - first).saturating_add(1))
            .fold(0, u128::saturating_add)
    }

    fn allocate(&mut self, owner: &str, now: Instant) -> Result<IpAddr, IpamError> {
        let address = self.next_free().ok_or_else(|| IpamError::Exhausted {
            family: family_name(self.cidrs[0].addr()),
            capacity: self.capacity(),
            cidrs: self.cidrs_text(),
        })?;
        self.take(address, owner, now);
        self.last = Some(address);
        Ok(address)
    }

    fn reserve(&mut self, address: IpAddr, owner: &str, now: Instant) -> Result<(), IpamError> {
        if let Some(allocation) = self.used.get(&address) {
            return Err(IpamError::InUse { address, owner: allocation.owner.clone() });
        }
        if !self.contains(address) {
            return Err(IpamError::NotInPool { address, cidrs: self.cidrs_text() });
        }
        self.take(address, owner, now);
        Ok(())
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.cidrs.iter().any(|c| c.contains(&address))
    }

    fn take(&mut self, address: IpAddr, owner: &str, now: Instant) {
        let allocation = Allocation { owner: owner.to_owned(), since: now, confirmed: false };
        let before = self.used.insert(address, allocation);
        assert!(before.is_none(), "an address is given once");
    }

    /// The first free address behind the one given last, round the ring of all CIDRs.
    fn next_free(&self) -> Option<IpAddr> {
        let is_v4 = self.cidrs[0].addr().is_ipv4();
        let start = self.last.and_then(|last| {
            let at = self.cidrs.iter().position(|c| c.contains(&last))?;
            Some((at, to_bits(last).saturating_add(1)))
        });
        let (at, behind) = start.unwrap_or((0, 0));
        let count = self.cidrs.len();
        // The CIDR of the last address is looked at twice: its rest first, its beginning at the end.
        for step in 0..=count {
            let (mut first, mut last) = usable(&self.cidrs[(at + step) % count]);
            if step == 0 {
                first = first.max(behind);
            } else if step == count {
                last = last.min(behind.saturating_sub(1));
            }
            let mut bits = first;
            while bits <= last {
                let address = from_bits(bits, is_v4);
                if !self.used.contains_key(&address) {
                    return Some(address);
                }
                bits += 1;
            }
        }
        None
    }

    fn cidrs_text(&self) -> String {
        self.cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}

/// First and last address of `cidr` that a pod may have: not the network's own and not the
/// broadcast address, as Cilium does for both families.
fn usable(cidr: &IpNet) -> (u128, u128) {
    let (first, last) = (to_bits(cidr.network()), to_bits(cidr.broadcast()));
    if last - first < 2 { (first, last) } else { (first + 1, last - 1) }
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn from_bits(bits: u128, is_v4: bool) -> IpAddr {
    if is_v4 {
        let bits = u32::try_from(bits).expect("bits of an IPv4 CIDR");
        IpAddr::V4(Ipv4Addr::from_bits(bits))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(bits))
    }
}

fn family_name(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ipam(cidrs: &[&str]) -> Ipam {
        let cidrs: Vec<IpNet> = cidrs.iter().map(|c| c.parse().unwrap()).collect();
        Ipam::new(&cidrs, true, true)
    }

    fn text(addresses: &[IpAddr]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn both_families_or_none() {
        let now = Instant::now();
        let mut ipam = ipam(&["10.0.1.0/24", "fd00::/126"]);
        assert_eq!(
            text(&ipam.allocate(Families::All, "router", now).unwrap()),
            ["10.0.1.1", "fd00::1"]
        );
        assert_eq!(
            text(&ipam.allocate(Families::All, "a/b", now).unwrap()),
            ["10.0.1.2", "fd00::2"]
        );
        let error = ipam.allocate(Families::All, "a/c", now).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no IPv6 address left: all 2 of fd00::/126 are in use; give the node a larger pod CIDR or run fewer pods on it"
        );
        assert_eq!(ipam.v4.as_ref().unwrap().used().len(), 2, "the IPv4 address went back");
        assert_eq!(text(&ipam.allocate(Families::V4, "a/c", now).unwrap()), ["10.0.1.4"]);
    }

    #[test]
    fn an_address_is_reused_as_late_as_possible() {
        let now = Instant::now();
        let mut ipam = ipam(&["10.0.1.0/29"]);
        let mut next = || {
            let given = ipam.allocate(Families::All, "x", now).unwrap();
            ipam.release(given[0]);
            given[0].to_string()
        };
        let round: Vec<_> = (0..7).map(|_| next()).collect();
        assert_eq!(
            round[..6],
            ["10.0.1.1", "10.0.1.2", "10.0.1.3", "10.0.1.4", "10.0.1.5", "10.0.1.6"]
        );
        assert_eq!(round[6], "10.0.1.1");
    }

    #[test]
    fn reservations_without_an_endpoint_expire() {
        let start = Instant::now();
        let mut ipam = ipam(&["10.0.1.0/29"]);
        let kept = ipam.allocate(Families::All, "kept", start).unwrap()[0];
        ipam.take(kept, "kept", start).unwrap();
        let lost = ipam.allocate(Families::All, "lost", start).unwrap()[0];
        assert_eq!(ipam.expire(start + Duration::from_secs(599), RESERVATION_AGE_MAX), []);
        let expired = ipam.expire(start + Duration::from_secs(600), RESERVATION_AGE_MAX);
        assert_eq!(expired, [(lost, "lost".to_owned())]);
        assert_eq!(ipam.owner(kept), Some("kept"));
    }

    #[test]
    fn asking_by_name() {
        let now = Instant::now();
        let mut ipam = ipam(&["10.0.1.0/29"]);
        let address = "10.0.1.3".parse().unwrap();
        ipam.reserve(address, "a", now).unwrap();
        assert_eq!(
            ipam.reserve(address, "b", now).unwrap_err().to_string(),
            "address 10.0.1.3 is in use by a"
        );
        assert_eq!(
            ipam.reserve("10.0.2.3".parse().unwrap(), "b", now).unwrap_err().to_string(),
            "address 10.0.2.3 is in none of the node's pod CIDRs 10.0.1.0/29"
        );
        assert_eq!(
            ipam.reserve("fd00::1".parse().unwrap(), "b", now).unwrap_err().to_string(),
            "the node has no IPv6 pod CIDR"
        );
    }

    proptest! {
        /// Whatever the order of allocations and releases: no address is given twice, all are in
        /// the CIDRs, and the pool is exhausted exactly when all usable addresses are in use.
        #[test]
        fn any_sequence(steps in proptest::collection::vec(any::<(bool, u8)>(), 0..200)) {
            let now = Instant::now();
            let mut ipam = ipam(&["10.0.1.0/28", "10.9.0.0/30"]);
            let mut held: Vec<IpAddr> = Vec::new();
            for (allocate, pick) in steps {
                if allocate {
                    match ipam.allocate(Families::V4, "x", now) {
                        Ok(given) => {
                            prop_assert_eq!(given.len(), 1);
                            prop_assert!(!held.contains(&given[0]));
                            prop_assert!(ipam.v4.as_ref().unwrap().cidrs().iter().any(|c| c.contains(&given[0])));
                            held.push(given[0]);
                        }
                        Err(_) => prop_assert_eq!(held.len(), 16),
                    }
                } else if !held.is_empty() {
                    let address = held.swap_remove(usize::from(pick) % held.len());
                    prop_assert!(ipam.release(address));
                    prop_assert!(!ipam.release(address));
                }
                prop_assert_eq!(ipam.v4.as_ref().unwrap().used().len(), held.len());
            }
        }
    }
}
