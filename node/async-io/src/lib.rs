//! What async-tftp waits with, on tokio: the part of the `async-io` crate's interface that it uses.
//!
//! A TFTP block is a round trip, and waiting is most of what a server does for it. The crate whose place
//! this takes asks the kernel for each packet and each time-out anew, and wakes itself for them; tokio's
//! reactor is told of a socket once and keeps time-outs to itself. So async-tftp runs on tokio as
//! everything else does: `docs/adr/0014-tftp-runs-on-threads-of-its-own.md`.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long to wait when the kernel has no room for another packet: a gigabit drains what it holds for a
/// socket in little more.
const FULL: Duration = Duration::from_millis(1);

/// A socket that is waited for by the tokio runtime in which it was made.
#[derive(Debug)]
pub struct Async<T: AsRawFd> {
    /// Waited for to be read only: that it can be written to again is news after each packet.
    socket: AsyncFd<T>,
    /// Whom it is connected to, if it is for one peer only.
    peer: Option<OnceLock<SocketAddr>>,
}

impl<T: AsRawFd> Async<T> {
    /// The socket itself.
    pub fn get_ref(&self) -> &T {
        self.socket.get_ref()
    }
}

impl<T: AsRawFd> AsRef<T> for Async<T> {
    fn as_ref(&self) -> &T {
        self.get_ref()
    }
}

impl Async<UdpSocket> {
    /// Takes a socket, which does not block from then on.
    ///
    /// # Errors
    /// When the system refuses.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // SAFETY: the socket owns its descriptor, which is open for as long as the socket is there.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket, peer: None })
    }

    /// A socket at this address for one peer, as one transfer is: whom it sends to first. The kernel
    /// then looks for the way once and not for each packet, drops what others send, and says when the
    /// peer's port is closed.
    ///
    /// # Errors
    /// When the address is not this host's, or taken.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn bind(address: impl Into<SocketAddr>) -> io::Result<Self> {
        let socket = Self::new(UdpSocket::bind(address.into())?)?;
        Ok(Self {
            peer: Some(OnceLock::new()),
            ..socket
        })
    }

    /// Waits for a packet: its length, and who sent it. What `buffer` is too short for is lost.
    ///
    /// # Errors
    /// What the system says of the socket; of one for one peer, `ConnectionRefused` alone, when the
    /// peer's port is closed.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            // That a port is closed is an error and nothing to read.
            let got = self
                .socket
                .async_io(Interest::READABLE | Interest::ERROR, |socket| {
                    socket.recv_from(buffer)
                });
            match got.await {
                Err(error) if self.is_passing(&error) => {}
                got => return got,
            }
        }
    }

    /// Sends a packet, waiting for room.
    ///
    /// # Errors
    /// When the system does not take it; `ConnectionRefused` when the peer's port is closed;
    /// `InvalidInput` for another than the one peer.
    pub async fn send_to(&self, packet: &[u8], to: impl Into<SocketAddr>) -> io::Result<usize> {
        let to = to.into();
        let is_connected = self.connect(to)?;
        let send = || match is_connected {
            true => self.get_ref().send(packet),
            false => self.get_ref().send_to(packet, to),
        };
        let mut is_told = false;
        loop {
            match send() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(FULL).await;
                }
                // It may be of an earlier packet, and is told once.
                Err(error) if !is_told && self.is_passing(&error) => is_told = true,
                sent => return sent,
            }
        }
    }

    /// Whether an error is one that routers told on the way to the one peer. TFTP would not hear of it
    /// without being connected, and what is sent again may arrive: in parts, where it was too long for
    /// a link, or by a router that has come back.
    fn is_passing(&self, error: &io::Error) -> bool {
        self.peer.is_some() && error.kind() != io::ErrorKind::ConnectionRefused
    }

    /// Connects a socket that is for one peer to its first; whether it is connected.
    fn connect(&self, to: SocketAddr) -> io::Result<bool> {
        let Some(peer) = &self.peer else {
            return Ok(false);
        };
        if peer.get().is_none() {
            self.get_ref().connect(to)?;
        }
        match *peer.get_or_init(|| to) == to {
            true => Ok(true),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// Waits for a time.
#[derive(Debug)]
pub struct Timer;

impl Timer {
    /// Waits for so long; gives the time after it.
    ///
    /// # Panics
    /// Outside of a tokio runtime that keeps time.
    pub async fn after(duration: Duration) -> Instant {
        tokio::time::sleep(duration).await;
        Instant::now()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn listening() -> (Async<UdpSocket>, SocketAddr) {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let address = socket.local_addr().unwrap();
        (Async::<UdpSocket>::new(socket).unwrap(), address)
    }

    fn bound() -> Async<UdpSocket> {
        Async::<UdpSocket>::bind(([127, 0, 0, 1], 0)).unwrap()
    }

    /// Echoes so many packets.
    async fn echo(server: &Async<UdpSocket>, packets: usize) {
        let mut buffer = [0; 16];
        for _ in 0..packets {
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            server.send_to(&buffer[..length], from).await.unwrap();
        }
    }

    #[tokio::test]
    async fn who_waits_is_woken_and_no_packet_is_missed() {
        let (server, address) = listening();
        let client = bound();
        let ask = async {
            let mut buffer = [0; 16];
            for round in 0..100_u8 {
                for packet in 0..5 {
                    client.send_to(&[round, packet], address).await.unwrap();
                }
                for packet in 0..5 {
                    let (length, from) = client.recv_from(&mut buffer).await.unwrap();
                    assert_eq!((&buffer[..length], from), (&[round, packet][..], address));
                }
            }
            tokio::select! {
                biased;
                got = client.recv_from(&mut buffer) => panic!("{got:?}"),
                _ = Timer::after(Duration::from_millis(1)) => {}
            }
        };
        tokio::join!(echo(&server, 500), ask);
    }

    #[tokio::test]
    async fn a_bound_socket_is_for_one_peer() {
        let ((server, address), (stranger, strange)) = (listening(), listening());
        let client = bound();
        client.send_to(b"1", address).await.unwrap();
        let own = client.get_ref().local_addr().unwrap();
        stranger.send_to(b"2", own).await.unwrap();
        server.send_to(b"3", own).await.unwrap();
        let mut buffer = [0; 16];
        let got = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!((got, buffer[0]), ((1, address), b'3'));
        let other = client.send_to(b"4", strange).await.unwrap_err();
        assert_eq!(other.kind(), io::ErrorKind::InvalidInput);
    }

    #[tokio::test]
    async fn who_waits_hears_that_the_peer_is_gone() {
        let (server, address) = listening();
        let client = bound();
        let ask = async {
            let mut buffer = [0; 16];
            client.send_to(b"1", address).await.unwrap();
            client.recv_from(&mut buffer).await.unwrap();
            client.recv_from(&mut buffer).await.unwrap_err()
        };
        // The second wait has begun when this goes on.
        let leave = async {
            echo(&server, 1).await;
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            drop(server);
            client.send_to(b"2", address).await.unwrap();
        };
        let both = async { tokio::join!(ask, leave) };
        let (gone, ()) = tokio::time::timeout(Duration::from_secs(10), both)
            .await
            .unwrap();
        assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
    }
}
