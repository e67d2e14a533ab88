//! A disk that loses what was not synced.
//!
//! What is written is visible at once and durable after a sync. When the power goes, a random
//! number of the writes since the last sync have reached the disk, in their order, and the rest are
//! gone: RocksDB drops a write that is torn, with all behind it, by its checksum.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::{Bound, Range, RangeInclusive};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use muster_storage::engine::{Engine, Log, MemoryRows, Pair, Rows};
use muster_storage::state::RowWrite;

use super::chance::Chance;
use super::mutant::Mutant;
use super::oracle::Oracle;
use crate::store::note;

type Notes = BTreeMap<String, Vec<u8>>;

/// What a journal changes.
trait Image: Clone + Default {
    type Write;
    fn make(&mut self, write: &Self::Write);
}

#[derive(Clone, Default)]
struct LogImage {
    entries: BTreeMap<u64, Bytes>,
    notes: Notes,
}

enum LogWrite {
    Append(Vec<(u64, Bytes)>),
    Truncate(u64),
    Purge(u64, String, Vec<u8>),
    Note(String, Vec<u8>),
}

impl LogWrite {
    fn is_vote(&self) -> bool {
        matches!(self, Self::Note(name, _) if name == note::VOTE)
    }
}

impl Image for LogImage {
    type Write = LogWrite;

    fn make(&mut self, write: &LogWrite) {
        match write {
            LogWrite::Append(entries) => self.entries.extend(entries.iter().cloned()),
            LogWrite::Truncate(first) => drop(self.entries.split_off(first)),
            LogWrite::Purge(last, name, value) => {
                self.entries = self.entries.split_off(&last.saturating_add(1));
                self.notes.insert(name.clone(), value.clone());
            }
            LogWrite::Note(name, value) => {
                self.notes.insert(name.clone(), value.clone());
            }
        }
    }
}

#[derive(Clone, Default)]
struct RowImage {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    notes: Notes,
}

impl Image for RowImage {
    type Write = (Vec<RowWrite>, Vec<(String, Vec<u8>)>);

    fn make(&mut self, (rows, notes): &Self::Write) {
        for row in rows {
            match &row.value {
                Some(value) => self.rows.insert(row.key.clone(), value.clone()),
                None => self.rows.remove(&row.key),
            };
        }
        self.notes.extend(notes.iter().cloned());
    }
}

/// Writes on their way to the disk.
struct Journal<I: Image> {
    durable: I,
    visible: I,
    waiting: VecDeque<I::Write>,
    /// Writes made so far.
    written: u64,
}

impl<I: Image> Default for Journal<I> {
    fn default() -> Self {
        Self::of(I::default())
    }
}

impl<I: Image> Journal<I> {
    /// All durable.
    fn of(image: I) -> Self {
        Self {
            durable: image.clone(),
            visible: image,
            waiting: VecDeque::new(),
            written: 0,
        }
    }

    fn write(&mut self, write: I::Write) {
        self.visible.make(&write);
        self.waiting.push_back(write);
        self.written += 1;
    }

    /// Makes the first `written` of all writes durable.
    fn sync_through(&mut self, written: u64) {
        while self.written - (self.waiting.len() as u64) < written {
            let Some(write) = self.waiting.pop_front() else {
                return;
            };
            self.durable.make(&write);
        }
    }

    fn lose_power(&mut self, chance: &Chance) -> usize {
        let waiting = self.waiting.len() as u64;
        self.sync_through(self.written - waiting + chance.range(0..waiting + 1));
        let lost = self.waiting.len();
        self.waiting.clear();
        self.visible = self.durable.clone();
        lost
    }
}

#[derive(Default)]
struct Contents {
    /// The life of the node that may write; handles of earlier ones are dead.
    life: u64,
    log: Journal<LogImage>,
    rows: Journal<RowImage>,
    fails: bool,
}

