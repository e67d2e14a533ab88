//! A packet from a client or relay, typed: everything that a decision needs, and nothing unchecked.
//!
//! The fixed header is read by dhcproto. Options are walked here as raw octets, because a typed
//! decoder stops silently at the first option it dislikes, while a server must drop the packet and
//! say why, and must echo some options exactly as they came.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use dhcproto::v4::{MAGIC, MessageType, Opcode, OptionCode, borrowed};
use muster_storage::Mac;
use muster_storage::command::{Client, Traits};
use muster_storage::model::Octets;
use uuid::Uuid;

/// Octets before the options, magic cookie included.
const HEADER: usize = 240;

/// Where a packet came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Addresses of the receiving interface, which tell the link of a client without a relay.
    pub link: Arc<[Ipv4Addr]>,
    /// Who sent it.
    pub source: SocketAddrV4,
    /// To which address: one of ours, or a broadcast.
    pub destination: Ipv4Addr,
    /// Whether it came to the boot server port, 4011 (PXE 2.1 §2.2.3), and not to port 67.
    pub boot_server: bool,
}

/// Why a packet is not a request. Counted by reason, answered by nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fewer octets than the header and the magic cookie.
    #[error("short")]
    Short,
    /// Not a BOOTREQUEST.
    #[error("not_a_request")]
    NotARequest,
    /// No magic cookie (RFC 2131 §3).
    #[error("bad_cookie")]
    BadCookie,
    /// Hardware length above 16, or a group address as hardware address.
    #[error("bad_hardware")]
    BadHardware,
    /// An option runs beyond its field.
    #[error("option_overrun")]
    OptionOverrun,
    /// An option has a length that its definition does not allow (RFC 2132).
    #[error("option_length")]
    OptionLength,
    /// No option 53: BOOTP without DHCP (RFC 951), which is not served.
    #[error("bootp")]
    Bootp,
    /// Neither hardware address nor client identifier.
    #[error("no_identity")]
    NoIdentity,
}

impl Malformed {
    /// Label of the counter.
    pub fn label(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::NotARequest => "not_a_request",
            Self::BadCookie => "bad_cookie",
            Self::BadHardware => "bad_hardware",
            Self::OptionOverrun => "option_overrun",
            Self::OptionLength => "option_length",
            Self::Bootp => "bootp",
            Self::NoIdentity => "no_identity",
        }
    }
}

/// The firmware or loader that sent the packet; only these get boot data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// iPXE: option 77 `iPXE`, or encapsulated options 175.
    Ipxe,
    /// A PXE ROM: option 60 `PXEClient` (PXE 2.1 §2.2).
    Pxe,
    /// UEFI HTTP boot: option 60 `HTTPClient` (UEFI 2.10 §24.7).
    Http,
}

/// What came with the packet from the relay, option 82 (RFC 3046).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relay {
    /// The whole option, echoed as it came.
    pub option: Vec<u8>,
    /// Sub-option 5: the client's link (RFC 3527).
    pub link: Option<Ipv4Addr>,
    /// Sub-option 11: what option 54 must be (RFC 5107).
    pub server_id: Option<Ipv4Addr>,
    /// Sub-option 19: answer to the port that the relay sent from (RFC 8357).
    pub source_port: bool,
}

/// A well-formed packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Option 53.
    pub kind: MessageType,
    /// Hardware type, copied into the reply.
    pub htype: u8,
    /// Hardware address length, copied into the reply.
    pub hlen: u8,
    /// Hardware address field, copied into the reply.
    pub chaddr: [u8; 16],
    /// Transaction, copied into the reply.
    pub xid: u32,
    /// Flags, copied into the reply.
    pub flags: u16,
    /// The address that the client uses already, or zero.
    pub ciaddr: Ipv4Addr,
    /// The relay, or zero.
    pub giaddr: Ipv4Addr,
    /// Option 54.
    pub server_id: Option<Ipv4Addr>,
    /// Option 55, in the client's order.
    pub parameters: Vec<u8>,
    /// Option 57, not below the 576 octets that every client must take.
    pub max_size: Option<u16>,
    /// Who sends boot data requests, if anyone.
    pub firmware: Option<Firmware>,
    /// Whether its iPXE, if it is one, was built with HTTP, as far as it says: option 175.
    pub ipxe_fetches_by_http: bool,
    /// The first architecture of option 93, or what option 60 says (RFC 4578 §2.1).
    pub architecture: Option<u16>,
    /// Option 97 as it came.
    pub machine_id: Option<Vec<u8>>,
    /// Option 82.
    pub relay: Option<Relay>,
    /// Option 80: the client takes an address at once (RFC 4039).
    pub rapid_commit: bool,
    /// Option 118, echoed (RFC 3011 §2).
    pub subnet_selection: Option<Ipv4Addr>,
    /// The client as the replicated state sees it.
    pub client: Client,
    /// Where the packet came in.
    pub arrival: Arrival,
}

