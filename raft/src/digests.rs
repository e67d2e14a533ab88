//! Whether all members have made the same state of the same log. Each says in its pulse which digest
//! its state had at agreed entries; one whose digest is not the majority's takes itself out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_storage::state::Digest;

use crate::drain;
use crate::identity::Files;
use crate::inner::Inner;
use crate::wire::proto;

/// Digests are kept at every entry whose index is a multiple of this.
const EVERY: u64 = 512;
/// So many of them, for peers that are behind.
const KEPT: usize = 64;
/// So many of the newest are told: at twenty thousand entries a second one is still told twice.
const TOLD: usize = 8;

/// The digests that this node's state had at agreed entries.
#[derive(Default)]
pub struct Marks(Mutex<BTreeMap<u64, Digest>>);

impl Marks {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Digest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note after every applied entry.
    pub fn applied(&self, index: u64, digest: impl FnOnce() -> Digest) {
        if !index.is_multiple_of(EVERY) {
            return;
        }
        let mut marks = self.lock();
        marks.insert(index, digest());
        while marks.len() > KEPT {
            marks.pop_first();
        }
    }

    /// The state was replaced by another one.
    pub fn clear(&self) {
        self.lock().clear();
    }
}

/// This node's digests by entry: the agreed ones, and that of the last entry.
fn own(inner: &Inner) -> BTreeMap<u64, Digest> {
    let progress = *inner.progress.borrow();
    let mut own = inner.memory.marks().lock().clone();
    own.insert(progress.applied, progress.digest);
    own
}

/// What this node tells its peers.
pub fn told(inner: &Inner) -> Vec<proto::Mark> {
    let newest = own(inner).into_iter().rev().take(TOLD);
    let mark = |(index, digest): (u64, Digest)| proto::Mark {
        index,
        digest: digest.0.to_vec().into(),
    };
    newest.map(mark).collect()
}

/// What digests at one entry say.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nobody is known to differ.
    Same,
    /// These differ from this node, which goes on.
    Others(BTreeSet<u64>),
    /// This node is wrong, or must be taken to be.
    Out,
}

/// Judges the digests that members, this one included, have at one entry.
///
/// The majority of the voters is right. When no majority can be had from those that are live, all
/// that differ from the leader step out: two states must not both be served, and the leader's is
/// the one that outcomes were told from.
fn judge(
    me: u64,
    leader: Option<u64>,
    voters: &BTreeSet<u64>,
    live: impl Fn(u64) -> bool,
    said: &BTreeMap<u64, Digest>,
) -> Verdict {
    let Some(own) = said.get(&me) else {
        return Verdict::Same;
    };
    let others = said.iter().filter(|(_, digest)| *digest != own);
    let others: BTreeSet<u64> = others.map(|(id, _)| *id).collect();
    if others.is_empty() {
        return Verdict::Same;
    }
    let is_majoritys = |digest: &Digest| {
        let with = said.iter().filter(|(_, other)| *other == digest);
        with.filter(|(id, _)| voters.contains(id)).count() > voters.len() / 2
    };
    if is_majoritys(own) {
        return Verdict::Others(others);
    }
    if said.values().any(is_majoritys) {
        return Verdict::Out;
    }
    let waited_for = |id: &u64| *id != me && live(*id) && !said.contains_key(id);
    match leader {
        _ if voters.iter().any(waited_for) => Verdict::Others(others),
        Some(leader) if others.contains(&leader) => Verdict::Out,
        _ => Verdict::Others(others),
    }
}

/// Compares what peers said last; called often.
pub fn compare(inner: &Arc<Inner>) {
    if inner.check_running().is_err() {
        return;
    }
    let mut said: BTreeMap<u64, BTreeMap<u64, Digest>> = own(inner)
        .into_iter()
        .map(|(index, digest)| (index, BTreeMap::from([(inner.id.0, digest)])))
        .collect();
    let voters = inner.view().all_voters();
    for peer in inner.members() {
        let Some(contact) = inner.board.contact(peer.0).filter(|_| peer != inner.id) else {
            continue;
        };
        for mark in contact.status.marks {
            let digest = <[u8; 16]>::try_from(&mark.digest[..]);
            if let (Some(at), Ok(digest)) = (said.get_mut(&mark.index), digest) {
                at.insert(peer.0, Digest(digest));
            }
        }
    }
    let leader = inner.leader().map(|leader| leader.0);
    let mut differing = BTreeSet::new();
    for (index, said) in said {
        let live = |id| inner.board.is_live(id);
        match judge(inner.id.0, leader, &voters, live, &said) {
            Verdict::Same => {}
            Verdict::Others(others) => differing.extend(others),
            Verdict::Out => return step_out(inner, index),
        }
    }
    for peer in inner.board.set_differing(differing) {
        tracing::error!(
            peer,
            "the state of a peer differs from this node's; it takes itself out of service if it \
             differs from the majority's"
        );
    }
}

