//! What everything made for an attachment is called. All names follow from container id and
//! interface name alone, so DEL finds what ADD has made without having been told.

use kernel::netlink::Mac;
use sha2::{Digest, Sha256};

use crate::request::Attachment;

/// What the names of the host's ends of all pods begin with.
const HOST_IFNAME_PREFIX: &str = "lxc";
/// Hexadecimal digits after the prefix: both fill the kernel's 15 bytes.
const HOST_IFNAME_DIGITS: usize = 12;

impl Attachment {
    /// The endpoint's id in the agent's REST API.
    pub(crate) fn endpoint_id(&self) -> String {
        format!("cni-attachment-id:{}", self.id())
    }

    /// The endpoint id without its prefix.
    pub(crate) fn id(&self) -> String {
        format!("{}:{}", self.container_id, self.ifname)
    }

    /// The end of the pair in the host's namespace.
    pub(crate) fn host_ifname(&self) -> String {
        let mut name = String::from(HOST_IFNAME_PREFIX);
        for byte in &self.hash("")[..HOST_IFNAME_DIGITS / 2] {
            name.push_str(&format!("{byte:02x}"));
        }
        name
    }

    pub(crate) fn host_mac(&self) -> Mac {
        self.local_mac("host")
    }

    pub(crate) fn pod_mac(&self) -> Mac {
        self.local_mac("pod")
    }

    /// An address that is the same whenever ADD is repeated, and another for each attachment.
    fn local_mac(&self, end: &str) -> Mac {
        let hash = self.hash(end);
        let mut mac = [0; 6];
        mac.copy_from_slice(&hash[..6]);
        // IEEE 802: locally administered, and not a group address.
        mac[0] = mac[0] & !0b01 | 0b10;
        Mac(mac)
    }

    fn hash(&self, suffix: &str) -> [u8; 32] {
        Sha256::new().chain_update(self.id()).chain_update(suffix).finalize().into()
    }
}

/// Whether a link's name is one that [`Attachment::host_ifname`] gives.
pub(crate) fn is_host_ifname(name: &str) -> bool {
    name.strip_prefix(HOST_IFNAME_PREFIX).is_some_and(|digits| {
        digits.len() == HOST_IFNAME_DIGITS
            && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_attachment() {
        let attachment = Attachment { container_id: "c1".into(), ifname: "eth0".into() };
        let name = attachment.host_ifname();
        // printf c1:eth0 | sha256sum | cut -c1-12
        assert_eq!(name, "lxc18b8fe0ca3d6");
        assert!(is_host_ifname(&name));
        assert_eq!(attachment.endpoint_id(), "cni-attachment-id:c1:eth0");
        assert_ne!(attachment.host_mac(), attachment.pod_mac());
        assert_eq!(attachment.pod_mac().0[0] & 0b11, 0b10, "{}", attachment.pod_mac());
    }

    #[test]
    fn other_links_are_left_alone() {
        for name in ["lxc_health", "lxc0", "lxcABCDEF012345", "eth0", "lxc0123456789abc", ""] {
            assert!(!is_host_ifname(name), "{name}");
        }
    }
}
