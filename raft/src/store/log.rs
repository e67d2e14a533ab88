//! openraft's log storage.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::Stream;
use muster_storage::engine::{Engine, Log, Rows};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader};
use prost::Message;
use tokio::sync::oneshot;

use super::note;
use super::sync::{Syncer, Waiter};
use crate::disk::Disk;
use crate::host::Host;
use crate::types::{LogEntry, LogId, TypeConfig, Vote};
use crate::wire::proto;

/// Octets of entries in one replication message.
const READ_BYTES: usize = 2 << 20;
/// Octets of recent entries kept in memory, so that replication and apply rarely read the disk.
const TAIL_BYTES: usize = 32 << 20;

/// The log of a node. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    inner: Arc<Inner>,
}

struct Inner {
    log: Arc<dyn Log>,
    rows: Arc<dyn Rows>,
    disk: Disk,
    syncer: Syncer,
    known: Mutex<Known>,
    size: Arc<Size>,
}

/// Entries and octets appended since the log was last cut: what a cut may be worth.
#[derive(Default)]
pub struct Size {
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl Size {
    /// Octets appended.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many of the last entries make up so many octets, about.
    pub fn entries_in(&self, bytes: u64) -> u64 {
        let average = self.bytes() / self.entries.load(Ordering::Relaxed).max(1);
        bytes / average.max(1)
    }

    /// The log was cut.
    pub fn reset(&self) {
        self.entries.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }

    fn grow(&self, stored: &[(u64, Vec<u8>)]) {
        let bytes: usize = stored.iter().map(|(_, value)| value.len()).sum();
        self.entries
            .fetch_add(stored.len() as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// What need not be read from the disk.
#[derive(Default)]
struct Known {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// Id of the last entry, purged or not.
    last: Option<LogId>,
    tail: VecDeque<LogEntry>,
    tail_bytes: usize,
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn size(entry: &LogEntry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(bytes) => bytes.0.len() + 64,
        _ => 256,
    }
}

pub(super) fn decode(bytes: Vec<u8>) -> io::Result<LogEntry> {
    Ok(proto::LogEntry::decode(Bytes::from(bytes))
        .map_err(invalid)?
        .try_into()?)
}

impl Known {
    fn push(&mut self, entry: LogEntry) {
        let next = self.tail.back().map(|last| last.index().wrapping_add(1));
        if next.is_some_and(|next| next != entry.index()) {
            self.tail.clear();
            self.tail_bytes = 0;
        }
        self.last = Some(entry.log_id);
        self.tail_bytes = self.tail_bytes.saturating_add(size(&entry));
        self.tail.push_back(entry);
        while self.tail_bytes > TAIL_BYTES && self.tail.len() > 1 {
            if let Some(oldest) = self.tail.pop_front() {
                self.tail_bytes = self.tail_bytes.saturating_sub(size(&oldest));
            }
        }
    }

    /// Entries of the range if all that exist are in memory.
    fn in_memory(&self, range: &Range<u64>, max_bytes: usize) -> Option<Vec<LogEntry>> {
        let first = self.tail.front()?.index();
        if range.start < first {
            return None;
        }
        let skip = usize::try_from(range.start - first).ok()?;
        let mut bytes = 0usize;
        Some(
            self.tail
                .iter()
                .skip(skip)
                .take_while(|entry| {
                    let is_first = bytes == 0;
                    bytes = bytes.saturating_add(size(entry));
                    entry.index() < range.end && (is_first || bytes <= max_bytes)
                })
                .cloned()
                .collect(),
        )
    }
}

/// Notes in a log whose it is, before anything is promised in its name. A log that must not be new
/// and has neither this note nor a vote has lost what this node promised.
///
/// # Errors
/// When it is another node's, has lost its promises, or the disk fails.
pub fn claim(log: &dyn Log, identity: &str, must_exist: bool) -> io::Result<()> {
    match log.note(note::IDENTITY)? {
        Some(known) if known == identity.as_bytes() => return Ok(()),
        Some(_) => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the log is another node's",
            ));
        }
        None => {}
    }
    if must_exist && log.note(note::VOTE)?.is_none() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the log has been emptied",
        ));
    }
    log.set_note(note::IDENTITY, identity.as_bytes())?;
    log.sync()
}

