//! Frames to clients that have no address yet and so cannot answer ARP (RFC 2131 §4.1).

use std::io;
use std::net::SocketAddrV4;

use muster_storage::Mac;
use nix::libc;
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

/// A socket that sends IP packets to hardware addresses and receives nothing.
#[derive(Debug)]
pub struct FrameSocket {
    socket: Socket,
    /// Index of the interface.
    index: u32,
}

impl FrameSocket {
    /// Opens one for the interface with this index.
    ///
    /// # Errors
    /// Without the right to send raw frames (`CAP_NET_RAW`).
    pub fn open(index: u32) -> io::Result<Self> {
        // Protocol 0: nothing is received. The kernel writes the Ethernet header.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, index })
    }

    /// Sends a UDP datagram in a frame to `mac`.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(
        &self,
        mac: Mac,
        source: SocketAddrV4,
        destination: SocketAddrV4,
        payload: &[u8],
    ) -> io::Result<()> {
        let packet = udp_packet(source, destination, payload)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let to = link_address(self.index, libc::ETH_P_IP, Some(mac))?;
        self.socket.send_to(&packet, &to)?;
        Ok(())
    }
}

/// An interface, a protocol, and somebody on its link.
///
/// # Errors
/// When there can be no interface of this index.
pub fn link_address(index: u32, protocol: libc::c_int, mac: Option<Mac>) -> io::Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    let index = i32::try_from(index).map_err(io::Error::other)?;
    // SAFETY: `sockaddr_ll` is one of this platform's address types, and the storage is
    // zeroed, which is a valid value of it.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = index;
    if let Some(mac) = mac {
        address.sll_halen = 6;
        for (to, from) in address.sll_addr.iter_mut().zip(mac.0) {
            *to = from;
        }
    }
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage was initialised above as an address of exactly this length.
    Ok(unsafe { SockAddr::new(storage, length) })
}

/// The hardware address in a link address; none when it is not Ethernet's.
pub fn interface_address(address: &SockAddr) -> Option<Mac> {
    // getsockname(2) leaves out the octets that the hardware address does not need.
    let long_enough =
        address.len() as usize >= std::mem::offset_of!(libc::sockaddr_ll, sll_addr) + 6;
    if i32::from(address.family()) != libc::AF_PACKET || !long_enough {
        return None;
    }
    // SAFETY: of this family it is a `sockaddr_ll`, in a storage that is large enough for each kind.
    let link = unsafe { &*address.as_ptr().cast::<libc::sockaddr_ll>() };
    let [a, b, c, d, e, f, ..] = link.sll_addr;
    let ethernet = link.sll_hatype == libc::ARPHRD_ETHER && link.sll_halen == 6;
    ethernet.then_some(Mac([a, b, c, d, e, f]))
}

/// An IPv4 packet with a UDP datagram (RFC 791, RFC 768); none when it would be too long.
fn udp_packet(source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Option<Vec<u8>> {
    const UDP: u8 = 17;
    let udp_length = u16::try_from(payload.len() + 8).ok()?;
    let length = udp_length.checked_add(20)?;
    let mut packet = Vec::with_capacity(length.into());
    // Version and header length, service, length, id, no fragments, time to live, protocol.
    packet.extend_from_slice(&[0x45, 0]);
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 0, 64, UDP, 0, 0]);
    packet.extend_from_slice(&source.ip().octets());
    packet.extend_from_slice(&destination.ip().octets());
    let header_sum = checksum(&[&packet]);
    set(&mut packet, 10, header_sum);
    packet.extend_from_slice(&source.port().to_be_bytes());
    packet.extend_from_slice(&destination.port().to_be_bytes());
    packet.extend_from_slice(&udp_length.to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    let [high, low] = udp_length.to_be_bytes();
    let udp_sum = checksum(&[packet.get(12..20)?, &[0, UDP, high, low], packet.get(20..)?]);
    // Zero would mean that there is no checksum.
    set(&mut packet, 26, if udp_sum == 0 { 0xffff } else { udp_sum });
    Some(packet)
}

fn set(packet: &mut [u8], at: usize, value: u16) {
    for (to, from) in packet.iter_mut().skip(at).zip(value.to_be_bytes()) {
        *to = from;
    }
}

/// RFC 1071. Only the last part may have an odd length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let sum: u64 = parts
        .iter()
        .flat_map(|part| part.chunks(2))
        .map(|pair| match pair {
            [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
            [high] => u64::from(*high) << 8,
            _ => 0,
        })
        .sum();
    let mut folded = sum;
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    !(folded as u16)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn checksums_hold_for_even_and_odd_payloads() {
        let source = "10.77.0.1:67".parse().unwrap();
        let destination = "10.77.0.100:68".parse().unwrap();
        for payload in [&b"muster"[..], &b"odd"[..], &b""[..]] {
            let packet = udp_packet(source, destination, payload).unwrap();
            assert_eq!(packet.len(), 28 + payload.len());
            // A sum over data with its own checksum in it is zero.
            assert_eq!(checksum(&[&packet[..20]]), 0);
            let length = ((packet.len() - 20) as u16).to_be_bytes();
            let sum = checksum(&[
                &packet[12..20],
                &[0, 17, length[0], length[1]],
                &packet[20..],
            ]);
            assert_eq!(sum, 0);
        }
    }
}