impl Request {
    /// Reads a packet.
    ///
    /// # Errors
    /// When it is none; such packets are dropped.
    pub fn parse(bytes: &[u8], arrival: Arrival) -> Result<Self, Malformed> {
        if bytes.len() < HEADER {
            return Err(Malformed::Short);
        }
        let header = borrowed::Message::new(bytes).map_err(|_| Malformed::Short)?;
        if header.opcode() != Opcode::BootRequest {
            return Err(Malformed::NotARequest);
        }
        if bytes.get(236..HEADER) != Some(&MAGIC[..]) {
            return Err(Malformed::BadCookie);
        }
        // Checked before dhcproto slices the field by it.
        if header.hlen() > 16 {
            return Err(Malformed::BadHardware);
        }
        let options = Fields::read(bytes)?;
        let kind = match options.octet(OptionCode::MessageType)? {
            Some(kind) => MessageType::from(kind),
            None => return Err(Malformed::Bootp),
        };
        let htype: u8 = header.htype().into();
        let mac = hardware_address(htype, header.chaddr())?;
        // RFC 2132 §9.14: at least two octets.
        let client_id = options
            .get(OptionCode::ClientIdentifier)
            .filter(|id| id.len() >= 2)
            .map(|id| Octets(id.to_vec()));
        if mac.is_none() && client_id.is_none() {
            return Err(Malformed::NoIdentity);
        }
        let traits = traits(&options, header.giaddr());
        let firmware = firmware(&options, &traits);
        let relay = options
            .get(OptionCode::RelayAgentInformation)
            .map(Relay::read)
            .transpose()?;
        let subnet_selection = options.address(OptionCode::SubnetSelection)?;
        let link = link(&header, subnet_selection, relay.as_ref(), &arrival);
        let mut chaddr = [0; 16];
        for (to, from) in chaddr.iter_mut().zip(bytes.iter().skip(28)) {
            *to = *from;
        }
        Ok(Self {
            kind,
            htype,
            hlen: header.hlen(),
            chaddr,
            xid: header.xid(),
            flags: header.flags().into(),
            ciaddr: header.ciaddr(),
            giaddr: header.giaddr(),
            server_id: options.address(OptionCode::ServerIdentifier)?,
            parameters: options
                .get(OptionCode::ParameterRequestList)
                .unwrap_or_default()
                .to_vec(),
            max_size: options.short(OptionCode::MaxMessageSize)?,
            firmware,
            ipxe_fetches_by_http: fetches_by_http(options.get(OptionCode::from(175))),
            architecture: traits.architectures.first().copied(),
            machine_id: options
                .get(OptionCode::ClientMachineIdentifier)
                .filter(|id| !id.is_empty())
                .map(<[u8]>::to_vec),
            client: Client {
                mac,
                client_id,
                boots: firmware.is_some(),
                link,
                requested: options.address(OptionCode::RequestedIpAddress)?,
                lease_secs: options.long(OptionCode::AddressLeaseTime)?,
                hostname: options.get(OptionCode::Hostname).and_then(printable),
                relay: relay.as_ref().map(|relay| Octets(relay.option.clone())),
                traits,
            },
            relay,
            rapid_commit: options.get(OptionCode::RapidCommit).is_some(),
            subnet_selection,
            arrival,
        })
    }

    /// Whether a relay sent it.
    pub fn relayed(&self) -> bool {
        !self.giaddr.is_unspecified()
    }

    /// Whether the client asked for an option.
    pub fn asks(&self, code: u8) -> bool {
        self.parameters.contains(&code)
    }

