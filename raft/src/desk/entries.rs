//! Making log entries at the leader: what waits there goes into one, stamped with its time.

use std::sync::Arc;
use std::time::Duration;

use muster_storage::Entry;
use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;

use super::batch::{BATCH_BYTES, Batches, Limits};
use super::ticket::{Ticket, Why, encode, give_up_late, settle};
use crate::clock;
use crate::inner::Inner;
use crate::types::EntryBytes;

/// Log entries on their way.
const ENTRIES_IN_FLIGHT: usize = 8;
/// So many proposals make an entry while others are on their way; fewer wait for one of those to come
/// back. An entry costs three nodes as much as some ten proposals do, and on a busy node that is what
/// there is too little of.
const GATHERED: usize = 128;
/// How long fewer wait at most.
const GATHERING_MAX: Duration = Duration::from_millis(10);
/// Commands in one log entry, those inside of bundles counted.
const ENTRY_COMMANDS_MAX: usize = 1024;

/// Makes entries of what waits.
pub async fn run(inner: Arc<Inner>, queue: mpsc::Receiver<Ticket>) {
    let in_flight = Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT));
    let mut batches = Batches::new(
        queue,
        Limits {
            proposals: Entry::PROPOSALS_MAX,
            commands: ENTRY_COMMANDS_MAX,
            bytes: BATCH_BYTES,
        },
    );
    let landed = Arc::new(Notify::new());
    loop {
        let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else {
            return;
        };
        let alone = || in_flight.available_permits() + 1 == ENTRIES_IN_FLIGHT;
        let on_its_way = async {
            while !alone() {
                landed.notified().await;
            }
        };
        tokio::select! {
            biased;
            () = on_its_way => {}
            () = batches.gather(GATHERED) => {}
            // One that is stuck holds nobody up.
            () = tokio::time::sleep(GATHERING_MAX) => {}
        }
        let Some(tickets) = batches.next().await else {
            return;
        };
        let writer = Arc::clone(&inner);
        let landed = Arc::clone(&landed);
        inner.spawn(async move {
            write(&writer, tickets).await;
            drop(permit);
            landed.notify_one();
        });
    }
}

async fn write(inner: &Arc<Inner>, mut tickets: Vec<Ticket>) {
    let at = clock::stamp(inner).await;
    give_up_late(&mut tickets);
    if tickets.is_empty() {
        return;
    }
    metrics::histogram!("muster_raft_entry_proposals").record(tickets.len() as f64);
    let bytes = match encode(at, &mut tickets) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::error!(%error, "cannot encode a log entry");
            return settle(tickets, Vec::new());
        }
    };
    #[cfg(test)]
    if let Some(outcomes) = crate::sim::outcomes_before_commit(inner, &bytes) {
        return settle(tickets, outcomes.into_iter().map(Ok).collect());
    }
    let start = Instant::now();
    let why = match inner.raft.client_write(EntryBytes(bytes)).await {
        Ok(response) => {
            metrics::histogram!("muster_raft_commit_seconds").record(start.elapsed());
            return settle(tickets, response.data.0.into_iter().map(Ok).collect());
        }
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Why::NotLeader,
        Err(error) => {
            tracing::warn!(%error, "proposals without a known outcome");
            Why::Unknown
        }
    };
    let results = tickets.iter().map(|_| Err(why)).collect();
    settle(tickets, results);
}
