//! Log and rows on RocksDB, one database each: their write-ahead logs must not share a sync.
//!
//! Each uses a single column family, so that what survives a power cut is always a prefix of what
//! was written.

use std::fs::{self, File};
use std::io;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    DB, DBCompressionType, DBRecoveryMode, Direction, IteratorMode, MemtableFactory, Options,
    ReadOptions, WriteBatch,
};

use super::{Log, Pair, Rows};
use crate::state::RowWrite;

/// Entries stand under this octet and their index, big endian.
const ENTRY: u8 = b'e';
/// Notes stand under this octet and their name. It sorts after the octets of all row tables.
const NOTE: u8 = 0xff;
/// Where the log begins; written with every purge, so that no scan crosses tombstones.
const FIRST: &str = "first";
/// Layout of a stored entry: this octet, CRC-32 of the rest (big endian), the rest.
const FRAME: u8 = 1;

fn failed(error: rocksdb::Error) -> io::Error {
    let kind = match error.kind() {
        rocksdb::ErrorKind::Corruption => io::ErrorKind::InvalidData,
        // A file that a store names and has not: RocksDB tells it from others by its text alone.
        rocksdb::ErrorKind::IOError if error.as_ref().contains("No such file") => {
            io::ErrorKind::InvalidData
        }
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

fn note_key(name: &str) -> Vec<u8> {
    [&[NOTE], name.as_bytes()].concat()
}

fn entry_key(index: u64) -> [u8; 9] {
    let mut key = [ENTRY; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

fn entry_index(key: &[u8]) -> io::Result<u64> {
    match key.split_first() {
        Some((&ENTRY, index)) if index.len() == 8 => Ok(index
            .iter()
            .fold(0, |sum, octet| sum << 8 | u64::from(*octet))),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the log holds an unknown key {}", hex::encode(key)),
        )),
    }
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(bytes.len() + 5);
    framed.push(FRAME);
    framed.extend_from_slice(&crc32fast::hash(bytes).to_be_bytes());
    framed.extend_from_slice(bytes);
    framed
}

fn unframe(index: u64, framed: &[u8]) -> io::Result<Vec<u8>> {
    let damaged = |what: &str| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("log entry {index} {what}"),
        )
    };
    let (version, rest) = framed
        .split_first()
        .ok_or_else(|| damaged("is empty; restore this node from its peers"))?;
    if *version != FRAME {
        return Err(damaged("was written by a newer muster; start that one"));
    }
    let (crc, bytes) = rest
        .split_first_chunk::<4>()
        .ok_or_else(|| damaged("is cut short; restore this node from its peers"))?;
    if u32::from_be_bytes(*crc) != crc32fast::hash(bytes) {
        return Err(damaged(
            "is damaged (checksum); restore this node from its peers",
        ));
    }
    Ok(bytes.to_vec())
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_write_buffer_size(32 << 20);
    options.set_max_background_jobs(2);
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

/// Makes a rename or a new file in `dir` durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A database, or why there is none, that can be closed while handles to its store remain.
struct Closable(RwLock<io::Result<DB>>);

fn closed() -> io::Error {
    io::Error::other("the store is closed")
}

impl Closable {
    fn new(db: io::Result<DB>) -> Self {
        Self(RwLock::new(db))
    }

    fn with<T>(&self, f: impl FnOnce(&DB) -> io::Result<T>) -> io::Result<T> {
        let guard = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match &*guard {
            Ok(db) => f(db),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        }
    }

    fn lock(&self) -> RwLockWriteGuard<'_, io::Result<DB>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        *self.lock() = Err(closed());
    }
}

/// A [`Log`] on RocksDB.
pub struct RocksLog {
    db: Closable,
    first: AtomicU64,
}

impl RocksLog {
    /// Opens or creates the log in `path` and checks that it has no hole.
    ///
    /// # Errors
    /// When the disk fails, the log is damaged, or another process holds it.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, options())
    }

    /// Opens the log that is in `path`; never makes one.
    ///
    /// # Errors
    /// When there is none, and as [`RocksLog::open`].
    pub fn open_existing(path: &Path) -> io::Result<Self> {
        let mut options = options();
        options.create_if_missing(false);
        if !path.join("CURRENT").exists() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} holds no log", path.display()),
            ));
        }
        Self::open_with(path, options)
    }

    fn open_with(path: &Path, mut options: Options) -> io::Result<Self> {
        // An unfinished write at the very end was never promised; damage before that is fatal.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        let db = DB::open(&options, path).map_err(failed)?;
        let first = match db.get(note_key(FIRST)).map_err(failed)? {
            Some(value) => value
                .first_chunk::<8>()
                .map_or(0, |octets| u64::from_be_bytes(*octets)),
            None => 0,
        };
        check_contiguous(&db, first)?;
        Ok(Self {
            db: Closable::new(Ok(db)),
            first: AtomicU64::new(first),
        })
    }
}

