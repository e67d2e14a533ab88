//! Reading content: from memory, from this node's disk, or from a peer.

use std::io::{self, SeekFrom};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use muster_raft::Cluster;
use muster_storage::model::Sha256;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::{ReaderStream, StreamReader};

use super::tree::{Content, Problem, Source};

/// Octets read from the disk at a time for HTTP.
const CHUNK: usize = 256 * 1024;

/// The same for TFTP, which has many slow transfers at a time.
const SMALL_CHUNK: usize = 32 * 1024;

/// Peers that are asked in turn when one ends in the middle.
const ATTEMPTS_MAX: usize = 4;

type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

impl Content {
    /// The octets of `range`, in chunks.
    ///
    /// # Errors
    /// When the file is gone, or no peer gives it.
    pub async fn chunks(self, cluster: &Cluster, range: Range<u64>) -> Result<Chunks, Problem> {
        self.chunks_of(CHUNK, cluster, range).await
    }

    /// All octets, as a reader.
    ///
    /// # Errors
    /// When the file is gone, or no peer gives it.
    pub async fn reader(self, cluster: &Cluster) -> Result<Reader, Problem> {
        let length = self.length;
        let chunks = self.chunks_of(SMALL_CHUNK, cluster, 0..length).await?;
        Ok(Reader(StreamReader::new(chunks)))
    }

    async fn chunks_of(
        self,
        size: usize,
        cluster: &Cluster,
        range: Range<u64>,
    ) -> Result<Chunks, Problem> {
        let length = range.end.saturating_sub(range.start);
        match self.source {
            Source::Text(text) => {
                let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(text.len());
                let part = text.slice(index(range.start)..index(range.end));
                Ok(futures::stream::iter([Ok(part)]).boxed())
            }
            Source::File(path) => {
                let mut file = File::open(path).await.map_err(Problem::Disk)?;
                if range.start > 0 {
                    let from = SeekFrom::Start(range.start);
                    file.seek(from).await.map_err(Problem::Disk)?;
                }
                Ok(ReaderStream::with_capacity(file.take(length), size).boxed())
            }
            Source::Peers(sha256) => from_peers(cluster.clone(), sha256, range).await,
        }
    }
}

/// Reads content from its beginning.
pub struct Reader(StreamReader<Chunks, Bytes>);

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

/// A part of an artifact that this node lacks. A peer that dies in the middle is succeeded by
/// another from where it stopped.
async fn from_peers(
    cluster: Cluster,
    sha256: Sha256,
    range: Range<u64>,
) -> Result<Chunks, Problem> {
    let mut transfer = Transfer {
        cluster,
        sha256,
        next: range.start,
        end: range.end,
        chunks: None,
        attempts: 0,
    };
    // Before anything is promised, the first octets must be there.
    let first = transfer.chunk().await.map_err(|_| Problem::Peers)?;
    let step = |mut transfer: Transfer| async move {
        match transfer.chunk().await {
            Ok(chunk) if chunk.is_empty() => Ok(None),
            Ok(chunk) => Ok(Some((chunk, transfer))),
            Err(error) => Err(error),
        }
    };
    let rest = futures::stream::try_unfold(transfer, step);
    Ok(futures::stream::iter([Ok(first)]).chain(rest).boxed())
}

struct Transfer {
    cluster: Cluster,
    sha256: Sha256,
    next: u64,
    end: u64,
    chunks: Option<Chunks>,
    attempts: usize,
}

impl Transfer {
    /// The next octets; none at the end.
    async fn chunk(&mut self) -> io::Result<Bytes> {
        while self.next < self.end {
            let error = match self.more().await {
                Some(Ok(mut chunk)) if !chunk.is_empty() => {
                    let left = usize::try_from(self.end - self.next).unwrap_or(usize::MAX);
                    chunk.truncate(left);
                    self.next += chunk.len() as u64;
                    return Ok(chunk);
                }
                Some(Err(error)) => error,
                _ => io::ErrorKind::UnexpectedEof.into(),
            };
            self.chunks = None;
            self.attempts += 1;
            tracing::debug!(artifact = %self.sha256, at = self.next, %error, "peer did not give it");
            if self.attempts >= ATTEMPTS_MAX {
                return Err(error);
            }
        }
        Ok(Bytes::new())
    }

    async fn more(&mut self) -> Option<io::Result<Bytes>> {
        if self.chunks.is_none() {
            match self.cluster.fetch_blob(self.sha256, self.next).await {
                Ok(chunks) => self.chunks = Some(chunks.boxed()),
                Err(error) => return Some(Err(io::Error::other(error))),
            }
        }
        self.chunks.as_mut()?.next().await
    }
}
