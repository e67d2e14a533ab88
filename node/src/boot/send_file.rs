//! Octets of files go from the page cache to the socket without passing through this process.
//!
//! HTTP is hyper's, which has no place for that. So the body of an answer stands for the octets
//! without having them: its chunks are parts of [`HOLE`], and what belongs there waits in the
//! connection's [`Outbox`]. The connection knows the hole by its address and sends the file instead
//! (sendfile(2)). A file that ends early ends the connection, as does anything that does not fit
//! together: what is in the hole is never sent.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustix::io::Errno;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::metrics;

/// Octets that one chunk stands for at most.
pub const CHUNK: usize = 1024 * 1024;

/// What chunks are parts of. It is never read nor written, so it takes no memory.
static HOLE: [u8; CHUNK] = [0; CHUNK];

fn is_hole(slice: &[u8]) -> bool {
    HOLE.as_ptr_range().contains(&slice.as_ptr())
}

/// What is to be sent in the place of chunks, in their order. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Outbox(Arc<Mutex<VecDeque<Piece>>>);

#[derive(Debug)]
struct Piece {
    file: Arc<File>,
    at: u64,
    left: usize,
    /// Whether nothing of the file comes after it.
    last: bool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Piece>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A chunk in whose place the octets of a file from `part.start` on are sent: all of `part`, but
    /// not more than [`CHUNK`].
    pub fn chunk(&self, file: Arc<File>, part: Range<u64>) -> Bytes {
        let length = part.end.saturating_sub(part.start);
        let left = usize::try_from(length).unwrap_or(CHUNK).min(CHUNK);
        self.lock().push_back(Piece {
            file,
            at: part.start,
            left,
            last: left as u64 == length,
        });
        Bytes::from_static(&HOLE[..left])
    }

    /// Sends some of the next piece, at most `length` octets, if the socket takes any; and whether
    /// that was the end of the file.
    fn send(&self, stream: &TcpStream, length: usize) -> io::Result<(usize, bool)> {
        let mut pieces = self.lock();
        let unfit = || io::Error::other("a chunk has nothing to be sent in its place");
        let piece = pieces.front_mut().ok_or_else(unfit)?;
        let wanted = length.min(piece.left);
        let sent = loop {
            match rustix::fs::sendfile(stream, &piece.file, Some(&mut piece.at), wanted) {
                Err(Errno::INTR) => {}
                sent => break sent?,
            }
        };
        if sent == 0 {
            let cut = "the file ended before what was announced of it";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cut));
        }
        piece.left = piece.left.saturating_sub(sent);
        let ended = piece.last && piece.left == 0;
        if piece.left == 0 {
            pieces.pop_front();
        }
        Ok((sent, ended))
    }
}

/// A connection that sends files.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    outbox: Outbox,
    corked: bool,
}

impl Connection {
    /// Sends what `outbox` gets in its place.
    pub fn new(stream: TcpStream, outbox: Outbox) -> Self {
        Self {
            stream,
            outbox,
            corked: false,
        }
    }

    /// Whether the kernel gathers octets into full segments, as it does until the end of a file:
    /// without it each 64 KiB are pushed out by themselves.
    fn cork(&mut self, corked: bool) {
        if self.corked != corked {
            // What it is for is speed alone.
            let _ = SockRef::from(&self.stream).set_tcp_cork(corked);
            self.corked = corked;
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>, length: usize) -> Poll<io::Result<usize>> {
        self.cork(true);
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            let send = || self.outbox.send(&self.stream, length);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    let (sent, ended) = sent?;
                    metrics::sent(sent as u64);
                    if ended {
                        self.cork(false);
                    }
                    return Poll::Ready(Ok(sent));
                }
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        if is_hole(octets) {
            return self.poll_send(context, octets.len());
        }
        Pin::new(&mut self.stream).poll_write(context, octets)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let empty = slices.iter().take_while(|slice| slice.is_empty()).count();
        let slices = slices.get(empty..).unwrap_or_default();
        match slices.first() {
            Some(first) if is_hole(first) => self.poll_send(context, first.len()),
            _ => {
                // What comes before the hole goes first, all at once.
                let octets = slices.iter().take_while(|slice| !is_hole(slice)).count();
                let octets = slices.get(..octets).unwrap_or_default();
                Pin::new(&mut self.stream).poll_write_vectored(context, octets)
            }
        }
    }

    /// Else hyper would copy the chunks together.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