fn check_contiguous(db: &DB, first: u64) -> io::Result<()> {
    let mut expected = None;
    for item in entries(db, first, u64::MAX) {
        let (key, _) = item.map_err(failed)?;
        let index = entry_index(&key)?;
        if expected.is_some_and(|expected| expected != index) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the log has a hole before entry {index}; restore this node from its peers"
                ),
            ));
        }
        expected = index.checked_add(1);
    }
    Ok(())
}

fn entries(db: &DB, start: u64, end: u64) -> rocksdb::DBIterator<'_> {
    let mut read = ReadOptions::default();
    read.set_iterate_upper_bound(entry_key(end).to_vec());
    db.iterator_opt(
        IteratorMode::From(&entry_key(start), Direction::Forward),
        read,
    )
}

impl Log for RocksLog {
    fn bounds(&self) -> io::Result<Option<RangeInclusive<u64>>> {
        self.db.with(|db| {
            let first = self.first.load(Ordering::Acquire);
            let Some(item) = entries(db, first, u64::MAX).next() else {
                return Ok(None);
            };
            let first = entry_index(&item.map_err(failed)?.0)?;
            let mut read = ReadOptions::default();
            read.set_iterate_lower_bound(entry_key(first).to_vec());
            let end = entry_key(u64::MAX);
            let mode = IteratorMode::From(&end, Direction::Reverse);
            match db.iterator_opt(mode, read).next() {
                Some(last) => Ok(Some(first..=entry_index(&last.map_err(failed)?.0)?)),
                None => Ok(None),
            }
        })
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let start = range.start.max(self.first.load(Ordering::Acquire));
        if start >= range.end {
            return Ok(Vec::new());
        }
        self.db.with(|db| {
            let mut found = Vec::new();
            let mut size = 0usize;
            for item in entries(db, start, range.end) {
                let (key, value) = item.map_err(failed)?;
                size = size.saturating_add(value.len());
                if size > max_bytes && !found.is_empty() {
                    break;
                }
                let index = entry_index(&key)?;
                found.push((index, unframe(index, &value)?));
            }
            Ok(found)
        })
    }

    fn append(&self, entries: &[(u64, Vec<u8>)], note: Option<(&str, &[u8])>) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        for (index, value) in entries {
            batch.put(entry_key(*index), frame(value));
        }
        if let Some((name, value)) = note {
            batch.put(note_key(name), value);
        }
        self.db.with(|db| db.write(batch).map_err(failed))
    }

    fn truncate(&self, first: u64) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        batch.delete_range(entry_key(first), entry_key(u64::MAX));
        self.db.with(|db| db.write(batch).map_err(failed))
    }

    fn purge(&self, last: u64, (name, value): (&str, &[u8])) -> io::Result<()> {
        let first = last.saturating_add(1);
        let mut batch = WriteBatch::default();
        batch.delete_range(entry_key(0), entry_key(first));
        batch.put(note_key(FIRST), first.to_be_bytes());
        batch.put(note_key(name), value);
        self.db.with(|db| {
            db.write(batch).map_err(failed)?;
            self.first.fetch_max(first, Ordering::AcqRel);
            // Whole files give their space back at once; the rest goes with compaction.
            db.delete_file_in_range(entry_key(0), entry_key(last))
                .map_err(failed)
        })
    }

    fn note(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.db.with(|db| db.get(note_key(name)).map_err(failed))
    }

    fn set_note(&self, name: &str, value: &[u8]) -> io::Result<()> {
        self.db
            .with(|db| db.put(note_key(name), value).map_err(failed))
    }

    fn sync(&self) -> io::Result<()> {
        self.db.with(|db| db.flush_wal(true).map_err(failed))
    }

    fn close(&self) {
        self.db.close();
    }
}

/// [`Rows`] on RocksDB.
pub struct RocksRows {
    path: PathBuf,
    db: Closable,
}