    /// Whether the client can only hear broadcasts (RFC 2131 §4.1).
    pub fn broadcast(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    /// What tells packets of one client apart from those of others, before any rule about
    /// identity: the same on every node that hears the client.
    pub fn sender(&self) -> &[u8] {
        match (&self.client.mac, &self.client.client_id) {
            (Some(mac), _) => &mac.0,
            (None, Some(id)) => &id.0,
            (None, None) => &self.chaddr,
        }
    }
}

/// The link that the client sits on: what its relay says (RFC 3527), else what it says itself
/// (RFC 3011), else the relay's own address, else the address that it uses when it renews by
/// unicast, perhaps through routers, else the interface.
fn link(
    header: &borrowed::Message<'_>,
    subnet_selection: Option<Ipv4Addr>,
    relay: Option<&Relay>,
    arrival: &Arrival,
) -> Vec<Ipv4Addr> {
    let selected = relay.and_then(|relay| relay.link).or(subnet_selection);
    if let Some(address) = selected {
        return vec![address];
    }
    if !header.giaddr().is_unspecified() {
        return vec![header.giaddr()];
    }
    let unicast = arrival.link.contains(&arrival.destination);
    if unicast && !header.ciaddr().is_unspecified() {
        return vec![header.ciaddr()];
    }
    arrival.link.to_vec()
}

/// An Ethernet address; none for other hardware (RFC 4390) and for the address of nobody.
fn hardware_address(htype: u8, chaddr: &[u8]) -> Result<Option<Mac>, Malformed> {
    let Ok(mac) = <[u8; 6]>::try_from(chaddr) else {
        return Ok(None);
    };
    if htype != 1 || mac == [0; 6] {
        return Ok(None);
    }
    // A reply to a group address would reach machines that never asked.
    if mac.first().is_some_and(|octet| octet & 1 != 0) {
        return Err(Malformed::BadHardware);
    }
    Ok(Some(Mac(mac)))
}

fn traits(options: &Fields<'_>, giaddr: Ipv4Addr) -> Traits {
    let texts = |list: Vec<&[u8]>| list.into_iter().filter_map(printable).collect();
    Traits {
        vendor_class: options.get(OptionCode::ClassIdentifier).and_then(printable),
        user_classes: options
            .get(OptionCode::UserClass)
            .map_or_else(Vec::new, |value| texts(user_classes(value))),
        enterprises: enterprises(options),
        architectures: architectures(options),
        uuid: options
            .get(OptionCode::ClientMachineIdentifier)
            .and_then(firmware_uuid),
        giaddr: (!giaddr.is_unspecified()).then_some(giaddr),
    }
}

/// RFC 3004 §4 wants a length before each class; iPXE and others send one bare.
fn user_classes(value: &[u8]) -> Vec<&[u8]> {
    let mut classes = Vec::new();
    let mut rest = value;
    while let [length @ 1..=255, after @ ..] = rest {
        let Some((class, next)) = after.split_at_checked(usize::from(*length)) else {
            break;
        };
        classes.push(class);
        rest = next;
    }
    match rest {
        [] => classes,
        _ => vec![value],
    }
}

/// RFC 3925 §3 and §4: enterprise number, length, data, again and again.
fn enterprises(options: &Fields<'_>) -> Vec<u32> {
    let mut found = Vec::new();
    for code in [124, 125] {
        let mut rest = options.get(OptionCode::from(code)).unwrap_or_default();
        while let [a, b, c, d, length, after @ ..] = rest {
            found.push(u32::from_be_bytes([*a, *b, *c, *d]));
            rest = after.get(usize::from(*length)..).unwrap_or_default();
        }
    }
    found.dedup();
    found
}

/// RFC 4578 §2.3: a type octet, 0, and a UUID as SMBIOS has it: its first three fields little-endian.
fn firmware_uuid(value: &[u8]) -> Option<Uuid> {
    let (kind, octets) = value.split_first()?;
    let uuid = Uuid::from_bytes_le(octets.try_into().ok()?);
    // What firmware sends that has none.
    (*kind == 0 && !uuid.is_nil() && !uuid.is_max()).then_some(uuid)
}

fn firmware(options: &Fields<'_>, traits: &Traits) -> Option<Firmware> {
    let class = options.get(OptionCode::ClassIdentifier).unwrap_or_default();
    let ipxe = traits.user_classes.iter().any(|class| class == "iPXE");
    if ipxe || options.get(OptionCode::from(175)).is_some() {
        Some(Firmware::Ipxe)
    } else if class.starts_with(b"PXEClient") {
        Some(Firmware::Pxe)
    } else if class.starts_with(b"HTTPClient") {
        Some(Firmware::Http)
    } else {
        None
    }
}

/// Whether the list of features in iPXE's option 175 has HTTP (19), or is none: one that is has TFTP
/// (21).
fn fetches_by_http(encapsulated: Option<&[u8]>) -> bool {
    let mut rest = encapsulated.unwrap_or_default();
    let (mut http, mut tftp) = (false, false);
    while let [code, length, after @ ..] = rest {
        match code {
            19 => http = true,
            21 => tftp = true,
            _ => {}
        }
        rest = after.get(usize::from(*length)..).unwrap_or_default();
    }
    http || !tftp
}

/// Option 93, else what option 60 says.
fn architectures(options: &Fields<'_>) -> Vec<u16> {
    if let Some(list) = options.get(OptionCode::ClientSystemArchitecture) {
        let (pairs, _) = list.as_chunks::<2>();
        return pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
    }
    let in_class = || {
        let class = options.get(OptionCode::ClassIdentifier)?;
        let text = std::str::from_utf8(class).ok()?;
        text.split(":Arch:").nth(1)?.get(..5)?.parse().ok()
    };
    in_class().into_iter().collect()
}

/// A host name as people may read it; nothing when no character of it is fit to be read.
fn printable(name: &[u8]) -> Option<String> {
    let name: String = String::from_utf8_lossy(name)
        .chars()
        .filter(|c| !c.is_control() && *c != char::REPLACEMENT_CHARACTER)
        .collect();
    (!name.is_empty()).then_some(name)
}

impl Relay {
    pub(super) fn read(option: &[u8]) -> Result<Self, Malformed> {
        // RFC 3046 §2.0: its length is one octet; and a reply has to have room for it.
        if option.len() > 255 {
            return Err(Malformed::OptionLength);
        }
        let mut relay = Self {
            option: option.to_vec(),
            ..Self::default()
        };
        let mut rest = option;
        while let [code, length, after @ ..] = rest {
            let (value, next) = after
                .split_at_checked(usize::from(*length))
                .ok_or(Malformed::OptionOverrun)?;
            match code {
                5 => relay.link = Some(to_address(value)?),
                11 => relay.server_id = Some(to_address(value)?),
                19 => relay.source_port = true,
                _ => {}
            }
            rest = next;
        }
        Ok(relay)
    }
}

/// Options by code; what is repeated is joined (RFC 3396 §7).
#[derive(Debug, Default)]
struct Fields<'a>(BTreeMap<u8, Cow<'a, [u8]>>);

