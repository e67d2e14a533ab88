//! HTTP clients that do no more than they must.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Socket, Type};

use crate::crowd::Client;
use crate::servers::BOOT_PORT;

/// Longest head of an answer.
const HEAD_MAX: usize = 8192;

/// Octets taken from the kernel at a time.
const PIECE: usize = 1 << 20;

/// So long without an octet, and the benchmark fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// Fetches the same file on one connection until the time is over. What is in it is thrown away in
/// the kernel.
pub fn fetch_again_and_again(
    client: &Client,
    (server, port): (Ipv4Addr, u16),
    path: &str,
    expected: usize,
) -> Result<()> {
    let mut stream = connect(client.address, server, port)?;
    while !client.is_over() {
        ask(&mut stream, server, path, "keep-alive")?;
        let (length, beginning) = head(&mut stream)?;
        ensure!(
            length == expected,
            "{path} has {length} octets, not {expected}"
        );
        client.took(beginning.len());
        let mut left = length - beginning.len();
        while left > 0 && !client.is_over() {
            let taken = throw_away(&stream, left.min(PIECE))?;
            ensure!(taken > 0, "the connection ended {left} octets early");
            client.took(taken);
            left -= taken;
        }
    }
    Ok(())
}

/// Fetches one path after the other, each on a new connection, as machines do that boot.
pub fn ask_again_and_again(client: &mut Client, server: Ipv4Addr, paths: &[String]) -> Result<()> {
    // Clients begin at places that are apart, so that all machines have their turn.
    let mut paths = paths.iter().cycle().skip(client.number * 17);
    while !client.is_over() {
        let path = paths.next().context("there is no machine")?;
        let since = Instant::now();
        let text = get(client.address, server, BOOT_PORT, path)?;
        client.answered(since);
        client.took(text.len());
    }
    Ok(())
}

/// What is at a path.
pub fn get(from: Ipv4Addr, server: Ipv4Addr, port: u16, path: &str) -> Result<Vec<u8>> {
    let mut stream = connect(from, server, port)?;
    ask(&mut stream, server, path, "close")?;
    let (length, mut body) = head(&mut stream).with_context(|| path.to_owned())?;
    stream.read_to_end(&mut body).context("reading a body")?;
    ensure!(
        body.len() == length,
        "{path}: {} octets of {length}",
        body.len()
    );
    Ok(body)
}

fn connect(from: Ipv4Addr, server: Ipv4Addr, port: u16) -> Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    let server = SocketAddr::from((server, port));
    socket
        .connect(&server.into())
        .with_context(|| format!("connecting to {server}"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

fn ask(stream: &mut TcpStream, server: Ipv4Addr, path: &str, connection: &str) -> Result<()> {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes()).context("asking")
}

/// Reads the head of an answer: the length of its body, and what of it came already.
fn head(stream: &mut TcpStream) -> Result<(usize, Vec<u8>)> {
    let mut taken = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).context("reading an answer")?;
        ensure!(length > 0, "the connection ended in the head of an answer");
        taken.extend_from_slice(&buffer[..length]);
        let end = taken.windows(4).position(|four| four == b"\r\n\r\n");
        let Some(end) = end else {
            ensure!(taken.len() < HEAD_MAX, "an answer's head has no end");
            continue;
        };
        let body = taken.split_off(end + 4);
        let head = String::from_utf8_lossy(&taken);
        ensure!(head.starts_with("HTTP/1.1 200 "), "the answer is {head}");
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.trim().parse::<usize>().ok())?
        });
        return Ok((length.context("an answer does not say its length")?, body));
    }
}

/// Has the kernel drop what came, without copying it.
fn throw_away(stream: &TcpStream, most: usize) -> Result<usize> {
    // With MSG_TRUNC nothing is written to the buffer (tcp(7)): its length is all that matters.
    thread_local! {
        static BUFFER: std::cell::RefCell<Vec<MaybeUninit<u8>>> =
            std::cell::RefCell::new(vec![MaybeUninit::uninit(); PIECE]);
    }
    let socket = socket2::SockRef::from(stream);
    BUFFER.with_borrow_mut(|buffer| {
        match socket.recv_with_flags(&mut buffer[..most], nix::libc::MSG_TRUNC) {
            Ok(taken) => Ok(taken),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!("nothing came for {PATIENCE:?}")
            }
            Err(error) => Err(error).context("reading a body"),
        }
    })
}
