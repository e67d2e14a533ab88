//! Reading files without holding up the threads that serve: what the page cache has is taken at once,
//! for the rest another thread waits.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::sync::Semaphore;

/// Threads that wait for the disk at a time: more would only make it seek more.
const WAITING_MAX: usize = 16;

static WAITING: Semaphore = Semaphore::const_new(WAITING_MAX);

/// Opens a file for reading.
pub async fn open(path: PathBuf) -> io::Result<Arc<File>> {
    on_thread(move || File::open(path)).await.map(Arc::new)
}

/// The octets from `at` on, `length` of them.
///
/// # Errors
/// `UnexpectedEof` when the file ends before; else when the disk fails.
pub async fn read(file: &Arc<File>, at: u64, length: usize) -> io::Result<Bytes> {
    let mut octets = vec![0; length];
    if without_waiting(file, &mut octets, at) == Some(length) {
        return Ok(octets.into());
    }
    let file = Arc::clone(file);
    on_thread(move || file.read_exact_at(&mut octets, at).map(|()| octets.into())).await
}

/// Has the octets from `at` on, `length` of them, in the page cache, as far as the file goes.
///
/// # Errors
/// When the disk fails.
pub async fn warm(file: &Arc<File>, at: u64, length: usize) -> io::Result<()> {
    let last = at.saturating_add((length as u64).saturating_sub(1));
    if is_cached(file, at) && is_cached(file, last) {
        return Ok(());
    }
    let file = Arc::clone(file);
    on_thread(move || {
        let mut scratch = vec![0; SCRATCH];
        let end = at.saturating_add(length as u64);
        let mut at = at;
        while at < end {
            match file.read_at(&mut scratch, at) {
                Ok(0) => break,
                Ok(read) => at = at.saturating_add(read as u64),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    })
    .await
}

/// Octets read at a time for nothing but to have them in the page cache.
const SCRATCH: usize = 64 * 1024;

/// Whether an octet can be had without waiting; so it is taken to be where that cannot be told, as
/// in a file system that is all memory.
fn is_cached(file: &File, at: u64) -> bool {
    let mut octet = [0];
    let read = preadv2(
        file,
        &mut [IoSliceMut::new(&mut octet)],
        at,
        ReadWriteFlags::NOWAIT,
    );
    read != Err(Errno::AGAIN)
}

/// How many octets could be had without waiting.
fn without_waiting(file: &File, octets: &mut [u8], at: u64) -> Option<usize> {
    preadv2(
        file,
        &mut [IoSliceMut::new(octets)],
        at,
        ReadWriteFlags::NOWAIT,
    )
    .ok()
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let _permit = WAITING.acquire().await.map_err(io::Error::other)?;
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn what_is_read_is_what_the_file_has_or_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        let file = open(path).await.unwrap();
        assert_eq!(read(&file, 3, 4).await.unwrap(), &b"3456"[..]);
        assert_eq!(read(&file, 9, 1).await.unwrap(), &b"9"[..]);
        let cut = read(&file, 8, 4).await.unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        for (at, length) in [(0, 10), (5, 100), (100, 1), (0, 0)] {
            warm(&file, at, length).await.unwrap();
        }
    }
}
