//! Links, addresses, routes, neighbours and traffic filters, by rtnetlink.
//!
//! [`Netlink`] is one blocking socket in one network namespace. A call is one message and its
//! acknowledgement; the kernel's own words for a refusal (extended acknowledgement) are part of
//! the error. Small and without an async runtime, since the CNI plugin links it too: a call takes
//! the kernel some tens of microseconds, which an async caller wraps in `spawn_blocking`, if at all.
//!
//! ```text
//!   Netlink ── link.rs ······ links: veth, vxlan, bridge
//!           ├─ address.rs ··· addresses and neighbours
//!           ├─ route.rs ····· routes
//!           ├─ filter.rs ···· clsact and BPF filters
//!           └─ wire.rs ······ messages as bytes
//! ```

mod address;
mod filter;
mod link;
mod route;
mod wire;

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};

use self::wire::{Attrs, Messages, Request};
pub use self::{
    address::{Address, AddressFlags, Neighbour},
    filter::{BpfFilter, TcHook},
    link::{Link, Mac, MacError, VethSpec, VxlanSpec},
    route::{Route, RouteKind, RouteScope, TABLE_LOCAL, TABLE_MAIN},
};
use crate::netns::{Netns, NetnsError};

/// Why a netlink call failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// What was to be created exists.
    #[error("{action}: it exists already")]
    Exists {
        /// What we were doing.
        action: String,
    },
    /// What was to be read, changed or deleted does not exist.
    #[error("{action}: it does not exist")]
    NotFound {
        /// What we were doing.
        action: String,
    },
    /// The kernel refused for another reason.
    #[error("{action}: {source}{}{reason}", if reason.is_empty() { "" } else { ": " })]
    Refused {
        /// What we were doing.
        action: String,
        /// The error number.
        source: io::Error,
        /// The kernel's explanation, often empty.
        reason: String,
    },
    /// The socket itself failed.
    #[error("{action}: netlink socket: {source}")]
    Socket {
        /// What we were doing.
        action: String,
        /// What the socket said.
        source: io::Error,
    },
    /// A list changed faster than it could be read.
    #[error(
        "{action}: the list changed during each of {DUMP_ATTEMPTS} attempts to read it; try again"
    )]
    Interrupted {
        /// What we were doing.
        action: String,
    },
    /// The namespace could not be entered to open the socket there.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

impl NetlinkError {
    /// Whether the reason is that the object exists already.
    pub const fn is_exists(&self) -> bool {
        matches!(self, Self::Exists { .. })
    }

    /// Whether the reason is that the object does not exist.
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    fn refused(action: fmt::Arguments<'_>, errno: i32, reason: String) -> Self {
        let action = action.to_string();
        match errno {
            libc::EEXIST => Self::Exists { action },
            // ESRCH: no such route. EADDRNOTAVAIL: no such address on the device.
            libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL => {
                Self::NotFound { action }
            }
            _ => Self::Refused { action, source: io::Error::from_raw_os_error(errno), reason },
        }
    }
}

/// How often a list is read again when it changed meanwhile.
const DUMP_ATTEMPTS: u32 = 8;
/// The kernel fills at most 32 KiB per datagram of a dump.
const RECEIVE_LEN: usize = 64 * 1024;

/// A netlink socket of one network namespace. Calls from several threads queue up.
pub struct Netlink {
    socket: OwnedFd,
    state: Mutex<State>,
}

struct State {
    seq: u32,
    buf: Vec<u8>,
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Netlink {
    /// A socket in the network namespace of the calling thread. It stays there.
    pub fn new() -> Result<Self, NetlinkError> {
        let failed = |source: io::Error| NetlinkError::Socket {
            action: "open a netlink socket".to_owned(),
            source,
        };
        let socket = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .map_err(|errno| failed(errno.into()))?;
        // Explanations in errors; answers without the request; dumps that honour filters.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            enable(&socket, option).map_err(failed)?;
        }
        Ok(Self { socket, state: Mutex::new(State { seq: 0, buf: vec![0; RECEIVE_LEN] }) })
    }

    /// A socket in another network namespace.
    pub fn in_netns(netns: &Netns) -> Result<Self, NetlinkError> {
        netns.run(Self::new)?
    }

