//! TFTP as firmware does it (RFC 1350, 2347 to 2349, 7440): read one file, give up when the client
//! that is played would.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};

const PORT: u16 = 69;

const READ: u16 = 1;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;

/// How a client reads.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// The block size that it asks for, in octets.
    pub block: u16,
    /// The window that it asks for, in blocks; 1 asks for none.
    pub window: u16,
    /// Whether it asks for the size first, in a transfer that it breaks off.
    pub probes: bool,
    /// How long each copy of a message waits; after the last the client gives up.
    pub waits: &'static [Duration],
    /// Whether it hears that a port is closed (ICMP) and gives up at once.
    pub hears_refusals: bool,
}

impl Manner {
    /// More patient than any firmware, for what is not about time-outs; blocks fill an Ethernet frame.
    pub const PATIENT: Self = Self {
        block: 1468,
        window: 1,
        probes: false,
        waits: &[Duration::from_secs(4); 8],
        hears_refusals: true,
    };
}

/// Reads a file whole.
pub fn read(from: Ipv4Addr, server: Ipv4Addr, path: &str, manner: &Manner) -> Result<Vec<u8>> {
    if manner.probes {
        let mut probe = Transfer::begin(from, server, path, manner)?;
        probe.refuse()?;
    }
    Transfer::begin(from, server, path, manner)?.receive()
}

/// A transfer that the server has agreed to.
struct Transfer<'a> {
    socket: UdpSocket,
    /// The port of the server that this transfer has (RFC 1350 §4).
    server: SocketAddr,
    manner: &'a Manner,
    /// What the server said last.
    packet: Vec<u8>,
    block: usize,
    window: u16,
}

impl<'a> Transfer<'a> {
    fn begin(from: Ipv4Addr, server: Ipv4Addr, path: &str, manner: &'a Manner) -> Result<Self> {
        let socket = UdpSocket::bind(SocketAddrV4::new(from, 0)).context("opening a UDP port")?;
        setsockopt(&socket, sockopt::Ipv4RecvErr, &manner.hears_refusals)
            .context("asking for refusals")?;
        let mut transfer = Self {
            socket,
            server: SocketAddrV4::new(server, PORT).into(),
            manner,
            packet: Vec::new(),
            block: 512,
            window: 1,
        };
        let mut request = READ.to_be_bytes().to_vec();
        let window = manner.window.to_string();
        let block = manner.block.to_string();
        let mut words = vec![path, "octet", "tsize", "0", "blksize", &block];
        if manner.window > 1 {
            words.extend(["windowsize", &window]);
        }
        for word in words {
            request.extend(word.as_bytes());
            request.push(0);
        }
        transfer.exchange(&request, |packet| {
            matches!(packet, (OACK, _) | (DATA, [0, 1, ..]) | (ERROR, _))
        })?;
        let (kind, rest) = split(&transfer.packet)?;
        match kind {
            ERROR => bail!("{server} refuses {path}: {}", String::from_utf8_lossy(rest)),
            OACK => {
                let words: Vec<String> = rest
                    .split(|octet| *octet == 0)
                    .map(|word| String::from_utf8_lossy(word).to_lowercase())
                    .collect();
                for pair in words.chunks_exact(2) {
                    match pair[0].as_str() {
                        "blksize" => transfer.block = pair[1].parse().context("a block size")?,
                        "windowsize" => transfer.window = pair[1].parse().context("a window")?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(transfer)
    }

    /// Breaks it off, as OVMF does that wanted to know the size only.
    fn refuse(&mut self) -> Result<()> {
        let refusal = [
            &ERROR.to_be_bytes()[..],
            &[0, 8],
            b"User aborted the transfer\0",
        ]
        .concat();
        self.send(&refusal)
    }

    fn receive(&mut self) -> Result<Vec<u8>> {
        let mut file = Vec::new();
        let mut last: u16 = 0;
        let mut since_ack = 0;
        let mut pending = split(&self.packet)?.0 == DATA;
        loop {
            if !pending {
                let mut ack = ACK.to_be_bytes().to_vec();
                ack.extend(last.to_be_bytes());
                self.exchange(&ack, move |packet| is_after(packet, last))?;
            }
            pending = false;
            loop {
                let data = self.packet.get(4..).context("a short DATA")?;
                let whole = data.len() == self.block;
                file.extend_from_slice(data);
                last = last.wrapping_add(1);
                since_ack += 1;
                if !whole {
                    let mut ack = ACK.to_be_bytes().to_vec();
                    ack.extend(last.to_be_bytes());
                    self.send(&ack)?;
                    return Ok(file);
                }
                if since_ack == self.window {
                    since_ack = 0;
                    break;
                }
                // The rest of the window; what is missing of it is asked for by an early ACK.
                let wait = self.manner.waits.first().copied().unwrap_or_default();
                if !self.hear(Instant::now() + wait, &|packet| is_after(packet, last))? {
                    since_ack = 0;
                    break;
                }
            }
        }
    }

    /// Sends copies of a packet until the server says what is wanted.
    fn exchange(&mut self, packet: &[u8], wanted: impl Fn((u16, &[u8])) -> bool) -> Result<()> {
        let began = Instant::now();
        for wait in self.manner.waits {
            self.send(packet)?;
            if self.hear(Instant::now() + *wait, &wanted)? {
                return Ok(());
            }
        }
        bail!(
            "{} has said nothing by TFTP for {:.0} s",
            self.server.ip(),
            began.elapsed().as_secs_f64()
        )
    }

    fn send(&self, packet: &[u8]) -> Result<()> {
        match self.socket.send_to(packet, self.server) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                ensure!(
                    !self.manner.hears_refusals,
                    "{} refuses TFTP",
                    self.server.ip()
                );
                Ok(())
            }
            // Nobody answers ARP for it: a client sends into the dark too.
            Err(error) if error.kind() == ErrorKind::HostUnreachable => Ok(()),
            Err(error) => Err(error).context("sending TFTP"),
        }
    }

    /// Whether the server says what is wanted before `end`; keeps it.
    fn hear(&mut self, end: Instant, wanted: &impl Fn((u16, &[u8])) -> bool) -> Result<bool> {
        let mut buffer = [0; 2048];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.socket
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let (length, from) = match self.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok(false),
                    ErrorKind::ConnectionRefused if self.manner.hears_refusals => {
                        bail!("{} refuses TFTP", self.server.ip())
                    }
                    ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::Interrupted => continue,
                    _ => return Err(error).context("receiving TFTP"),
                },
            };
            let begins = self.server.port() == PORT;
            if from.ip() != self.server.ip() || (!begins && from != self.server) {
                continue;
            }
            let packet = buffer.get(..length).unwrap_or_default();
            let Ok(parts) = split(packet) else { continue };
            if wanted(parts) {
                self.server = from;
                self.packet = packet.to_vec();
                return Ok(true);
            }
            ensure!(
                parts.0 != ERROR || begins,
                "{} breaks TFTP off: {}",
                self.server.ip(),
                String::from_utf8_lossy(parts.1)
            );
        }
    }
}

/// Whether a packet is the block that comes after this one.
fn is_after(packet: (u16, &[u8]), last: u16) -> bool {
    let next = last.wrapping_add(1).to_be_bytes();
    packet.0 == DATA && packet.1.get(..2) == Some(&next)
}

/// The kind of a packet and what follows.
fn split(packet: &[u8]) -> Result<(u16, &[u8])> {
    let (kind, rest) = packet.split_first_chunk::<2>().context("a short packet")?;
    Ok((u16::from_be_bytes(*kind), rest))
}
