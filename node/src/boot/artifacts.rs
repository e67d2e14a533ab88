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
            Source::Peers(sha256) => from_peers(cluster, sha256, range).await,
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

/// A part of an artifact that this node lacks. The cluster goes on at another peer when one fails.
async fn from_peers(
    cluster: &Cluster,
    sha256: Sha256,
    range: Range<u64>,
) -> Result<Chunks, Problem> {
    let chunks = cluster.fetch_blob(sha256, range.start).await;
    let chunks = chunks.map_err(|error| {
        tracing::debug!(artifact = %sha256, %error, "no peer gives it");
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