impl<'a> Fields<'a> {
    /// Reads the options field, then `file` and `sname` as option 52 says (RFC 2132 §9.3).
    fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        fields.walk(bytes.get(HEADER..).unwrap_or_default())?;
        let overload = fields.octet(OptionCode::OptionOverload)?.unwrap_or(0);
        if overload & 1 != 0 {
            fields.walk(bytes.get(108..236).unwrap_or_default())?;
        }
        if overload & 2 != 0 {
            fields.walk(bytes.get(44..108).unwrap_or_default())?;
        }
        Ok(fields)
    }

    fn walk(&mut self, mut rest: &'a [u8]) -> Result<(), Malformed> {
        const PAD: u8 = 0;
        const END: u8 = 255;
        loop {
            match rest {
                [] | [END, ..] => return Ok(()),
                [PAD, after @ ..] => rest = after,
                [code, length, after @ ..] => {
                    let (value, next) = after
                        .split_at_checked(usize::from(*length))
                        .ok_or(Malformed::OptionOverrun)?;
                    self.0
                        .entry(*code)
                        .and_modify(|known| known.to_mut().extend_from_slice(value))
                        .or_insert(Cow::Borrowed(value));
                    rest = next;
                }
                [_] => return Err(Malformed::OptionOverrun),
            }
        }
    }

    fn get(&self, code: OptionCode) -> Option<&[u8]> {
        self.0.get(&u8::from(code)).map(AsRef::as_ref)
    }

    fn sized<const N: usize>(&self, code: OptionCode) -> Result<Option<[u8; N]>, Malformed> {
        self.get(code)
            .map(|value| value.try_into().map_err(|_| Malformed::OptionLength))
            .transpose()
    }

    fn octet(&self, code: OptionCode) -> Result<Option<u8>, Malformed> {
        Ok(self.sized(code)?.map(|[octet]| octet))
    }

    fn short(&self, code: OptionCode) -> Result<Option<u16>, Malformed> {
        Ok(self.sized(code)?.map(u16::from_be_bytes))
    }

    fn long(&self, code: OptionCode) -> Result<Option<u32>, Malformed> {
        Ok(self.sized(code)?.map(u32::from_be_bytes))
    }

    fn address(&self, code: OptionCode) -> Result<Option<Ipv4Addr>, Malformed> {
        Ok(self.sized::<4>(code)?.map(Ipv4Addr::from))
    }
}

fn to_address(value: &[u8]) -> Result<Ipv4Addr, Malformed> {
    <[u8; 4]>::try_from(value)
        .map(Ipv4Addr::from)
        .map_err(|_| Malformed::OptionLength)
}
