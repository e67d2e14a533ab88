//! What openraft last reported, in a form that can be held on to: its own watch must not be
//! borrowed across anything, or its core stops.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
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

/// What to do about a node that cannot read or write what it stores.
const MEND: &str = "see to the disk of its data directory, then restart the node";

/// A node's own view of Raft.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The leader that this node follows.
    pub leader: Option<u64>,
    /// Whether this node leads.
    pub leading: bool,
    /// When a quorum last answered this leader.
    pub quorum_acked: Option<Instant>,
    /// Those who vote. While they change these are the old ones and the new ones, and it takes a
    /// majority of each to elect or to commit.
    pub voters: Vec<BTreeSet<u64>>,
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
    /// Everyone who votes, the new ones and those about to lose their vote among them.
    pub fn all_voters(&self) -> BTreeSet<u64> {
        self.voters.iter().flatten().copied().collect()
    }

    /// Whether a node's vote counts, before and after a change that is under way.
    pub fn is_voter(&self, node: u64) -> bool {
        !self.voters.is_empty() && self.voters.iter().all(|voters| voters.contains(&node))
    }

    /// Whether the voters are being changed: one that stops now may take the old majority along,
    /// though the new one has no need of it.
    pub fn voters_change(&self) -> bool {
        self.voters.len() > 1
    }

    /// Whether these nodes are enough to elect and to commit.
    pub fn is_quorum(&self, of: impl Fn(u64) -> bool) -> bool {
        let majority =
            |voters: &BTreeSet<u64>| voters.iter().filter(|id| of(**id)).count() > voters.len() / 2;
        !self.voters.is_empty() && self.voters.iter().all(majority)
    }

    /// Whether this node leads and a quorum has answered it lately.
    pub fn leads_quorum(&self, me: u64) -> bool {
        let alone = self.all_voters() == BTreeSet::from([me]);
        let answered = self
            .quorum_acked
            .is_some_and(|at| at.elapsed() < QUORUM_SILENCE);
        self.leading && (alone || answered)
    }

    /// Whether this node has stopped taking part by itself.
    fn failed(&self) -> bool {
        self.fault.as_deref().is_some_and(|fault| fault != STOPPED)
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
            voters: membership.get_joint_config().clone(),
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
                Fatal::StorageError(error) => format!("{error}; {MEND}"),
                fatal @ Fatal::Panicked => fatal.to_string(),
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
    metrics::gauge!("muster_raft_voters").set(now.all_voters().len() as f64);
    metrics::gauge!("muster_raft_members").set(now.nodes.len() as f64);
    metrics::gauge!("muster_raft_fault").set(f64::from(u8::from(now.failed())));
}

/// Keeps the view up to date.
pub async fn follow(raft: Raft, sender: watch::Sender<Arc<View>>) {
    let mut changes = raft.metrics();
    loop {
        let view = Arc::new(View::read(&raft));
        if view.failed() {
            tracing::error!(error = view.fault, "this node has stopped taking part");
        }
        measure(&sender.borrow(), &view);
        let stopped = view.fault.is_some();
        sender.send_if_modified(|known| {
            let changed = *known != view;
            *known = Arc::clone(&view);
            changed
        });
        if stopped {
            return;
        }
        if changes.changed().await.is_err() {
            // Raft's own task is gone, and did not say why: it panicked.
            let last = View::read(&raft).fault;
            let fault = last.unwrap_or_else(|| ENDED.to_owned());
            sender.send_modify(|view| Arc::make_mut(view).fault = Some(fault));
            let view = sender.borrow();
            if view.failed() {
                tracing::error!(error = view.fault, "this node has stopped taking part");
            }
            measure(&view, &view);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_voters_change_it_takes_the_old_and_the_new_majority() {
        let view = |voters: &[&[u64]]| View {
            voters: voters
                .iter()
                .map(|voters| voters.iter().copied().collect())
                .collect(),
            ..View::default()
        };
        let settled = view(&[&[1, 2, 3]]);
        assert!(!settled.voters_change());
        assert!(settled.is_voter(3) && !settled.is_voter(4));
        assert!(settled.is_quorum(|id| id != 1));
        assert!(!settled.is_quorum(|id| id == 1));
        // The third is about to vote.
        let joining = view(&[&[1, 2], &[1, 2, 3]]);
        assert!(joining.voters_change());
        assert!(joining.is_voter(2) && !joining.is_voter(3));
        assert!(joining.all_voters().contains(&3));
        assert!(joining.is_quorum(|id| id != 3));
        assert!(!joining.is_quorum(|id| id != 1));
        // Nothing is known yet.
        assert!(!view(&[]).is_quorum(|_| true) && !view(&[]).is_voter(1));
    }
}
