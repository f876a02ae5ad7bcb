//! Prefixes of one family, cut into equal parts. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::IpFamily;

/// Addresses that a node's prefix has at least: network, router, one pod, broadcast.
const NODE_PREFIX_BITS_MIN: u8 = 2;

/// The prefixes of one family that nodes can be given.
#[derive(Clone, Debug)]
pub struct Pool {
    family: IpFamily,
    cidrs: Vec<IpNet>,
    mask_size: u8,
    /// Runs of parts that are taken: first → last address.
    taken: BTreeMap<u128, u128>,
}

/// A pool cannot be made of these options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The family is on and has no prefix.
    #[error("{family} is enabled, but cluster-pool-{}-cidr is empty; name a prefix for pods", family.as_str())]
    Empty {
        /// The family.
        family: IpFamily,
    },
    /// A prefix of the other family.
    #[error("cluster-pool-{}-cidr={cidr} is not of {family}", family.as_str())]
    OtherFamily {
        /// The family.
        family: IpFamily,
        /// The prefix.
        cidr: IpNet,
    },
    /// Two prefixes share addresses.
    #[error("cluster-pool-{}-cidr: {first} and {second} overlap", family.as_str())]
    Overlap {
        /// The family.
        family: IpFamily,
        /// One prefix.
        first: IpNet,
        /// The other.
        second: IpNet,
    },
    /// A node's prefix would be larger than the pool, or have no room for a pod.
    #[error(
        "cluster-pool-{}-mask-size={mask_size} does not fit {cidr}; write a number from {} to {}",
        family.as_str(), cidr.prefix_len(), family.bits() - NODE_PREFIX_BITS_MIN
    )]
    MaskSize {
        /// The family.
        family: IpFamily,
        /// The prefix.
        cidr: IpNet,
        /// The length that does not fit.
        mask_size: u8,
    },
}

/// No part is free.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {family} pool is exhausted: every /{mask_size} of {} is taken; \
     add a prefix to cluster-pool-{}-cidr and restart the operator, or remove a node",
    cidrs.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", "), family.as_str()
)]
pub struct Exhausted {
    family: IpFamily,
    mask_size: u8,
    cidrs: Vec<IpNet>,
}

impl Pool {
    /// A pool of parts of length `mask_size`, none of them taken.
    pub fn new(family: IpFamily, cidrs: &[IpNet], mask_size: u8) -> Result<Self, PoolError> {
        if cidrs.is_empty() {
            return Err(PoolError::Empty { family });
        }
        let mut accepted: Vec<IpNet> = Vec::new();
        for cidr in cidrs.iter().map(IpNet::trunc) {
            if IpFamily::of_net(&cidr) != family {
                return Err(PoolError::OtherFamily { family, cidr });
            }
            let longest = family.bits() - NODE_PREFIX_BITS_MIN;
            if !(cidr.prefix_len()..=longest).contains(&mask_size) {
                return Err(PoolError::MaskSize { family, cidr, mask_size });
            }
            if let Some(first) = accepted.iter().find(|other| overlap(other, &cidr)) {
                return Err(PoolError::Overlap { family, first: *first, second: cidr });
            }
            accepted.push(cidr);
        }
        Ok(Self { family, cidrs: accepted, mask_size, taken: BTreeMap::new() })
    }

    /// The family.
    pub fn family(&self) -> IpFamily {
        self.family
    }

    /// Takes every part that `net` touches; `net` may be longer or shorter than a part, or outside.
    ///
    /// Two prefixes that are both taken share addresses only where both are longer than a part and
    /// within the same one; releasing one releases that part.
    pub fn take(&mut self, net: &IpNet) {
        for (first, last) in self.parts(net) {
            self.taken.insert(first, last);
        }
    }

    /// Gives back every part that `net` touches.
    pub fn release(&mut self, net: &IpNet) {
        for (first, _) in self.parts(net) {
            self.taken.remove(&first);
        }
    }

    /// Takes the lowest part that is free.
    pub fn allocate(&mut self) -> Result<IpNet, Exhausted> {
        let free = self.cidrs.iter().find_map(|cidr| self.lowest_free(cidr));
        let Some(start) = free else {
            let Self { family, mask_size, cidrs, .. } = self;
            return Err(Exhausted { family: *family, mask_size: *mask_size, cidrs: cidrs.clone() });
        };
        self.taken.insert(start, start + (self.part_len() - 1));
        Ok(self.net(start))
    }

    /// The first free part of one prefix of the pool: the first gap among those taken.
    fn lowest_free(&self, cidr: &IpNet) -> Option<u128> {
        let (first, last) = bounds(cidr);
        let mut free = first;
        for (taken_first, taken_last) in self.taken.range(first..=last) {
            if *taken_first > free {
                break;
            }
            free = taken_last.checked_add(1)?;
        }
        (free <= last).then_some(free)
    }

    /// The runs of parts of the pool that `net` touches, one per prefix of the pool: first and last
    /// address.
    fn parts(&self, net: &IpNet) -> Vec<(u128, u128)> {
        if IpFamily::of_net(net) != self.family {
            return Vec::new();
        }
        let (low, high) = bounds(net);
        let within = self.part_len() - 1;
        let touched =
            self.cidrs.iter().map(bounds).filter(|(first, last)| low <= *last && high >= *first);
        touched.map(|(first, last)| (low.max(first) & !within, high.min(last) | within)).collect()
    }

