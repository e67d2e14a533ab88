//! Frames on a host's network card, with any sender: one host plays as many clients as a test likes.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

use crate::lab::Host;

/// A hardware address.
pub type Mac = [u8; 6];
/// What everybody on the segment hears.
pub const EVERYBODY: Mac = [0xff; 6];

/// Octets that wait for a reader: a thousand answers may come at once.
pub(crate) const RECEIVE_BUFFER: usize = 4 << 20;

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const UDP: u8 = 17;

/// Lets ARP, and UDP over IPv4, pass whole: the type is in octets 12 and 13, IPv4's protocol in 23.
const DATAGRAMS: [SockFilter; 7] = [
    SockFilter::new(0x28, 0, 0, 12),
    SockFilter::new(0x15, 3, 0, 0x0806),
    SockFilter::new(0x15, 0, 3, 0x0800),
    SockFilter::new(0x30, 0, 0, 23),
    SockFilter::new(0x15, 0, 1, UDP as u32),
    SockFilter::new(0x06, 0, 0, u32::MAX),
    SockFilter::new(0x06, 0, 0, 0),
];

/// A card that hears every frame of its segment and sends what it is told.
#[derive(Debug)]
pub struct Wire {
    socket: Socket,
    /// Addresses that it answers ARP for, with the client that has them.
    held: Mutex<HashMap<Ipv4Addr, Mac>>,
}

/// A UDP datagram in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Hardware addresses: who sent it and whom it is for.
    pub macs: (Mac, Mac),
    /// Who sent it.
    pub from: SocketAddrV4,
    /// Whom it is for.
    pub to: SocketAddrV4,
    /// What is in it.
    pub payload: Vec<u8>,
}

impl Wire {
    /// Opens the card of a host, which needs no address.
    pub fn open(host: &Host) -> Result<Self> {
        host.inside(|| Self::on("eth0"))
    }

    /// Opens a card of this host. It hears what is for others as long as this is kept.
    pub fn on(interface: &str) -> Result<Self> {
        let all = u16::try_from(libc::ETH_P_ALL)?.to_be();
        let protocol = Protocol::from(i32::from(all));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))
            .context("opening a packet socket (it needs root)")?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        let index =
            if_nametoindex(interface).with_context(|| format!("finding interface {interface}"))?;
        let index = i32::try_from(index)?;
        socket
            .bind(&link_address(all, index))
            .with_context(|| format!("binding a packet socket to {interface}"))?;
        hear_all(&socket, index).with_context(|| format!("listening to all of {interface}"))?;
        Ok(Self {
            socket,
            held: Mutex::default(),
        })
    }

    /// Hears nothing but ARP and UDP over IPv4 from now on: others on the host may fetch files.
    pub fn only_datagrams(self) -> Result<Self> {
        self.socket
            .attach_filter(&DATAGRAMS)
            .context("filtering what a packet socket hears")?;
        Ok(self)
    }

    /// Answers ARP for `address` in the name of `mac` from now on, whenever it receives.
    pub fn hold(&self, address: Ipv4Addr, mac: Mac) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(address, mac);
    }

    /// Answers ARP for `address` no more.
    pub fn let_go(&self, address: Ipv4Addr) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&address);
    }

    /// Sends a datagram as it is.
    pub fn send(&self, datagram: &Datagram) -> Result<()> {
        self.send_frame(&datagram.frame()?)
    }

    /// Sends a frame as it is.
    pub fn send_frame(&self, frame: &[u8]) -> Result<()> {
        self.socket.send(frame).context("sending a frame")?;
        Ok(())
    }

    /// The next datagram, or None when `deadline` has passed.
    pub fn receive(&self, deadline: Instant) -> Result<Option<Datagram>> {
        while let Some(frame) = self.receive_frame(deadline)? {
            if let Some(answer) = self.arp_answer(&frame) {
                self.send_frame(&answer)?;
            } else if let Some(datagram) = Datagram::parse(&frame) {
                return Ok(Some(datagram));
            }
        }
        Ok(None)
    }

    /// The next frame of whatever kind, or None when `deadline` has passed.
    pub fn receive_frame(&self, deadline: Instant) -> Result<Option<Vec<u8>>> {
        let mut buffer = [MaybeUninit::uninit(); 65_536];
        let received = receive_by(&self.socket, deadline, |flags| {
            self.socket.recv_with_flags(&mut buffer, flags)
        });
        let Some(length) = received.context("receiving a frame")? else {
            return Ok(None);
        };
        let frame = buffer.get(..length).unwrap_or_default();
        // SAFETY: the kernel has initialised this many octets.
        Ok(Some(
            frame
                .iter()
                .map(|octet| unsafe { octet.assume_init() })
                .collect(),
        ))
    }

    /// RFC 826: who has a held address?
    fn arp_answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let question: &[u8] = frame.get(14..42)?;
        if frame[12..14] != ARP || question[6..8] != [0, 1] {
            return None;
        }
        let asked: [u8; 4] = question[24..28].try_into().ok()?;
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mac = held.get(&Ipv4Addr::from(asked))?;
        let (asker_mac, asker) = (&question[8..14], &question[14..18]);
        let mut answer = [asker_mac, &mac[..], &ARP[..], &question[..6], &[0, 2]].concat();
        answer.extend([&mac[..], &asked[..], asker_mac, asker].concat());
        Some(answer)
    }
}