/// Takes this node out of service, for good.
fn step_out(inner: &Arc<Inner>, index: u64) {
    let why = format!(
        "its state differs from the other members' since log entry {index} or earlier, so nothing \
         that it says can be trusted; {}",
        crate::start::join_anew(&inner.options.data_dir)
    );
    tracing::error!(index, "this node takes itself out of service: {why}");
    metrics::gauge!("muster_raft_diverged").set(1.0);
    // A restart must not serve until the next comparison.
    let files = Files::open(&inner.options.data_dir);
    if let Err(error) = files.and_then(|files| files.set_diverged(&why)) {
        tracing::error!(%error, "cannot note that this node is out of service");
    }
    inner.diverged.send_replace(Some(why));
    let leaving = Arc::clone(inner);
    inner.spawn(async move {
        // The log is sound, so it may still give its vote to the next leader.
        drain::prepare_to_stop(&leaving).await;
        if let Err(error) = leaving.raft.shutdown().await {
            tracing::warn!(%error, "raft did not end well");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests of nodes 1, 2 … by a letter each; a dot for one that said nothing.
    fn said(digests: &str) -> BTreeMap<u64, Digest> {
        let all = (1u64..).zip(digests.bytes());
        all.filter(|(_, octet)| *octet != b'.')
            .map(|(id, octet)| (id, Digest([octet; 16])))
            .collect()
    }

    /// What node 1 judges: digests, voters, leader, live peers; and how.
    type Row<'a> = (&'a str, &'a [u64], Option<u64>, &'a [u64], Verdict);

    #[test]
    fn the_majority_is_right_and_without_one_the_leader() {
        use Verdict::{Out, Same};
        let others = |ids: &[u64]| Verdict::Others(ids.iter().copied().collect());
        let rows: [Row<'_>; 15] = [
            ("aaa", &[1, 2, 3], Some(2), &[2, 3], Same),
            ("a..", &[1, 2, 3], Some(2), &[2, 3], Same),
            (".aa", &[1, 2, 3], Some(2), &[2, 3], Same),
            ("aab", &[1, 2, 3], Some(2), &[2, 3], others(&[3])),
            ("abb", &[1, 2, 3], Some(2), &[2, 3], Out),
            // It leads, and is wrong all the same.
            ("abb", &[1, 2, 3], Some(1), &[2, 3], Out),
            // The third has not come that far.
            ("ab.", &[1, 2, 3], Some(2), &[2, 3], others(&[2])),
            // The third is dead.
            ("ab.", &[1, 2, 3], Some(2), &[2], Out),
            ("ab.", &[1, 2, 3], Some(1), &[2], others(&[2])),
            ("abc", &[1, 2, 3], Some(2), &[2, 3], Out),
            ("abc", &[1, 2, 3], None, &[2, 3], others(&[2, 3])),
            ("ab", &[1, 2], Some(1), &[2], others(&[2])),
            ("ab", &[1, 2], Some(2), &[2], Out),
            // Learners do not count, but are judged.
            ("abb", &[2, 3], Some(2), &[2, 3], Out),
            ("abb", &[1], Some(1), &[2, 3], others(&[2, 3])),
        ];
        for (digests, voters, leader, live, expected) in rows {
            let voters: BTreeSet<u64> = voters.iter().copied().collect();
            let verdict = judge(1, leader, &voters, |id| live.contains(&id), &said(digests));
            assert_eq!(
                verdict, expected,
                "{digests} {voters:?} {leader:?} {live:?}"
            );
        }
    }

    #[test]
    fn agreed_entries_are_kept_and_bounded() {
        let marks = Marks::default();
        for index in 0..EVERY * (KEPT as u64 + 10) {
            marks.applied(index, || Digest([7; 16]));
        }
        let kept = marks.lock();
        assert_eq!(kept.len(), KEPT);
        assert!(kept.keys().all(|index| index % EVERY == 0));
    }
}
