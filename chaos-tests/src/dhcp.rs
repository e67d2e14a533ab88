//! A DHCP client made of bytes: any MAC, any client id, any state of RFC 2131, heard directly or
//! through a relay. It does what a test says and nothing of its own.

use std::fmt::{self, Display};
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dhcproto::v4::relay::{RelayAgentInformation, RelayInfo};
use dhcproto::v4::{Architecture, DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Encodable};
use socket2::{Domain, Socket, Type};

use crate::lab::Host;
use crate::wire::{Datagram, EVERYBODY, Mac, RECEIVE_BUFFER, Wire, mac_text, receive_by};

/// How long PXE ROMs wait before they ask again; after the last they give up.
pub const RETRIES: [Duration; 4] = [
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(32),
];

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// One client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its hardware address.
    pub mac: Mac,
    /// Its client identifier (option 61).
    pub id: Option<Vec<u8>>,
    /// What else is in each of its messages.
    pub options: Vec<DhcpOption>,
}

impl Client {
    /// The `number`th of a family of clients with MACs of their own and nothing else to tell.
    pub fn numbered(family: u8, number: u32) -> Self {
        let [_, a, b, c] = number.to_be_bytes();
        Self::new([0x02, 0x6d, family, a, b, c])
    }

    /// A client that is known by its MAC.
    pub fn new(mac: Mac) -> Self {
        Self {
            mac,
            id: None,
            options: Vec::new(),
        }
    }

    /// The same, with a client identifier.
    pub fn with_id(mut self, id: &[u8]) -> Self {
        self.id = Some(id.to_vec());
        self
    }

    /// The same, asking as a BIOS ROM with PXE does.
    pub fn pxe(mut self) -> Self {
        self.options.extend([
            DhcpOption::ClassIdentifier(b"PXEClient:Arch:00000:UNDI:002001".to_vec()),
            DhcpOption::ClientSystemArchitecture(Architecture::X86_Bios),
            DhcpOption::ClientNetworkInterface(1, 2, 1),
        ]);
        self
    }

    /// Asks who would serve it.
    pub fn discover(&self) -> Message {
        self.message(MessageType::Discover, next_xid())
    }

    /// Takes an offer (SELECTING).
    pub fn select(&self, offer: &Reply) -> Result<Message> {
        let server = offer.server().context("an offer without an identifier")?;
        let mut request = self.message(MessageType::Request, offer.message.xid());
        let options = request.opts_mut();
        options.insert(DhcpOption::ServerIdentifier(server));
        options.insert(DhcpOption::RequestedIpAddress(offer.address()));
        Ok(request)
    }

    /// Asks whether an address that it remembers is still its own (INIT-REBOOT).
    pub fn reboot(&self, address: Ipv4Addr) -> Message {
        let mut request = self.message(MessageType::Request, next_xid());
        let options = request.opts_mut();
        options.insert(DhcpOption::RequestedIpAddress(address));
        request
    }

    /// Asks for more time (RENEWING when it is sent to one server, REBINDING when to all).
    pub fn renew(&self, address: Ipv4Addr) -> Message {
        let mut request = self.message(MessageType::Request, next_xid());
        request.set_ciaddr(address);
        request
    }

    /// Gives its address back.
    pub fn release(&self, address: Ipv4Addr, server: Ipv4Addr) -> Message {
        let mut release = self.message(MessageType::Release, next_xid());
        release.set_ciaddr(address);
        release
            .opts_mut()
            .insert(DhcpOption::ServerIdentifier(server));
        release
    }

    /// Says that somebody else uses its address.
    pub fn decline(&self, address: Ipv4Addr, server: Ipv4Addr) -> Message {
        let mut decline = self.message(MessageType::Decline, next_xid());
        let options = decline.opts_mut();
        options.insert(DhcpOption::ServerIdentifier(server));
        options.insert(DhcpOption::RequestedIpAddress(address));
        decline
    }

    /// Has an address of its own and asks for the rest.
    pub fn inform(&self, address: Ipv4Addr) -> Message {
        let mut inform = self.message(MessageType::Inform, next_xid());
        inform.set_ciaddr(address);
        inform
    }

    fn message(&self, kind: MessageType, xid: u32) -> Message {
        let mut message = Message::default();
        message
            .set_opcode(Opcode::BootRequest)
            .set_xid(xid)
            .set_chaddr(&self.mac);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::TFTPServerName,
            OptionCode::BootfileName,
        ]));
        if let Some(id) = &self.id {
            options.insert(DhcpOption::ClientIdentifier(id.clone()));
        }
        for option in &self.options {
            options.insert(option.clone());
        }
        message
    }
}

impl Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&mac_text(self.mac))
    }
}

