//! Content-addressed files: the bytes of artifacts, which never enter the log.
//!
//! A file stands under its SHA-256 only when it is whole, verified and on the disk: bytes are
//! written to a temporary file, synced, and renamed.

mod partial;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::Digest as _;

use crate::model::{Sha256, Timestamp};

pub use partial::Partial;

/// A directory of files named by their digests. Clones share it.
#[derive(Clone, Debug)]
pub struct Blobs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// Numbers the temporary files of this process; only one process opens a data directory.
    next_temporary: AtomicU64,
    /// What is here, as far as this process knows.
    held: Mutex<Arc<BTreeSet<Sha256>>>,
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Arc<BTreeSet<Sha256>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blobs {
    /// Opens or creates `dir/artifacts`, and removes what was being written when the last process
    /// ended.
    ///
    /// # Errors
    /// When the disk fails or the directory cannot be written.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let root = dir.join("artifacts");
        let temporary = root.join(TEMPORARY);
        match fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&temporary)?,
        }
        sync_dir(&root)?;
        sync_dir(dir)?;
        let blobs = Self {
            shared: Arc::new(Shared {
                root,
                next_temporary: AtomicU64::new(0),
                held: Mutex::default(),
            }),
        };
        blobs.list()?;
        Ok(blobs)
    }

    /// Digests of all files that are here, as it was when they were last listed, with what was
    /// written and removed since. Does not touch the disk.
    pub fn held(&self) -> Arc<BTreeSet<Sha256>> {
        Arc::clone(&self.shared.held())
    }

    /// Length of a file that is here; absent when it is not.
    pub fn size(&self, sha256: &Sha256) -> Option<u64> {
        let metadata = fs::metadata(self.path(sha256)).ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// Where a file stands, or would stand.
    pub fn path(&self, sha256: &Sha256) -> PathBuf {
        let name = sha256.to_string();
        let fan = hex::encode([sha256.0[0]]);
        self.shared.root.join(fan).join(name)
    }

    /// Begins a file whose digest is known when its bytes are.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn writer(&self) -> io::Result<BlobWriter> {
        let number = self.shared.next_temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.root.join(TEMPORARY).join(number.to_string());
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        Ok(BlobWriter {
            blobs: self.clone(),
            temporary: Temporary(path),
            file,
            hash: sha2::Sha256::new(),
            length: 0,
        })
    }

    /// Syncs a file and puts it in its place, if it has the expected digest.
    fn place(
        &self,
        file: &File,
        from: &Path,
        sha256: Sha256,
        expected: Option<Sha256>,
    ) -> io::Result<()> {
        if let Some(expected) = expected.filter(|expected| *expected != sha256) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the bytes have the SHA-256 {sha256}, but {expected} was expected"),
            ));
        }
        file.sync_all()?;
        let path = self.path(&sha256);
        let root = &self.shared.root;
        let fan = path.parent().unwrap_or(root);
        if !fan.is_dir() {
            fs::create_dir_all(fan)?;
            sync_dir(root)?;
        }
        // Another writer of the same bytes may have been first: the rename replaces like by like.
        let mut held = self.shared.held();
        fs::rename(from, &path)?;
        Arc::make_mut(&mut held).insert(sha256);
        drop(held);
        sync_dir(fan)
    }

    /// Digests of all files that are here, in order.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn list(&self) -> io::Result<Vec<Sha256>> {
        // What comes and goes meanwhile waits, lest it be forgotten.
        let mut held = self.shared.held();
        let mut found = Vec::new();
        for fan in fs::read_dir(&self.shared.root)? {
            let fan = fan?;
            if !fan.file_type()?.is_dir() {
                continue;
            }
            for file in fs::read_dir(fan.path())? {
                // Temporary files, and what people put here, have other names.
                let name = file?.file_name();
                let digest = name.to_str().map(str::parse::<Sha256>);
                found.extend(digest.into_iter().flatten());
            }
        }
        found.sort_unstable();
        *held = Arc::new(found.iter().copied().collect());
        Ok(found)
    }

    /// Removes a file; one that is not here is removed already. Who reads it reads on.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove(&self, sha256: &Sha256) -> io::Result<()> {
        let path = self.path(sha256);
        let mut held = self.shared.held();
        let removed = fs::remove_file(&path);
        match &removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {}
            _ => {
                Arc::make_mut(&mut held).remove(sha256);
            }
        }
        drop(held);
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => path.parent().map_or(Ok(()), sync_dir),
        }
    }

    /// Puts a damaged file where nobody reads it, in the place of an older one of the same name; one
    /// that is not here is put aside already. Returns where it is then.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn set_aside(&self, sha256: &Sha256) -> io::Result<PathBuf> {
        let dir = self.shared.root.join(DAMAGED);
        fs::create_dir_all(&dir)?;
        let (from, to) = (self.path(sha256), dir.join(format!("{sha256}.damaged")));
        let mut held = self.shared.held();
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => Arc::make_mut(&mut held).remove(sha256),
        };
        drop(held);
        sync_dir(&dir)?;
        from.parent().map_or(Ok(()), sync_dir)?;
        Ok(to)
    }

    /// Removes what was put aside before that time.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn clear_aside(&self, before: Timestamp) -> io::Result<()> {
        let dir = match fs::read_dir(self.shared.root.join(DAMAGED)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            dir => dir?,
        };
        for file in dir {
            let file = file?;
            // To be renamed was the last that changed about it.
            if seconds(file.metadata()?.ctime()) < before {
                fs::remove_file(file.path())?;
            }
        }
        Ok(())
    }
}

/// A file being written. Dropped before [`BlobWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct BlobWriter {
    blobs: Blobs,
    temporary: Temporary,
    file: File,
    hash: sha2::Sha256,
    length: u64,
}

impl BlobWriter {
    /// Adds bytes.
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.length = self.length.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The file, for reading what has been written so far by offset, whatever becomes of its name.
    ///
    /// # Errors
    /// When no file descriptor is left.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Syncs the file and puts it in its place; returns its digest and length.
    ///
    /// # Errors
    /// `InvalidData` when the digest is not the expected one; else when the disk fails.
    pub fn finish(self, expected: Option<Sha256>) -> io::Result<(Sha256, u64)> {
        let sha256 = Sha256(self.hash.finalize().into());
        self.blobs
            .place(&self.file, &self.temporary.0, sha256, expected)?;
        Ok((sha256, self.length))
    }
}

/// Removes the file when dropped; after the rename there is none.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // What remains is removed by the next `open`.
        let _ = fs::remove_file(&self.0);
    }
}

const TEMPORARY: &str = "tmp";

/// Files that were found damaged.
const DAMAGED: &str = "damaged";

/// A time that the file system tells, in seconds since 1970.
fn seconds(time: i64) -> Timestamp {
    Timestamp(0).plus_secs(u64::try_from(time).unwrap_or_default())
}

/// Makes the names in a directory durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
