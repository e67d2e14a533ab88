//! What the leader makes of the membership, and what becomes of changes that are cut short.

use openraft::EntryPayload;

use super::*;
use crate::common::{Three, found, options, until, write};
use crate::types::Membership;
use crate::{Cluster, Start};

fn view(voters: &[u64], nodes: &[u64], matched: &[(u64, u64)]) -> View {
    View {
        leading: true,
        voters: vec![voters.iter().copied().collect()],
        nodes: nodes.iter().map(|id| (*id, String::new())).collect(),
        matched: matched.iter().copied().collect(),
        last_log: 1000,
        ..View::default()
    }
}

fn members(ids: &[u64]) -> BTreeMap<u64, Address> {
    ids.iter().map(|id| (*id, Address::default())).collect()
}

#[test]
fn a_joiner_learns_first_and_votes_when_it_is_close() {
    let step = |view: &View, live: bool| next_step(view, &members(&[1, 9]), 1, |_| live);
    let fresh = view(&[1], &[1], &[]);
    assert!(matches!(
        step(&fresh, true),
        Some(ChangeMembers::AddNodes(_))
    ));
    let behind = view(&[1], &[1, 9], &[(9, 10)]);
    assert!(step(&behind, true).is_none());
    let close = view(&[1], &[1, 9], &[(9, 990)]);
    assert!(step(&close, false).is_none());
    assert!(matches!(
        step(&close, true),
        Some(ChangeMembers::AddVoterIds(_))
    ));
    assert!(step(&view(&[1, 9], &[1, 9], &[(9, 990)]), true).is_none());
}

#[test]
fn who_left_loses_its_vote_and_then_its_place() {
    let step = |view: &View| next_step(view, &members(&[1, 2]), 1, |_| true);
    let voter = view(&[1, 2, 3], &[1, 2, 3], &[]);
    assert!(matches!(step(&voter), Some(ChangeMembers::RemoveVoters(_))));
    let learner = view(&[1, 2], &[1, 2, 3], &[]);
    assert!(matches!(
        step(&learner),
        Some(ChangeMembers::RemoveNodes(_))
    ));
}

#[test]
fn a_change_of_voters_that_was_cut_short_is_completed_before_all_else() {
    let mut cut_short = view(&[1, 2], &[1, 2, 3, 9], &[]);
    cut_short.voters.push(BTreeSet::from([1, 2, 3]));
    let step = next_step(&cut_short, &members(&[1, 2, 3]), 1, |_| true);
    // Nobody more: openraft goes on to the new voters.
    assert!(
        matches!(&step, Some(ChangeMembers::AddVoterIds(more)) if more.is_empty()),
        "{step:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn voters_that_an_earlier_leader_left_half_changed_settle() {
    let three = Three::start().await;
    let leader = three.leader();
    let [leader, gone, other] = [0, 1, 2].map(|i| &three.nodes[(leader + i) % 3]);
    gone.stop().await;
    let inner = &leader.inner;
    until("it is gone", || !inner.board.is_live(gone.node_id().0)).await;
    // The last change, which made the third a voter, is over.
    let turn = inner.handover.lock().await;
    let voters = inner.view().all_voters();
    let mut fewer = voters.clone();
    fewer.remove(&gone.node_id().0);
    let halfway = Membership::new(vec![voters, fewer.clone()], super::members(inner)).unwrap();
    // Only the first of the two steps of which a change consists.
    let first = inner
        .raft
        .append_membership(halfway, EntryPayload::Blank, []);
    first.await.unwrap();
    drop(turn);
    for node in [leader, other] {
        until("the change is completed", || {
            node.inner.view().voters == [fewer.clone()]
        })
        .await;
    }
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_while_voters_change_is_not_missed() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let founder = Cluster::start(options(dirs[0].path(), "n0", found()))
        .await
        .unwrap();
    let actor = Actor("test".into());
    let token = founder.join_token(Duration::from_secs(60), actor).await;
    let start = Start::Join {
        peers: vec![format!("127.0.0.1:{}", founder.peer_port())],
        token: token.unwrap(),
    };
    let mut joined = Vec::new();
    for (i, dir) in dirs.iter().enumerate().skip(1) {
        let options = options(dir.path(), &format!("n{i}"), start.clone());
        joined.push(Cluster::start(options).await.unwrap());
    }
    // As soon as the third is about to vote: both old votes are needed until the change is over.
    let mut view = founder.inner.view.clone();
    let begun = view.wait_for(|view| view.all_voters().len() == 3);
    tokio::time::timeout(Duration::from_secs(30), begun)
        .await
        .unwrap()
        .unwrap();
    founder.prepare_to_stop().await;
    assert!(!founder.is_leader());
    founder.stop().await;
    write(&joined[0], "after-stop").await;
    for node in &joined {
        node.stop().await;
    }
}
