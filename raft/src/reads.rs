//! Linearizable reads: one confirmation by a quorum serves all who asked before it began.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::Error;
use crate::inner::Inner;
use crate::wire::proto;

/// Reads that may wait on a node.
pub const WAITING_MAX: usize = 16_384;
/// For one confirmation and for applying up to it.
const ROUND: Duration = Duration::from_secs(2);
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(25);
/// From the call to giving up.
const DEADLINE: Duration = Duration::from_secs(10);

/// Someone who waits for a confirmation.
pub type Waiter = oneshot::Sender<bool>;

/// Resolves when this node has applied everything that was committed when it was called.
pub async fn barrier(inner: &Inner) -> Result<(), Error> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        inner.check_running()?;
        let (sender, receiver) = oneshot::channel();
        inner
            .reads
            .try_send(sender)
            .map_err(|_| Error::Overloaded)?;
        match tokio::time::timeout_at(deadline, receiver).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(_) => tokio::time::sleep(RETRY).await,
            Err(_) => return Err(Error::NoLeader),
        }
        if Instant::now() >= deadline {
            return Err(Error::NoLeader);
        }
    }
}

/// Confirms, round after round.
pub async fn run(inner: Arc<Inner>, mut queue: mpsc::Receiver<Waiter>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, WAITING_MAX).await > 0 {
        let start = Instant::now();
        let confirmed = tokio::time::timeout(ROUND, round(&inner)).await == Ok(true);
        if confirmed {
            metrics::histogram!("muster_raft_read_index_seconds").record(start.elapsed());
        } else {
            metrics::counter!("muster_raft_read_index_failed_total").increment(1);
        }
        for waiter in waiting.drain(..) {
            let _ = waiter.send(confirmed);
        }
    }
}

async fn round(inner: &Inner) -> bool {
    let index = match inner.leadership() {
        (true, _) => inner.own_read_index().await,
        (false, Some(leader)) => ask(inner, leader).await,
        (false, None) => None,
    };
    match index {
        Some(index) => inner.wait_applied(index).await,
        None => false,
    }
}

async fn ask(inner: &Inner, leader: u64) -> Option<u64> {
    let mut fast = inner.links.to(leader).ok()?.fast;
    let reply = fast.read_index(proto::ReadIndexRequest {}).await.ok()?;
    reply.into_inner().index
}
