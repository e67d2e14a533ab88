//! Files that are written in parts, also over restarts, with a note of what each is to become.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sha2::Digest as _;
use uuid::Uuid;

use super::{Blobs, seconds, sync_dir};
use crate::model::{Sha256, Timestamp};

const PARTIAL: &str = "partial";
/// Ending of the names of notes, and of those that are not written yet.
const NOTE: &str = "note";
const NEW_NOTE: &str = "new";
/// Octets read at a time.
const CHUNK: usize = 256 * 1024;

/// A file of which there is a part.
#[derive(Debug)]
pub struct Partial {
    blobs: Blobs,
    id: Uuid,
    file: File,
    length: u64,
    /// Of the octets so far; after a restart they are to be read again.
    hash: Option<sha2::Sha256>,
}

impl Blobs {
    fn partial_dir(&self) -> PathBuf {
        self.shared.root.join(PARTIAL)
    }

    fn partial_path(&self, id: Uuid) -> PathBuf {
        self.partial_dir().join(id.to_string())
    }

    /// Begins a file, with a note that is on the disk when this returns.
    ///
    /// # Errors
    /// When the disk fails or is full, or there is one of that name.
    pub fn begin_partial(&self, id: Uuid, note: &[u8]) -> io::Result<Partial> {
        let dir = self.partial_dir();
        fs::create_dir_all(&dir)?;
        let path = self.partial_path(id);
        let file = File::options()
            .read(true)
            .append(true)
            .create_new(true)
            .open(&path)?;
        let new = path.with_extension(NEW_NOTE);
        let mut written = File::create(&new)?;
        written.write_all(note)?;
        written.sync_all()?;
        fs::rename(new, path.with_extension(NOTE))?;
        sync_dir(&dir)?;
        Ok(Partial {
            blobs: self.clone(),
            id,
            file,
            length: 0,
            hash: Some(sha2::Sha256::new()),
        })
    }

    /// Goes on with a file.
    ///
    /// # Errors
    /// `NotFound` when there is none; else when the disk fails.
    pub fn resume_partial(&self, id: Uuid) -> io::Result<Partial> {
        let path = self.partial_path(id);
        let file = File::options().read(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(Partial {
            blobs: self.clone(),
            id,
            file,
            length,
            hash: None,
        })
    }

    /// All files of which there is a part, with their notes. What has no note was never begun whole,
    /// and is removed.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn partials(&self) -> io::Result<Vec<(Uuid, Vec<u8>)>> {
        let dir = match fs::read_dir(self.partial_dir()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            dir => dir?,
        };
        let mut found = Vec::new();
        for file in dir {
            let path = file?.path();
            let is_note = path.extension().is_some_and(|ending| ending == NOTE);
            let id = path
                .file_stem()
                .and_then(|name| name.to_str()?.parse().ok());
            match id {
                Some(id) if is_note => found.push((id, fs::read(&path)?)),
                Some(_) if !has_note(&path) => fs::remove_file(&path)?,
                _ => {}
            }
        }
        found.sort_unstable_by_key(|(id, _)| *id);
        Ok(found)
    }

    /// When something was last written to a file, or its note when it is not here any more.
    pub fn partial_written(&self, id: Uuid) -> Option<Timestamp> {
        let path = self.partial_path(id);
        let found = fs::metadata(&path).or_else(|_| fs::metadata(path.with_extension(NOTE)));
        Some(seconds(found.ok()?.mtime()))
    }

    /// Removes a file and its note; those that are not there are removed already.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove_partial(&self, id: Uuid) -> io::Result<()> {
        let path = self.partial_path(id);
        // The note goes last: without it the file would have no owner.
        for path in [path.clone(), path.with_extension(NOTE)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn has_note(path: &Path) -> bool {
    path.extension().is_none() && path.with_extension(NOTE).exists()
}

impl Partial {
    /// Its name.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Octets so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Adds octets.
    ///
    /// # Errors
    /// When the disk fails or is full. What was written of them then is taken back.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            self.file.set_len(self.length)?;
            return Err(error);
        }
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        self.length = self.length.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Syncs the file and puts it in its place among the whole ones, with its note left behind.
    ///
    /// # Errors
    /// `InvalidData` when it has another digest; else when the disk fails.
    pub fn finish(mut self, expected: Sha256) -> io::Result<()> {
        let hash = match self.hash.take() {
            Some(hash) => hash,
            None => self.read_all()?,
        };
        let sha256 = Sha256(hash.finalize().into());
        let path = self.blobs.partial_path(self.id);
        self.blobs.place(&self.file, &path, sha256, Some(expected))
    }

    fn read_all(&self) -> io::Result<sha2::Sha256> {
        let mut hash = sha2::Sha256::new();
        let mut chunk = vec![0; CHUNK];
        let mut at = 0;
        loop {
            let read = match self.file.read_at(&mut chunk, at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if read == 0 {
                return Ok(hash);
            }
            hash.update(chunk.get(..read).unwrap_or_default());
            at = at.saturating_add(read as u64);
        }
    }
}