impl LogStore {
    /// Takes the log of an engine into use.
    ///
    /// # Errors
    /// Of kind `InvalidData` when it is damaged; and when the disk fails.
    pub fn open(
        engine: &Engine,
        disk: &Disk,
        host: &Host,
        unsafe_no_sync: bool,
    ) -> io::Result<Self> {
        let log = Arc::clone(&engine.log);
        let id = |name| -> io::Result<Option<LogId>> {
            let bytes = log.note(name)?;
            let id = bytes.map(|bytes| proto::LogId::decode(&*bytes)).transpose();
            Ok(id.map_err(invalid)?.map(Into::into))
        };
        let vote = log.note(note::VOTE)?;
        let vote = vote.map(|bytes| proto::Vote::decode(&*bytes)).transpose();
        let purged = id(note::PURGED)?;
        let mut last = purged;
        if let Some(bounds) = log.bounds()? {
            if *bounds.start() > purged.map_or(0, |purged| purged.index().saturating_add(1)) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the log does not reach back to what was purged",
                ));
            }
            let end = *bounds.end();
            if let Some((_, bytes)) = log.read(end..end.saturating_add(1), 0)?.pop() {
                last = last.max(Some(decode(bytes)?.log_id));
            }
        }
        let known = Known {
            vote: vote.map_err(invalid)?.map(Into::into),
            committed: id(note::COMMITTED)?,
            purged,
            last,
            ..Known::default()
        };
        Ok(Self {
            inner: Arc::new(Inner {
                syncer: Syncer::start(Arc::clone(&log), disk.clone(), host, unsafe_no_sync)?,
                disk: disk.clone(),
                log,
                rows: Arc::clone(&engine.rows),
                known: Mutex::new(known),
                size: Arc::default(),
            }),
        })
    }

    /// The last entry, purged or not.
    pub fn last(&self) -> Option<LogId> {
        self.known().last
    }

    /// Refuses a log whose vote is of an earlier term than entries that this node has applied: a vote
    /// is durable before anything of its term is accepted, so what followed it was lost after that.
    ///
    /// # Errors
    /// Of kind `InvalidData` when it is so.
    pub fn check_vote(&self, applied: Option<LogId>) -> io::Result<()> {
        let known = self.known();
        let voted = known.vote.map_or(0, |vote| proto::Vote::from(&vote).term);
        let reached = known.last.max(applied);
        let reached = reached.map_or(0, |id| proto::LogId::from(&id).term);
        if voted >= reached {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the last vote is of term {voted}, and entries of term {reached} were accepted"
            ),
        ))
    }

    /// How much was appended lately.
    pub fn size(&self) -> Arc<Size> {
        Arc::clone(&self.inner.size)
    }

    /// Index of the last entry that was purged; 0 when none was.
    pub fn purged(&self) -> u64 {
        self.known().purged.map_or(0, |id| id.index())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.inner
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        if let Some(entries) = self.known().in_memory(&range, max_bytes) {
            return Ok(entries);
        }
        let stored = self.inner.log.read(range, max_bytes)?;
        stored.into_iter().map(|(_, bytes)| decode(bytes)).collect()
    }

    async fn barrier(&self) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.inner.syncer.sync(Waiter::Barrier(sender));
        receiver
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the log's sync thread is gone")))
    }
}

fn indexes(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<LogEntry>, io::Error> {
        self.read(indexes(&range), usize::MAX)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<LogEntry>, io::Error> {
        self.read(start..end, READ_BYTES)
    }

    /// Reads in pieces: after a restart the range may be the whole log.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<LogEntry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let store = self.clone();
        let range = indexes(&range);
        let start = (range, Vec::new().into_iter());
        futures::stream::try_unfold(start, move |(mut range, mut page)| {
            let store = store.clone();
            async move {
                if let Some(entry) = page.next() {
                    return Ok(Some((entry, (range, page))));
                }
                if range.is_empty() {
                    return Ok(None);
                }
                page = store.read(range.clone(), READ_BYTES)?.into_iter();
                if let Some(last) = page.as_slice().last() {
                    range.start = last.index().saturating_add(1);
                }
                Ok(page.next().map(|entry| (entry, (range, page))))
            }
        })
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.known().vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let known = self.known();
        Ok(LogState {
            last_purged_log_id: known.purged,
            last_log_id: known.last,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let bytes = proto::Vote::from(vote).encode_to_vec();
        let inner = &self.inner;
        inner
            .disk
            .write(|| inner.log.set_note(note::VOTE, &bytes))
            .await?;
        self.known().vote = Some(*vote);
        self.barrier().await
    }

    /// Written with the next entries: a power cut takes what is written later all the same, and the
    /// rows outlive a process.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.known().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.known().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<LogEntry> = entries.into_iter().collect();
        let stored: Vec<(u64, Vec<u8>)> = entries
            .iter()
            .map(|entry| (entry.index(), proto::LogEntry::from(entry).encode_to_vec()))
            .collect();
        let inner = &self.inner;
        if !inner.disk.has_room().await {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let committed = self.known().committed;
        let committed = committed.map(|id| proto::LogId::from(&id).encode_to_vec());
        let note = committed.as_deref().map(|bytes| (note::COMMITTED, bytes));
        let write = || inner.log.append(&stored, note);
        inner.disk.write(write).await?;
        self.inner.size.grow(&stored);
        metrics::counter!("muster_raft_log_entries_total").increment(stored.len() as u64);
        let mut known = self.known();
        for entry in entries {
            known.push(entry);
        }
        drop(known);
        self.inner.syncer.sync(Waiter::Append(callback));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let first = last.map_or(0, |id| id.index().saturating_add(1));
        let inner = &self.inner;
        inner.disk.write(|| inner.log.truncate(first)).await?;
        let mut known = self.known();
        while known
            .tail
            .back()
            .is_some_and(|entry| entry.index() >= first)
        {
            if let Some(entry) = known.tail.pop_back() {
                known.tail_bytes = known.tail_bytes.saturating_sub(size(&entry));
            }
        }
        let kept = last.max(known.purged);
        known.last = known.last.min(kept);
        Ok(())
    }

    async fn purge(&mut self, through: LogId) -> Result<(), io::Error> {
        // What the log gives up must be safe in the rows.
        self.inner.rows.sync()?;
        let bytes = proto::LogId::from(&through).encode_to_vec();
        self.inner
            .log
            .purge(through.index(), (note::PURGED, &bytes))?;
        let mut known = self.known();
        while known
            .tail
            .front()
            .is_some_and(|entry| entry.index() <= through.index())
        {
            if let Some(entry) = known.tail.pop_front() {
                known.tail_bytes = known.tail_bytes.saturating_sub(size(&entry));
            }
        }
        known.purged = known.purged.max(Some(through));
        known.last = known.last.max(Some(through));
        Ok(())
    }
}
