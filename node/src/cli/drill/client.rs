//! The synthetic client: it asks each service as machines and people do, and goes to the next node when
//! one does not answer.
//!
//! Its DHCP comes as by a relay that says its own port (RFC 8357) and the client's link (RFC 3527), by
//! unicast: nothing is broadcast on any network. Each time it takes an address of the subnet's pool,
//! waits for the ACK, which a quorum has committed, and gives it back.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use dhcproto::v4::relay::{RelayAgentInformation, RelayCode, RelayInfo, UnknownInfo};
use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable as _, Encodable as _};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};

use crate::dhcp::search::SYNTHETIC;

/// How long one node, or one step, is waited for: longer than a node takes to ask a quorum about a
/// client that it does not know.
const PATIENCE: Duration = Duration::from_millis(800);

/// Octets of the largest answer that is read.
const PACKET_MAX: usize = 2048;

/// Where a node serves.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its address.
    pub address: IpAddr,
    /// Port of the API.
    pub api: u16,
    /// Port of boot files.
    pub boot: u16,
    /// Port of TFTP.
    pub tftp: u16,
    /// Port of DHCP; absent when it serves none.
    pub dhcp: Option<u16>,
}

/// What asks for one service.
pub enum Client {
    /// DHCP on a link.
    Dhcp(Dhcp),
    /// TFTP of a boot script.
    Tftp(Turns),
    /// HTTP of one of these, by path.
    Http(Web),
}

impl Client {
    /// Tries once. Whether it came to what a client wants.
    pub async fn attempt(&mut self) -> bool {
        match self {
            Self::Dhcp(dhcp) => dhcp.attempt().await.is_ok(),
            Self::Tftp(turns) => {
                for server in turns.next() {
                    if matches!(timeout(PATIENCE, tftp(server)).await, Ok(Ok(()))) {
                        turns.stay(server);
                        return true;
                    }
                }
                false
            }
            Self::Http(web) => web.attempt().await,
        }
    }
}

/// Servers, of which the one that answered last is asked first.
pub struct Turns {
    servers: Vec<SocketAddr>,
    last: usize,
}

impl Turns {
    /// In this order at first.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers, last: 0 }
    }

    fn next(&self) -> Vec<SocketAddr> {
        let (before, from) = self.servers.split_at(self.last.min(self.servers.len()));
        [from, before].concat()
    }

    fn stay(&mut self, server: SocketAddr) {
        let found = self.servers.iter().position(|it| *it == server);
        self.last = found.unwrap_or_default();
    }
}

/// What is asked by HTTP.
pub struct Web {
    /// Who asks.
    pub http: reqwest::Client,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// With a slash.
    pub path: String,
    /// Of whom.
    pub turns: Turns,
}

impl Web {
    async fn attempt(&mut self) -> bool {
        for server in self.turns.next() {
            let url = format!("{}://{server}{}", self.scheme, self.path);
            let answer = self.http.get(url).timeout(PATIENCE).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                self.turns.stay(server);
                return true;
            }
        }
        false
    }
}

/// Reads a boot script to its end: what is left in the middle stays a transfer of the node for a while,
/// and a node runs only so many for one client.
async fn tftp(server: SocketAddr) -> io::Result<()> {
    const DATA: u16 = 3;
    const BLOCK: usize = 512;
    const HEAD: usize = 4;
    let socket = unconnected(server).await?;
    socket.send_to(b"\0\x01boot.ipxe\0octet\0", server).await?;
    let mut buffer = [0; PACKET_MAX];
    let mut read = 0_u16;
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        let Some(&[kind @ .., high, low]) = buffer.first_chunk::<HEAD>() else {
            continue;
        };
        if length < HEAD || u16::from_be_bytes(kind) != DATA {
            return Err(io::Error::other("no data"));
        }
        socket.send_to(&[0, 4, high, low], from).await?;
        let block = u16::from_be_bytes([high, low]);
        if block != read.wrapping_add(1) {
            continue;
        }
        read = block;
        if length < HEAD + BLOCK {
            return Ok(());
        }
    }
}

async fn unconnected(server: SocketAddr) -> io::Result<UdpSocket> {
    match server {
        SocketAddr::V4(_) => UdpSocket::bind("0.0.0.0:0").await,
        SocketAddr::V6(_) => UdpSocket::bind("[::]:0").await,
    }
}