/// The disk of one node. It outlives the node's lives.
pub struct Disk {
    node: u64,
    contents: Mutex<Contents>,
    oracle: Arc<Oracle>,
    mutant: Option<Mutant>,
}

fn off() -> io::Error {
    io::Error::other("the machine has lost its power")
}

impl Disk {
    /// An empty disk.
    pub fn new(node: u64, oracle: Arc<Oracle>, mutant: Option<Mutant>) -> Arc<Self> {
        Arc::new(Self {
            node,
            contents: Mutex::default(),
            oracle,
            mutant,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores for the node's next life.
    pub fn power_on(self: &Arc<Self>) -> Engine {
        let mut contents = self.lock();
        contents.life += 1;
        contents.fails = false;
        let handle = Handle {
            disk: Arc::clone(self),
            life: contents.life,
        };
        Engine {
            log: Arc::new(handle.clone()),
            rows: Arc::new(handle),
        }
    }

    /// The power goes. Returns how many writes are lost.
    pub fn lose_power(&self, chance: &Chance) -> usize {
        let mut contents = self.lock();
        contents.life += 1;
        let lost = contents.log.lose_power(chance) + contents.rows.lose_power(chance);
        if self.mutant == Some(Mutant::ForgetVote) {
            contents.log.durable.notes.remove(note::VOTE);
            contents.log.visible.notes.remove(note::VOTE);
        }
        lost
    }

    /// The process ends, and what it wrote stays.
    pub fn end_process(&self) {
        self.lock().life += 1;
    }

    /// From now on syncs fail.
    pub fn fail(&self) {
        self.lock().fails = true;
    }

    /// A note beside the rows as the node reads it.
    pub fn row_note(&self, name: &str) -> Option<Vec<u8>> {
        self.lock().rows.visible.notes.get(name).cloned()
    }

    /// An entry of the log as the node reads it.
    pub fn entry(&self, index: u64) -> Option<Bytes> {
        self.lock().log.visible.entries.get(&index).cloned()
    }

    /// Whether the entry, or rows that come after it, would survive a power cut.
    pub fn keeps(&self, index: u64, bytes: &Bytes) -> bool {
        let contents = self.lock();
        contents.log.durable.entries.get(&index) == Some(bytes)
            || [
                contents.log.durable.notes.get(note::PURGED),
                contents.rows.durable.notes.get(note::APPLIED),
            ]
            .into_iter()
            .flatten()
            .any(|note| super::oracle::noted_index(note) >= index)
    }

    fn harden(&self, life: u64, written: u64) {
        let mut contents = self.lock();
        if contents.life == life {
            contents.log.sync_through(written);
        }
    }
}

/// The stores of one life of a node.
#[derive(Clone)]
struct Handle {
    disk: Arc<Disk>,
    life: u64,
}

impl Handle {
    fn lock(&self) -> io::Result<MutexGuard<'_, Contents>> {
        let contents = self.disk.lock();
        if contents.life == self.life {
            Ok(contents)
        } else {
            Err(off())
        }
    }

    fn applied(&self) {
        let disk = &self.disk;
        let note = |name| disk.row_note(name).unwrap_or_default();
        let (applied, digest) = (note(note::APPLIED), note(note::DIGEST));
        disk.oracle.applied(disk.node, &applied, &digest);
    }
}

impl Log for Handle {
    fn bounds(&self) -> io::Result<Option<RangeInclusive<u64>>> {
        let contents = self.lock()?;
        let entries = &contents.log.visible.entries;
        let ends = entries.first_key_value().zip(entries.last_key_value());
        Ok(ends.map(|((first, _), (last, _))| *first..=*last))
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<(u64, Vec<u8>)>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut size = 0usize;
        Ok(self
            .lock()?
            .log
            .visible
            .entries
            .range(range)
            .take_while(|(_, value)| {
                let first = size == 0;
                size += value.len().max(1);
                first || size <= max_bytes
            })
            .map(|(index, value)| (*index, value.to_vec()))
            .collect())
    }

    fn append(&self, entries: &[(u64, Vec<u8>)], note: Option<(&str, &[u8])>) -> io::Result<()> {
        let entries: Vec<_> = entries
            .iter()
            .map(|(index, value)| (*index, Bytes::from(value.clone())))
            .collect();
        self.lock()?.log.write(LogWrite::Append(entries.clone()));
        self.disk.oracle.appended(&entries);
        match note {
            Some((name, value)) => self.set_note(name, value),
            None => Ok(()),
        }
    }

    fn truncate(&self, first: u64) -> io::Result<()> {
        self.lock()?.log.write(LogWrite::Truncate(first));
        Ok(())
    }

    fn purge(&self, last: u64, (name, value): (&str, &[u8])) -> io::Result<()> {
        let write = LogWrite::Purge(last, name.to_owned(), value.to_vec());
        self.lock()?.log.write(write);
        Ok(())
    }

    fn note(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.lock()?.log.visible.notes.get(name).cloned())
    }

    fn set_note(&self, name: &str, value: &[u8]) -> io::Result<()> {
        let write = LogWrite::Note(name.to_owned(), value.to_vec());
        self.lock()?.log.write(write);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut contents = self.lock()?;
        if contents.fails {
            return Err(io::Error::other("no space left on device"));
        }
        let mut written = contents.log.written;
        if self.disk.mutant == Some(Mutant::VoteNotSynced) {
            let waiting = contents.log.waiting.iter().rev();
            written -= waiting.take_while(|write| write.is_vote()).count() as u64;
        }
        if self.disk.mutant == Some(Mutant::SyncLies) {
            let (disk, life) = (Arc::clone(&self.disk), self.life);
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(60)).await;
                disk.harden(life, written);
            });
        } else {
            contents.log.sync_through(written);
        }
        Ok(())
    }

    fn close(&self) {}
}

