//! A leader whose process has ended is succeeded at once.
//!
//! A leader that falls silent may be slow or cut off, and is waited for. One whose machine says that
//! nobody listens there any more is not: when a majority sees that, the one of them with the longest
//! log stands for election, and voters that see it do not hold to the dead leader's lease. That
//! costs a few milliseconds instead of two election time-outs. Where it fails, the time-outs come
//! to it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::inner::Inner;
use crate::view::View;

/// For an election; after that, time-outs decide.
const ELECTION: Duration = Duration::from_secs(1);

/// What a node says that sees that the leader has ended.
struct Witness {
    /// Index of the last entry in its log.
    last_log: u64,
    /// It is about to stop, and is not to be elected.
    draining: bool,
}

/// The leader of this node, when its process is seen to have ended.
pub fn ended_leader(inner: &Inner) -> Option<u64> {
    let leader = inner.view().leader;
    leader.filter(|leader| inner.board.has_ended(*leader))
}

/// Stands for election when that is this node's turn; looks whenever someone has seen an end.
pub async fn run(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            () = inner.board.end_seen() => {}
        }
        let Some(leader) = ended_leader(&inner) else {
            continue;
        };
        let view = inner.view();
        if !stands(&view, inner.id.0, &witnesses(&inner, &view, leader)) {
            continue;
        }
        tracing::info!(
            leader,
            "the leader's process has ended; standing for election"
        );
        metrics::counter!("muster_raft_successions_total").increment(1);
        // Not asked beforehand whether it would be elected: those who hold the lease have said so.
        if inner.raft.trigger().elect(false).await.is_err() {
            return;
        }
        let mut moved = inner.view.clone();
        let moved = moved.wait_for(|view| view.leader != Some(leader));
        tokio::select! {
            () = inner.stop.cancelled() => return,
            _ = tokio::time::timeout(ELECTION, moved) => {}
        }
    }
}

/// Who sees that the leader has ended, this node among them.
fn witnesses(inner: &Inner, view: &View, leader: u64) -> BTreeMap<u64, Witness> {
    let own = Witness {
        last_log: view.last_log,
        draining: *inner.draining.borrow(),
    };
    let mut witnesses = BTreeMap::from([(inner.id.0, own)]);
    for peer in view.all_voters() {
        let contact = inner.board.contact(peer);
        if let Some(contact) = contact.filter(|it| it.live() && it.status.ended == leader) {
            let witness = Witness {
                last_log: contact.status.last_log,
                draining: contact.status.draining,
            };
            witnesses.insert(peer, witness);
        }
    }
    witnesses
}

/// Whether a node is the one to stand: the others will agree, and it has the longest log of them.
fn stands(view: &View, me: u64, witnesses: &BTreeMap<u64, Witness>) -> bool {
    let best = witnesses
        .iter()
        .filter(|(id, witness)| view.is_voter(**id) && !witness.draining)
        .max_by_key(|(id, witness)| (witness.last_log, Reverse(**id)));
    view.is_quorum(|id| witnesses.contains_key(&id)) && best.is_some_and(|(id, _)| *id == me)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_majority_that_sees_the_end_the_one_with_the_longest_log_stands() {
        let five: &[&[u64]] = &[&[1, 2, 3, 4, 5]];
        // Voters, who sees the end with which log, who of them drains, who stands.
        type Case<'a> = (&'a [&'a [u64]], &'a [(u64, u64)], &'a [u64], Option<u64>);
        let cases: [Case; 9] = [
            (&[&[1, 2, 3]], &[(1, 7), (2, 7)], &[], Some(1)),
            (&[&[1, 2, 3]], &[(1, 7), (2, 8)], &[], Some(2)),
            (&[&[1, 2, 3]], &[(2, 8)], &[], None),
            (five, &[(2, 8), (3, 8)], &[], None),
            (five, &[(2, 8), (3, 8), (5, 9)], &[], Some(5)),
            (five, &[(2, 8), (3, 8), (5, 9)], &[5], Some(2)),
            // A learner is no voter.
            (&[&[1, 2, 3]], &[(1, 7), (9, 9)], &[], None),
            (&[&[1, 2, 3]], &[(1, 7), (2, 7), (9, 9)], &[], Some(1)),
            // Voters are being changed: a majority of both.
            (&[&[1, 2, 3], &[3, 4, 5]], &[(1, 7), (2, 7)], &[], None),
        ];
        for (voters, logs, draining, expected) in cases {
            let view = View {
                voters: voters
                    .iter()
                    .map(|voters| voters.iter().copied().collect())
                    .collect(),
                ..View::default()
            };
            let seen = || {
                let witness = |(id, last_log): &(u64, u64)| {
                    let draining = draining.contains(id);
                    let last_log = *last_log;
                    (*id, Witness { last_log, draining })
                };
                logs.iter().map(witness).collect()
            };
            let standing: Vec<u64> = logs
                .iter()
                .map(|(id, _)| *id)
                .filter(|id| stands(&view, *id, &seen()))
                .collect();
            assert_eq!(standing, Vec::from_iter(expected), "{voters:?} {logs:?}");
        }
    }
}
