//! Type information for maps, so that `bpftool map dump` prints names instead of bytes.
//!
//! The types of `abi` are described once here, offsets taken from the compiler; the result is a
//! BTF blob (Linux `Documentation/bpf/btf.rst`) loaded along with the maps.

use std::{
    any::type_name,
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use abi::{
    AddressKey,
    conntrack::{Flow, FlowDecision, FlowKeyV4, FlowKeyV6, FragmentKey, FragmentPorts},
    endpoint::{DeviceEndpoint, EndpointInfo},
    ipcache::{IpcacheKey, RemoteEndpointInfo},
    metrics::MetricsValue,
    policy::{PolicyEntry, PolicyKey, PolicySlot},
};

use crate::sys;

/// A type that BTF can describe.
pub trait Described {
    /// Adds the type to a collection under construction and returns its id there.
    fn describe(types: &mut BtfTypes) -> u32;
}

/// BTF under construction.
#[derive(Debug)]
pub struct BtfTypes {
    types: Vec<u32>,
    strings: Vec<u8>,
    ids: BTreeMap<&'static str, u32>,
}

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;

impl BtfTypes {
    fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0], ids: BTreeMap::new() }
    }

    /// The id of a type that is described once however often it is used.
    fn once<T>(&mut self, describe: impl FnOnce(&mut Self)) -> u32 {
        let key = type_name::<T>();
        if let Some(id) = self.ids.get(key) {
            return *id;
        }
        describe(self);
        let id = self.ids.len() as u32 + 1;
        self.ids.insert(key, id);
        id
    }

    fn string(&mut self, text: &str) -> u32 {
        let offset = self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        offset
    }

    fn bytes(&self) -> Vec<u8> {
        let types_len = self.types.len() as u32 * 4;
        let strings_len = self.strings.len() as u32;
        // Magic 0xeb9f, version 1, no flags; then the length of this header, and where types and
        // strings are behind it.
        let head =
            [u32::from_ne_bytes([0x9f, 0xeb, 1, 0]), 24, 0, types_len, types_len, strings_len];
        let words = head.iter().chain(&self.types).flat_map(|word| word.to_ne_bytes());
        words.chain(self.strings.iter().copied()).collect()
    }
}

macro_rules! describe_integers {
    ($($type:ty)*) => {$(
        impl Described for $type {
            fn describe(types: &mut BtfTypes) -> u32 {
                types.once::<Self>(|types| {
                    let name = types.string(stringify!($type));
                    types.types.extend([name, KIND_INT << 24, size_of::<Self>() as u32, Self::BITS]);
                })
            }
        }
    )*};
}

describe_integers!(u8 u16 u32 u64);

impl<T: Described, const N: usize> Described for [T; N] {
    fn describe(types: &mut BtfTypes) -> u32 {
        let element = T::describe(types);
        let index = u32::describe(types);
        types.once::<Self>(|types| {
            types.types.extend([0, KIND_ARRAY << 24, 0, element, index, N as u32]);
        })
    }
}

macro_rules! describe_structs {
    ($($type:ident { $($field:ident: $field_type:ty),* $(,)? })*) => {$(
        impl Described for $type {
            fn describe(types: &mut BtfTypes) -> u32 {
                // A field that is missing here, or has another type, does not compile.
                let _ = |value: Self| {
                    let Self { $($field),* } = value;
                    let _: ($($field_type,)*) = ($($field,)*);
                };
                let members = [$((
                    stringify!($field),
                    <$field_type>::describe(types),
                    core::mem::offset_of!(Self, $field) as u32 * 8,
                )),*];
                types.once::<Self>(|types| {
                    let name = types.string(stringify!($type));
                    let info = KIND_STRUCT << 24 | members.len() as u32;
                    types.types.extend([name, info, size_of::<Self>() as u32]);
                    for (member, id, offset) in members {
                        let member = types.string(member);
                        types.types.extend([member, id, offset]);
                    }
                })
            }
        }
    )*};
}

describe_structs! {
    AddressKey { addr: [u8; 16], family: u8, key: u8, cluster_id: u16 }
    EndpointInfo {
        ifindex: u32, unused: u16, lxc_id: u16, flags: u32, rt_info: u32, mac: [u8; 8],
        node_mac: [u8; 8], sec_id: u32, parent_ifindex: u32,
        policy_slot: u32, pad: u32,
    }
    DeviceEndpoint {
        sec_id: u32, lxc_id: u16, pad: u16, ipv6: [u8; 16], ipv4: [u8; 4], flags: u32,
        mac: [u8; 8], node_mac: [u8; 8], policy_slot: u32, pad_end: u32,
    }
    IpcacheKey { prefix_len: u32, cluster_id: u16, pad: u8, family: u8, addr: [u8; 16] }
    RemoteEndpointInfo {
        sec_identity: u32, tunnel_endpoint: [u8; 16], pad: u16, key: u8, flags: u8,
    }
    MetricsValue { count: u64, bytes: u64 }
    PolicyKey {
        prefix_len: u32, slot: u32, identity: u32, direction: u8, protocol: u8, dport: [u8; 2],
    }
    PolicyEntry { proxy_port: [u8; 2], bits: u8, auth: u8, precedence: u32, cookie: u32 }
    PolicySlot { revision: u32 }
    FlowKeyV4 {
        lower_port: [u8; 2], upper_port: [u8; 2], protocol: u8, family: u8, zone: u16,
        lower: [u8; 4], upper: [u8; 4],
    }
    FlowKeyV6 {
        lower_port: [u8; 2], upper_port: [u8; 2], protocol: u8, family: u8, zone: u16,
        lower: [u8; 16], upper: [u8; 16],
    }
    FlowDecision {
        revision: u32, identity: u32, peer: u32, proxy_port: [u8; 2], verdict: u8, pad: u8,
    }
    Flow {
        decisions: [FlowDecision; 2], expires: u32, reported: [u32; 2], created: u32, awaited: u32,
        tcp_flags: [u8; 2], state: u8, pad: [u8; 9],
    }
    FragmentKey {
        source: [u8; 16], target: [u8; 16], id: [u8; 4], protocol: u8, family: u8, zone: u16,
    }
    FragmentPorts {
        source_port: [u8; 2], target_port: [u8; 2], policy_port: [u8; 2], icmp_type: u8, pad: u8,
    }
}

/// Type information in the kernel for a map's key and value.
#[derive(Debug)]
pub(crate) struct Btf {
    fd: OwnedFd,
    /// Id of the key's type.
    pub(crate) key: u32,
    /// Id of the value's type.
    pub(crate) value: u32,
}

impl Btf {
    /// Describes a key and a value to the kernel.
    pub(crate) fn load<K: Described, V: Described>() -> io::Result<Self> {
        let mut types = BtfTypes::new();
        let key = K::describe(&mut types);
        let value = V::describe(&mut types);
        Ok(Self { fd: sys::btf_load(&types.bytes())?, key, value })
    }
}

impl AsFd for Btf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_types_are_described_once() {
        let mut types = BtfTypes::new();
        let key = AddressKey::describe(&mut types);
        let value = RemoteEndpointInfo::describe(&mut types);
        assert_eq!((key, value), (5, 6), "u8, u32, [u8; 16], u16, then the two structs");
        assert_eq!(AddressKey::describe(&mut types), key);
        let bytes = types.bytes();
        assert_eq!(bytes.len(), 24 + types.types.len() * 4 + types.strings.len());
        assert_eq!(bytes[..4], [0x9f, 0xeb, 1, 0]);
    }
}