/// The name that [`MemoryRows`] gives its file.
const FILE: &str = "rows.msgpack";

impl Rows for Handle {
    fn write(&self, rows: &[RowWrite], notes: &[(&str, Vec<u8>)]) -> io::Result<()> {
        let notes = notes
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        self.lock()?.rows.write((rows.to_vec(), notes));
        self.applied();
        Ok(())
    }

    fn page(&self, after: Option<&[u8]>, count: usize) -> io::Result<Vec<Pair>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let contents = self.lock()?;
        let rows = &contents.rows.visible.rows;
        Ok(rows
            .range::<[u8], _>((from, Bound::Unbounded))
            .take(count)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    fn note(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.lock()?.rows.visible.notes.get(name).cloned())
    }

    fn sync(&self) -> io::Result<()> {
        let mut contents = self.lock()?;
        let written = contents.rows.written;
        contents.rows.sync_through(written);
        Ok(())
    }

    fn checkpoint(&self, dir: &Path) -> io::Result<()> {
        let contents = self.lock()?;
        let image = &contents.rows.visible;
        std::fs::create_dir(dir)?;
        let bytes = rmp_serde::to_vec(&(&image.rows, &image.notes)).map_err(io::Error::other)?;
        std::fs::write(dir.join(FILE), bytes)
    }

    fn open_checkpoint(&self, dir: &Path) -> io::Result<Box<dyn Rows>> {
        MemoryRows::default().open_checkpoint(dir)
    }

    fn replace(&self, dir: &Path) -> io::Result<()> {
        let bytes = std::fs::read(dir.join(FILE))?;
        let (rows, notes) = rmp_serde::from_slice(&bytes).map_err(io::Error::other)?;
        let image = RowImage { rows, notes };
        let mut contents = self.lock()?;
        contents.rows = Journal::of(image);
        drop(contents);
        std::fs::remove_dir_all(dir)?;
        self.disk.oracle.installed(self.disk.node);
        self.applied();
        Ok(())
    }

    fn set_aside(&self) -> io::Result<()> {
        self.lock()?.rows = Journal::default();
        Ok(())
    }

    fn close(&self) {}
}
