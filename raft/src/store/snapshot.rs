//! Snapshots: a checkpoint of the rows with a manifest, on disk and on the way to a peer.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use muster_storage::State;
use muster_storage::engine::{Rows, digest_of, load_state};
use muster_storage::state::Digest;
use prost::Message;
use uuid::Uuid;

use super::note;
use crate::types::{LogId, SnapshotMeta};
use crate::wire::proto;

/// The layout of a snapshot that this binary writes and reads.
const FORMAT: u32 = 1;
/// Stored beside the directory of files, so that the directory holds nothing but the checkpoint.
const MANIFEST: &str = "manifest";
const FILES: &str = "files";
/// What the names of finished snapshots begin with.
const FINISHED: &str = "snapshot-";

/// A snapshot's directory, with the index of the last log entry in it or what is wrong with it.
pub type Checked = (PathBuf, io::Result<u64>);

fn invalid(problem: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// A snapshot on disk.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
    manifest: proto::SnapshotManifest,
    /// The state that a received snapshot was verified by, for its installation.
    state: Mutex<Option<State>>,
    /// Remove the files with the last handle.
    obsolete: AtomicBool,
    /// A file is not what the manifest says.
    damaged: AtomicBool,
}

impl Snapshot {
    /// Makes a snapshot of `rows` as they are, in a new directory below `parent`. They are read once
    /// more: rows that rotted on the disk must not get to a peer.
    pub fn build(rows: &dyn Rows, parent: &Path) -> io::Result<Self> {
        let dir = parent.join(format!("build-{}", Uuid::new_v4()));
        fs::create_dir_all(&dir)?;
        let files = dir.join(FILES);
        rows.checkpoint(&files)?;
        let described = describe(&files)?;
        // Rows go on changing: what the copy holds is asked from the copy.
        let copy = rows.open_checkpoint(&files)?;
        let last = copy.note(note::APPLIED)?;
        let membership = copy.note(note::MEMBERSHIP)?;
        let manifest = proto::SnapshotManifest {
            format: FORMAT,
            last: last
                .map(|bytes| proto::LogId::decode(&*bytes))
                .transpose()
                .map_err(invalid)?,
            membership: membership
                .map(|bytes| proto::StoredMembership::decode(&*bytes))
                .transpose()
                .map_err(invalid)?,
            digest: copy.note(note::DIGEST)?.unwrap_or_default().into(),
            files: described,
        };
        if !manifest.digest.is_empty() {
            check_digest(digest_of(&*copy)?, &manifest)?;
        }
        drop(copy);
        let name = manifest.last.map_or_else(
            || format!("{FINISHED}empty"),
            |last| {
                format!(
                    "{FINISHED}{}-{}-{}",
                    last.index,
                    last.term,
                    Uuid::new_v4().simple()
                )
            },
        );
        let mut stored = File::create(dir.join(MANIFEST))?;
        stored.write_all(&manifest.encode_to_vec())?;
        stored.sync_all()?;
        File::open(&dir)?.sync_all()?;
        let named = parent.join(name);
        fs::rename(&dir, &named)?;
        File::open(parent)?.sync_all()?;
        Ok(Self::new(named, manifest))
    }

    fn new(dir: PathBuf, manifest: proto::SnapshotManifest) -> Self {
        Self {
            dir,
            manifest,
            state: Mutex::new(None),
            obsolete: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
        }
    }

    /// The newest finished snapshot below `parent`; everything else there is removed.
    pub fn find(parent: &Path) -> io::Result<Option<Self>> {
        let mut newest: Option<Self> = None;
        for dir in list(parent)? {
            let Some(manifest) = read_manifest(&dir) else {
                tracing::info!(dir = %dir.display(), "removing an unfinished snapshot");
                remove(&dir)?;
                continue;
            };
            let found = Self::new(dir, manifest);
            found.retire();
            let index = |snapshot: &Self| snapshot.manifest.last.map(|last| last.index);
            if newest
                .as_ref()
                .is_none_or(|best| index(best) < index(&found))
            {
                newest = Some(found);
            }
        }
        if let Some(newest) = &newest {
            newest.obsolete.store(false, Ordering::Release);
        }
        Ok(newest)
    }

