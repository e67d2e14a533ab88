//! The leader's housekeeping: what must be written because time has passed or because all members
//! have caught up, and not because anyone asked.

use std::time::Duration;

use muster_raft::Cluster;
use muster_storage::{Actor, Command, NodeId, Proposal, RequestId, Revision, State, Timestamp};
use tokio_util::sync::CancellationToken;

/// Between two looks.
const TICK: Duration = Duration::from_secs(1);

/// Boots that are told of at a time: after an outage a whole hall may have come to nothing.
const STALLED_MAX: usize = 64;

/// What the leader sees beside the state.
#[derive(Clone, Copy, Debug)]
pub struct Signs {
    /// The cluster's time.
    pub now: Timestamp,
    /// What it should be, when the members' clocks agree that it is behind.
    pub behind: Option<Timestamp>,
    /// Revision up to which every member, learners included, has applied all that clients gave back
    /// and has promised none of it since; none while one has not said.
    pub vouched_by_all: Option<Revision>,
    /// Whether it is certain which binaries the members have.
    pub binaries_sure: bool,
}

impl Signs {
    /// That it is so late, and nothing else.
    pub fn at(now: Timestamp) -> Self {
        Self {
            now,
            behind: None,
            vouched_by_all: None,
            binaries_sure: false,
        }
    }
}

/// What is to be written now; `leader` is the node that asks.
pub fn plan(state: &State, leader: NodeId, signs: Signs) -> Vec<Command> {
    let now = signs.now;
    let correct = signs.behind.map(|to| Command::CorrectTime { to });
    let expire = state.has_expired(now).then_some(Command::Expire);
    let reclaim = signs
        .vouched_by_all
        .filter(|revision| state.has_reclaimable(*revision))
        .map(|applied_by_all| Command::Reclaim { applied_by_all });
    let stalled = state.stalled_boots(now).take(STALLED_MAX);
    let stalled = stalled.map(|machine| Command::BootStalled {
        machine,
        node: leader,
    });
    let due = state
        .raise_due()
        .filter(|due| signs.binaries_sure && *due <= now);
    let raise = due.map(|_| Command::RaiseSchema {
        to: state.common_schema(),
    });
    let leases = correct.into_iter().chain(expire).chain(reclaim);
    leases.chain(stalled).chain(raise).collect()
}

/// Writes what [`plan`] says, each second, while this node leads.
pub async fn run(cluster: Cluster, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if !(cluster.is_leader() && cluster.has_quorum()) {
            continue;
        }
        let signs = Signs {
            now: cluster.now(),
            behind: cluster.time_behind(),
            vouched_by_all: cluster.vouched_by_all(),
            binaries_sure: cluster.binaries_unsure().is_none(),
        };
        let commands = cluster.read(|state| plan(state, cluster.node_id(), signs));
        for command in commands {
            let proposal = Proposal {
                request: RequestId(uuid::Uuid::new_v4()),
                actor: Actor(format!("node:{}", cluster.node_name())),
                if_match: None,
                remember: None,
                command,
            };
            if let Err(problem) = cluster.propose(proposal).await {
                // Another leader does it, or this one in a second.
                tracing::debug!(error = %problem, "housekeeping is put off");
            }
        }
    }
}
