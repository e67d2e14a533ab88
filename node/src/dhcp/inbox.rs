//! Packets as the kernel hands them over: many by one system call, each with where it came in and
//! when.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::libc;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrIn, recvmmsg, recvmsg,
};

use super::request::Arrival;
use super::socket::Port;

/// Octets of the largest packet that is read; what is longer is cut, and then malformed.
const PACKET_MAX: usize = 4096;

/// Packets that one system call hands over.
const AT_ONCE: usize = 32;

/// Packets that are taken one by one before more are expected: to be ready for many costs more than
/// the system calls of a few.
const FEW: usize = 2;

/// A packet that came in.
#[derive(Debug)]
pub struct Packet {
    /// Its octets.
    pub bytes: Vec<u8>,
    /// Where.
    pub arrival: Arrival,
    /// When the kernel had it.
    pub received: Instant,
}

/// Room for packets to be handed over to.
#[derive(Debug)]
pub struct Inbox {
    buffers: Vec<[u8; PACKET_MAX]>,
    /// Less was there than there is room for: the next time there is nothing.
    drained: bool,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            buffers: vec![[0; PACKET_MAX]; AT_ONCE],
            drained: false,
        }
    }
}

impl Inbox {
    /// Takes what is there from a socket whose interface has these addresses.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there, and those of recvmsg(2).
    pub fn take(
        &mut self,
        socket: RawFd,
        addresses: &Arc<[Ipv4Addr]>,
        port: Port,
        packets: &mut Vec<Packet>,
    ) -> io::Result<()> {
        if std::mem::take(&mut self.drained) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let control = nix::cmsg_space!(libc::in_pktinfo, libc::timespec);
        let mut parts = self.buffers.iter_mut().map(|it| [IoSliceMut::new(it)]);
        if packets.len() < FEW {
            let (mut control, Some(mut part)) = (control, parts.next()) else {
                return Ok(());
            };
            let flags = MsgFlags::MSG_DONTWAIT;
            let message = recvmsg(socket, &mut part, Some(&mut control), flags)?;
            packets.extend(packet(&message, addresses, port, Clocks::now()));
            return Ok(());
        }
        let mut headers = MultiHeaders::preallocate(AT_ONCE, Some(control));
        let mut parts: Vec<[IoSliceMut<'_>; 1]> = parts.collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        let messages = recvmmsg(socket, &mut headers, parts.iter_mut(), flags, None)?;
        let (clocks, before) = (Clocks::now(), packets.len());
        packets.extend(messages.filter_map(|message| packet(&message, addresses, port, clocks)));
        self.drained = packets.len() - before < AT_ONCE;
        Ok(())
    }
}

/// Both clocks at one time.
#[derive(Clone, Copy)]
struct Clocks {
    wall: SystemTime,
    steady: Instant,
}

impl Clocks {
    fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            steady: Instant::now(),
        }
    }
}

fn packet(
    message: &RecvMsg<'_, '_, SockaddrIn>,
    addresses: &Arc<[Ipv4Addr]>,
    port: Port,
    now: Clocks,
) -> Option<Packet> {
    let envelope = envelope(message)?;
    let age = envelope.stamped.map_or(Duration::ZERO, |stamped| {
        // Zero when the clock was set back meanwhile.
        now.wall.duration_since(stamped).unwrap_or_default()
    });
    Some(Packet {
        // It has one part.
        bytes: message.iovs().next().unwrap_or_default().to_vec(),
        arrival: Arrival {
            link: Arc::clone(addresses),
            source: envelope.source,
            destination: envelope.destination,
            boot_server: port == Port::BootServer,
        },
        received: now.steady.checked_sub(age).unwrap_or(now.steady),
    })
}

/// What the kernel says of a packet.
struct Envelope {
    source: SocketAddrV4,
    destination: Ipv4Addr,
    stamped: Option<SystemTime>,
}

/// None when it is not from IPv4: nothing that could be answered.
fn envelope(message: &RecvMsg<'_, '_, SockaddrIn>) -> Option<Envelope> {
    let source = message.address?;
    let (mut destination, mut stamped) = (None, None);
    for control in message.cmsgs().ok()? {
        match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                destination = Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()));
            }
            ControlMessageOwned::ScmTimestampns(since_epoch) => {
                stamped = SystemTime::UNIX_EPOCH.checked_add(Duration::from(since_epoch));
            }
            _ => {}
        }
    }
    Some(Envelope {
        source: SocketAddrV4::new(source.ip(), source.port()),
        destination: destination?,
        stamped,
    })
}
