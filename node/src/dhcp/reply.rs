//! A reply as octets, and where they go. Pure.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::{CLIENT_PORT, Flags, Message, MessageType, Opcode, SERVER_PORT};
use dhcproto::{Encodable as _, Encoder};
use muster_storage::Mac;

use super::firmware::Boot;
use super::request::{Firmware, Request};

/// Octets of the smallest reply: old ROMs drop less (RFC 951 §3, RFC 1542 §2.1).
const MESSAGE_MIN: usize = 300;

/// The IP datagram that every client takes (RFC 2131 §2).
const DATAGRAM_MIN: u16 = 576;

/// The largest IP datagram that is sent: what Ethernet carries in one piece.
const DATAGRAM_MAX: u16 = 1500;

/// IP and UDP headers, which option 57 counts.
const IP_UDP_HEADERS: u16 = 28;

/// Octets before the options, magic cookie included.
const HEADER: usize = 240;

const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const LEASE_TIME: u8 = 51;
const OVERLOAD: u8 = 52;
const MESSAGE_TYPE: u8 = 53;
const SERVER_IDENTIFIER: u8 = 54;
const MESSAGE: u8 = 56;
const RENEWAL_TIME: u8 = 58;
const REBINDING_TIME: u8 = 59;
const VENDOR_CLASS: u8 = 60;
const CLIENT_IDENTIFIER: u8 = 61;
const SERVER_NAME: u8 = 66;
const BOOT_FILE: u8 = 67;
const RAPID_COMMIT: u8 = 80;
const IPV6_ONLY: u8 = 108;
const SUBNET_SELECTION: u8 = 118;
const END: u8 = 255;

/// Octets of what every client must be told.
const ESSENTIAL_ROOM: usize = 100;

/// What never falls out of a reply that is too small for everything.
const ESSENTIAL: [u8; 11] = [
    SUBNET_MASK,
    LEASE_TIME,
    MESSAGE_TYPE,
    SERVER_IDENTIFIER,
    RENEWAL_TIME,
    REBINDING_TIME,
    VENDOR_CLASS,
    CLIENT_IDENTIFIER,
    BOOT_FILE,
    RAPID_COMMIT,
    SUBNET_SELECTION,
];

/// What pxelinux reads out of the ROM's reply, although the ROM does not ask for it (RFC 5071 §2).
const PXELINUX: std::ops::RangeInclusive<u8> = 208..=211;

/// Options that must stand before the router (RFC 2132 §3.3; RFC 3442 for 121 and its twin 249).
const BEFORE_ROUTER: [u8; 3] = [SUBNET_MASK, 121, 249];

/// What is said to a client, without how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// OFFER, ACK or NAK.
    pub kind: MessageType,
    /// Option 54.
    pub server_id: Ipv4Addr,
    /// The client's address; zero in NAK, in the ACK of an INFORM and from a proxyDHCP server.
    pub yiaddr: Ipv4Addr,
    /// Option 51, and by it 58 and 59; none where the reply grants no lease.
    pub lease_secs: Option<u32>,
    /// Boot data.
    pub boot: Option<Boot>,
    /// Network parameters that the subnet offers, by code.
    pub parameters: BTreeMap<u8, Vec<u8>>,
    /// Why not, in a NAK.
    pub nak: Option<Nak>,
}

/// Why a client may not have the address that it believes to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nak {
    /// It is another client's, or another address is this client's.
    NotForClient,
    /// It belongs to another network.
    NotForNetwork,
}

impl Nak {
    /// Label of the counter.
    pub fn label(self) -> &'static str {
        match self {
            Self::NotForClient => "not_for_client",
            Self::NotForNetwork => "not_for_network",
        }
    }

    /// Option 56 (RFC 2132 §9.9).
    pub fn message(self) -> &'static str {
        match self {
            Self::NotForClient => "the address is not for this client",
            Self::NotForNetwork => "the address is not for this network",
        }
    }
}

/// Where a reply goes (RFC 2131 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A UDP datagram.
    Udp(SocketAddrV4),
    /// A UDP datagram in a frame to a client that does not answer ARP yet.
    Frame(Mac, SocketAddrV4),
}

impl Reply {
    /// Where the reply to `request` goes.
    pub fn destination(&self, request: &Request) -> Destination {
        let source = request.arrival.source;
        let to = |address, port| Destination::Udp(SocketAddrV4::new(address, port));
        let everyone = to(Ipv4Addr::BROADCAST, CLIENT_PORT);
        if request.arrival.boot_server {
            return Destination::Udp(source);
        }
        let inform = request.kind == MessageType::Inform;
        if inform && !request.ciaddr.is_unspecified() {
            return to(request.ciaddr, CLIENT_PORT);
        }
        if request.relayed() {
            let own_port = request
                .relay
                .as_ref()
                .is_some_and(|relay| relay.source_port);
            return to(
                request.giaddr,
                if own_port { source.port() } else { SERVER_PORT },
            );
        }
        if inform {
            return to(*source.ip(), CLIENT_PORT);
        }
        if self.kind == MessageType::Nak {
            return everyone;
        }
        if !request.ciaddr.is_unspecified() {
            return to(request.ciaddr, CLIENT_PORT);
        }
        match request.client.mac {
            Some(mac) if !request.broadcast() && !self.yiaddr.is_unspecified() => {
                Destination::Frame(mac, SocketAddrV4::new(self.yiaddr, CLIENT_PORT))
            }
            _ => everyone,
        }
    }

