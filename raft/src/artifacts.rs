//! The bytes of artifacts: spread over a quorum, pulled by the rest, streamed from whoever has them.

pub mod holdings;
mod keep;
mod pull;
mod uploads;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt, TryStreamExt};
use muster_storage::NodeId;
use muster_storage::blobs::Blobs;
use muster_storage::model::{Object, ObjectKind, Sha256};
use rand::seq::SliceRandom as _;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::Semaphore;

use crate::Error;
use crate::inner::Inner;
use crate::peer::CHUNK_BYTES;
use crate::wire::proto;

pub use holdings::{Holdings, Placement};
pub use keep::{Keep, Kept};
pub use pull::{Arriving, Pulls, hold, join};
pub use uploads::{UPLOAD_KEPT, Upload, UploadNote, Uploads};
pub use writer::ArtifactWriter;

/// Artifacts pulled at a time of those that nobody waits for.
const PULLS: usize = 2;
/// A peer that sends nothing for as long as this is left for another.
const STALL: Duration = Duration::from_secs(10);
/// Until what could not be pulled is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Bytes of a file that is here, from `offset` on.
pub async fn read(
    blobs: &Blobs,
    sha: Sha256,
    offset: u64,
) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
    let mut file = tokio::fs::File::open(blobs.path(&sha)).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    Ok(futures::stream::try_unfold(file, |mut file| async move {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let limit = CHUNK_BYTES as u64;
        (&mut file).take(limit).read_to_end(&mut chunk).await?;
        Ok((!chunk.is_empty()).then(|| (Bytes::from(chunk), file)))
    }))
}

type Pieces = std::pin::Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Bytes of an artifact from one peer.
async fn read_from(inner: &Inner, peer: u64, sha: Sha256, offset: u64) -> io::Result<Pieces> {
    let mut bulk = inner.links.to(peer).map_err(io::Error::other)?.bulk;
    let call = bulk.fetch(proto::FetchRequest {
        sha256: sha.0.to_vec().into(),
        offset,
    });
    let stalled = || io::Error::new(io::ErrorKind::TimedOut, "the peer stopped sending");
    let pieces = tokio::time::timeout(STALL, call)
        .await
        .map_err(|_| stalled())?
        .map_err(io::Error::other)?
        .into_inner();
    Ok(Box::pin(futures::stream::try_unfold(
        pieces,
        move |mut pieces| async move {
            let piece = tokio::time::timeout(STALL, pieces.message())
                .await
                .map_err(|_| stalled())?
                .map_err(io::Error::other)?;
            Ok(piece.map(|piece| (piece.bytes, pieces)))
        },
    )))
}

/// Live peers, `first` before the others, which come in any order: they share the work, and one whose
/// bytes are bad is not asked first again and again.
fn sources(inner: &Inner, first: Option<u64>) -> Vec<u64> {
    let mut peers: Vec<u64> = inner.board.live().borrow().clone();
    peers.shuffle(&mut rand::rng());
    peers.sort_by_key(|peer| Some(*peer) != first);
    peers
}

struct Fetching {
    inner: Arc<Inner>,
    sha: Sha256,
    offset: u64,
    pieces: Pieces,
    left: Vec<u64>,
}

