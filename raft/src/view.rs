//! What openraft last reported, in a form that can be held on to: its own watch must not be
//! borrowed across anything, or its core stops.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::Fatal;
use openraft::{Instant as _, ServerState};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::types::Raft;

/// A leader whose quorum has been silent for as long as this has none.
const QUORUM_SILENCE: Duration = Duration::from_millis(1000);

/// The fault of a node that was told to stop.
const STOPPED: &str = "it is shutting down";

/// The fault of a node whose Raft ended by itself.
const ENDED: &str = "Raft ended without a reason; its panic is in the log. Restart the node";

/// A node's own view of Raft.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The leader that this node follows.
    pub leader: Option<u64>,
    /// Whether this node leads.
    pub leading: bool,
    /// When a quorum last answered this leader.
    pub quorum_acked: Option<Instant>,
    /// Those who vote.
    pub voters: BTreeSet<u64>,
    /// Everyone in Raft's membership, with an address.
    pub nodes: BTreeMap<u64, String>,
    /// Index of the last entry in this node's log.
    pub last_log: u64,
    /// Index of the last entry known to be committed.
    pub committed: u64,
    /// As leader: what each follower has.
    pub matched: BTreeMap<u64, u64>,
    /// Why this node has stopped taking part.
    pub fault: Option<String>,
}

impl View {
    /// Whether this node leads and a quorum has answered it lately.
    pub fn leads_quorum(&self, me: u64) -> bool {
        let alone = self.voters.len() == 1 && self.voters.contains(&me);
        let answered = self
            .quorum_acked
            .is_some_and(|at| at.elapsed() < QUORUM_SILENCE);
        self.leading && (alone || answered)
    }

    fn read(raft: &Raft) -> Self {
        let metrics = raft.metrics().borrow_watched().clone();
        let leading = metrics.state == ServerState::Leader && metrics.running_state.is_ok();
        let membership = metrics.membership_config.membership();
        Self {
            leader: metrics.current_leader,
            leading: leading && metrics.current_leader == Some(metrics.id),
            quorum_acked: metrics
                .last_quorum_acked
                .and_then(|at| Instant::now().checked_sub(at.elapsed())),
            voters: membership.voter_ids().collect(),
            nodes: membership
                .nodes()
                .map(|(id, address)| (*id, address.0.clone()))
                .collect(),
            last_log: metrics.last_log_index.unwrap_or(0),
            committed: metrics.local_committed.map_or(0, |id| id.index()),
            matched: metrics
                .replication
                .unwrap_or_default()
                .into_iter()
                .map(|(id, matched)| (id, matched.map_or(0, |id| id.index())))
                .collect(),
            fault: metrics.running_state.err().map(|fatal| match fatal {
                Fatal::Stopped => STOPPED.to_owned(),
                fatal => fatal.to_string(),
            }),
        }
    }
}

fn measure(before: &View, now: &View) {
    if before.leader != now.leader {
        metrics::counter!("muster_raft_leader_changes_total").increment(1);
        tracing::info!(
            leader = now.leader,
            leading = now.leading,
            "the leader changed"
        );
    }
    metrics::gauge!("muster_raft_is_leader").set(f64::from(u8::from(now.leading)));
    metrics::gauge!("muster_raft_log_last_index").set(now.last_log as f64);
    metrics::gauge!("muster_raft_committed_index").set(now.committed as f64);
    metrics::gauge!("muster_raft_voters").set(now.voters.len() as f64);
}

/// Keeps the view up to date.
pub async fn follow(raft: Raft, sender: watch::Sender<View>) {
    let mut changes = raft.metrics();
    loop {
        let view = View::read(&raft);
        match view.fault.as_deref() {
            Some(STOPPED) | None => {}
            Some(fault) => tracing::error!(fault, "this node has stopped taking part"),
        }
        measure(&sender.borrow(), &view);
        let stopped = view.fault.is_some();
        sender.send_if_modified(|known| {
            let changed = *known != view;
            *known = view;
            changed
        });
        if stopped {
            return;
        }
        if changes.changed().await.is_err() {
            // Raft's own task is gone, and did not say why: it panicked.
            let last = View::read(&raft).fault;
            let fault = last.unwrap_or_else(|| ENDED.to_owned());
            tracing::error!(fault, "this node has stopped taking part");
            sender.send_modify(|view| view.fault = Some(fault));
            return;
        }
    }
}