    /// The reply to `request` as octets (RFC 2131 table 3).
    pub fn encode(&self, request: &Request) -> Vec<u8> {
        let nak = self.kind == MessageType::Nak;
        let mut flags = Flags::new(request.flags);
        if nak && request.relayed() {
            // RFC 2131 §4.3.2: the client may not have the address that the relay would use.
            flags = flags.set_broadcast();
        }
        let ciaddr = match self.kind {
            MessageType::Ack => request.ciaddr,
            _ => Ipv4Addr::UNSPECIFIED,
        };
        let boot = self.boot.as_ref();
        let siaddr = boot
            .and_then(|boot| boot.server)
            .unwrap_or(Ipv4Addr::UNSPECIFIED);
        let mut message = Message::new_with_id(
            request.xid,
            ciaddr,
            self.yiaddr,
            siaddr,
            request.giaddr,
            &request.chaddr,
        );
        message
            .set_opcode(Opcode::BootReply)
            .set_htype(request.htype.into())
            .set_flags(flags);
        // The field ends with a NUL; what is longer goes into option 67 alone.
        let file = boot
            .map(|boot| boot.file.as_bytes())
            .filter(|file| file.len() < 128);
        if let Some(file) = file {
            message.set_fname(file);
        }
        let mut bytes = Vec::with_capacity(DATAGRAM_MIN.into());
        // Writing fixed fields to memory does not fail; if it did, the empty reply is not sent.
        if message.encode(&mut Encoder::new(&mut bytes)).is_err() {
            return Vec::new();
        }
        bytes.truncate(HEADER);
        // dhcproto sets the length to that of the field.
        if let Some(hlen) = bytes.get_mut(2) {
            *hlen = request.hlen;
        }
        let limit = request
            .max_size
            .unwrap_or(DATAGRAM_MIN)
            .clamp(DATAGRAM_MIN, DATAGRAM_MAX)
            - IP_UDP_HEADERS;
        let relay = request
            .relay
            .as_ref()
            .map(|relay| wire(82, &relay.option))
            .unwrap_or_default();
        // The relay takes its option out again, so it need not leave less than the essential.
        let least = HEADER + 1 + relay.len() + ESSENTIAL_ROOM;
        let limit = usize::from(limit).max(least);
        let options = self.options(request);
        place(&mut bytes, &options, &relay, limit, file.is_none());
        bytes.resize(bytes.len().max(MESSAGE_MIN), 0);
        bytes
    }

    /// Options but the relay's, in the order in which they are sent.
    fn options(&self, request: &Request) -> Vec<(u8, Vec<u8>)> {
        let mut first = vec![
            (MESSAGE_TYPE, vec![self.kind.into()]),
            (SERVER_IDENTIFIER, self.server_id.octets().to_vec()),
        ];
        if let Some(secs) = self.lease_secs {
            let long = |value: u32| value.to_be_bytes().to_vec();
            first.push((LEASE_TIME, long(secs)));
            // RFC 2131 §4.4.5: T1 at half, T2 at seven eighths.
            first.push((RENEWAL_TIME, long(secs / 2)));
            first.push((REBINDING_TIME, long(secs - secs / 8)));
        }
        let mut offered = self.parameters.clone();
        let mut needed = Vec::new();
        if let Some(mask) = offered.get(&SUBNET_MASK) {
            needed.push((SUBNET_MASK, mask.clone()));
        }
        if let Some(boot) = &self.boot {
            offered.insert(BOOT_FILE, boot.file.as_bytes().to_vec());
            let name = boot
                .server_name
                .clone()
                .or_else(|| boot.server.map(|server| server.to_string()));
            if let Some(name) = name {
                offered.insert(SERVER_NAME, name.into_bytes());
            }
            needed.extend(boot.options.iter().cloned());
            if request.firmware == Some(Firmware::Pxe) {
                let pxelinux = offered.range(PXELINUX);
                needed.extend(pxelinux.map(|(code, value)| (*code, value.clone())));
            }
            // UEFI HTTP boot reads the URL here whether it asked or not; so does whoever gets a
            // name that the field has no room for.
            if boot.file.contains("://") || boot.file.len() >= 128 {
                needed.push((BOOT_FILE, boot.file.as_bytes().to_vec()));
            }
        }
        if let Some(nak) = self.nak {
            needed.push((MESSAGE, nak.message().as_bytes().to_vec()));
        }
        // RFC 6842: echoed in every reply, never invented.
        if let Some(id) = &request.client.client_id {
            needed.push((CLIENT_IDENTIFIER, id.0.clone()));
        }
        // RFC 4039 §3: or else the client takes it for no answer to its DISCOVER.
        if self.kind == MessageType::Ack && request.kind == MessageType::Discover {
            needed.push((RAPID_COMMIT, Vec::new()));
        }
        // RFC 3011 §2: a client that sends it drops replies without it.
        if let Some(link) = request
            .subnet_selection
            .filter(|_| self.kind != MessageType::Nak)
        {
            needed.push((SUBNET_SELECTION, link.octets().to_vec()));
        }
        let mut options = first;
        let mut add = |code: u8, value: &Vec<u8>| {
            if options.iter().all(|(have, _)| *have != code) {
                options.push((code, value.clone()));
            }
        };
        let own = |code| needed.iter().find(|(have, _)| *have == code);
        if request.parameters.is_empty() {
            // RFC 8925 §3.3: never to a client that does not ask for it.
            for (code, value) in offered.iter().filter(|(code, _)| **code != IPV6_ONLY) {
                add(*code, value);
            }
        }
        for code in &request.parameters {
            if let Some((_, value)) = own(*code) {
                add(*code, value);
            } else if let Some(value) = offered.get(code) {
                add(*code, value);
            }
        }
        for (code, value) in &needed {
            add(*code, value);
        }
        router_after_mask(&mut options);
        options
    }
}

