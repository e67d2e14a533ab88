//! HTTP as firmware does it: one request at a time, and no more patience than the client that is
//! played has.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Socket, Type};

/// More is no head of an answer.
const HEAD_MAX: usize = 8192;

/// How long a client waits for a server that says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the next octet on one.
    pub silence: Duration,
}

/// What a URL names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Where.
    pub server: SocketAddr,
    /// What, with its query.
    pub path: String,
}

impl Url {
    /// Reads `http://ADDRESS[:PORT]/PATH`.
    pub fn parse(text: &str) -> Result<Self> {
        let rest = text
            .strip_prefix("http://")
            .with_context(|| format!("{text} is no plain HTTP"))?;
        let (server, path) = rest.split_once('/').unwrap_or((rest, ""));
        let with_port = match server.contains(':') {
            true => server.to_owned(),
            false => format!("{server}:80"),
        };
        Ok(Self {
            server: with_port
                .parse()
                .with_context(|| format!("{text} names no address"))?,
            path: format!("/{path}"),
        })
    }
}

/// A connection to one server.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    server: SocketAddr,
    patience: Patience,
}

/// An answer: its length as the head says, and its body.
#[derive(Debug)]
pub struct Answer {
    /// `Content-Length`.
    pub length: usize,
    /// The body; empty after HEAD.
    pub body: Vec<u8>,
}

/// Fetches a file whole.
pub fn get(from: Ipv4Addr, url: &str, patience: Patience) -> Result<Vec<u8>> {
    let url = Url::parse(url)?;
    let mut connection = Connection::open(from, url.server, patience)?;
    Ok(connection.ask("GET", &url.path, b"")?.body)
}

/// Sends a body.
pub fn post(from: Ipv4Addr, url: &str, body: &[u8], patience: Patience) -> Result<()> {
    let url = Url::parse(url)?;
    Connection::open(from, url.server, patience)?
        .ask("POST", &url.path, body)
        .map(drop)
}

impl Connection {
    /// Connects from an address of this host.
    pub fn open(from: Ipv4Addr, server: SocketAddr, patience: Patience) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("opening a socket")?;
        let own = SocketAddr::from((from, 0));
        socket
            .bind(&own.into())
            .with_context(|| format!("binding {from}"))?;
        socket
            .connect_timeout(&server.into(), patience.connect)
            .with_context(|| format!("connecting to {server}"))?;
        Ok(Self {
            stream: socket.into(),
            server,
            patience,
        })
    }

    /// Asks; an answer other than 200 is an error.
    pub fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
        let server = self.server;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {server}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), body].concat();
        self.stream
            .write_all(&request)
            .with_context(|| format!("asking {server}"))?;
        let mut received = Vec::new();
        let end = loop {
            if let Some(at) = received.windows(4).position(|part| part == b"\r\n\r\n") {
                break at + 4;
            }
            ensure!(received.len() < HEAD_MAX, "{server} sends no HTTP");
            self.read(&mut received)?;
        };
        let mut body = received.split_off(end);
        let head = String::from_utf8_lossy(&received);
        let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let wanted = name.eq_ignore_ascii_case("content-length");
            wanted.then(|| value.trim().parse().ok())?
        });
        let length: usize = length.with_context(|| format!("{server} tells no length"))?;
        if method == "HEAD" {
            body.clear();
        } else {
            body.reserve(length.saturating_sub(body.len()));
            while body.len() < length {
                self.read(&mut body)?;
            }
        }
        ensure!(
            status == "200",
            "{server} answers {status} for {path}: {}",
            String::from_utf8_lossy(&body).trim()
        );
        Ok(Answer { length, body })
    }

    /// Reads what there is, waiting for as long as the client does.
    fn read(&mut self, into: &mut Vec<u8>) -> Result<()> {
        let server = self.server;
        let mut buffer = [0; 16 * 1024];
        let end = Instant::now() + self.patience.silence;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            self.stream
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("{server} closes the connection"),
                Ok(length) => {
                    into.extend_from_slice(buffer.get(..length).unwrap_or_default());
                    return Ok(());
                }
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut if left.is_zero() => bail!(
                        "{server} has said nothing for {:.1} s",
                        self.patience.silence.as_secs_f64()
                    ),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                    _ => return Err(error).with_context(|| format!("reading from {server}")),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_server_and_a_path() -> Result<()> {
        let url = Url::parse("http://10.77.0.1:8091/boot.ipxe?mac=52:54:00:00:00:50")?;
        assert_eq!(url.server, "10.77.0.1:8091".parse()?);
        assert_eq!(url.path, "/boot.ipxe?mac=52:54:00:00:00:50");
        assert_eq!(Url::parse("http://10.77.0.1")?.server.port(), 80);
        assert!(Url::parse("tftp://10.77.0.1/x").is_err());
        Ok(())
    }
}