    /// Sends a request that changes something, and waits for the kernel's verdict.
    fn apply(&self, mut request: Request, action: fmt::Arguments<'_>) -> Result<(), NetlinkError> {
        request.add_flags(libc::NLM_F_ACK);
        self.transact(&mut request, action, |_, _| {}).map(drop)
    }

    /// Asks for one object.
    fn find<T>(
        &self,
        mut request: Request,
        action: fmt::Arguments<'_>,
        mut parse: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T, NetlinkError> {
        request.add_flags(libc::NLM_F_ACK);
        let mut found = None;
        self.transact(&mut request, action, |_, payload| found = parse(payload))?;
        found.ok_or_else(|| NetlinkError::NotFound { action: action.to_string() })
    }

    /// Asks for all objects of a kind; `parse` skips those it answers `None` for.
    fn dump<T>(
        &self,
        mut request: Request,
        action: fmt::Arguments<'_>,
        mut parse: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        request.add_flags(libc::NLM_F_DUMP);
        for _ in 0..DUMP_ATTEMPTS {
            let mut rows = Vec::new();
            let consistent =
                self.transact(&mut request, action, |_, payload| rows.extend(parse(payload)))?;
            if consistent {
                return Ok(rows);
            }
        }
        Err(NetlinkError::Interrupted { action: action.to_string() })
    }

    /// One request, all its answers. Says whether a dump was consistent.
    fn transact(
        &self,
        request: &mut Request,
        action: fmt::Arguments<'_>,
        mut on_message: impl FnMut(u16, &[u8]),
    ) -> Result<bool, NetlinkError> {
        let failed = |errno: nix::Error| NetlinkError::Socket {
            action: action.to_string(),
            source: errno.into(),
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { seq, buf } = &mut *state;
        *seq = seq.wrapping_add(1);
        let socket = self.socket.as_raw_fd();
        socket::send(socket, request.finish(*seq), MsgFlags::empty()).map_err(failed)?;
        let mut consistent = true;
        loop {
            let len = match socket::recv(socket, buf, MsgFlags::empty()) {
                Ok(len) => len,
                Err(nix::Error::EINTR) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            for (header, payload) in Messages(&buf[..len]) {
                // An answer to a request that failed half-way earlier.
                if header.seq != *seq {
                    continue;
                }
                if i32::from(header.flags) & libc::NLM_F_DUMP_INTR != 0 {
                    consistent = false;
                }
                match i32::from(header.kind) {
                    libc::NLMSG_ERROR => {
                        return acknowledged(header.flags, payload, action).map(|()| consistent);
                    }
                    libc::NLMSG_DONE => {
                        let errno = wire::value::<i32>(payload).unwrap_or(0);
                        if errno < 0 {
                            let reason = explanation(payload.get(4..).unwrap_or_default());
                            return Err(NetlinkError::refused(action, -errno, reason));
                        }
                        return Ok(consistent);
                    }
                    _ => on_message(header.kind, payload),
                }
            }
        }
    }
}

/// Reads an NLMSG_ERROR message: error 0 is the acknowledgement.
fn acknowledged(
    flags: u16,
    payload: &[u8],
    action: fmt::Arguments<'_>,
) -> Result<(), NetlinkError> {
    let errno = wire::value::<i32>(payload).unwrap_or(-libc::EBADMSG);
    if errno == 0 {
        return Ok(());
    }
    // The error number, the header of the request (its body is cut off), then attributes.
    let attributes = payload.get(4 + 16..).unwrap_or_default();
    let reason = if i32::from(flags) & NLM_F_ACK_TLVS != 0 {
        explanation(attributes)
    } else {
        String::new()
    };
    Err(NetlinkError::refused(action, -errno, reason))
}

const NLM_F_ACK_TLVS: i32 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

fn explanation(attributes: &[u8]) -> String {
    Attrs(attributes)
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, value)| wire::text(value))
        .unwrap_or_default()
}

fn enable(socket: &impl AsFd, option: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer is to an int that lives through the call, and the length is its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    nix::Error::result(result).map(drop).map_err(io::Error::from)
}