fn router_after_mask(options: &mut Vec<(u8, Vec<u8>)>) {
    let Some(router) = options.iter().position(|(code, _)| *code == ROUTER) else {
        return;
    };
    let last = options
        .iter()
        .rposition(|(code, _)| BEFORE_ROUTER.contains(code));
    if let Some(last) = last.filter(|last| *last > router) {
        let option = options.remove(router);
        options.insert(last, option);
    }
}

/// An option on the wire, split above 255 octets (RFC 3396 §5).
fn wire(code: u8, value: &[u8]) -> Vec<u8> {
    if value.is_empty() {
        return vec![code, 0];
    }
    let mut bytes = Vec::with_capacity(value.len() + 2);
    for part in value.chunks(255) {
        bytes.push(code);
        bytes.push(u8::try_from(part.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(part);
    }
    bytes
}

/// Appends options to the header in `bytes`, the relay's last (RFC 3046 §2.2). What does not fit
/// goes into `file` and `sname` (RFC 2132 §9.3), and what does not fit there is left out.
fn place(
    bytes: &mut Vec<u8>,
    options: &[(u8, Vec<u8>)],
    relay: &[u8],
    limit: usize,
    file_is_free: bool,
) {
    let room = limit.saturating_sub(HEADER + 1 + relay.len());
    let wired: Vec<(bool, Vec<u8>)> = options
        .iter()
        .map(|(code, value)| (ESSENTIAL.contains(code), wire(*code, value)))
        .collect();
    let total: usize = wired.iter().map(|(_, option)| option.len()).sum();
    if total <= room {
        for (_, option) in &wired {
            bytes.extend_from_slice(option);
        }
        bytes.extend_from_slice(relay);
        bytes.push(END);
        return;
    }
    let mut room = room.saturating_sub(3);
    let mut kept: usize = wired
        .iter()
        .filter(|(essential, _)| *essential)
        .map(|(_, option)| option.len())
        .sum();
    let (mut file, mut sname) = (Vec::new(), Vec::new());
    let mut main = Vec::new();
    for (essential, option) in &wired {
        let size = option.len();
        if *essential {
            kept -= size;
        }
        if size + kept <= room || (*essential && size <= room) {
            room -= size;
            main.extend_from_slice(option);
        } else if file_is_free && file.len() + size < 128 {
            file.extend_from_slice(option);
        } else if sname.len() + size < 64 {
            sname.extend_from_slice(option);
        }
    }
    let used = u8::from(!file.is_empty()) | (u8::from(!sname.is_empty()) << 1);
    for (field, start) in [(&mut sname, 44), (&mut file, 108)] {
        if !field.is_empty() {
            field.push(END);
            for (to, from) in bytes.iter_mut().skip(start).zip(field.iter()) {
                *to = *from;
            }
        }
    }
    // The message type stays first, where simple clients look for it.
    let (kind, rest) = main.split_at(main.len().min(3));
    bytes.extend_from_slice(kind);
    if used != 0 {
        bytes.extend_from_slice(&[OVERLOAD, 1, used]);
    }
    bytes.extend_from_slice(rest);
    bytes.extend_from_slice(relay);
    bytes.push(END);
}
