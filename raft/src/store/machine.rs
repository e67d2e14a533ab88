//! openraft's state machine: the one place where committed entries become state.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use futures::{Stream, StreamExt};
use muster_storage::engine::{Engine, Rows, load_state};
use muster_storage::state::{Digest, RowWrite};
use muster_storage::{Outcome, Revision, State, schema};
use openraft::entry::RaftEntry;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use prost::Message;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::{Snapshot, note};
use crate::clock::Clock;
use crate::digests::Marks;
use crate::disk::Disk;
use crate::host::Host;
use crate::types::{LogId, Outcomes, RaftSnapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::wire::proto;

/// Rows written in one batch before their outcomes are told.
const BATCH_ROWS: usize = 4096;

/// How far this node has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Index of the last applied log entry.
    pub applied: u64,
    /// Revision of the state.
    pub revision: Revision,
    /// Digest of the state.
    pub digest: Digest,
}

/// The state of this node, shared by everyone who reads it.
pub struct Memory {
    state: RwLock<State>,
    progress: watch::Sender<Progress>,
    rows: Arc<dyn Rows>,
    clock: Clock,
    host: Host,
    marks: Marks,
    /// Work on snapshots, outside of openraft's own tasks.
    jobs: TaskTracker,
    snapshots: PathBuf,
    current: Mutex<Option<Arc<Snapshot>>>,
}

impl Memory {
    /// Reads the state as of now. `f` must be short: entries wait for it.
    pub fn read<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Applies a proposal to this node's state alone, as a fault of memory or program would.
    #[cfg(any(test, feature = "test-support"))]
    pub fn tamper(&self, proposal: muster_storage::Proposal) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let (at, revision) = (state.time(), state.revision());
        let proposals = vec![proposal];
        state.apply(revision, &muster_storage::Entry { at, proposals });
        let digest = state.digest();
        drop(state);
        self.progress
            .send_modify(|progress| progress.digest = digest);
    }

    /// How far this node has come, and a way to wait for more.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Store of the rows, for snapshots that arrive.
    pub fn rows(&self) -> &Arc<dyn Rows> {
        &self.rows
    }

    /// Work on snapshots.
    pub fn jobs(&self) -> &TaskTracker {
        &self.jobs
    }

    /// The time of entries.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The machine that this node runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The digests of the state at agreed entries.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Directory of the snapshots.
    pub fn snapshots(&self) -> &PathBuf {
        &self.snapshots
    }

    /// The last log entry that the rows hold, or that the snapshot on disk holds, if that is later.
    pub fn reach(&self) -> u64 {
        let current = self.current();
        let snapshot = current.and_then(|snapshot| snapshot.manifest().last);
        snapshot
            .map_or(0, |last| last.index)
            .max(self.progress.borrow().applied)
    }

    fn current(&self) -> Option<Arc<Snapshot>> {
        let current = self.current.lock();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn advance(&self, applied: LogId) {
        let (revision, digest) = self.read(|state| (state.revision(), state.digest()));
        self.progress.send_replace(Progress {
            applied: applied.index(),
            revision,
            digest,
        });
        metrics::gauge!("muster_raft_applied_index").set(applied.index() as f64);
    }

    fn set_current(&self, snapshot: Arc<Snapshot>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = current.replace(snapshot) {
            old.retire();
        }
    }

    fn build(&self) -> io::Result<RaftSnapshot> {
        let start = Instant::now();
        let snapshot = Arc::new(Snapshot::build(&*self.rows, &self.snapshots)?);
        self.set_current(Arc::clone(&snapshot));
        metrics::histogram!("muster_raft_snapshot_build_seconds").record(start.elapsed());
        Ok(RaftSnapshot {
            meta: snapshot.meta()?,
            snapshot,
        })
    }
}

