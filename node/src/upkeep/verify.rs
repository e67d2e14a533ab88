//! Files are read again, slowly, and compared with their digests. One that is damaged is put aside,
//! which makes it missing: it is pulled again like any that this node lacks.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use muster_raft::Cluster;
use muster_storage::model::{Sha256, Trouble};
use rustix::fs::{Advice, fadvise};
use sha2::Digest as _;
use tokio::time::{Instant, sleep};

use super::{DAMAGED, VERIFIED};
use crate::alert;

/// Octets read in a second at most: machines that boot must not notice.
const RATE: u32 = 16 << 20;
/// Octets read at a time.
const CHUNK: usize = 1 << 20;
/// After a start machines may be waiting; what there is to verify can wait longer.
const FIRST: Duration = Duration::from_secs(600);
/// How often it is looked whether the interval was changed.
const LOOK: Duration = Duration::from_secs(1);

/// Verifies for ever.
pub(super) async fn run(cluster: Cluster) {
    let mut began = Instant::now();
    let mut first = true;
    loop {
        loop {
            let every = cluster.read(|state| state.settings().artifacts.verify_secs);
            let every = Duration::from_secs(u64::from(every));
            let wait = if first { every.min(FIRST) } else { every };
            if began.elapsed() >= wait {
                break;
            }
            sleep(LOOK).await;
        }
        (began, first) = (Instant::now(), false);
        if let Err(error) = round(&cluster).await {
            tracing::warn!(%error, "artifacts cannot be verified");
        }
    }
}

/// Verifies all files once.
async fn round(cluster: &Cluster) -> io::Result<()> {
    let blobs = cluster.blobs().clone();
    let held = tokio::task::spawn_blocking(move || blobs.list()).await;
    for sha256 in held.map_err(io::Error::other)?? {
        let problem = match digest(cluster, sha256).await {
            Ok(found) if found == sha256 => continue,
            Ok(found) => format!("its bytes have the SHA-256 {found}"),
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => format!("it cannot be read: {error}"),
        };
        put_aside(cluster, sha256, problem).await?;
    }
    Ok(())
}

async fn digest(cluster: &Cluster, sha256: Sha256) -> io::Result<Sha256> {
    let path = cluster.blobs().path(&sha256);
    let opened = tokio::task::spawn_blocking(move || File::open(path)).await;
    let file = Arc::new(opened.map_err(io::Error::other)??);
    let (mut hash, mut chunk, mut at) = (sha2::Sha256::new(), vec![0; CHUNK], 0);
    loop {
        let began = Instant::now();
        let reading = Arc::clone(&file);
        let read = move || {
            let length = read_from_disk(&reading, &mut chunk, at)?;
            hash.update(chunk.get(..length).unwrap_or_default());
            Ok::<_, io::Error>((hash, chunk, length))
        };
        let length;
        (hash, chunk, length) = tokio::task::spawn_blocking(read)
            .await
            .map_err(io::Error::other)??;
        if length == 0 {
            return Ok(Sha256(hash.finalize().into()));
        }
        at = at.saturating_add(length as u64);
        counter!(VERIFIED).increment(length as u64);
        let pace = Duration::from_secs(1) * u32::try_from(length).unwrap_or(RATE) / RATE;
        sleep(pace.saturating_sub(began.elapsed())).await;
    }
}

/// Reads what is on the disk, not what is in memory of it. Blocks.
fn read_from_disk(file: &File, chunk: &mut [u8], at: u64) -> io::Result<usize> {
    use std::os::unix::fs::FileExt as _;
    let length = std::num::NonZeroU64::new(chunk.len() as u64);
    // Where that is not possible memory has to do.
    let _ = fadvise(file, at, length, Advice::DontNeed);
    loop {
        match file.read_at(chunk, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

async fn put_aside(cluster: &Cluster, sha256: Sha256, problem: String) -> io::Result<()> {
    let blobs = cluster.blobs().clone();
    let aside = tokio::task::spawn_blocking(move || blobs.set_aside(&sha256)).await;
    let aside = aside.map_err(io::Error::other)??;
    counter!(DAMAGED).increment(1);
    tracing::error!(%sha256, error = problem, file = %aside.display(), "an artifact on this node's disk is damaged; it is put aside and pulled again from another node");
    tokio::spawn(alert::raise(
        cluster.clone(),
        Trouble::ArtifactDamaged { sha256, problem },
    ));
    Ok(())
}
