//! Stores that are gone with the process, for tests and for a cluster of one in memory.

use std::collections::BTreeMap;
use std::io;
use std::ops::{Bound, Range, RangeInclusive};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Log, Pair, Rows};
use crate::state::RowWrite;

/// A [`Log`] in memory.
#[derive(Default)]
pub struct MemoryLog {
    inner: Mutex<LogContents>,
}

#[derive(Default)]
struct LogContents {
    entries: BTreeMap<u64, Vec<u8>>,
    notes: BTreeMap<String, Vec<u8>>,
}

impl MemoryLog {
    fn lock(&self) -> MutexGuard<'_, LogContents> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for MemoryLog {
    fn bounds(&self) -> io::Result<Option<RangeInclusive<u64>>> {
        let contents = self.lock();
        let first = contents.entries.first_key_value();
        let last = contents.entries.last_key_value();
        Ok(first
            .zip(last)
            .map(|((first, _), (last, _))| *first..=*last))
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<(u64, Vec<u8>)>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut size = 0usize;
        Ok(self
            .lock()
            .entries
            .range(range)
            .take_while(|(_, value)| {
                let first = size == 0;
                size = size.saturating_add(value.len().max(1));
                first || size <= max_bytes
            })
            .map(|(index, value)| (*index, value.clone()))
            .collect())
    }

    fn append(&self, entries: &[(u64, Vec<u8>)], note: Option<(&str, &[u8])>) -> io::Result<()> {
        let mut contents = self.lock();
        contents.entries.extend(entries.iter().cloned());
        let note = note.map(|(name, value)| (name.to_owned(), value.to_owned()));
        contents.notes.extend(note);
        Ok(())
    }

    fn truncate(&self, first: u64) -> io::Result<()> {
        self.lock().entries.split_off(&first);
        Ok(())
    }

    fn purge(&self, last: u64, (name, value): (&str, &[u8])) -> io::Result<()> {
        let mut contents = self.lock();
        contents.entries = contents.entries.split_off(&last.saturating_add(1));
        contents.notes.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    fn note(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.lock().notes.get(name).cloned())
    }

    fn set_note(&self, name: &str, value: &[u8]) -> io::Result<()> {
        self.lock().notes.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn close(&self) {}
}

/// [`Rows`] in memory.
#[derive(Default)]
pub struct MemoryRows {
    inner: Mutex<RowContents>,
}

type RowContents = (BTreeMap<Vec<u8>, Vec<u8>>, BTreeMap<String, Vec<u8>>);

const FILE: &str = "rows.msgpack";

impl MemoryRows {
    fn lock(&self) -> MutexGuard<'_, RowContents> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_file(dir: &Path) -> io::Result<RowContents> {
        let bytes = std::fs::read(dir.join(FILE))?;
        rmp_serde::from_slice(&bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

impl Rows for MemoryRows {
    fn write(&self, rows: &[RowWrite], notes: &[(&str, Vec<u8>)]) -> io::Result<()> {
        let mut contents = self.lock();
        for row in rows {
            match &row.value {
                Some(value) => contents.0.insert(row.key.clone(), value.clone()),
                None => contents.0.remove(&row.key),
            };
        }
        for (name, value) in notes {
            contents.1.insert((*name).to_owned(), value.clone());
        }
        Ok(())
    }

    fn page(&self, after: Option<&[u8]>, count: usize) -> io::Result<Vec<Pair>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        Ok(self
            .lock()
            .0
            .range::<[u8], _>((from, Bound::Unbounded))
            .take(count)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    fn note(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.lock().1.get(name).cloned())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn close(&self) {}

    fn checkpoint(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir(dir)?;
        let bytes = rmp_serde::to_vec(&*self.lock()).map_err(io::Error::other)?;
        std::fs::write(dir.join(FILE), bytes)
    }

    fn open_checkpoint(&self, dir: &Path) -> io::Result<Box<dyn Rows>> {
        Ok(Box::new(Self {
            inner: Mutex::new(Self::read_file(dir)?),
        }))
    }

    fn replace(&self, dir: &Path) -> io::Result<()> {
        *self.lock() = Self::read_file(dir)?;
        std::fs::remove_dir_all(dir)
    }

    fn set_aside(&self) -> io::Result<()> {
        *self.lock() = RowContents::default();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_contract_of_a_log() {
        super::super::rocks::tests::log_contract(&MemoryLog::default());
    }

    #[test]
    fn keeps_the_contract_of_rows() {
        super::super::rocks::tests::rows_contract(&MemoryRows::default());
    }
}
