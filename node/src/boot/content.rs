//! The octets of content: from memory, from this node's disk, or from a peer.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use muster_raft::{Arriving, Cluster};
use muster_storage::model::Sha256;
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use super::send_file::{self, Outbox};
use super::tree::{Content, Problem, Source};
use super::{disk, metrics};

/// Octets read from the disk at a time for TFTP, which has many slow transfers at a time.
const SMALL_CHUNK: usize = 32 * 1024;

/// Who asks for a part of an artifact that this node is pulling waits for it if so much is missing
/// until there; else it is streamed beside.
const AHEAD: u64 = 16 << 20;

type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// How the octets of files are handed on.
#[derive(Clone)]
enum Hand {
    /// By chunks that have them.
    Copy,
    /// By chunks that stand for them.
    Send(Outbox),
}

impl Content {
    /// The octets of `range`, in chunks that the connection of this outbox fills.
    ///
    /// # Errors
    /// When the file is gone, or no peer gives it.
    pub async fn chunks(
        self,
        cluster: &Cluster,
        range: Range<u64>,
        outbox: Outbox,
    ) -> Result<Chunks, Problem> {
        self.chunks_by(Hand::Send(outbox), cluster, range).await
    }

    /// All octets, as a reader.
    ///
    /// # Errors
    /// When the file is gone, or no peer gives it.
    pub async fn reader(self, cluster: &Cluster) -> Result<Reader, Problem> {
        let length = self.length;
        let chunks = self.chunks_by(Hand::Copy, cluster, 0..length).await?;
        Ok(Reader(StreamReader::new(chunks)))
    }

    async fn chunks_by(
        self,
        hand: Hand,
        cluster: &Cluster,
        range: Range<u64>,
    ) -> Result<Chunks, Problem> {
        match self.source {
            Source::Text(text) => {
                let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(text.len());
                let part = text.slice(index(range.start)..index(range.end));
                Ok(counted(futures::stream::iter([Ok(part)]).boxed(), &hand))
            }
            Source::File(path) => {
                let file = disk::open(path).await.map_err(Problem::Disk)?;
                Ok(of_file(file, None, range, hand))
            }
            Source::Peers(sha256) => match arriving(cluster, sha256, self.length, &range).await {
                Some(arriving) => {
                    let file = Arc::clone(arriving.file());
                    Ok(of_file(file, Some(arriving), range, hand))
                }
                None => {
                    let chunks = from_peers(cluster, sha256, range).await?;
                    Ok(counted(chunks, &hand))
                }
            },
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

/// Counts what is sent by HTTP; of files the connection does.
fn counted(chunks: Chunks, hand: &Hand) -> Chunks {
    match hand {
        Hand::Copy => chunks,
        Hand::Send(_) => chunks
            .inspect(|chunk| {
                if let Ok(chunk) = chunk {
                    metrics::sent(chunk.len() as u64);
                }
            })
            .boxed(),
    }
}

/// A part of a file, as it arrives if it is still arriving.
fn of_file(file: Arc<File>, arriving: Option<Arriving>, range: Range<u64>, hand: Hand) -> Chunks {
    let most = match &hand {
        Hand::Copy => SMALL_CHUNK,
        Hand::Send(_) => send_file::CHUNK,
    };
    let begun = (file, arriving, range, hand);
    let next = move |(file, mut arriving, range, hand): (Arc<File>, Option<Arriving>, _, _)| async move {
        let left: Range<u64> = range;
        let length = left.end.saturating_sub(left.start).min(most as u64);
        if length == 0 {
            return Ok(None);
        }
        let end = left.start.saturating_add(length);
        if let Some(arriving) = &mut arriving {
            arriving.wait(end).await?;
        }
        let length = usize::try_from(length).unwrap_or(most);
        let chunk = match &hand {
            Hand::Copy => disk::read(&file, left.start, length).await?,
            Hand::Send(outbox) => {
                disk::warm(&file, left.start, length).await?;
                outbox.chunk(Arc::clone(&file), left.clone())
            }
        };
        Ok(Some((chunk, (file, arriving, end..left.end, hand))))
    };
    futures::stream::try_unfold(begun, next).boxed()
}

/// An artifact that this node lacks, as it arrives, if it does and `range` is not far ahead. A pull
/// that cannot store it leaves that to be said by those who stream it.
async fn arriving(
    cluster: &Cluster,
    sha256: Sha256,
    length: u64,
    range: &Range<u64>,
) -> Option<Arriving> {
    let mut arriving = cluster.arriving_blob(sha256, length).ok()?;
    if range.start > arriving.written().saturating_add(AHEAD) {
        return None;
    }
    // That some peer gives it is seen by its first octets.
    let begun = arriving.wait(1.min(length)).await;
    begun.ok().map(|()| arriving)
}

/// A part of an artifact that this node lacks. The cluster goes on at another peer when one fails.
async fn from_peers(
    cluster: &Cluster,
    sha256: Sha256,
    range: Range<u64>,
) -> Result<Chunks, Problem> {
    let chunks = cluster.fetch_blob(sha256, range.start).await;
    let chunks = chunks.map_err(|error| {
        tracing::debug!(%sha256, %error, "no peer gives it");
        Problem::Peers
    })?;
    let left = range.end.saturating_sub(range.start);
    let step = |(mut chunks, left): (Chunks, u64)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(mut chunk) = chunks.next().await.transpose()? else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left.saturating_sub(chunk.len() as u64);
        Ok(Some((chunk, (chunks, left))))
    };
    Ok(futures::stream::try_unfold((chunks.boxed(), left), step).boxed())
}
