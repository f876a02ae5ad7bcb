//! Why a packet was dropped: Cilium's numbers, so that its metrics, `hubble` and dashboards read ours.
//!
//! A number is stable once it was used; deprecated numbers of Cilium are left out. From 240 on
//! they are our own. Reasons below
//! [`DropReason::MIN`] in the same number space are counted forwarding events, see [`forward_text`].

macro_rules! drop_reasons {
    ($($name:ident = $number:literal, $hubble:literal, $text:literal;)*) => {
        /// A drop reason, as it stands in metrics and in the subtype of a drop event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $text] $name = $number,)*
        }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The reason with this number, if there is one.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The text of the `reason` label of the drop metrics and of the monitor.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The name in Hubble's `flow.DropReason` enumeration.
            pub const fn hubble_name(self) -> &'static str {
                match self {
                    $(Self::$name => $hubble,)*
                }
            }
        }
    };
}

drop_reasons! {
    InvalidSip = 132, "INVALID_SOURCE_IP", "Invalid source ip";
    Policy = 133, "POLICY_DENIED", "Policy denied";
    Invalid = 134, "INVALID_PACKET_DROPPED", "Invalid packet";
    CtInvalidHdr = 135, "CT_TRUNCATED_OR_INVALID_HEADER", "CT: Truncated or invalid header";
    FragNeeded = 136, "CT_MISSING_TCP_ACK_FLAG", "Fragmentation needed";
    CtUnknownProto = 137, "CT_UNKNOWN_L4_PROTOCOL", "CT: Unknown L4 protocol";
    UnknownL3 = 139, "UNSUPPORTED_L3_PROTOCOL", "Unsupported L3 protocol";
    MissedTailCall = 140, "MISSED_TAIL_CALL", "Missed tail call";
    WriteError = 141, "ERROR_WRITING_TO_PACKET", "Error writing to packet";
    UnknownL4 = 142, "UNKNOWN_L4_PROTOCOL", "Unknown L4 protocol";
    UnknownIcmp4Code = 143, "UNKNOWN_ICMPV4_CODE", "Unknown ICMPv4 code";
    UnknownIcmp4Type = 144, "UNKNOWN_ICMPV4_TYPE", "Unknown ICMPv4 type";
    UnknownIcmp6Code = 145, "UNKNOWN_ICMPV6_CODE", "Unknown ICMPv6 code";
    UnknownIcmp6Type = 146, "UNKNOWN_ICMPV6_TYPE", "Unknown ICMPv6 type";
    NoTunnelKey = 147, "ERROR_RETRIEVING_TUNNEL_KEY", "Error retrieving tunnel key";
    UnknownTarget = 150, "UNKNOWN_L3_TARGET_ADDRESS", "Unknown L3 target address";
    Unroutable = 151, "STALE_OR_UNROUTABLE_IP", "Stale or unroutable IP";
    CsumL3 = 153, "ERROR_WHILE_CORRECTING_L3_CHECKSUM", "Error while correcting L3 checksum";
    CsumL4 = 154, "ERROR_WHILE_CORRECTING_L4_CHECKSUM", "Error while correcting L4 checksum";
    CtCreateFailed = 155, "CT_MAP_INSERTION_FAILED", "CT: Map insertion failed";
    InvalidExthdr = 156, "INVALID_IPV6_EXTENSION_HEADER", "Invalid IPv6 extension header";
    FragNosupport = 157, "IP_FRAGMENTATION_NOT_SUPPORTED", "IP fragmentation not supported";
    NoService = 158, "SERVICE_BACKEND_NOT_FOUND", "Service backend not found";
    UnsuppServiceProto = 159, "DROP_REASON_UNKNOWN", "Unsupported service protocol";
    NoTunnelEndpoint = 160, "NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT", "No tunnel/encapsulation endpoint (datapath BUG!)";
    Nat46x64Disabled = 161, "FAILED_TO_INSERT_INTO_PROXYMAP", "NAT 46/64 not enabled";
    EdtHorizon = 162, "REACHED_EDT_RATE_LIMITING_DROP_HORIZON", "Reached EDT rate-limiting drop horizon";
    UnknownCt = 163, "UNKNOWN_CONNECTION_TRACKING_STATE", "Unknown connection tracking state";
    HostUnreachable = 164, "LOCAL_HOST_IS_UNREACHABLE", "Local host is unreachable";
    NoConfig = 165, "NO_CONFIGURATION_AVAILABLE_TO_PERFORM_POLICY_DECISION", "No configuration available to perform policy decision";
    UnsupportedL2 = 166, "UNSUPPORTED_L2_PROTOCOL", "Unsupported L2 protocol";
    NatNoMapping = 167, "NO_MAPPING_FOR_NAT_MASQUERADE", "No mapping for NAT masquerade";
    NatUnsuppProto = 168, "UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE", "Unsupported protocol for NAT masquerade";
    NoFib = 169, "FIB_LOOKUP_FAILED", "FIB lookup failed";
    EncapProhibited = 170, "ENCAPSULATION_TRAFFIC_IS_PROHIBITED", "Encapsulation traffic is prohibited";
    InvalidIdentity = 171, "INVALID_IDENTITY", "Invalid identity";
    UnknownSender = 172, "UNKNOWN_SENDER", "Unknown sender";
    NatNotNeeded = 173, "NAT_NOT_NEEDED", "NAT not needed";
    IsClusterIp = 174, "IS_A_CLUSTERIP", "Is a ClusterIP";
    FragNotFound = 175, "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND", "First logical datagram fragment not found";
    ForbiddenIcmp6 = 176, "FORBIDDEN_ICMPV6_MESSAGE", "Forbidden ICMPv6 message";
    NotInSrcRange = 177, "DENIED_BY_LB_SRC_RANGE_CHECK", "Denied by LB src range check";
    ProxyLookupFailed = 178, "SOCKET_LOOKUP_FAILED", "Socket lookup failed";
    ProxySetFailed = 179, "SOCKET_ASSIGN_FAILED", "Socket assign failed";
    ProxyUnknownProto = 180, "PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL", "Proxy redirection not supported for protocol";
    PolicyDeny = 181, "POLICY_DENY", "Policy denied by denylist";
    VlanFiltered = 182, "VLAN_FILTERED", "VLAN traffic disallowed by VLAN filter";
    InvalidVni = 183, "INVALID_VNI", "Incorrect VNI from VTEP";
    InvalidTcBuffer = 184, "INVALID_TC_BUFFER", "Failed to update or lookup TC buffer";
    NoSid = 185, "NO_SID", "No SID was found for the IP address";
    Nat46 = 187, "NAT46", "L3 translation from IPv4 to IPv6 failed (NAT46)";
    Nat64 = 188, "NAT64", "L3 translation from IPv6 to IPv4 failed (NAT64)";
    PolicyAuthRequired = 189, "AUTH_REQUIRED", "Authentication required";
    CtNoMapFound = 190, "CT_NO_MAP_FOUND", "No conntrack map found";
    SnatNoMapFound = 191, "SNAT_NO_MAP_FOUND", "No nat map found";
    InvalidClusterId = 192, "INVALID_CLUSTER_ID", "Invalid ClusterID";
    DsrEncapUnsuppProto = 193, "UNSUPPORTED_PROTOCOL_FOR_DSR_ENCAP", "Unsupported packet protocol for DSR encapsulation";
    NoEgressGateway = 194, "NO_EGRESS_GATEWAY", "No egress gateway found";
    UnencryptedTraffic = 195, "UNENCRYPTED_TRAFFIC", "Traffic is unencrypted";
    TtlExceeded = 196, "TTL_EXCEEDED", "TTL exceeded";
    NoNodeId = 197, "NO_NODE_ID", "No node ID found";
    RateLimited = 198, "DROP_RATE_LIMITED", "Rate limited";
    IgmpHandled = 199, "IGMP_HANDLED", "IGMP handled";
    IgmpSubscribed = 200, "IGMP_SUBSCRIBED", "IGMP subscribed";
    MulticastHandled = 201, "MULTICAST_HANDLED", "Multicast handled";
    HostNotReady = 202, "DROP_HOST_NOT_READY", "Host datapath not ready";
    EpNotReady = 203, "DROP_EP_NOT_READY", "Endpoint policy program not available";
    NoEgressIp = 204, "DROP_NO_EGRESS_IP", "No Egress IP configured";
    PuntProxy = 205, "DROP_PUNT_PROXY", "Punt to proxy";
    NoDevice = 206, "DROP_REASON_UNKNOWN", "No device";
    FragNotFoundWorld = 207, "DROP_FRAG_NOT_FOUND_WORLD", "First logical datagram fragment not found from world";
    PolicyNotEnforceable = 240, "POLICY_DENIED", "Policy needs L7 or DNS enforcement that is not available";
    EndpointLockdown = 241, "POLICY_DENIED", "Endpoint locked down: its policy does not fit into the policy map";
    CtTableFull = 242, "CT_MAP_INSERTION_FAILED", "CT: Table of established flows full";
}

impl DropReason {
    /// The smallest number that means a drop.
    pub const MIN: u8 = 130;

    /// The number on the wire.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// The text of a counted event that is not a drop, the numbers below [`DropReason::MIN`].
pub const fn forward_text(number: u8) -> Option<&'static str> {
    Some(match number {
        0 => "Success",
        2 => "Invalid packet",
        3 => "Interface",
        4 => "Interface Decrypted",
        5 => "LB, sock cgroup: No backend slot entry found",
        6 => "LB, sock cgroup: No backend entry found",
        7 => "LB, sock cgroup: Reverse entry update failed",
        8 => "LB, sock cgroup: Reverse entry stale",
        9 => "Fragmented packet",
        10 => "Fragmented packet entry update failed",
        11 => "Missed tail call to custom program",
        12 => "Interface Decrypting",
        13 => "Interface Encrypting",
        14 => "LB: sock cgroup: Reverse entry delete succeeded",
        15 => "MTU error message",
        _ => return None,
    })
}

/// The metric reason of a packet that was forwarded.
pub const REASON_FORWARDED: u8 = 0;
/// The metric reason of a packet that came in by a device of the node.
pub const REASON_INTERFACE: u8 = 3;
