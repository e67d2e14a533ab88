//! A disk that is nearly full. A store that runs into the end of its disk is broken until it is
//! opened anew, and may not open for want of room. So a node stops appending to its log before, and
//! goes on when there is room again. Artifacts stop long before that: they are large, and nothing waits
//! for them.

use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use nix::sys::statvfs::statvfs;
use tokio::sync::watch;

use crate::Error;

/// With less than this left nothing is appended: what is under way, and opening the stores, need it.
const LOW: u64 = 48 << 20;
/// With this much left appending goes on.
const ENOUGH: u64 = 64 << 20;
/// So much of a disk is never for artifacts: a quarter of it, within these bounds.
const SPARED_SHARE: u64 = 4;
const SPARED_MIN: u64 = 96 << 20;
const SPARED_MAX: u64 = 256 << 20;
/// What opening a store needs beside the room for what its write-ahead log holds.
const FOR_START: u64 = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Enough,
    /// Octets left.
    Low(u64),
    Closed,
}

/// Whether there is room on a disk; there is until something else is seen. Clones share it.
#[derive(Clone)]
pub struct Room(Arc<watch::Sender<Level>>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Level::Enough)))
    }
}

/// Octets of the disk that a directory is on.
struct Octets {
    all: u64,
    /// For a process that is not root's as well.
    left: u64,
}

fn octets(dir: &Path) -> io::Result<Octets> {
    let found = statvfs(dir)?;
    let size = found.fragment_size();
    Ok(Octets {
        all: found.blocks().saturating_mul(size),
        left: found.blocks_available().saturating_mul(size),
    })
}

fn mebibytes(octets: u64) -> u64 {
    octets >> 20
}

impl Room {
    /// Looks how much there is.
    pub fn look(&self, dir: &Path) -> io::Result<()> {
        let Octets { all, left } = octets(dir)?;
        metrics::gauge!("muster_raft_disk_size_bytes").set(all as f64);
        metrics::gauge!("muster_raft_disk_free_bytes").set(left as f64);
        self.note(left);
        Ok(())
    }

    fn note(&self, left: u64) {
        self.0.send_if_modified(|level| {
            let next = match level {
                Level::Closed => Level::Closed,
                Level::Enough if left < LOW => Level::Low(left),
                Level::Low(_) if left < ENOUGH => Level::Low(left),
                _ => Level::Enough,
            };
            std::mem::replace(level, next) != next
        });
    }

    /// Nobody waits any more.
    pub fn close(&self) {
        self.0.send_replace(Level::Closed);
    }

    /// Waits until there is room; false when the node stops before.
    pub async fn wait(&self) -> bool {
        let mut level = self.0.subscribe();
        let settled = level.wait_for(|level| !matches!(level, Level::Low(_)));
        settled.await.is_ok_and(|level| *level == Level::Enough)
    }

    /// What is wrong and what to do, while the disk is full.
    pub fn fault(&self) -> Option<String> {
        match *self.0.borrow() {
            Level::Low(left) => Some(format!(
                "its disk is full: {} MiB are left, and below {} MiB nothing is written; make room \
                 on the disk of its data directory: the node goes on by itself with {} MiB",
                mebibytes(left),
                mebibytes(LOW),
                mebibytes(ENOUGH)
            )),
            Level::Enough | Level::Closed => None,
        }
    }
}

/// What of a disk of so many octets is not for artifacts.
fn spared(all: u64) -> u64 {
    (all / SPARED_SHARE).clamp(SPARED_MIN, SPARED_MAX)
}

/// Refuses so many octets more of an artifact when the log may want them.
///
/// # Errors
/// Of kind `StorageFull` when it is so; and when the disk cannot be looked at.
pub fn check_for_artifact(dir: &Path, more: u64) -> io::Result<()> {
    let Octets { all, left } = octets(dir)?;
    let spared = spared(all);
    if left.saturating_sub(more) >= spared {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::StorageFull,
        format!(
            "the disk has {} MiB left, and the last {} MiB are not for artifacts; make room on the \
             disk of its data directory",
            mebibytes(left),
            mebibytes(spared)
        ),
    ))
}

/// Refuses to open the stores of a data directory when there is no room for it: what their
/// write-ahead logs hold is written once more then.
///
/// # Errors
/// When it is so, or the disk fails.
pub fn check_for_start(dir: &Path) -> Result<(), Error> {
    let doing = || Error::io(format!("looking for room on the disk of {}", dir.display()));
    let mut needed = FOR_START;
    for store in ["log", "state"].map(|store| dir.join(store)) {
        // There is none before the first start.
        for file in fs::read_dir(store).into_iter().flatten() {
            let path = file.map_err(doing())?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                needed = needed.saturating_add(fs::metadata(path).map_err(doing())?.len());
            }
        }
    }
    let left = octets(dir).map_err(doing())?.left;
    if left >= needed {
        return Ok(());
    }
    Err(Error::Io {
        doing: format!("opening {}", dir.display()),
        source: io::Error::new(
            io::ErrorKind::StorageFull,
            format!(
                "its disk is full: {} MiB are left and {} MiB are needed; nothing was touched; make \
                 room on it, then start again",
                mebibytes(left),
                mebibytes(needed)
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_disk_is_full_until_there_is_enough_room_and_not_for_a_moment_less() {
        let room = Room::default();
        // Left in MiB, and whether it is taken for full.
        for (left, full) in [
            (100, false),
            (48, false),
            (47, true),
            (63, true),
            (64, false),
            (60, false),
        ] {
            room.note(left << 20);
            assert_eq!(room.fault().is_some(), full, "{left}");
            assert_eq!(
                room.wait().now_or_never(),
                (!full).then_some(true),
                "{left}"
            );
        }
    }

    #[tokio::test]
    async fn who_waits_goes_on_with_room_and_is_told_when_there_will_be_none() {
        let room = Room::default();
        room.note(0);
        assert!(room.fault().unwrap().contains("make room"));
        let waiting = tokio::spawn({
            let room = room.clone();
            async move { room.wait().await }
        });
        room.note(ENOUGH);
        assert!(waiting.await.unwrap());
        room.note(0);
        let waiting = tokio::spawn({
            let room = room.clone();
            async move { room.wait().await }
        });
        room.close();
        assert!(!waiting.await.unwrap());
    }

    #[test]
    fn artifacts_leave_more_to_the_log_than_it_needs_to_go_on() {
        // Size of the disk in MiB, and what is spared of it.
        for (all, expected) in [(0, 96), (192, 96), (768, 192), (1024, 256), (1 << 30, 256)] {
            assert_eq!(mebibytes(spared(all << 20)), expected, "{all}");
        }
        const { assert!(SPARED_MIN > ENOUGH) };
        let dir = tempfile::tempdir().unwrap();
        let Octets { left, .. } = octets(dir.path()).unwrap();
        let refused = check_for_artifact(dir.path(), left).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert!(refused.to_string().contains("make room"), "{refused}");
    }

    #[test]
    fn a_start_needs_room_for_what_the_stores_write_once_more() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_for_start(dir.path()).is_ok());
        fs::create_dir(dir.path().join("log")).unwrap();
        let file = fs::File::create(dir.path().join("log/000007.log")).unwrap();
        // A hole: no room is taken by it.
        file.set_len(8 << 40).unwrap();
        let refused = check_for_start(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("make room"), "{refused}");
    }
}
