//! The sockets of one interface: packets in, in batches; replies out, the way RFC 2131 §4.1 says.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, PoisonError, RwLock};

use dhcproto::v4::CLIENT_PORT;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::frame::FrameSocket;
use super::interfaces::Interface;
use super::reply::Destination;
use super::request::Arrival;

/// Packets that are decided together.
pub const BATCH_MAX: usize = 128;

/// Octets of the largest packet that is read; what is longer is cut, and then malformed.
const PACKET_MAX: usize = 4096;

/// Receive buffer: a burst of some thousand packets waits here while a batch is decided.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Which of the two ports of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// 67: DHCP and proxyDHCP.
    Server,
    /// 4011: PXE boot server.
    BootServer,
}

/// An interface that is served.
#[derive(Debug)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    addresses: RwLock<Arc<[Ipv4Addr]>>,
    server: UdpSocket,
    boot_server: UdpSocket,
    server_port: u16,
    /// Absent without the right to send frames: then such replies are broadcast.
    frames: Option<FrameSocket>,
}

impl Link {
    /// Opens the sockets of an interface.
    ///
    /// # Errors
    /// When a port is taken, or the process may not bind it.
    pub fn open(interface: &Interface, server_port: u16, boot_port: u16) -> io::Result<Self> {
        let frames = FrameSocket::open(interface.index)
            .inspect_err(|problem| {
                tracing::warn!(
                    interface = interface.name,
                    %problem,
                    "no right to send frames (CAP_NET_RAW): replies to clients without an address are broadcast"
                );
            })
            .ok();
        Ok(Self {
            name: interface.name.clone(),
            index: interface.index,
            addresses: RwLock::new(interface.addresses.clone().into()),
            server: bind(&interface.name, server_port)?,
            boot_server: bind(&interface.name, boot_port)?,
            server_port,
            frames,
        })
    }

    /// Its IPv4 addresses now.
    pub fn addresses(&self) -> Arc<[Ipv4Addr]> {
        Arc::clone(
            &self
                .addresses
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Takes note of its addresses.
    pub fn set_addresses(&self, addresses: &[Ipv4Addr]) {
        if *self.addresses() != *addresses {
            let mut current = self
                .addresses
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            *current = addresses.into();
        }
    }

    fn socket(&self, port: Port) -> &UdpSocket {
        match port {
            Port::Server => &self.server,
            Port::BootServer => &self.boot_server,
        }
    }

    /// Waits for packets and takes what is there, up to [`BATCH_MAX`].
    ///
    /// # Errors
    /// When the socket is broken: its interface may be gone.
    pub async fn receive(&self, port: Port) -> io::Result<Vec<(Vec<u8>, Arrival)>> {
        let socket = self.socket(port);
        loop {
            socket.readable().await?;
            let mut batch = Vec::new();
            while batch.len() < BATCH_MAX {
                match socket.try_io(Interest::READABLE, || self.take(socket, port)) {
                    Ok(Some(packet)) => batch.push(packet),
                    // Not from IPv4: nothing that could be answered.
                    Ok(None) => {}
                    Err(problem) => match problem.kind() {
                        io::ErrorKind::WouldBlock => break,
                        // Nothing, or what a former reply left on the socket: an ICMP message.
                        io::ErrorKind::Interrupted
                        | io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::HostUnreachable => {}
                        _ => return Err(problem),
                    },
                }
            }
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    fn take(&self, socket: &UdpSocket, port: Port) -> io::Result<Option<(Vec<u8>, Arrival)>> {
        let mut buffer = [0; PACKET_MAX];
        let mut control = nix::cmsg_space!(libc::in_pktinfo);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<SockaddrIn>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let length = message.bytes;
        let source = message
            .address
            .map(|address| SocketAddrV4::new(address.ip(), address.port()));
        let destination = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()))
            }
            _ => None,
        });
        let (Some(source), Some(destination)) = (source, destination) else {
            return Ok(None);
        };
        let arrival = Arrival {
            link: self.addresses().to_vec(),
            source,
            destination,
            boot_server: port == Port::BootServer,
        };
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        Ok(Some((bytes, arrival)))
    }

    /// Sends a reply from `source`, an address of this node.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn send(
        &self,
        port: Port,
        source: Ipv4Addr,
        destination: Destination,
        bytes: &[u8],
    ) -> io::Result<()> {
        match (destination, &self.frames) {
            (Destination::Udp(to), _) => self.send_udp(port, source, to, bytes),
            (Destination::Frame(mac, to), Some(frames)) => {
                frames.send(mac, SocketAddrV4::new(source, self.server_port), to, bytes)
            }
            (Destination::Frame(..), None) => {
                let everyone = SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT);
                self.send_udp(port, source, everyone, bytes)
            }
        }
    }

    fn send_udp(
        &self,
        port: Port,
        source: Ipv4Addr,
        to: SocketAddrV4,
        bytes: &[u8],
    ) -> io::Result<()> {
        let info = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from_ne_bytes(source.octets()),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        sendmsg(
            self.socket(port).as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[ControlMessage::Ipv4PacketInfo(&info)],
            MsgFlags::MSG_DONTWAIT,
            Some(&SockaddrIn::from(to)),
        )?;
        Ok(())
    }
}

/// A UDP socket on all addresses of one interface. Bound to the device, so that broadcasts of
/// different links are told apart and leave where they should.
fn bind(interface: &str, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // One socket for each interface shares the port.
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    // Bounded by net.core.rmem_max; a smaller buffer is no failure.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    UdpSocket::from_std(socket.into())
}
