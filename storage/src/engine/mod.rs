//! Where the log and the rows are kept.
//!
//! Two stores with different promises: the [`Log`] is the durable copy of history and is synced
//! before anything is promised; the [`Rows`] are written through without a sync, because the log
//! replays what they lose. Both are traits so that tests and the simulation run in memory.

mod memory;
mod rocks;

use std::io;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::sync::Arc;

use crate::schema::Corrupt;
use crate::state::{Digest, RowWrite, State};

pub use memory::{MemoryLog, MemoryRows};
pub use rocks::{RocksLog, RocksRows};

/// A stored key with its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// An ordered log of opaque entries, with a few named notes (vote, commit, purge positions).
///
/// Writes are visible at once and durable after the next [`Log::sync`]; they become durable in the
/// order in which they were made.
pub trait Log: Send + Sync + 'static {
    /// Indexes of the first and last entry; absent when there is none.
    ///
    /// # Errors
    /// When the disk fails.
    fn bounds(&self) -> io::Result<Option<RangeInclusive<u64>>>;

    /// Entries of the range that exist, in order, ending early after `max_bytes` but never before
    /// the first.
    ///
    /// # Errors
    /// When the disk fails or an entry is damaged.
    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<(u64, Vec<u8>)>>;

    /// Adds or overwrites entries, and writes a note with them.
    ///
    /// # Errors
    /// When the disk fails.
    fn append(&self, entries: &[(u64, Vec<u8>)], note: Option<(&str, &[u8])>) -> io::Result<()>;

    /// Removes all entries from `first` on.
    ///
    /// # Errors
    /// When the disk fails.
    fn truncate(&self, first: u64) -> io::Result<()>;

    /// Removes all entries through `last`, and writes a note with it.
    ///
    /// # Errors
    /// When the disk fails.
    fn purge(&self, last: u64, note: (&str, &[u8])) -> io::Result<()>;

    /// A named note.
    ///
    /// # Errors
    /// When the disk fails.
    fn note(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Writes a named note.
    ///
    /// # Errors
    /// When the disk fails.
    fn set_note(&self, name: &str, value: &[u8]) -> io::Result<()>;

    /// Makes every write so far durable. After an error nothing may be promised on this handle.
    ///
    /// # Errors
    /// When the disk fails.
    fn sync(&self) -> io::Result<()>;

    /// Lets go of the disk; whatever is asked afterwards fails.
    fn close(&self);
}

/// The rows of [`State`], with a few named notes written in the same batch.
pub trait Rows: Send + Sync + 'static {
    /// Writes rows and notes, all or nothing, not synced.
    ///
    /// # Errors
    /// When the disk fails.
    fn write(&self, rows: &[RowWrite], notes: &[(&str, Vec<u8>)]) -> io::Result<()>;

    /// Up to `count` rows in key order, from the first key after `after`.
    ///
    /// # Errors
    /// When the disk fails or a block is damaged.
    fn page(&self, after: Option<&[u8]>, count: usize) -> io::Result<Vec<Pair>>;

    /// A named note.
    ///
    /// # Errors
    /// When the disk fails.
    fn note(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Makes every write so far durable.
    ///
    /// # Errors
    /// When the disk fails.
    fn sync(&self) -> io::Result<()>;

    /// Makes a consistent copy in the new directory `dir`.
    ///
    /// # Errors
    /// When the disk fails, or the directory exists.
    fn checkpoint(&self, dir: &Path) -> io::Result<()>;

    /// Opens a copy that [`Rows::checkpoint`] of this kind of store made, for reading.
    ///
    /// # Errors
    /// When the copy is not whole.
    fn open_checkpoint(&self, dir: &Path) -> io::Result<Box<dyn Rows>>;

    /// Puts the copy in `dir` in the place of everything here. The directory is used up. A crash
    /// leaves either the old rows or the new ones.
    ///
    /// # Errors
    /// When the disk fails; the store is then unusable.
    fn replace(&self, dir: &Path) -> io::Result<()>;

    /// Puts rows that cannot be read aside, where nothing uses them, and begins empty.
    ///
    /// # Errors
    /// When the disk fails; the store is then unusable.
    fn set_aside(&self) -> io::Result<()>;

    /// Lets go of the disk; whatever is asked afterwards fails.
    fn close(&self);
}

/// Both stores of a node.
#[derive(Clone)]
pub struct Engine {
    /// History.
    pub log: Arc<dyn Log>,
    /// State as of the last applied entry.
    pub rows: Arc<dyn Rows>,
}

impl Engine {
    /// Opens or creates `dir/log` and `dir/state`.
    ///
    /// # Errors
    /// When the disk fails, the log has a hole, or another process holds the directory.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            log: Arc::new(RocksLog::open(&dir.join("log"))?),
            rows: Arc::new(RocksRows::open(&dir.join("state"))?),
        })
    }

    /// Opens `dir/log`, which must exist, and opens or creates `dir/state`, which the log rebuilds.
    ///
    /// # Errors
    /// When there is no log, and as [`Engine::open`].
    pub fn open_existing(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            log: Arc::new(RocksLog::open_existing(&dir.join("log"))?),
            rows: Arc::new(RocksRows::open(&dir.join("state"))?),
        })
    }

    /// Lets go of the disk; whatever is asked afterwards fails.
    pub fn close(&self) {
        self.rows.close();
        self.log.close();
    }

    /// Stores that are gone with the process.
    pub fn memory() -> Self {
        Self {
            log: Arc::new(MemoryLog::default()),
            rows: Arc::new(MemoryRows::default()),
        }
    }
}

/// Rows read at a time.
const PAGE: usize = 4096;

/// The digest over stored rows, none of which is kept.
///
/// # Errors
/// When the disk fails or a block is damaged.
pub fn digest_of(rows: &dyn Rows) -> io::Result<Digest> {
    let (mut digest, mut after) = (Digest::default(), None::<Vec<u8>>);
    loop {
        let page = rows.page(after.as_deref(), PAGE)?;
        let pairs = page.iter().map(|(key, value)| (&key[..], &value[..]));
        digest = digest.plus(Digest::of(pairs));
        match page.into_iter().next_back() {
            Some((last, _)) => after = Some(last),
            None => return Ok(digest),
        }
    }
}

/// Rebuilds state from stored rows.
///
/// # Errors
/// When the disk fails, or a row is damaged or of a newer schema.
pub fn load_state(rows: &dyn Rows) -> Result<State, LoadError> {
    let mut failure = None;
    let mut after: Option<Vec<u8>> = None;
    let mut page = Vec::new().into_iter();
    let pairs = std::iter::from_fn(|| {
        loop {
            if let Some(pair) = page.next() {
                return Some(pair);
            }
            match rows.page(after.as_deref(), PAGE) {
                Ok(next) => {
                    after = Some(next.last()?.0.clone());
                    page = next.into_iter();
                }
                Err(error) => {
                    failure = Some(error);
                    return None;
                }
            }
        }
    });
    let state = State::load(pairs)?;
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(state),
    }
}

/// Why state could not be rebuilt from rows.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// A row cannot be understood.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

impl From<LoadError> for io::Error {
    /// What a newer muster wrote is not damaged, and is unsupported here.
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Disk(error) => error,
            LoadError::Corrupt(error @ Corrupt::Newer { .. }) => {
                Self::new(io::ErrorKind::Unsupported, error)
            }
            LoadError::Corrupt(error) => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}