impl Datagram {
    /// Ethernet, IPv4 and UDP around the payload.
    fn frame(&self) -> Result<Vec<u8>> {
        let udp_length = u16::try_from(self.payload.len() + 8).context("too long a datagram")?;
        let length = udp_length.checked_add(20).context("too long a packet")?;
        let mut ip = vec![0x45, 0];
        ip.extend(length.to_be_bytes());
        ip.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
        ip.extend(self.from.ip().octets());
        ip.extend(self.to.ip().octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = [&self.macs.1[..], &self.macs.0[..], &IPV4[..], &ip].concat();
        frame.extend(self.from.port().to_be_bytes());
        frame.extend(self.to.port().to_be_bytes());
        frame.extend(udp_length.to_be_bytes());
        // RFC 768: zero says that there is no checksum.
        frame.extend([0, 0]);
        frame.extend(&self.payload);
        Ok(frame)
    }

    /// None for what is no whole UDP datagram over IPv4.
    fn parse(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(14..)?;
        if frame[12..14] != IPV4 || *ip.get(9)? != UDP || ip[0] >> 4 != 4 {
            return None;
        }
        let udp = ip.get(usize::from(ip[0] & 15) * 4..)?;
        let word = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
        let address = |at: usize| {
            let octets: [u8; 4] = ip.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets))
        };
        Some(Self {
            macs: (
                frame.get(6..12)?.try_into().ok()?,
                frame.get(..6)?.try_into().ok()?,
            ),
            from: SocketAddrV4::new(address(12)?, word(0)?),
            to: SocketAddrV4::new(address(16)?, word(2)?),
            payload: udp.get(8..usize::from(word(4)?))?.to_vec(),
        })
    }
}

/// RFC 1071, over a header of even length.
fn checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) as u16 + (folded >> 16) as u16)
}

/// Receives until `deadline`; None when it has passed. Does not ask for the time while there is
/// something to receive.
pub(crate) fn receive_by<T>(
    socket: &Socket,
    deadline: Instant,
    mut receive: impl FnMut(libc::c_int) -> io::Result<T>,
) -> io::Result<Option<T>> {
    let mut flags = libc::MSG_DONTWAIT;
    loop {
        match receive(flags) {
            Ok(received) => return Ok(Some(received)),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        // A time-out of zero would be none at all.
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        flags = 0;
    }
}

/// Has a packet socket hear what is for others too, until it is closed.
fn hear_all(socket: &Socket, index: i32) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // SAFETY: the value is the structure that packet(7) names for this option, and its size.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const request).cast(),
            size_of::<libc::packet_mreq>() as libc::socklen_t,
        )
    };
    match failed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn link_address(protocol: u16, index: i32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is one of this platform's address types; all zeros is a value of it.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = index;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage was initialised above as an address of exactly this length.
    unsafe { SockAddr::new(storage, length) }
}

/// Reads `52:54:00:00:00:50`.
pub fn mac(text: &str) -> Result<Mac> {
    let octets: Vec<u8> = text
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("{text} is no MAC"))?;
    ensure!(octets.len() == 6, "{text} is no MAC");
    Ok(octets.try_into().unwrap_or_default())
}

/// Writes `52:54:00:00:00:50`.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_survives_its_frame() -> Result<()> {
        let sent = Datagram {
            macs: (mac("02:00:00:00:00:01")?, EVERYBODY),
            from: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
            to: SocketAddrV4::new(Ipv4Addr::BROADCAST, 67),
            payload: b"hello".to_vec(),
        };
        let frame = sent.frame()?;
        assert_eq!(checksum(&frame[14..34]), 0);
        assert_eq!(Datagram::parse(&frame), Some(sent));
        assert_eq!(Datagram::parse(&frame[..40]), None);
        assert_eq!(mac_text(mac("52:54:00:00:00:50")?), "52:54:00:00:00:50");
        Ok(())
    }
}
