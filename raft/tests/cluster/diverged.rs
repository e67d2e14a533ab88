//! A node whose state is not that of the others takes itself out, and they go on.

use std::time::Duration;

use muster_raft::{Cluster, Error, Start};
use muster_storage::Actor;

use crate::common::{Three, has, options, put, until, write};

async fn is_out(node: &Cluster) {
    until("it steps out", || node.diverged().is_some()).await;
    assert!(!node.has_quorum());
    assert!(matches!(
        node.propose(put("wrong")).await,
        Err(Error::Stopped(why)) if why.contains("join anew")
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_differs_is_out_until_it_joins_anew() {
    let mut three = Three::start().await;
    let leader = three.leader();
    let (wrong, other) = ((leader + 1) % 3, (leader + 2) % 3);
    three.nodes[wrong].diverge(put("only-here"));
    is_out(&three.nodes[wrong]).await;

    for node in [leader, other] {
        let node = &three.nodes[node];
        write(node, "goes-on").await;
        let id = three.nodes[wrong].node_id();
        until("the others show it", || {
            let nodes = node.status().nodes;
            let shown = nodes.iter().find(|shown| shown.id == id).unwrap();
            let why = shown.fault.as_ref();
            !shown.live && why.is_some_and(|why| why.contains("state differs"))
        })
        .await;
        assert!(node.diverged().is_none());
    }

    // Its directory is no good any more, and says so.
    three.nodes[wrong].stop().await;
    let again = Cluster::start(three.resumed(wrong)).await.err();
    assert!(matches!(again, Some(Error::Diverged(_))), "{again:?}");

    let leader = &three.nodes[leader];
    leader.remove(&format!("n{wrong}")).await.unwrap();
    let start = Start::Join {
        peers: vec![format!("127.0.0.1:{}", leader.peer_port())],
        token: leader
            .join_token(Duration::from_secs(60), Actor("test".into()))
            .await
            .unwrap(),
    };
    let dir = tempfile::tempdir().unwrap();
    let anew = Cluster::start(options(dir.path(), &format!("n{wrong}"), start));
    three.nodes[wrong] = anew.await.unwrap();
    three.agree().await;
    assert!(!has(&three.nodes[wrong], "only-here"));
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_differs_leads_no_more() {
    let three = Three::start().await;
    let wrong = three.leader();
    three.nodes[wrong].diverge(put("only-here"));
    is_out(&three.nodes[wrong]).await;
    for i in (0..3).filter(|i| *i != wrong) {
        let node = &three.nodes[i];
        until("another leads", || node.has_quorum()).await;
        write(node, "goes-on").await;
        assert!(!has(node, "only-here"));
    }
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_differ_the_follower_is_out() {
    let three = Three::start().await;
    let leader = three.leader();
    let (gone, follower) = ((leader + 1) % 3, (leader + 2) % 3);
    let (leader, follower) = (&three.nodes[leader], &three.nodes[follower]);
    leader.remove(&format!("n{gone}")).await.unwrap();
    until("both know", || follower.status().nodes.len() == 2).await;
    leader.diverge(put("only-there"));
    is_out(follower).await;
    // Nobody can tell which of them is right: nothing more is written, and both say so.
    until("the leader knows", || !leader.has_quorum()).await;
    let shown = leader.status().nodes;
    assert!(shown.iter().any(|node| node.fault.is_some()));
    assert!(leader.diverged().is_none());
    three.stop().await;
}