impl RocksRows {
    /// Opens or creates the rows in `path`; finishes a replacement that a crash interrupted. Rows
    /// that are damaged open as well: they answer every call with what is wrong, until they are
    /// replaced or set aside.
    ///
    /// # Errors
    /// When the disk fails, or another process holds them.
    pub fn open(path: &Path) -> io::Result<Self> {
        let rows = Self {
            path: path.to_owned(),
            db: Closable::new(Err(closed())),
        };
        rows.finish_replacement()?;
        *rows.db.lock() = match Self::open_db(path) {
            Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
            opened => opened,
        };
        Ok(rows)
    }

    fn open_db(path: &Path) -> io::Result<DB> {
        let mut options = options();
        // The log replays what a power cut takes from the end.
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        // Rows are written all the time and read when a node starts, or from a copy: what has not been
        // flushed need not be in order.
        options.set_memtable_factory(MemtableFactory::Vector);
        options.set_allow_concurrent_memtable_write(false);
        DB::open(&options, path).map_err(failed)
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    }

    /// A complete copy beside the rows is the intent to use it: whatever step was reached, going on
    /// leads to the new rows.
    fn finish_replacement(&self) -> io::Result<()> {
        let (new, old) = (self.beside(".new"), self.beside(".old"));
        if new.exists() {
            if self.path.exists() {
                if old.exists() {
                    fs::remove_dir_all(&old)?;
                }
                fs::rename(&self.path, &old)?;
            }
            fs::rename(&new, &self.path)?;
            if let Some(parent) = self.path.parent() {
                sync_dir(parent)?;
            }
        }
        if old.exists() {
            fs::remove_dir_all(&old)?;
        }
        Ok(())
    }
}

impl Rows for RocksRows {
    fn write(&self, rows: &[RowWrite], notes: &[(&str, Vec<u8>)]) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        for row in rows {
            match &row.value {
                Some(value) => batch.put(&row.key, value),
                None => batch.delete(&row.key),
            }
        }
        for (name, value) in notes {
            batch.put(note_key(name), value);
        }
        self.db.with(|db| db.write(batch).map_err(failed))
    }

    fn page(&self, after: Option<&[u8]>, count: usize) -> io::Result<Vec<Pair>> {
        self.db.with(|db| {
            let mut read = ReadOptions::default();
            read.set_iterate_upper_bound(vec![NOTE]);
            // The least key after `after` is `after` with a zero octet behind it.
            let start = after
                .map(|after| [after, &[0]].concat())
                .unwrap_or_default();
            db.iterator_opt(IteratorMode::From(&start, Direction::Forward), read)
                .take(count)
                .map(|item| {
                    let (key, value) = item.map_err(failed)?;
                    Ok((key.into_vec(), value.into_vec()))
                })
                .collect()
        })
    }

    fn note(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.db.with(|db| db.get(note_key(name)).map_err(failed))
    }

    fn sync(&self) -> io::Result<()> {
        self.db.with(|db| db.flush_wal(true).map_err(failed))
    }

    fn checkpoint(&self, dir: &Path) -> io::Result<()> {
        self.db.with(|db| {
            Checkpoint::new(db)
                .and_then(|checkpoint| checkpoint.create_checkpoint(dir))
                .map_err(failed)
        })
    }

    fn open_checkpoint(&self, dir: &Path) -> io::Result<Box<dyn Rows>> {
        let db = DB::open_for_read_only(&Options::default(), dir, false).map_err(failed)?;
        Ok(Box::new(Self {
            path: dir.to_owned(),
            db: Closable::new(Ok(db)),
        }))
    }

    fn replace(&self, dir: &Path) -> io::Result<()> {
        let mut guard = self.db.lock();
        // Durable before the rename that declares it complete.
        for file in fs::read_dir(dir)? {
            File::open(file?.path())?.sync_all()?;
        }
        sync_dir(dir)?;
        *guard = Err(closed());
        fs::rename(dir, self.beside(".new"))?;
        if let Some(parent) = self.path.parent() {
            sync_dir(parent)?;
        }
        self.finish_replacement()?;
        *guard = Ok(Self::open_db(&self.path)?);
        Ok(())
    }

    fn set_aside(&self) -> io::Result<()> {
        let mut guard = self.db.lock();
        *guard = Err(closed());
        let aside = self.beside(".damaged");
        if aside.exists() {
            fs::remove_dir_all(&aside)?;
        }
        fs::rename(&self.path, &aside)?;
        if let Some(parent) = self.path.parent() {
            sync_dir(parent)?;
        }
        *guard = Ok(Self::open_db(&self.path)?);
        Ok(())
    }

    fn close(&self) {
        self.db.close();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests;