fn next_xid() -> u32 {
    static XIDS: AtomicU32 = AtomicU32::new(1);
    // Far apart, so that a server that looked at a part of it would be found out.
    XIDS.fetch_add(1, Ordering::Relaxed)
        .wrapping_mul(0x9e37_79b1)
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The message.
    pub message: Message,
    /// Where it came from, whatever it says about itself.
    pub from: SocketAddrV4,
    /// The sender's hardware address; None through a relay.
    pub from_mac: Option<Mac>,
    /// Where it was sent.
    pub to: Ipv4Addr,
    /// When it came.
    pub at: Instant,
}

impl Reply {
    /// OFFER, ACK, NAK.
    pub fn kind(&self) -> Option<MessageType> {
        self.message.opts().msg_type()
    }

    /// The client's address.
    pub fn address(&self) -> Ipv4Addr {
        self.message.yiaddr()
    }

    /// The server identifier.
    pub fn server(&self) -> Option<Ipv4Addr> {
        match self.option(OptionCode::ServerIdentifier) {
            Some(DhcpOption::ServerIdentifier(server)) => Some(*server),
            _ => None,
        }
    }

    /// How long the address is promised.
    pub fn seconds(&self) -> Option<u32> {
        match self.option(OptionCode::AddressLeaseTime) {
            Some(DhcpOption::AddressLeaseTime(seconds)) => Some(*seconds),
            _ => None,
        }
    }

    /// Whether it names a file to boot, in whichever field.
    pub fn boots(&self) -> bool {
        self.message
            .fname()
            .is_some_and(|file| file.iter().any(|octet| *octet != 0))
            || self.option(OptionCode::BootfileName).is_some()
            || self.option(OptionCode::TFTPServerName).is_some()
    }

    /// One of its options.
    pub fn option(&self, code: OptionCode) -> Option<&DhcpOption> {
        self.message.opts().get(code)
    }
}

/// Where clients are plugged in.
#[derive(Debug)]
pub enum Port {
    /// On the servers' segment.
    Direct(Wire),
    /// Behind a relay agent.
    Relay(Relay),
}

/// A relay agent (RFC 1542, RFC 3046) that knows all servers.
#[derive(Debug)]
pub struct Relay {
    socket: Socket,
    address: Ipv4Addr,
    servers: Vec<Ipv4Addr>,
    /// Option 82, if any.
    information: Vec<RelayInfo>,
}

impl Port {
    /// Clients on the segment of a host that has no use of its own.
    pub fn direct(host: &Host) -> Result<Self> {
        Wire::open(host).map(Self::Direct)
    }

    /// Clients on the segment of an interface of this host.
    pub fn direct_on(interface: &str) -> Result<Self> {
        Wire::on(interface).map(Self::Direct)
    }

    /// Clients behind a host that relays to `servers`.
    pub fn relay(host: &Host, servers: &[Ipv4Addr], information: Vec<RelayInfo>) -> Result<Self> {
        let address = host.address().context("a relay has an address")?;
        host.inside(|| Self::relay_at(address, servers, information))
    }