    /// Addresses of a part.
    fn part_len(&self) -> u128 {
        1 << (self.family.bits() - self.mask_size)
    }

    fn net(&self, start: u128) -> IpNet {
        IpNet::new(address(self.family, start), self.mask_size).expect("the mask size was checked")
    }
}

/// Whether two prefixes share addresses.
fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// First and last address of a prefix as numbers.
fn bounds(net: &IpNet) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(family: IpFamily, number: u128) -> IpAddr {
    match family {
        IpFamily::Ipv4 => {
            let bits = u32::try_from(number).expect("the number came from an IPv4 address");
            IpAddr::V4(Ipv4Addr::from_bits(bits))
        }
        IpFamily::Ipv6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn pool(cidrs: &[&str], mask_size: u8) -> Pool {
        let cidrs: Vec<IpNet> = cidrs.iter().map(|cidr| net(cidr)).collect();
        Pool::new(IpFamily::of_net(&cidrs[0]), &cidrs, mask_size).unwrap()
    }

    #[test]
    fn parts_are_given_from_the_lowest() {
        let mut pool = pool(&["10.0.0.0/23", "10.9.0.0/24"], 24);
        assert_eq!(pool.allocate(), Ok(net("10.0.0.0/24")));
        assert_eq!(pool.allocate(), Ok(net("10.0.1.0/24")));
        assert_eq!(pool.allocate(), Ok(net("10.9.0.0/24")));
        let error = pool.allocate().unwrap_err().to_string();
        assert!(error.contains("every /24 of 10.0.0.0/23, 10.9.0.0/24 is taken"), "{error}");
        pool.release(&net("10.0.1.0/24"));
        assert_eq!(pool.allocate(), Ok(net("10.0.1.0/24")));
    }

    #[test]
    fn the_ends_of_the_address_space_are_parts() {
        let mut v4 = pool(&["255.255.255.0/24"], 25);
        assert_eq!(v4.allocate(), Ok(net("255.255.255.0/25")));
        assert_eq!(v4.allocate(), Ok(net("255.255.255.128/25")));
        assert!(v4.allocate().is_err());
        let mut v6 = pool(&["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120"], 124);
        for _ in 0..16 {
            v6.allocate().unwrap();
        }
        assert!(v6.allocate().is_err());
        assert_eq!(pool(&["::/0"], 64).allocate(), Ok(net("::/64")));
    }

    #[test]
    fn prefixes_of_other_sizes_are_kept_clear_of() {
        let mut pool = pool(&["10.0.0.0/16"], 24);
        pool.take(&net("10.0.0.128/26"));
        pool.take(&net("10.0.2.0/23"));
        pool.take(&net("192.168.0.0/24"));
        pool.take(&net("fd00::/64"));
        assert_eq!(pool.allocate(), Ok(net("10.0.1.0/24")));
        assert_eq!(pool.allocate(), Ok(net("10.0.4.0/24")));
    }

    #[track_caller]
    fn check_refused(family: IpFamily, cidrs: &[&str], mask_size: u8, expected: &str) {
        let cidrs: Vec<IpNet> = cidrs.iter().map(|cidr| net(cidr)).collect();
        let error = Pool::new(family, &cidrs, mask_size).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn what_makes_no_pool_is_refused() {
        check_refused(
            IpFamily::Ipv4,
            &[],
            24,
            "IPv4 is enabled, but cluster-pool-ipv4-cidr is empty; name a prefix for pods",
        );
        check_refused(
            IpFamily::Ipv6,
            &["10.0.0.0/8"],
            24,
            "cluster-pool-ipv6-cidr=10.0.0.0/8 is not of IPv6",
        );
        check_refused(
            IpFamily::Ipv4,
            &["10.0.0.0/8", "10.1.0.0/16"],
            24,
            "cluster-pool-ipv4-cidr: 10.0.0.0/8 and 10.1.0.0/16 overlap",
        );
        check_refused(
            IpFamily::Ipv4,
            &["10.0.0.0/16"],
            31,
            "cluster-pool-ipv4-mask-size=31 does not fit 10.0.0.0/16; write a number from 16 to 30",
        );
    }

    proptest! {
        /// Parts that are given never overlap, lie in the pool, and all are given before it is exhausted.
        #[test]
        fn parts_do_not_overlap(extra in 0..6u8, ops in proptest::collection::vec(any::<(bool, u8)>(), 0..200)) {
            let cidr = net("10.64.0.0/12");
            let mut pool = Pool::new(IpFamily::Ipv4, &[cidr], 12 + extra).unwrap();
            let mut given: Vec<IpNet> = Vec::new();
            for (allocate, which) in ops {
                if allocate {
                    match pool.allocate() {
                        Ok(part) => {
                            prop_assert!(cidr.contains(&part));
                            prop_assert!(given.iter().all(|other| !overlap(other, &part)));
                            given.push(part);
                        }
                        Err(_) => prop_assert_eq!(given.len(), 1 << extra),
                    }
                } else if !given.is_empty() {
                    let part = given.swap_remove(usize::from(which) % given.len());
                    pool.release(&part);
                }
            }
        }
    }
}
