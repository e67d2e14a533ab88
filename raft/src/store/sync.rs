//! The one thread that syncs the log.
//!
//! Many appends share one sync, callbacks run in the order of the appends, and openraft's own task
//! never waits for the disk.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::time::Instant;

use muster_storage::engine::Log;
use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

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
    queue: Sender<Waiter>,
}

impl Syncer {
    /// Starts the thread. With `unsafe_no_sync` it reports success without syncing, so that a test
    /// of power cuts can be seen to bite.
    pub fn start(log: Arc<dyn Log>, unsafe_no_sync: bool) -> io::Result<Self> {
        let (queue, waiters) = channel();
        std::thread::Builder::new()
            .name("muster-log-sync".into())
            .spawn(move || run(&waiters, &*log, unsafe_no_sync))?;
        Ok(Self { queue })
    }

    /// Calls the waiter back once everything written until now is durable.
    pub fn sync(&self, waiter: Waiter) {
        if let Err(SendError(waiter)) = self.queue.send(waiter) {
            waiter.done(Err(&io::Error::other("the log's sync thread is gone")));
        }
    }
}

fn run(waiters: &Receiver<Waiter>, log: &dyn Log, unsafe_no_sync: bool) {
    // After a failed sync the page cache cannot be trusted: nothing is promised any more.
    let mut failed: Option<io::Error> = None;
    while let Ok(first) = waiters.recv() {
        let batch: Vec<Waiter> = std::iter::once(first).chain(waiters.try_iter()).collect();
        if failed.is_none() && !unsafe_no_sync {
            let start = Instant::now();
            if let Err(error) = log.sync() {
                tracing::error!(%error, "cannot sync the log; this node stops taking part");
                failed = Some(error);
            }
            metrics::histogram!("muster_raft_log_sync_seconds").record(start.elapsed());
            metrics::counter!("muster_raft_log_syncs_total").increment(1);
        }
        for waiter in batch {
            waiter.done(failed.as_ref().map_or(Ok(()), Err));
        }
    }
}
