//! Uploads that go on where they broke off, also over a restart of the node: bounded in number, size
//! and age, and each for one writer at a time.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_storage::blobs::{Blobs, Partial};
use muster_storage::model::{Sha256, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::writer::check_room;

/// Uploads that are not whole, at a time.
pub const UPLOADS_MAX: usize = 64;
/// An upload of which nothing has come for as long as this is given up.
pub const UPLOAD_KEPT: Duration = Duration::from_secs(24 * 3600);

/// What is being uploaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadNote {
    /// Path by which it is to be known.
    pub path: String,
    /// Digest that it has to have.
    pub sha256: Sha256,
    /// Octets that it is to have.
    pub size: u64,
    /// Who began it.
    pub actor: String,
}

/// Uploads that are not whole.
pub struct Uploads {
    blobs: Blobs,
    data_dir: PathBuf,
    open: Mutex<BTreeMap<Uuid, Arc<Session>>>,
}

struct Session {
    note: UploadNote,
    /// Octets so far.
    length: AtomicU64,
    /// Held by who writes; empty until somebody does, after a restart.
    writing: Arc<tokio::sync::Mutex<Option<Partial>>>,
    /// Ends who writes now.
    writer: Mutex<CancellationToken>,
}

impl Session {
    fn new(note: UploadNote, length: u64, partial: Option<Partial>) -> Arc<Self> {
        Arc::new(Self {
            note,
            length: AtomicU64::new(length),
            writing: Arc::new(tokio::sync::Mutex::new(partial)),
            writer: Mutex::default(),
        })
    }

    fn left(&self) -> u64 {
        let length = self.length.load(Ordering::Relaxed);
        self.note.size.saturating_sub(length)
    }
}

impl Uploads {
    /// Those that an earlier process has left.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn open(blobs: Blobs, data_dir: PathBuf) -> io::Result<Self> {
        let mut open = BTreeMap::new();
        for (id, note) in blobs.partials()? {
            let Ok(note) = serde_json::from_slice::<UploadNote>(&note) else {
                tracing::warn!(upload = %id, "an upload whose note cannot be read is given up");
                blobs.remove_partial(id)?;
                continue;
            };
            // Without its file it is whole, and its octets are among the others.
            let length = match blobs.resume_partial(id) {
                Ok(partial) => partial.length(),
                Err(error) if error.kind() == ErrorKind::NotFound => note.size,
                Err(error) => return Err(error),
            };
            open.insert(id, Session::new(note, length, None));
        }
        Ok(Self {
            blobs,
            data_dir,
            open: Mutex::new(open),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Session>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, id: Uuid, actor: &str) -> Option<Arc<Session>> {
        let session = self.lock().get(&id).cloned();
        session.filter(|session| session.note.actor == actor)
    }

    /// Begins an upload. Blocks.
    ///
    /// # Errors
    /// Of kind `StorageFull` when the disk has no room for it and for those that are under way;
    /// `ResourceBusy` when there are too many; else when the disk fails.
    pub fn begin(&self, note: UploadNote, now: Timestamp) -> io::Result<Uuid> {
        self.clear(now);
        let mut open = self.lock();
        if open.len() >= UPLOADS_MAX {
            return Err(io::Error::new(
                ErrorKind::ResourceBusy,
                format!(
                    "{UPLOADS_MAX} uploads are under way; finish some, or remove them with DELETE"
                ),
            ));
        }
        let promised: u64 = open.values().map(|session| session.left()).sum();
        check_room(&self.data_dir, promised.saturating_add(note.size))?;
        let id = Uuid::new_v4();
        let told = serde_json::to_vec(&note).map_err(io::Error::other)?;
        let partial = self.blobs.begin_partial(id, &told)?;
        open.insert(id, Session::new(note, 0, Some(partial)));
        Ok(id)
    }

    /// Takes an upload over from whoever writes it now; absent when there is no such upload of this
    /// actor.
    pub async fn take(&self, id: Uuid, actor: &str) -> Option<Upload> {
        let session = self.session(id, actor)?;
        let own = CancellationToken::new();
        let before = {
            let mut writer = session
                .writer
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *writer, own.clone())
        };
        before.cancel();
        let partial = Arc::clone(&session.writing).lock_owned().await;
        // It may have come to its end meanwhile.
        self.session(id, actor)?;
        Some(Upload {
            id,
            blobs: self.blobs.clone(),
            data_dir: self.data_dir.clone(),
            session,
            partial,
            taken_over: own,
        })
    }

    /// Forgets an upload: it came to its end, or is given up.
    ///
    /// # Errors
    /// When the disk fails; it is forgotten all the same.
    pub fn remove(&self, id: Uuid) -> io::Result<()> {
        self.lock().remove(&id);
        self.blobs.remove_partial(id)
    }

    /// Gives up what nobody has written to for long.
    pub fn clear(&self, now: Timestamp) {
        let old = |id: &Uuid, session: &Session| {
            let written = self.blobs.partial_written(*id).unwrap_or(now);
            let idle = session.writing.try_lock().is_ok();
            idle && now.secs_since(written) > UPLOAD_KEPT.as_secs()
        };
        let old: Vec<Uuid> = {
            let open = self.lock();
            let old = open.iter().filter(|(id, session)| old(id, session));
            old.map(|(id, _)| *id).collect()
        };
        for id in old {
            tracing::info!(upload = %id, "an upload that nobody goes on with is given up");
            if let Err(error) = self.remove(id) {
                tracing::warn!(upload = %id, %error, "an upload cannot be removed");
            }
        }
    }
}

/// An upload in the hands of its one writer.
pub struct Upload {
    id: Uuid,
    blobs: Blobs,
    data_dir: PathBuf,
    session: Arc<Session>,
    partial: OwnedMutexGuard<Option<Partial>>,
    taken_over: CancellationToken,
}

impl Upload {
    /// Its name.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// What is being uploaded.
    pub fn note(&self) -> &UploadNote {
        &self.session.note
    }

    /// Octets that are here.
    pub fn length(&self) -> u64 {
        self.session.length.load(Ordering::Relaxed)
    }

    /// Octets that are still to come.
    pub fn left(&self) -> u64 {
        self.session.left()
    }

    /// Cancelled when another writer wants it.
    pub fn taken_over(&self) -> CancellationToken {
        self.taken_over.clone()
    }

    /// Adds bytes. Blocks.
    ///
    /// # Errors
    /// `InvalidInput` when they are more than were announced, of kind `StorageFull` when there is no
    /// room for them; else when the disk fails.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 > self.left() {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                "there is more of it than was announced",
            ));
        }
        check_room(&self.data_dir, bytes.len() as u64)?;
        let partial = match &mut *self.partial {
            Some(partial) => partial,
            empty => empty.insert(self.blobs.resume_partial(self.id)?),
        };
        let written = partial.write(bytes);
        let length = partial.length();
        self.session.length.store(length, Ordering::Relaxed);
        written
    }

    /// Puts it in its place among the whole artifacts, once all of it is here. Blocks.
    ///
    /// # Errors
    /// `InvalidData` when it has another digest; else when the disk fails.
    pub fn finish(&mut self) -> io::Result<()> {
        let UploadNote { sha256, size, .. } = self.session.note;
        let partial = match self.partial.take() {
            Some(partial) => partial,
            None => match self.blobs.resume_partial(self.id) {
                // It was put there before.
                Err(error)
                    if error.kind() == ErrorKind::NotFound
                        && self.blobs.size(&sha256) == Some(size) =>
                {
                    return Ok(());
                }
                partial => partial?,
            },
        };
        partial.finish(sha256)
    }
}
