//! Looking at a node's directory without starting a node, and without writing to it.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use muster_storage::engine::{Engine, load_state};
use muster_storage::{Change, Entry, Revision, State, schema};
use openraft::EntryPayload;
use prost::Message;
use tempfile::TempDir;

use super::note;
use crate::Error;
use crate::start::Open;
use crate::types::LogId;
use crate::wire::proto;

/// Octets of log entries read at a time.
const PAGE_BYTES: usize = 4 << 20;

/// What a node's directory holds.
pub struct Inspection {
    engine: Open,
    state: State,
    applied: u64,
    _copy: Option<TempDir>,
}

impl Inspection {
    /// Opens the directory of a stopped node, or a copy of one, and verifies what can be: checksums,
    /// that the log has no hole, that every row can be read, and the digest over all rows.
    ///
    /// # Errors
    /// When it is no such directory, or something in it is damaged or of a newer schema.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        check_is_node(dir)?;
        let copy = TempDir::new().map_err(Error::io("making room for a copy"))?;
        let doing = format!("reading {}", dir.display());
        copy_parts(dir, copy.path()).map_err(Error::io(doing.clone()))?;
        let engine = Engine::open(copy.path()).map_err(Error::io(doing.clone()))?;
        Self::of(engine, Some(copy), &doing)
    }

    /// Opens the directory of a stopped node itself, and keeps every other process out of it.
    ///
    /// # Errors
    /// As [`Inspection::open`], and when a node is running on it.
    pub fn open_in_place(dir: &Path) -> Result<Self, Error> {
        check_is_node(dir)?;
        let doing = format!("opening {} (is muster still running on it?)", dir.display());
        let engine = Engine::open_existing(dir).map_err(Error::io(doing.clone()))?;
        Self::of(engine, None, &doing)
    }

    fn of(engine: Engine, copy: Option<TempDir>, doing: &str) -> Result<Self, Error> {
        let engine = Open(engine);
        let state =
            load_state(&*engine.0.rows).map_err(|error| Error::Corrupt(error.to_string()))?;
        let note = |name| engine.0.rows.note(name).map_err(Error::io(doing));
        if note(note::DIGEST)?.is_some_and(|digest| digest != state.digest().0) {
            return Err(Error::Corrupt(
                "the rows do not have the digest that was written with them".into(),
            ));
        }
        let applied = match note(note::APPLIED)? {
            Some(bytes) => proto::LogId::decode(&*bytes).map_err(corrupt)?.index,
            None => 0,
        };
        Ok(Self {
            engine,
            state,
            applied,
            _copy: copy,
        })
    }

    /// The state as of the last applied entry.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Index of the last applied entry.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Indexes of the first and last entry of the log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self) -> Result<Option<RangeInclusive<u64>>, Error> {
        self.engine
            .0
            .log
            .bounds()
            .map_err(Error::io("reading the log"))
    }

    /// Term and index of the last entry of the log: by it the furthest of several nodes is told.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn last(&self) -> Result<(u64, u64), Error> {
        let reading = || Error::io("reading the log");
        let log = &self.engine.0.log;
        let last = match log.bounds().map_err(reading())? {
            Some(bounds) => {
                let end = *bounds.end();
                let page = log.read(end..end.saturating_add(1), 0).map_err(reading())?;
                let entry = page
                    .into_iter()
                    .next()
                    .map(|(_, bytes)| super::log::decode(bytes));
                entry
                    .transpose()
                    .map_err(reading())?
                    .map(|entry| entry.log_id)
            }
            None => {
                let purged = log.note(note::PURGED).map_err(reading())?;
                let purged = purged
                    .map(|bytes| proto::LogId::decode(&*bytes))
                    .transpose();
                purged.map_err(corrupt)?.map(LogId::from)
            }
        };
        let last = last.map(|id| proto::LogId::from(&id)).unwrap_or_default();
        Ok((last.term, last.index))
    }

    /// Applies the log from after the last applied entry to the state: what a start would make of
    /// it. `seen` gets what each proposal changed.
    ///
    /// # Errors
    /// When an entry is damaged or of a newer schema, and what `seen` returns.
    pub fn replay<E: From<Error>>(
        &self,
        mut seen: impl FnMut(&State, &[Arc<Change>]) -> Result<(), E>,
    ) -> Result<State, E> {
        let mut state = self.state.clone();
        self.each_entry(
            self.applied.saturating_add(1),
            |index, entry| -> Result<(), E> {
                let Some(entry) = entry else {
                    return Ok(());
                };
                let outcomes = state.apply(Revision::new(index, 0), &entry);
                state.take_rows().map_err(corrupt)?;
                for (_, changes) in outcomes {
                    seen(&state, &changes)?;
                }
                Ok(())
            },
        )?;
        Ok(state)
    }

    /// Calls `f` with every entry of the log from index `from` on, in order; Raft's own entries are
    /// absent.
    ///
    /// # Errors
    /// When an entry is damaged or of a newer schema, and what `f` returns.
    pub fn each_entry<E: From<Error>>(
        &self,
        from: u64,
        mut f: impl FnMut(u64, Option<Entry>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut next = from;
        loop {
            let page = self.engine.0.log.read(next..u64::MAX, PAGE_BYTES);
            let page = page.map_err(Error::io("reading the log"))?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            next = last.saturating_add(1);
            for (index, bytes) in page {
                f(index, decode(&bytes)?)?;
            }
        }
    }
}

fn check_is_node(dir: &Path) -> Result<(), Error> {
    for part in ["log", "state"] {
        if !dir.join(part).is_dir() {
            return Err(Error::NoCluster(dir.to_owned()));
        }
    }
    Ok(())
}

pub(super) fn decode(bytes: &[u8]) -> Result<Option<Entry>, Error> {
    let entry = super::log::decode(bytes.to_vec()).map_err(Error::io("reading the log"))?;
    match entry.payload {
        EntryPayload::Normal(bytes) => schema::decode_entry(&bytes.0).map(Some).map_err(corrupt),
        EntryPayload::Blank | EntryPayload::Membership(_) => Ok(None),
    }
}

fn corrupt(error: impl std::fmt::Display) -> Error {
    Error::Corrupt(error.to_string())
}

/// Copies log and rows, and what a crash may have left beside the rows.
pub(super) fn copy_parts(from: &Path, to: &Path) -> io::Result<()> {
    for part in ["log", "state", "state.new", "state.old"] {
        if from.join(part).is_dir() {
            copy_dir(&from.join(part), &to.join(part))?;
        }
    }
    Ok(())
}

fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        let target = to.join(file.file_name());
        if file.file_type()?.is_dir() {
            copy_dir(&file.path(), &target)?;
        } else {
            fs::copy(file.path(), target)?;
        }
    }
    Ok(())
}
