//! The sockets of one interface: packets in, in batches; replies out, the way RFC 2131 §4.1 says.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, PoisonError, RwLock};

use dhcproto::v4::CLIENT_PORT;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::frame::FrameSocket;
use super::inbox::{Inbox, Packet};
use super::interfaces::Interface;
use super::reply::Destination;

/// Packets that are decided together.
const BATCH_MAX: usize = 128;

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
                    error = %problem,
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
    pub async fn receive(&self, port: Port, inbox: &mut Inbox) -> io::Result<Vec<Packet>> {
        let socket = self.socket(port);
        loop {
            socket.readable().await?;
            let addresses = self.addresses();
            let mut batch = Vec::new();
            while batch.len() < BATCH_MAX {
                let taken = socket.try_io(Interest::READABLE, || {
                    inbox.take(socket.as_raw_fd(), &addresses, port, &mut batch)
                });
                match taken {
                    Ok(()) => {}
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
    // Without CAP_NET_ADMIN it is bounded by net.core.rmem_max; a smaller buffer is no failure.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    }
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    UdpSocket::from_std(socket.into())
}
