//! Pulling what this node lacks onto its disk, once for however many ask, who may read it meanwhile.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::TryStreamExt;
use muster_storage::model::Sha256;
use tokio::sync::watch;

use super::writer::ArtifactWriter;
use super::{read_from, sources};
use crate::inner::Inner;

/// Artifacts pulled at a time, for whatever reason. What is asked for beyond that is streamed and not
/// stored.
const PULLS_MAX: usize = 64;

/// Artifacts that are being pulled, so that nobody pulls one twice.
#[derive(Default)]
pub struct Pulls {
    running: Mutex<BTreeMap<Sha256, Arriving>>,
}

impl Pulls {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Sha256, Arriving>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far a pull has got; an error in a form that many can be told.
#[derive(Clone, Debug)]
enum Progress {
    /// So many octets are in the file.
    Written(u64),
    /// All of them, verified.
    Whole,
    Failed(ErrorKind, String),
}

/// A file that is being pulled. What of it is there can be read by offset; it is verified when it is
/// whole.
#[derive(Clone, Debug)]
pub struct Arriving {
    file: Arc<File>,
    progress: watch::Receiver<Progress>,
}

impl Arriving {
    /// The file, as far as it goes.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Octets that can be read now.
    pub fn written(&self) -> u64 {
        match *self.progress.borrow() {
            Progress::Written(octets) => octets,
            Progress::Whole => u64::MAX,
            Progress::Failed(..) => 0,
        }
    }

    /// Waits until so many octets can be read.
    ///
    /// # Errors
    /// When the pull fails before.
    pub async fn wait(&mut self, octets: u64) -> io::Result<()> {
        self.settled(|progress| match progress {
            Progress::Written(written) => *written >= octets,
            Progress::Whole | Progress::Failed(..) => true,
        })
        .await
    }

    /// Waits until the file is whole, verified and in its place.
    async fn whole(mut self) -> io::Result<()> {
        self.settled(|progress| !matches!(progress, Progress::Written(_)))
            .await
    }

    async fn settled(&mut self, settled: impl FnMut(&Progress) -> bool) -> io::Result<()> {
        let progress = self.progress.wait_for(settled).await;
        match progress.as_deref() {
            Ok(Progress::Failed(kind, why)) => Err(io::Error::new(*kind, why.clone())),
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("the pull was given up")),
        }
    }
}

/// Has the artifact of `size` octets on this node's disk, pulling it if need be; `first` is asked
/// first.
///
/// # Errors
/// Of kind `StorageFull` when the disk has no room for it; and when no peer could give it.
pub async fn hold(
    inner: &Arc<Inner>,
    sha: Sha256,
    size: u64,
    first: Option<u64>,
) -> io::Result<()> {
    if inner.blobs.size(&sha) == Some(size) {
        return Ok(());
    }
    join(inner, sha, size, first)?.whole().await
}

/// The pull of an artifact of `size` octets, begun if nobody has; `first` is asked first.
///
/// # Errors
/// Of kind `StorageFull` when the disk has no room for it, `ResourceBusy` when too many are being
/// pulled; else when the disk fails.
pub fn join(
    inner: &Arc<Inner>,
    sha: Sha256,
    size: u64,
    first: Option<u64>,
) -> io::Result<Arriving> {
    let mut running = inner.pulls.lock();
    if let Some(arriving) = running.get(&sha) {
        return Ok(arriving.clone());
    }
    if running.len() >= PULLS_MAX {
        return Err(io::Error::new(
            ErrorKind::ResourceBusy,
            "too many artifacts are being pulled",
        ));
    }
    let writer = ArtifactWriter::begin(inner, size)?;
    let (progress, seen) = watch::channel(Progress::Written(0));
    let arriving = Arriving {
        file: Arc::new(writer.file()?),
        progress: seen,
    };
    running.insert(sha, arriving.clone());
    drop(running);
    let puller = Arc::clone(inner);
    inner.spawn(async move {
        let pulled = pull(&puller, writer, sha, size, first, &progress).await;
        puller.pulls.lock().remove(&sha);
        progress.send_replace(match pulled {
            Ok(()) => {
                metrics::counter!("muster_raft_artifact_pulled_bytes_total").increment(size);
                Progress::Whole
            }
            Err(error) => {
                tracing::debug!(sha256 = %sha, %error, "cannot pull an artifact");
                Progress::Failed(error.kind(), error.to_string())
            }
        });
    });
    Ok(arriving)
}

/// Writes what peers give, each going on where the one before it failed.
async fn pull(
    inner: &Arc<Inner>,
    mut writer: ArtifactWriter,
    sha: Sha256,
    size: u64,
    first: Option<u64>,
    progress: &watch::Sender<Progress>,
) -> io::Result<()> {
    let mut written = 0;
    let mut last = io::Error::new(ErrorKind::NotFound, "no live peer has it");
    for peer in sources(inner, first) {
        if written == size {
            break;
        }
        let mut pieces = match read_from(inner, peer, sha, written).await {
            Ok(pieces) => pieces,
            Err(error) => {
                last = error;
                continue;
            }
        };
        loop {
            let bytes = match pieces.try_next().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break,
                Err(error) => {
                    last = error;
                    break;
                }
            };
            written += bytes.len() as u64;
            if written > size {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    "a peer sent more than there should be",
                ));
            }
            writer = tokio::task::spawn_blocking(move || writer.write(&bytes).map(|()| writer))
                .await
                .map_err(io::Error::other)??;
            progress.send_replace(Progress::Written(written));
        }
    }
    if written < size {
        return Err(last);
    }
    tokio::task::spawn_blocking(move || writer.finish(Some(sha)))
        .await
        .map_err(io::Error::other)??;
    Ok(())
}
