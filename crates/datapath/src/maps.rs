//! What a hook knows of the node.

use abi::endpoint::{DeviceEndpoint, EndpointInfo};
use abi::ipcache::{IpcacheKey, RemoteEndpointInfo};
use abi::{AddressKey, DatapathConfig};

/// The node's maps and configuration.
pub trait Maps {
    /// Constant while the programs are loaded; what is off here is not even compiled to machine
    /// code.
    fn config(&self) -> &DatapathConfig;
    /// The endpoint behind the device with this index.
    fn device(&self, ifindex: u32) -> Option<&DeviceEndpoint>;
    /// The local endpoint, or the node itself, with this address.
    fn endpoint(&self, key: &AddressKey) -> Option<&EndpointInfo>;
    /// Who has exactly this address anywhere in the cluster.
    fn host(&self, key: &AddressKey) -> Option<&RemoteEndpointInfo>;
    /// Who has the longest prefix of this address.
    fn prefix(&self, key: &IpcacheKey) -> Option<&RemoteEndpointInfo>;
    /// The set of event types that somebody listens to, [`abi::config::RUNTIME_EVENTS`].
    fn listeners(&self) -> u64;
    /// Adds a packet to the counter at `index` of [`abi::metrics`].
    fn count(&self, index: u32, bytes: u64);
}