    /// The snapshots below `parent`, each with what it holds or what is wrong with it; everything is
    /// read, and nothing removed.
    pub fn check(parent: &Path, rows: &dyn Rows) -> io::Result<Vec<Checked>> {
        let finished = |dir: &PathBuf| {
            let name = dir.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(FINISHED))
        };
        let dirs = list(parent)?.into_iter().filter(finished);
        Ok(dirs
            .map(|dir| {
                let last = decode_manifest(&dir)
                    .ok_or_else(|| invalid("its manifest cannot be read"))
                    .and_then(|manifest| {
                        let snapshot = Self::new(dir.clone(), manifest);
                        snapshot.verify(rows)?;
                        Ok(snapshot.manifest.last.map_or(0, |last| last.index))
                    });
                (dir, last)
            })
            .collect())
    }

    fn verify(&self, rows: &dyn Rows) -> io::Result<()> {
        if describe(&self.files_dir())? != self.manifest.files {
            return Err(invalid("its files are not those of its manifest"));
        }
        let copy = rows.open_checkpoint(&self.files_dir())?;
        check_digest(digest_of(&*copy)?, &self.manifest)
    }

    /// This snapshot, ready to be installed. One that cannot be goes: it is of no use to anybody.
    pub fn sound(self, rows: &dyn Rows) -> Option<Self> {
        match self.prepare(rows) {
            Ok(()) => Some(self),
            Err(error) => {
                tracing::error!(%error, "the snapshot on the disk is damaged and is removed");
                self.retire();
                None
            }
        }
    }

    fn prepare(&self, rows: &dyn Rows) -> io::Result<()> {
        let state = self.load(rows)?;
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
        Ok(())
    }

    /// Notes that a file is not what the manifest says.
    pub fn doubt(&self) {
        self.damaged.store(true, Ordering::Release);
    }

    /// Whether a file was found not to be what the manifest says.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    /// Its files go with the last handle to it.
    pub fn retire(&self) {
        self.obsolete.store(true, Ordering::Release);
    }

    /// What it holds.
    pub fn manifest(&self) -> &proto::SnapshotManifest {
        &self.manifest
    }

    /// What it holds, in openraft's terms.
    pub fn meta(&self) -> io::Result<SnapshotMeta> {
        Ok(SnapshotMeta {
            last_log_id: self.manifest.last.map(LogId::from),
            last_membership: self
                .manifest
                .membership
                .clone()
                .unwrap_or_default()
                .try_into()?,
        })
    }

    /// Directory of the checkpoint itself.
    pub fn files_dir(&self) -> PathBuf {
        self.dir.join(FILES)
    }

    /// The files with their paths, in the order of the manifest.
    pub fn files(&self) -> impl Iterator<Item = (proto::SnapshotFile, PathBuf)> + '_ {
        self.manifest.files.iter().map(|file| {
            let path = self.dir.join(FILES).join(&file.name);
            (file.clone(), path)
        })
    }

    /// The verified state, once; loaded anew when it was not kept.
    pub fn take_state(&self, rows: &dyn Rows) -> io::Result<State> {
        let kept = self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match kept {
            Some(state) => Ok(state),
            None => self.load(rows),
        }
    }

    fn load(&self, rows: &dyn Rows) -> io::Result<State> {
        let copy = rows.open_checkpoint(&self.files_dir())?;
        let state = load_state(&*copy)?;
        check_digest(state.digest(), &self.manifest)?;
        Ok(state)
    }
}

/// Whether rows are those that a manifest was written for.
fn check_digest(found: Digest, manifest: &proto::SnapshotManifest) -> io::Result<()> {
    match found.0[..] == manifest.digest[..] {
        true => Ok(()),
        false => Err(invalid(format!(
            "the snapshot's rows have digest {found}, its manifest says {}",
            hex::encode(&manifest.digest)
        ))),
    }
}

/// What is in a directory; nothing when there is none.
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.map(|entry| Ok(entry?.path())).collect(),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

fn decode_manifest(dir: &Path) -> Option<proto::SnapshotManifest> {
    let bytes = fs::read(dir.join(MANIFEST)).ok()?;
    let manifest = proto::SnapshotManifest::decode(&*bytes).ok()?;
    (manifest.format == FORMAT).then_some(manifest)
}

