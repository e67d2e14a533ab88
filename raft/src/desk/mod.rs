//! The way of a proposal: gathered on its node, forwarded to the leader in one message, put into
//! one log entry with what else is waiting there.
//!
//! Nobody waits for company who is alone: a batch is what has queued up while earlier ones are on
//! their way.

mod batch;
mod entries;
mod forward;
mod propose;
mod ticket;

pub use forward::serve;
pub use propose::{outlast_election, propose};

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::inner::Inner;
use ticket::Ticket;

/// Proposals that may wait on a node.
const WAITING_MAX: usize = 16_384;
/// From the call to the answer.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Longer than an election takes: without a quorum for as long as this nobody waits any more.
const MINORITY: Duration = Duration::from_secs(2);

/// Both queues of a node.
pub struct Desk {
    /// What this node's services propose.
    local: mpsc::Sender<Ticket>,
    /// What is to go into the log if this node leads.
    bench: mpsc::Sender<Ticket>,
    /// Since when there has been no quorum.
    minority: Mutex<Option<Instant>>,
}

/// The receiving ends, until the workers start.
pub struct Queues {
    local: mpsc::Receiver<Ticket>,
    bench: mpsc::Receiver<Ticket>,
}

impl Desk {
    /// Empty queues.
    pub fn new() -> (Self, Queues) {
        let (local, local_queue) = mpsc::channel(WAITING_MAX);
        let (bench, bench_queue) = mpsc::channel(WAITING_MAX);
        let queues = Queues {
            local: local_queue,
            bench: bench_queue,
        };
        let desk = Self {
            local,
            bench,
            minority: Mutex::new(None),
        };
        (desk, queues)
    }

    fn minority(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.minority.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether there is a quorum now; called often.
    pub fn note_quorum(&self, quorum: bool) {
        let mut since = self.minority();
        if quorum {
            *since = None;
        } else if since.is_none() {
            *since = Some(Instant::now());
        }
    }

    /// Whether there has been no quorum for longer than an election takes.
    pub fn in_minority(&self) -> bool {
        self.minority()
            .is_some_and(|since| since.elapsed() > MINORITY)
    }
}

/// Starts the workers.
pub fn start(inner: &Arc<Inner>, queues: Queues) {
    inner.spawn(forward::dispatch(Arc::clone(inner), queues.local));
    inner.spawn(entries::run(Arc::clone(inner), queues.bench));
}
