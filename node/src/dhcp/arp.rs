//! ARP probes on one interface (RFC 5227 §2.1.1): whether somebody has an address.
//!
//! A probe has no sender's address, so that no cache is touched, and an answer to it has no target's.
//! That tells these answers from those to questions that the kernel asks.

use std::io;
use std::net::Ipv4Addr;

use muster_storage::Mac;
use nix::libc;
use socket2::{Domain, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::frame::{interface_address, link_address};

/// Octets of an ARP packet for IPv4 on Ethernet (RFC 826).
const LENGTH: usize = 28;

/// Hardware and protocol type and the lengths of their addresses.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

const REPLY: u16 = 2;
const EVERYBODY: Mac = Mac([0xff; 6]);

/// A socket that sends probes and hears replies, and no other ARP: a link has plenty of it.
#[derive(Debug)]
pub struct ArpSocket {
    socket: AsyncFd<Socket>,
    index: u32,
}

impl ArpSocket {
    /// Opens one for the interface with this index.
    ///
    /// # Errors
    /// Without the right to send raw frames (`CAP_NET_RAW`), or when it is no Ethernet.
    pub fn open(index: u32) -> io::Result<Self> {
        // Protocol 0: nothing is received before the filter is there.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        socket.attach_filter(&[
            // The operation, two octets at the sixth; all of a reply, nothing of anything else.
            SockFilter::new(0x28, 0, 0, 6),
            SockFilter::new(0x15, 0, 1, u32::from(REPLY)),
            SockFilter::new(0x06, 0, 0, u32::from(u16::MAX)),
            SockFilter::new(0x06, 0, 0, 0),
        ])?;
        socket.bind(&link_address(index, libc::ETH_P_ARP, None)?)?;
        own_address(&socket)?;
        // SAFETY: a socket is one open file, which stays open until it is dropped with this.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket, index })
    }

    /// Asks who has an address, on behalf of nobody.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn probe(&self, address: Ipv4Addr) -> io::Result<()> {
        let socket = self.socket.get_ref();
        let to = link_address(self.index, libc::ETH_P_ARP, Some(EVERYBODY))?;
        // It may be another one since the last probe.
        socket.send_to(&probe(own_address(socket)?, address), &to)?;
        Ok(())
    }

    /// The next answer to a probe: who says that it has which address.
    ///
    /// # Errors
    /// When the socket is broken: its interface may be gone.
    pub async fn next(&self) -> io::Result<(Mac, Ipv4Addr)> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut buffer = [0; LENGTH];
            let read =
                |socket: &AsyncFd<Socket>| io::Read::read(&mut socket.get_ref(), &mut buffer);
            match ready.try_io(read) {
                Ok(Ok(_octets)) => {
                    if let Some(holder) = holder(&buffer) {
                        return Ok(holder);
                    }
                }
                Ok(Err(problem)) if problem.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(problem)) => return Err(problem),
                Err(_would_block) => {}
            }
        }
    }
}

fn own_address(socket: &Socket) -> io::Result<Mac> {
    interface_address(&socket.local_addr()?)
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

fn probe(own: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut packet = Vec::with_capacity(LENGTH);
    packet.extend_from_slice(&ETHERNET_IPV4);
    packet.extend_from_slice(&[0, 1]);
    packet.extend_from_slice(&own.0);
    // The sender's address, none (RFC 5227 §1.1), and the target's hardware address, which is asked for.
    packet.extend_from_slice(&[0; 10]);
    packet.extend_from_slice(&address.octets());
    packet
}

/// Who says in answer to a probe that it has which address.
fn holder(packet: &[u8]) -> Option<(Mac, Ipv4Addr)> {
    let rest = packet.strip_prefix(&ETHERNET_IPV4)?;
    let (operation, rest) = rest.split_first_chunk::<2>()?;
    let (mac, rest) = rest.split_first_chunk::<6>()?;
    let (address, rest) = rest.split_first_chunk::<4>()?;
    let (_, rest) = rest.split_first_chunk::<6>()?;
    let (asked_by, _) = rest.split_first_chunk::<4>()?;
    let to_probe = u16::from_be_bytes(*operation) == REPLY && *asked_by == [0; 4];
    to_probe.then(|| (Mac(*mac), Ipv4Addr::from(*address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_name_their_senders_and_nothing_else_does() {
        let (mac, address) = (Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 77, 0, 100));
        let asked = probe(mac, address);
        assert_eq!(asked.len(), LENGTH);
        assert_eq!(holder(&asked), None, "a question");
        let mut reply = ETHERNET_IPV4.to_vec();
        reply.extend([0, 2]);
        reply.extend(mac.0);
        reply.extend(address.octets());
        reply.extend([0; 10]);
        assert_eq!(holder(&reply), Some((mac, address)));
        for cut in 0..LENGTH {
            assert_eq!(holder(reply.get(..cut).unwrap_or_default()), None, "{cut}");
        }
        let mut other = reply.clone();
        if let Some(last) = other.last_mut() {
            *last = 1;
        }
        assert_eq!(holder(&other), None, "an answer to the kernel's question");
        if let Some(kind) = reply.get_mut(1) {
            *kind = 6;
        }
        assert_eq!(holder(&reply), None, "no Ethernet");
    }
}