/// The manifest of a finished snapshot whose files are all there, and no others.
fn read_manifest(dir: &Path) -> Option<proto::SnapshotManifest> {
    let manifest = decode_manifest(dir)?;
    let files = dir.join(FILES);
    let present = fs::read_dir(&files).ok()?.count();
    let whole = manifest.files.iter().all(|file| {
        let size = fs::metadata(files.join(&file.name)).map(|metadata| metadata.len());
        size.is_ok_and(|size| size == file.size)
    });
    (whole && present == manifest.files.len()).then_some(manifest)
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire)
            && let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot remove an old snapshot");
        }
    }
}

fn describe(dir: &Path) -> io::Result<Vec<proto::SnapshotFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|_| invalid("a file of the checkpoint has an unreadable name"))?;
        let mut hasher = crc32fast::Hasher::new();
        let mut size = 0u64;
        let mut file = File::open(entry.path())?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            size += count as u64;
        }
        files.push(proto::SnapshotFile {
            name,
            size,
            crc: hasher.finalize(),
        });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// A snapshot that is arriving. Dropped unfinished, it leaves nothing behind.
pub struct Receiver {
    snapshot: Snapshot,
    /// Position in the manifest's files.
    position: usize,
    open: Option<(File, u64, crc32fast::Hasher)>,
}

impl Receiver {
    /// Prepares a directory below `parent` for the announced files.
    pub fn start(parent: &Path, manifest: proto::SnapshotManifest) -> io::Result<Self> {
        if manifest.format != FORMAT {
            return Err(invalid(format!(
                "the snapshot has format {}, this binary knows {FORMAT}; use a newer muster here",
                manifest.format
            )));
        }
        for file in &manifest.files {
            let mut parts = Path::new(&file.name).components();
            if !matches!(
                (parts.next(), parts.next()),
                (Some(Component::Normal(_)), None)
            ) {
                return Err(invalid(
                    "the snapshot names a file outside of its directory",
                ));
            }
        }
        let dir = parent.join(format!("receive-{}", Uuid::new_v4()));
        fs::create_dir_all(dir.join(FILES))?;
        let snapshot = Snapshot::new(dir, manifest);
        snapshot.retire();
        Ok(Self {
            snapshot,
            position: 0,
            open: None,
        })
    }

    /// Takes the next octets.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (mut file, left, mut hasher) = match self.open.take() {
                Some(open) => open,
                None => self.next_file()?,
            };
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(count);
            file.write_all(now)?;
            hasher.update(now);
            bytes = later;
            self.open = Some((file, left - count as u64, hasher));
            self.close_if_full()?;
        }
        Ok(())
    }

    fn next_file(&mut self) -> io::Result<(File, u64, crc32fast::Hasher)> {
        let announced = self
            .snapshot
            .manifest
            .files
            .get(self.position)
            .ok_or_else(|| invalid("the snapshot is longer than announced"))?;
        let path = self.snapshot.files_dir().join(&announced.name);
        Ok((
            File::create(path)?,
            announced.size,
            crc32fast::Hasher::new(),
        ))
    }

    fn close_if_full(&mut self) -> io::Result<()> {
        let Some((file, 0, hasher)) = self.open.take_if(|(_, left, _)| *left == 0) else {
            return Ok(());
        };
        let announced = self
            .snapshot
            .manifest
            .files
            .get(self.position)
            .ok_or_else(|| invalid("the snapshot is longer than announced"))?;
        if hasher.finalize() != announced.crc {
            return Err(invalid(format!(
                "file {} of the snapshot arrived damaged",
                announced.name
            )));
        }
        file.sync_all()?;
        self.position += 1;
        Ok(())
    }

    /// Checks that everything arrived and that the rows make the announced state.
    pub fn finish(mut self, rows: &dyn Rows) -> io::Result<Snapshot> {
        while self.position < self.snapshot.manifest.files.len() {
            if self.open.is_none() {
                self.open = Some(self.next_file()?);
            }
            let before = self.position;
            self.close_if_full()?;
            if self.position == before {
                return Err(invalid("the snapshot ended early"));
            }
        }
        self.snapshot.prepare(rows)?;
        Ok(self.snapshot)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