    /// Clients behind a relay that is this host, by an address of its own.
    pub fn relay_at(
        address: Ipv4Addr,
        servers: &[Ipv4Addr],
        information: Vec<RelayInfo>,
    ) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).context("opening a socket")?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket
            .bind(&SocketAddrV4::new(address, SERVER_PORT).into())
            .with_context(|| format!("binding the relay's port, {address}:{SERVER_PORT}"))?;
        Ok(Self::Relay(Relay {
            socket,
            address,
            servers: servers.to_vec(),
            information,
        }))
    }

    /// From now on a relay asks these. It keeps its socket: a new one cannot be bound as long as a program
    /// that is just being started has the old one too.
    pub fn relay_to(&mut self, servers: &[Ipv4Addr]) {
        if let Self::Relay(relay) = self {
            relay.servers = servers.to_vec();
        }
    }

    /// Sends a message to all servers.
    pub fn send(&self, message: &Message) -> Result<()> {
        match self {
            Self::Direct(wire) => {
                let to = (EVERYBODY, Ipv4Addr::BROADCAST);
                wire.send(&direct(message, Ipv4Addr::UNSPECIFIED, to)?)
            }
            Self::Relay(relay) => relay.send(message),
        }
    }

    /// Sends a message from its `ciaddr` to one server, as clients do that renew or release.
    pub fn send_to(&self, message: &Message, server: (Mac, Ipv4Addr)) -> Result<()> {
        let Self::Direct(wire) = self else {
            anyhow::bail!("what is sent to one server passes no relay")
        };
        let mac = message.chaddr().try_into().context("a MAC")?;
        wire.hold(message.ciaddr(), mac);
        wire.send(&direct(message, message.ciaddr(), server)?)
    }

    /// The next reply, whoever it is for, or None when `deadline` has passed.
    pub fn next(&self, deadline: Instant) -> Result<Option<Reply>> {
        match self {
            Self::Direct(wire) => loop {
                let Some(datagram) = wire.receive(deadline)? else {
                    return Ok(None);
                };
                if datagram.to.port() != CLIENT_PORT {
                    continue;
                }
                return Ok(Some(Reply {
                    message: decode(&datagram.payload)?,
                    from: datagram.from,
                    from_mac: Some(datagram.macs.0),
                    to: *datagram.to.ip(),
                    at: Instant::now(),
                }));
            },
            Self::Relay(relay) => relay.next(deadline),
        }
    }

    /// All replies to `message` that come within `window`, from now.
    pub fn replies(&self, message: &Message, window: Duration) -> Result<Vec<Reply>> {
        let deadline = Instant::now() + window;
        let mut replies = Vec::new();
        while let Some(reply) = self.next(deadline)? {
            if reply.message.xid() == message.xid() {
                replies.push(reply);
            }
        }
        Ok(replies)
    }

    /// The first reply to `message` within `window`, from now.
    pub fn first(&self, message: &Message, window: Duration) -> Result<Option<Reply>> {
        let deadline = Instant::now() + window;
        while let Some(reply) = self.next(deadline)? {
            if reply.message.xid() == message.xid() {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    /// The first reply of this kind to `message` within `window`, from now.
    pub fn heard(
        &self,
        message: &Message,
        kind: MessageType,
        window: Duration,
    ) -> Result<Option<Reply>> {
        let deadline = Instant::now() + window;
        while let Some(reply) = self.next(deadline)? {
            if reply.message.xid() == message.xid() && reply.kind() == Some(kind) {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    /// Sends a message as a ROM does, again and again, until a reply of this kind comes.
    pub fn insist(&self, message: &Message, kind: MessageType) -> Result<Reply> {
        for wait in RETRIES {
            self.send(message)?;
            if let Some(reply) = self.heard(message, kind, wait)? {
                return Ok(reply);
            }
        }
        let asked = message.opts().msg_type();
        anyhow::bail!("a client gave up: no {kind:?} for its {asked:?}")
    }

    /// DISCOVER, OFFER, REQUEST, ACK; returns the ACK.
    pub fn bind(&self, client: &Client) -> Result<Reply> {
        let offer = self.insist(&client.discover(), MessageType::Offer)?;
        let ack = self.insist(&client.select(&offer)?, MessageType::Ack)?;
        ensure!(
            ack.address() == offer.address(),
            "{client} was offered {} and given {}",
            offer.address(),
            ack.address()
        );
        Ok(ack)
    }
}

impl Relay {
    fn send(&self, message: &Message) -> Result<()> {
        let mut message = message.clone();
        message.set_giaddr(self.address).set_hops(1);
        if !self.information.is_empty() {
            let mut information = RelayAgentInformation::default();
            for info in &self.information {
                information.insert(info.clone());
            }
            message
                .opts_mut()
                .insert(DhcpOption::RelayAgentInformation(information));
        }
        let bytes = encode(&message)?;
        for server in &self.servers {
            // A dead server's host may refuse what was sent before, or not be there; the others are asked
            // all the same.
            let server = SocketAddrV4::new(*server, SERVER_PORT).into();
            if let Err(error) = self.socket.send_to(&bytes, &server) {
                let dead = [ErrorKind::ConnectionRefused, ErrorKind::HostUnreachable];
                ensure!(dead.contains(&error.kind()), error);
            }
        }
        Ok(())
    }

    fn next(&self, deadline: Instant) -> Result<Option<Reply>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        loop {
            let received = receive_by(&self.socket, deadline, |flags| {
                self.socket.recv_from_with_flags(&mut buffer, flags)
            });
            let (length, from) = match received {
                Ok(Some((length, from))) => (length, from.as_socket_ipv4()),
                Ok(None) => return Ok(None),
                // A dead server's host says that its port is closed.
                Err(_) => continue,
            };
            // SAFETY: the kernel has initialised this many octets.
            let bytes: Vec<u8> = buffer[..length]
                .iter()
                .map(|octet| unsafe { octet.assume_init() })
                .collect();
            return Ok(Some(Reply {
                message: decode(&bytes)?,
                from: from.context("an answer that is not from IPv4")?,
                from_mac: None,
                to: self.address,
                at: Instant::now(),
            }));
        }
    }
}

fn direct(message: &Message, from: Ipv4Addr, to: (Mac, Ipv4Addr)) -> Result<Datagram> {
    Ok(Datagram {
        macs: (message.chaddr().try_into().context("a MAC")?, to.0),
        from: SocketAddrV4::new(from, CLIENT_PORT),
        to: SocketAddrV4::new(to.1, SERVER_PORT),
        payload: encode(message)?,
    })
}

/// A message as it travels.
pub fn encode(message: &Message) -> Result<Vec<u8>> {
    message.to_vec().context("encoding a DHCP message")
}

fn decode(bytes: &[u8]) -> Result<Message> {
    Message::from_bytes(bytes).context("a server sent what is no DHCP message")
}