/// Bytes of an artifact from any live peer that has it; goes on at another when one fails.
pub async fn fetch(
    inner: &Arc<Inner>,
    sha: Sha256,
    offset: u64,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, Error> {
    let mut left = sources(inner, None);
    left.reverse();
    let (pieces, left) = open_next(inner, sha, offset, left)
        .await
        .ok_or_else(|| Error::NoSuchArtifact(sha.to_string()))?;
    let fetching = Fetching {
        inner: Arc::clone(inner),
        sha,
        offset,
        pieces,
        left,
    };
    Ok(futures::stream::try_unfold(
        fetching,
        |mut fetching| async move {
            loop {
                match fetching.pieces.try_next().await {
                    Ok(Some(bytes)) => {
                        fetching.offset += bytes.len() as u64;
                        return Ok(Some((bytes, fetching)));
                    }
                    Ok(None) => return Ok(None),
                    Err(error) => {
                        let left = std::mem::take(&mut fetching.left);
                        let next = open_next(&fetching.inner, fetching.sha, fetching.offset, left);
                        let (pieces, left) = next.await.ok_or(error)?;
                        fetching.pieces = pieces;
                        fetching.left = left;
                    }
                }
            }
        },
    ))
}

async fn open_next(
    inner: &Inner,
    sha: Sha256,
    offset: u64,
    mut left: Vec<u64>,
) -> Option<(Pieces, Vec<u64>)> {
    while let Some(peer) = left.pop() {
        match read_from(inner, peer, sha, offset).await {
            Ok(pieces) => return Some((pieces, left)),
            Err(error) => tracing::debug!(peer, sha256 = %sha, %error, "cannot fetch an artifact"),
        }
    }
    None
}

/// Asks all live peers to hold the artifact; resolves once a quorum of voters does, this node
/// among them. The others go on.
pub async fn spread(inner: &Arc<Inner>, sha: Sha256, size: u64) -> Result<Vec<NodeId>, Error> {
    if inner.blobs.size(&sha) != Some(size) {
        return Err(Error::NoSuchArtifact(sha.to_string()));
    }
    let view = inner.view();
    let (sender, mut holders) = tokio::sync::mpsc::unbounded_channel();
    for peer in sources(inner, None) {
        let (inner, sender) = (Arc::clone(inner), sender.clone());
        let asking = Arc::clone(&inner);
        inner.spawn(async move {
            let Ok(mut link) = asking.links.to(peer) else {
                return;
            };
            let call = link.bulk.hold(proto::HoldRequest {
                sha256: sha.0.to_vec().into(),
                size,
            });
            if let Ok(reply) = call.await {
                let _ = sender.send((peer, reply.into_inner()));
            }
        });
    }
    drop(sender);
    let mut held: BTreeSet<u64> = BTreeSet::from([inner.id.0]);
    let mut full = false;
    while !view.is_quorum(|id| held.contains(&id)) {
        match holders.recv().await {
            Some((peer, proto::HoldReply { held: true, .. })) => {
                held.insert(peer);
            }
            Some((_, reply)) => full |= reply.full,
            None if full => return Err(Error::NoRoom),
            None => {
                return Err(Error::Refused(
                    "fewer than a quorum of nodes could store the artifact; see `muster cluster \
                     status`"
                        .into(),
                ));
            }
        }
    }
    Ok(held.into_iter().map(NodeId).collect())
}

/// Digests and sizes of all artifacts that the state names and this node lacks; shows how many.
fn missing(inner: &Inner) -> BTreeMap<Sha256, u64> {
    let named: BTreeMap<Sha256, u64> = inner.memory.read(|state| {
        state
            .objects_after(ObjectKind::Artifact, None)
            .filter_map(|record| match &record.object {
                Object::Artifact(artifact) => Some((artifact.sha256, artifact.size)),
                _ => None,
            })
            .collect()
    });
    let lacking: BTreeMap<Sha256, u64> = named
        .into_iter()
        .filter(|(sha, size)| match inner.blobs.size(sha) {
            None => true,
            Some(found) if found == *size => false,
            Some(_) => {
                tracing::error!(sha256 = %sha, "an artifact's file has another length; it is put aside");
                if let Err(error) = inner.blobs.set_aside(sha) {
                    tracing::error!(sha256 = %sha, %error, "an artifact's file cannot be put aside");
                }
                true
            }
        })
        .collect();
    metrics::gauge!("muster_raft_artifacts_missing").set(lacking.len() as f64);
    lacking
}

/// Keeps up with the artifacts of the cluster.
pub async fn run(inner: Arc<Inner>) {
    tokio::join!(pull_missing(Arc::clone(&inner)), holdings::run(inner));
}

/// Keeps pulling what this node lacks. What there is no room for waits for it.
async fn pull_missing(inner: Arc<Inner>) {
    let mut progress = inner.progress.clone();
    let permits = Arc::new(Semaphore::new(PULLS));
    let mut told = None;
    loop {
        let lacking = missing(&inner);
        let mut pulls: FuturesUnordered<_> = lacking
            .into_iter()
            .map(|(sha, size)| {
                let (inner, permits) = (&inner, &permits);
                async move {
                    let _permit = permits.acquire().await;
                    hold(inner, sha, size, None).await
                }
            })
            .collect();
        let mut failed = None;
        while let Some(held) = pulls.next().await {
            failed = held.err().or(failed);
        }
        drop(pulls);
        // It may be long until something changes.
        missing(&inner);
        let kind = failed.as_ref().map(io::Error::kind);
        if let Some(error) = failed.filter(|_| kind != told) {
            tracing::warn!(%error, "cannot pull all artifacts yet");
        }
        told = kind;
        // Changes come in bursts; looking once a second is enough.
        tokio::time::sleep(Duration::from_secs(1)).await;
        if told.is_some() {
            let _ = tokio::time::timeout(RETRY, progress.changed()).await;
        } else if progress.changed().await.is_err() {
            return;
        }
    }
}
