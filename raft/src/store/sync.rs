//! The one thread that syncs the log.
//!
//! Many appends share one sync, callbacks run in the order of the appends, and openraft's own task
//! never waits for the disk.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use muster_storage::engine::Log;
use openraft::storage::IOFlushed;
use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::disk::Disk;
use crate::host::Host;
use crate::types::TypeConfig;

/// Who waits for the sync.
pub enum Waiter {
    /// openraft, for appended entries.
    Append(IOFlushed<TypeConfig>),
    /// A caller that wrote a note.
    Barrier(oneshot::Sender<io::Result<()>>),
}

impl Waiter {
    fn done(self, result: Result<(), &io::Error>) {
        let result = result.map_err(|error| io::Error::new(error.kind(), error.to_string()));
        match self {
            Self::Append(callback) => callback.io_completed(result),
            Self::Barrier(sender) => {
                // A caller that went away needs no answer.
                let _ = sender.send(result);
            }
        }
    }
}

/// Handle to the thread; it ends when the last handle is dropped.
#[derive(Clone)]
pub struct Syncer {
    queue: UnboundedSender<Waiter>,
}

impl Syncer {
    /// Starts the thread. With `unsafe_no_sync` it reports success without syncing, so that a test
    /// of power cuts can be seen to bite.
    pub fn start(
        log: Arc<dyn Log>,
        disk: Disk,
        host: &Host,
        unsafe_no_sync: bool,
    ) -> io::Result<Self> {
        let (queue, waiters) = unbounded_channel();
        let worker = SyncWorker {
            log,
            disk,
            unsafe_no_sync,
            failed: None,
        };
        host.spawn_syncer(worker, waiters)?;
        Ok(Self { queue })
    }

    /// Calls the waiter back once everything written until now is durable.
    pub fn sync(&self, waiter: Waiter) {
        if let Err(SendError(waiter)) = self.queue.send(waiter) {
            waiter.done(Err(&io::Error::other("the log's sync thread is gone")));
        }
    }
}

/// What the thread does.
pub struct SyncWorker {
    log: Arc<dyn Log>,
    disk: Disk,
    unsafe_no_sync: bool,
    /// After a failed sync the page cache cannot be trusted: nothing is promised any more.
    failed: Option<io::Error>,
}

impl SyncWorker {
    /// Serves waiters for ever.
    pub fn run(mut self, mut waiters: UnboundedReceiver<Waiter>) {
        while let Some(first) = waiters.blocking_recv() {
            let batch = Self::gather(first, &mut waiters);
            self.settle(batch);
        }
    }

    /// Everyone who waits now, in the order in which they came.
    pub fn gather(first: Waiter, waiters: &mut UnboundedReceiver<Waiter>) -> Vec<Waiter> {
        let more = std::iter::from_fn(|| waiters.try_recv().ok());
        std::iter::once(first).chain(more).collect()
    }

    /// One sync for a whole batch.
    pub fn settle(&mut self, batch: Vec<Waiter>) {
        if self.failed.is_none() && !self.unsafe_no_sync {
            let start = Instant::now();
            if let Err(error) = self.disk.write_blocking(|| self.log.sync()) {
                tracing::error!(%error, "cannot sync the log; this node stops taking part");
                self.failed = Some(error);
            }
            metrics::histogram!("muster_raft_log_sync_seconds").record(start.elapsed());
            metrics::counter!("muster_raft_log_syncs_total").increment(1);
        }
        for waiter in batch {
            waiter.done(self.failed.as_ref().map_or(Ok(()), Err));
        }
    }
}
