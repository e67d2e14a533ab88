//! Packets as the kernel hands them over: many by one system call, each with where it came in and
//! when.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::RawFd;
use std::time::{Duration, Instant, SystemTime};

use nix::libc;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrIn, recvmmsg,
};

use super::request::Arrival;
use super::socket::Port;

/// Octets of the largest packet that is read; what is longer is cut, and then malformed.
const PACKET_MAX: usize = 4096;

/// Packets that one system call hands over.
const AT_ONCE: usize = 32;

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
pub struct Inbox(Vec<[u8; PACKET_MAX]>);

impl Default for Inbox {
    fn default() -> Self {
        Self(vec![[0; PACKET_MAX]; AT_ONCE])
    }
}

impl Inbox {
    /// Takes what is there from a socket whose interface has these addresses.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there, and those of recvmmsg(2).
    pub fn take(
        &mut self,
        socket: RawFd,
        addresses: &[Ipv4Addr],
        port: Port,
        packets: &mut Vec<Packet>,
    ) -> io::Result<()> {
        let control = nix::cmsg_space!(libc::in_pktinfo, libc::timespec);
        let mut headers = MultiHeaders::preallocate(AT_ONCE, Some(control));
        let buffers = self.0.iter_mut();
        let mut parts: Vec<[IoSliceMut<'_>; 1]> = buffers.map(|it| [IoSliceMut::new(it)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        let messages = recvmmsg(socket, &mut headers, parts.iter_mut(), flags, None)?;
        let (wall, now) = (SystemTime::now(), Instant::now());
        packets.extend(messages.filter_map(|message| {
            let envelope = envelope(&message)?;
            let age = envelope.stamped.map_or(Duration::ZERO, |stamped| {
                // Zero when the clock was set back meanwhile.
                wall.duration_since(stamped).unwrap_or_default()
            });
            Some(Packet {
                bytes: message.iovs().flatten().copied().collect(),
                arrival: Arrival {
                    link: addresses.to_vec(),
                    source: envelope.source,
                    destination: envelope.destination,
                    boot_server: port == Port::BootServer,
                },
                received: now.checked_sub(age).unwrap_or(now),
            })
        }));
        Ok(())
    }
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
