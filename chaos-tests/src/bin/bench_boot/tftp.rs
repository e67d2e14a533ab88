//! A TFTP client (RFC 1350, 2347, 2348, 7440) that does no more than it must.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::crowd::Client;

const PORT: u16 = 69;

/// How long to wait before sending again.
const RETRY: Duration = Duration::from_secs(1);
const RETRIES_MAX: u32 = 8;

const DATA: u16 = 3;
const ERROR: u16 = 5;
const OACK: u16 = 6;

/// What to ask for.
pub struct Request<'a> {
    pub path: &'a str,
    pub block: u16,
    pub window: u16,
}

/// Fetches a file until the time is over; what was begun then is ended.
pub fn fetch_again_and_again(
    client: &Client,
    server: Ipv4Addr,
    request: &Request,
    expected: usize,
) -> Result<()> {
    while !client.is_over() {
        let mut octets = 0;
        fetch(
            client.address,
            server,
            request,
            &mut Watch::Client(client),
            |block| {
                octets += block.len();
                client.took(block.len());
            },
        )?;
        ensure!(octets == expected, "{octets} octets of {expected} came");
    }
    Ok(())
}

/// The whole file.
pub fn get(from: Ipv4Addr, server: Ipv4Addr, request: &Request) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    fetch(from, server, request, &mut Watch::Nobody, |block| {
        file.extend_from_slice(block);
    })?;
    Ok(file)
}

/// Who wants to know what had to be sent again.
enum Watch<'a> {
    Client(&'a Client<'a>),
    Nobody,
}

fn fetch(
    from: Ipv4Addr,
    server: Ipv4Addr,
    request: &Request,
    watch: &mut Watch,
    mut take: impl FnMut(&[u8]),
) -> Result<()> {
    let socket = UdpSocket::bind((from, 0)).context("opening a socket")?;
    socket.set_read_timeout(Some(RETRY))?;
    let mut buffer = vec![0; 4 + usize::from(request.block)];
    let length = begin(&socket, server, request, watch, &mut buffer)?;
    ensure!(
        opcode(&buffer) == OACK,
        "the server takes no options: {:?}",
        String::from_utf8_lossy(&buffer[..length])
    );
    let options = &buffer[2..length];
    for (name, wanted) in request.options() {
        ensure!(
            has(options, name, wanted),
            "the server grants {:?}, not {name} {wanted}",
            String::from_utf8_lossy(options)
        );
    }
    let (mut last, mut since_ack, mut silent) = (0_u16, 0, 0);
    let acknowledge = |block: u16| {
        let [high, low] = block.to_be_bytes();
        socket.send(&[0, 4, high, low]).context("acknowledging")
    };
    acknowledge(0)?;
    loop {
        let Some(length) = receive(&socket, &mut buffer)? else {
            silent += 1;
            ensure!(silent <= RETRIES_MAX, "the server fell silent");
            watch.repeats();
            acknowledge(last)?;
            since_ack = 0;
            continue;
        };
        match (opcode(&buffer), u16::from_be_bytes([buffer[2], buffer[3]])) {
            (DATA, block) if block == last.wrapping_add(1) => {
                let data = &buffer[4..length];
                (last, since_ack, silent) = (block, since_ack + 1, 0);
                take(data);
                let is_end = data.len() < usize::from(request.block);
                if is_end || since_ack == request.window {
                    acknowledge(last)?;
                    since_ack = 0;
                }
                if is_end {
                    return Ok(());
                }
            }
            // A block is missing: the rest of the window is of no use (RFC 7440 §4).
            (DATA, block) if block.wrapping_sub(last) < request.window && since_ack > 0 => {
                watch.repeats();
                acknowledge(last)?;
                since_ack = 0;
            }
            (DATA | OACK, _) => {}
            _ => bail!(
                "the server says {:?}",
                String::from_utf8_lossy(&buffer[..length])
            ),
        }
    }
}

/// Sends the request until there is an answer, and talks to whoever sent that from then on.
fn begin(
    socket: &UdpSocket,
    server: Ipv4Addr,
    request: &Request,
    watch: &mut Watch,
    buffer: &mut [u8],
) -> Result<usize> {
    for _ in 0..=RETRIES_MAX {
        socket.send_to(&request.packet(), SocketAddr::from((server, PORT)))?;
        match socket.recv_from(buffer) {
            Ok((length, from)) => {
                socket.connect(from).context("keeping to the server")?;
                ensure!(
                    length >= 4 && opcode(buffer) != ERROR,
                    "the server refuses: {:?}",
                    String::from_utf8_lossy(&buffer[..length])
                );
                return Ok(length);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => watch.repeats(),
            Err(error) => return Err(error).context("waiting for an answer"),
        }
    }
    bail!("the server does not answer")
}

/// The next packet; none after [`RETRY`].
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Result<Option<usize>> {
    match socket.recv(buffer) {
        Ok(length) if length >= 4 => Ok(Some(length)),
        Ok(length) => bail!("a packet of {length} octets"),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error).context("receiving"),
    }
}

fn opcode(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[0], packet[1]])
}

/// Whether the options of an OACK have this one.
fn has(options: &[u8], name: &str, value: u16) -> bool {
    let mut texts = options.split(|octet| *octet == 0);
    while let (Some(key), Some(text)) = (texts.next(), texts.next()) {
        if key.eq_ignore_ascii_case(name.as_bytes()) {
            return text == value.to_string().as_bytes();
        }
    }
    false
}

impl Request<'_> {
    fn options(&self) -> Vec<(&'static str, u16)> {
        let mut options = vec![("blksize", self.block)];
        if self.window > 1 {
            options.push(("windowsize", self.window));
        }
        options
    }

    fn packet(&self) -> Vec<u8> {
        let mut packet = vec![0, 1];
        let mut put = |text: &str| {
            packet.extend_from_slice(text.as_bytes());
            packet.push(0);
        };
        put(self.path);
        put("octet");
        for (name, value) in self.options() {
            put(name);
            put(&value.to_string());
        }
        packet
    }
}

impl Watch<'_> {
    fn repeats(&self) {
        if let Self::Client(client) = self {
            client.repeats();
        }
    }
}