/// A client of DHCP behind a relay, both of them made up.
pub struct Dhcp {
    socket: UdpSocket,
    servers: Vec<SocketAddr>,
    /// The address that answers come to.
    relay: Ipv4Addr,
    /// An address of the subnet.
    link: Ipv4Addr,
    /// What is to be given back.
    held: Option<(Ipv4Addr, Ipv4Addr)>,
}

impl Dhcp {
    /// A client on the subnet of `link`.
    ///
    /// # Errors
    /// When no server is reached over IPv4.
    pub async fn new(servers: Vec<SocketAddr>, link: Ipv4Addr) -> io::Result<Self> {
        let reached = servers.first().copied();
        let reached = reached.ok_or_else(|| io::Error::other("no node serves DHCP"))?;
        // The address that they see of this machine.
        let probe = UdpSocket::bind("0.0.0.0:0").await?;
        probe.connect(reached).await?;
        let IpAddr::V4(relay) = probe.local_addr()?.ip() else {
            return Err(io::Error::other("nodes are reached over IPv6 alone"));
        };
        Ok(Self {
            socket: UdpSocket::bind((relay, 0)).await?,
            servers,
            relay,
            link,
            held: None,
        })
    }

    async fn attempt(&mut self) -> io::Result<()> {
        self.give_back().await?;
        let xid = rand::random();
        let discover = self.message(MessageType::Discover, xid);
        let (address, server) = self.ask(&discover, MessageType::Offer).await?;
        let mut request = self.message(MessageType::Request, xid);
        let options = request.opts_mut();
        options.insert(DhcpOption::RequestedIpAddress(address));
        options.insert(DhcpOption::ServerIdentifier(server));
        // Also what is not acknowledged may have been bound.
        self.held = Some((address, server));
        self.ask(&request, MessageType::Ack).await?;
        self.give_back().await
    }

    /// Gives back what it may have.
    pub async fn give_back(&mut self) -> io::Result<()> {
        let Some((address, server)) = self.held.take() else {
            return Ok(());
        };
        let mut release = self.message(MessageType::Release, rand::random());
        release.set_ciaddr(address);
        let options = release.opts_mut();
        options.insert(DhcpOption::ServerIdentifier(server));
        self.send(&release).await
    }

    fn message(&self, kind: MessageType, xid: u32) -> Message {
        let mut message = Message::default();
        message
            .set_opcode(Opcode::BootRequest)
            .set_xid(xid)
            .set_giaddr(self.relay)
            .set_hops(1)
            .set_chaddr(&SYNTHETIC.0);
        let mut relay = RelayAgentInformation::default();
        relay.insert(RelayInfo::LinkSelection(self.link));
        // RFC 8357: answer to the port that this comes from.
        relay.insert(RelayInfo::Unknown(UnknownInfo::new(
            RelayCode::Unknown(19),
            vec![0, 0],
        )));
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::RelayAgentInformation(relay));
        message
    }

    async fn send(&self, message: &Message) -> io::Result<()> {
        let bytes = message.to_vec().map_err(io::Error::other)?;
        for server in &self.servers {
            // One of them is dead: that is what is measured.
            let _ = self.socket.send_to(&bytes, server).await;
        }
        Ok(())
    }

    /// Asks all servers, and again half-way; the address and the server of the first answer.
    async fn ask(
        &self,
        message: &Message,
        wanted: MessageType,
    ) -> io::Result<(Ipv4Addr, Ipv4Addr)> {
        let mut last = io::Error::from(io::ErrorKind::TimedOut);
        for _ in 0..2 {
            self.send(message).await?;
            match self.answer(message.xid(), wanted).await {
                Ok(found) => return Ok(found),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn answer(&self, xid: u32, wanted: MessageType) -> io::Result<(Ipv4Addr, Ipv4Addr)> {
        let end = Instant::now() + PATIENCE;
        let mut buffer = [0; PACKET_MAX];
        loop {
            let heard = timeout_at(end, self.socket.recv_from(&mut buffer)).await;
            let length = match heard {
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
                // An ICMP message of a node that is gone.
                Ok(Err(_)) => continue,
                Ok(Ok((length, _))) => length,
            };
            let packet = buffer.get(..length).unwrap_or_default();
            let Ok(message) = Message::from_bytes(packet) else {
                continue;
            };
            let options = message.opts();
            if message.xid() != xid || options.msg_type() != Some(wanted) {
                continue;
            }
            if let Some(DhcpOption::ServerIdentifier(server)) =
                options.get(OptionCode::ServerIdentifier)
            {
                return Ok((message.yiaddr(), *server));
            }
        }
    }
}
