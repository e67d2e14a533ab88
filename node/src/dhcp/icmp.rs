//! ICMP echo (RFC 792): whether somebody has an address behind a relay, where ARP does not reach.

use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::frame::checksum;

/// Octets of a message without data.
const LENGTH: usize = 8;

const ECHO: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// A socket that sends echo requests and hears the replies to them, and no other ICMP.
#[derive(Debug)]
pub struct EchoSocket {
    socket: AsyncFd<Socket>,
    /// Tells replies to these requests from those to others of this host.
    identifier: u16,
}

impl EchoSocket {
    /// Opens one.
    ///
    /// # Errors
    /// Without the right to send raw packets (`CAP_NET_RAW`).
    pub fn open(identifier: u16) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        socket.set_nonblocking(true)?;
        socket.attach_filter(&[
            // Behind the IP header, however long it is: the type, the identifier; all of a reply to us,
            // nothing of anything else.
            SockFilter::new(0xb1, 0, 0, 0),
            SockFilter::new(0x50, 0, 0, 0),
            SockFilter::new(0x15, 0, 3, u32::from(ECHO_REPLY)),
            SockFilter::new(0x48, 0, 0, 4),
            SockFilter::new(0x15, 0, 1, u32::from(identifier)),
            SockFilter::new(0x06, 0, 0, u32::from(u16::MAX)),
            SockFilter::new(0x06, 0, 0, 0),
        ])?;
        // SAFETY: a socket is one open file, which stays open until it is dropped with this.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket, identifier })
    }

    /// Asks whether somebody has an address. That there is no way to it is an answer too: nobody that
    /// matters.
    ///
    /// # Errors
    /// When the socket is broken.
    pub fn probe(&self, address: Ipv4Addr) -> io::Result<()> {
        let to = SocketAddrV4::new(address, 0);
        let sent = self
            .socket
            .get_ref()
            .send_to(&request(self.identifier), &to.into());
        match sent {
            Err(problem) if problem.kind() == io::ErrorKind::PermissionDenied => Err(problem),
            _ => Ok(()),
        }
    }

    /// The next address that answers.
    ///
    /// # Errors
    /// When the socket is broken.
    pub async fn next(&self) -> io::Result<Ipv4Addr> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); 128];
            let read = |socket: &AsyncFd<Socket>| socket.get_ref().recv_from(&mut buffer);
            match ready.try_io(read) {
                Ok(Ok((_octets, from))) => {
                    if let Some(from) = from.as_socket_ipv4() {
                        return Ok(*from.ip());
                    }
                }
                // What the kernel says of an earlier request is no answer to it.
                Ok(Err(problem)) if is_of_one_request(&problem) => {}
                Ok(Err(problem)) => return Err(problem),
                Err(_would_block) => {}
            }
        }
    }
}

fn is_of_one_request(problem: &io::Error) -> bool {
    matches!(
        problem.kind(),
        io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

fn request(identifier: u16) -> [u8; LENGTH] {
    let [high, low] = identifier.to_be_bytes();
    let sum = checksum(&[&[ECHO, 0, 0, 0, high, low, 0, 0]]);
    let [sum_high, sum_low] = sum.to_be_bytes();
    [ECHO, 0, sum_high, sum_low, high, low, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_add_up() {
        for identifier in [0, 1, 0x1234, u16::MAX] {
            assert_eq!(checksum(&[&request(identifier)]), 0);
        }
    }
}
