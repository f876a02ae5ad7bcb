//! ICMP echo, both families (RFC 792, RFC 4443 section 4).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, socket,
};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

/// Bytes of a request: header and payload.
const LEN: usize = 8 + PAYLOAD.len();
const PAYLOAD: &[u8; 16] = b"cilium-health---";
/// Longest packet that is looked at: an IPv4 header with options, and an echo.
const PACKET_LEN_MAX: usize = 60 + LEN;

/// Types of messages, by family.
const fn types(is_ipv4: bool) -> (u8, u8) {
    if is_ipv4 { (8, 0) } else { (128, 129) }
}

/// Asks up to `attempts` times within `timeout`; the time until the answer.
pub async fn ping(address: IpAddr, attempts: u32, timeout: Duration) -> io::Result<Duration> {
    let socket = open(address)?;
    // The kernel gives every raw socket a copy of each answer: tell ours by number.
    let id = u16::try_from(socket.as_raw_fd() & 0x7fff).unwrap_or_default() ^ pid();
    let patience = timeout / attempts.max(1);
    for sequence in 0..u16::try_from(attempts.max(1)).unwrap_or(u16::MAX) {
        let sent = Instant::now();
        let asked = async {
            socket.send(&request(address.is_ipv4(), id, sequence)).await?;
            answer(&socket, address.is_ipv4(), id).await
        };
        match timeout_at(sent + patience, asked).await {
            Ok(Ok(())) => return Ok(sent.elapsed()),
            Ok(Err(error)) => return Err(error),
            Err(_elapsed) => {}
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))
}

fn pid() -> u16 {
    (std::process::id() & 0xffff) as u16
}

/// A raw socket that receives from `address` only. Once connected it is used just as a UDP socket.
fn open(address: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Raw, flags, protocol)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, 0)))?;
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

/// Waits for an answer to one of our requests.
async fn answer(socket: &UdpSocket, is_ipv4: bool, id: u16) -> io::Result<()> {
    let mut packet = [0; PACKET_LEN_MAX];
    loop {
        let len = socket.recv(&mut packet).await?;
        if is_answer(is_ipv4, &packet[..len], id) {
            return Ok(());
        }
    }
}

/// An echo request. The kernel fills in the checksum of IPv6, which covers addresses.
fn request(is_ipv4: bool, id: u16, sequence: u16) -> [u8; LEN] {
    let mut packet = [0; LEN];
    packet[0] = types(is_ipv4).0;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet[8..].copy_from_slice(PAYLOAD);
    if is_ipv4 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// Whether what a raw socket received answers a request with this number. IPv4 comes with its header.
fn is_answer(is_ipv4: bool, packet: &[u8], id: u16) -> bool {
    let header_len = match (is_ipv4, packet.first()) {
        (false, _) => 0,
        (true, Some(first)) => usize::from(first & 0xf) * 4,
        (true, None) => return false,
    };
    let Some(message) = packet.get(header_len..) else { return false };
    message.len() >= LEN
        && message[0] == types(is_ipv4).1
        && message[4..6] == id.to_be_bytes()
        && message[8..LEN] == *PAYLOAD
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer_to(is_ipv4: bool, id: u16) -> Vec<u8> {
        let mut message = request(is_ipv4, id, 3);
        message[0] = types(is_ipv4).1;
        let header: &[u8] = if is_ipv4 { &[0x45; 20] } else { &[] };
        [header, &message].concat()
    }

    #[test]
    fn answers_are_told_from_others() {
        for is_ipv4 in [true, false] {
            let answer = answer_to(is_ipv4, 7);
            assert!(is_answer(is_ipv4, &answer, 7));
            assert!(!is_answer(is_ipv4, &answer, 8), "of another prober");
            assert!(!is_answer(is_ipv4, &request(is_ipv4, 7, 3), 7), "our own request");
            assert!(!is_answer(is_ipv4, &answer[..answer.len() - 1], 7), "cut off");
        }
    }

    #[test]
    fn the_sum_over_a_request_is_zero() {
        assert_eq!(checksum(&request(true, 0xabcd, 0x1234)), 0);
    }

    proptest! {
        #[test]
        fn no_packet_makes_it_panic(is_ipv4: bool, packet: Vec<u8>, id: u16) {
            is_answer(is_ipv4, &packet, id);
        }
    }
}
