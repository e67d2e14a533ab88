//! Looking for DHCP servers on a link by asking as a client would: what other servers send is heard by
//! clients alone.
//!
//! Only a DISCOVER is sent, from a MAC that no machine has. Nobody binds an address by it, and what is
//! put on offer is free again within a minute.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use dhcproto::v4::{
    CLIENT_PORT, DhcpOption, Flags, Message, MessageType, Opcode, OptionCode, SERVER_PORT,
};
use dhcproto::{Decodable as _, Encodable as _};
use muster_storage::Mac;
use nix::libc;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::frame::link_address;
use super::interfaces::Interface;

/// The MAC of the client that Muster itself plays: locally administered, and no machine's.
pub const SYNTHETIC: Mac = Mac([0x02, 0x4d, 0x55, 0x53, 0x54, 0x52]);

/// How long answers are waited for: servers may look first whether an address is in use.
const LISTENING: Duration = Duration::from_millis(1500);

/// Octets of the largest answer that is read.
const PACKET_MAX: usize = 2048;

/// Octets of the header of UDP.
const UDP: usize = 8;

/// The servers on a link that offer an address, as they call themselves (option 54).
///
/// # Errors
/// Without the right to listen to packets (`CAP_NET_RAW`), or when the link is down.
pub async fn servers(interface: &Interface) -> io::Result<BTreeSet<Ipv4Addr>> {
    let xid = rand::random();
    let ears = ears(interface.index)?;
    ask(interface, xid)?;
    let mut found = BTreeSet::new();
    let end = tokio::time::Instant::now() + LISTENING;
    while let Ok(ready) = tokio::time::timeout_at(end, ears.readable()).await {
        let mut ready = ready?;
        let mut buffer = [0; PACKET_MAX];
        let read = |socket: &AsyncFd<Socket>| io::Read::read(&mut socket.get_ref(), &mut buffer);
        match ready.try_io(read) {
            Ok(Ok(length)) => {
                found.extend(server_in(buffer.get(..length).unwrap_or_default(), xid))
            }
            Ok(Err(problem)) if problem.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(problem)) => return Err(problem),
            Err(_would_block) => {}
        }
    }
    Ok(found)
}

/// Hears UDP to port 68 on a link, whoever may be bound to the port: a DHCP client may run here.
fn ears(index: u32) -> io::Result<AsyncFd<Socket>> {
    // Protocol 0: nothing is received before the filter is there.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    socket.attach_filter(&[
        // The protocol; behind the IP header, however long it is, the port: all of such a packet,
        // nothing of anything else.
        SockFilter::new(0x30, 0, 0, 9),
        SockFilter::new(0x15, 0, 4, 17),
        SockFilter::new(0xb1, 0, 0, 0),
        SockFilter::new(0x48, 0, 0, 2),
        SockFilter::new(0x15, 0, 1, u32::from(CLIENT_PORT)),
        SockFilter::new(0x06, 0, 0, u32::from(u16::MAX)),
        SockFilter::new(0x06, 0, 0, 0),
    ])?;
    socket.bind(&link_address(index, libc::ETH_P_IP, None)?)?;
    // SAFETY: a socket is one open file, which stays open until it is dropped with this.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

fn ask(interface: &Interface, xid: u32) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.name.as_bytes()))?;
    let mut message = Message::default();
    message
        .set_opcode(Opcode::BootRequest)
        .set_xid(xid)
        .set_flags(Flags::default().set_broadcast())
        .set_chaddr(&SYNTHETIC.0);
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(MessageType::Discover));
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
    ]));
    let bytes = message.to_vec().map_err(io::Error::other)?;
    let everyone = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
    socket.send_to(&bytes, &everyone.into()).map(drop)
}

/// The server that a packet of IPv4 is an offer of, to our question.
fn server_in(packet: &[u8], xid: u32) -> Option<Ipv4Addr> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let message = Message::from_bytes(packet.get(header + UDP..)?).ok()?;
    let ours = message.xid() == xid && message.opcode() == Opcode::BootReply;
    match message.opts().get(OptionCode::ServerIdentifier)? {
        DhcpOption::ServerIdentifier(server) if ours => Some(*server),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_to_our_question_names_its_server() {
        let mut message = Message::default();
        message.set_opcode(Opcode::BootReply).set_xid(7);
        let server = Ipv4Addr::new(10, 0, 0, 9);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(MessageType::Offer));
        options.insert(DhcpOption::ServerIdentifier(server));
        let mut packet = vec![0; 20 + UDP];
        packet[0] = 0x45;
        packet.extend(message.to_vec().unwrap());
        assert_eq!(server_in(&packet, 7), Some(server));
        assert_eq!(server_in(&packet, 8), None, "another's");
        for length in 0..packet.len() {
            // Cut short it may or may not be one, but does no harm.
            let _ = server_in(&packet[..length], 7);
        }
    }
}