/// The state machine that openraft drives.
pub struct Machine {
    memory: Arc<Memory>,
    disk: Disk,
    applied: Option<LogId>,
    membership: StoredMembership,
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Machine {
    /// Loads the state that the rows of an engine hold. Snapshots live below `snapshots`.
    ///
    /// # Errors
    /// Of kind `InvalidData` when the rows are damaged, `Unsupported` when a newer muster wrote them;
    /// and when the disk fails.
    pub fn open(engine: &Engine, disk: &Disk, snapshots: PathBuf, host: Host) -> io::Result<Self> {
        let rows = Arc::clone(&engine.rows);
        let applied = rows.note(note::APPLIED)?;
        let applied = applied
            .map(|bytes| proto::LogId::decode(&*bytes))
            .transpose()
            .map_err(invalid)?
            .map(LogId::from);
        let membership = match rows.note(note::MEMBERSHIP)? {
            Some(bytes) => proto::StoredMembership::decode(&*bytes)
                .map_err(invalid)?
                .try_into()?,
            None => StoredMembership::default(),
        };
        let state = load_state(&*rows)?;
        if let Some(digest) = rows.note(note::DIGEST)?
            && digest != state.digest().0
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the rows do not have the digest that was written with them",
            ));
        }
        let ahead = |snapshot: &Snapshot| snapshot.manifest().last.map(LogId::from) > applied;
        let current = match Snapshot::find(&snapshots)? {
            // It is going to be installed.
            Some(snapshot) if ahead(&snapshot) => snapshot.sound(&*rows),
            found => found,
        };
        let current = current.map(Arc::new);
        let progress = Progress {
            applied: applied.map_or(0, |id| id.index()),
            revision: state.revision(),
            digest: state.digest(),
        };
        let memory = Arc::new(Memory {
            state: RwLock::new(state),
            progress: watch::Sender::new(progress),
            rows,
            clock: Clock::new(host.clone()),
            host,
            marks: Marks::default(),
            jobs: TaskTracker::new(),
            snapshots,
            current: Mutex::new(current),
        });
        Ok(Self {
            memory,
            disk: disk.clone(),
            applied,
            membership,
        })
    }

    /// The state, for readers.
    pub fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.memory)
    }

    /// The last applied entry.
    pub fn applied(&self) -> Option<LogId> {
        self.applied
    }

    /// Makes a snapshot if there must be one and is none: of what the log has given up, for peers that
    /// lack it; and if the log, which ends at `last`, does not reach as far as the rows. That happens
    /// when power is lost after a quorum had entries on disk that this node had not: rows reach the
    /// disk when they like. openraft then takes the log for purged through the rows' position, and
    /// does not start unless a snapshot covers that.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn cover(&self, last: Option<LogId>, purged: u64) -> io::Result<()> {
        if self.applied > last {
            tracing::info!("the rows are ahead of the log; making a snapshot of them");
        } else if purged > 0 && self.memory.current().is_none() {
            tracing::warn!("there is no snapshot of what the log has given up; making one");
        } else {
            return Ok(());
        }
        self.memory.build().map(drop)
    }

    fn apply_entry(
        &self,
        index: u64,
        bytes: &[u8],
        rows: &mut Vec<RowWrite>,
    ) -> io::Result<Vec<Outcome>> {
        // What cannot be understood stops the node: skipping it would diverge.
        let entry = schema::decode_entry(bytes).map_err(invalid)?;
        let start = Instant::now();
        let mut state = self
            .memory
            .state
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let outcomes = state.apply(Revision::new(index, 0), &entry);
        rows.append(&mut state.take_rows().map_err(invalid)?);
        let time = state.time();
        drop(state);
        self.memory.clock.applied(time);
        metrics::histogram!("muster_raft_apply_seconds").record(start.elapsed());
        metrics::counter!("muster_raft_proposals_applied_total").increment(outcomes.len() as u64);
        Ok(outcomes.into_iter().map(|(outcome, _)| outcome).collect())
    }

    /// Writes rows with the position they belong to, then tells the outcomes.
    async fn flush(
        &self,
        rows: &mut Vec<RowWrite>,
        replies: &mut Vec<(ApplyResponder<TypeConfig>, Outcomes)>,
    ) -> io::Result<()> {
        let Some(applied) = &self.applied else {
            return Ok(());
        };
        let digest = self.memory.read(State::digest);
        let notes = [
            (note::APPLIED, proto::LogId::from(applied).encode_to_vec()),
            (
                note::MEMBERSHIP,
                proto::StoredMembership::from(&self.membership).encode_to_vec(),
            ),
            (note::DIGEST, digest.0.to_vec()),
        ];
        let write = || self.memory.rows.write(rows, &notes);
        self.disk.write(write).await?;
        rows.clear();
        self.memory.advance(*applied);
        for (responder, outcomes) in replies.drain(..) {
            responder.send(outcomes);
        }
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Arc<Snapshot>;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut rows = Vec::new();
        let mut replies = Vec::new();
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let outcomes = match &entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Normal(bytes) => {
                    self.apply_entry(entry.index(), &bytes.0, &mut rows)?
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    Vec::new()
                }
            };
            self.applied = Some(entry.log_id);
            let digest = || self.memory.read(State::digest);
            self.memory.marks.applied(entry.index(), digest);
            replies.extend(responder.map(|responder| (responder, Outcomes(outcomes))));
            if rows.len() >= BATCH_ROWS {
                self.flush(&mut rows, &mut replies).await?;
            }
        }
        let flushed = self.flush(&mut rows, &mut replies).await;
        flushed.inspect_err(|error| tracing::error!(%error, "cannot write rows; this node stops"))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            memory: self.memory(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Arc<Snapshot>,
    ) -> Result<(), io::Error> {
        let memory = self.memory();
        let install = move || -> io::Result<()> {
            let state = snapshot.take_state(&*memory.rows)?;
            memory.rows.replace(&snapshot.files_dir())?;
            // Large, and dropped after the lock is.
            let old = std::mem::replace(
                &mut *memory.state.write().unwrap_or_else(PoisonError::into_inner),
                state,
            );
            drop(old);
            memory.marks.clear();
            snapshot.retire();
            memory.build().map(drop)
        };
        let (host, jobs) = (&self.memory.host, &self.memory.jobs);
        host.blocking(Some(jobs), install).await?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        if let Some(applied) = self.applied {
            self.memory.advance(applied);
        }
        metrics::counter!("muster_raft_snapshots_installed_total").increment(1);
        tracing::info!(snapshot = %meta, "installed a snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<RaftSnapshot>, io::Error> {
        let current = self.memory.current();
        if current.as_ref().is_some_and(|current| current.is_damaged()) {
            tracing::error!("the snapshot on the disk is damaged; making another");
            let builder = self.get_snapshot_builder().await;
            return builder.build().await.map(Some);
        }
        current
            .map(|snapshot| {
                Ok(RaftSnapshot {
                    meta: snapshot.meta()?,
                    snapshot,
                })
            })
            .transpose()
    }
}

/// Makes snapshots beside the applying of entries.
pub struct Builder {
    memory: Arc<Memory>,
}

impl Builder {
    async fn build(&self) -> io::Result<RaftSnapshot> {
        let memory = Arc::clone(&self.memory);
        let (host, jobs) = (self.memory.host(), self.memory.jobs());
        host.blocking(Some(jobs), move || memory.build()).await
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = Arc<Snapshot>;

    async fn build_snapshot(&mut self) -> Result<RaftSnapshot, io::Error> {
        self.build().await
    }
}
