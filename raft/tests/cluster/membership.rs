//! Who belongs to the cluster, and who does not.

use std::time::Duration;

use muster_raft::{Cluster, Error, Start};
use muster_storage::{Actor, Command};

use crate::common::{Three, found, has, options, proposal, put, sees_dead, until, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_refused() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let founder = Cluster::start(options(dirs[0].path(), "a", found()))
        .await
        .unwrap();
    let good = founder
        .join_token(Duration::from_secs(60), Actor("test".into()))
        .await
        .unwrap();
    founder
        .propose(proposal(Command::RevokeJoinTokens))
        .await
        .unwrap();
    let start = Start::Join {
        peers: vec![format!("127.0.0.1:{}", founder.peer_port())],
        token: good,
    };
    let refused = Cluster::start(options(dirs[1].path(), "b", start)).await;
    assert!(matches!(refused.err(), Some(Error::TokenRefused)));
    assert!(!muster_raft::belongs_to_cluster(dirs[1].path()).unwrap());
    let resumed = Cluster::start(options(dirs[1].path(), "b", Start::Resume)).await;
    assert!(matches!(resumed.err(), Some(Error::NoCluster(_))));
    founder.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_out() {
    let three = Three::start().await;
    let leader = three.leader();
    let gone = (leader + 1) % 3;
    let id = three.nodes[gone].node_id();
    three.nodes[leader]
        .remove(&format!("n{gone}"))
        .await
        .unwrap();
    let status = three.nodes[leader].status();
    assert!(status.nodes.iter().all(|node| node.id != id));
    write(&three.nodes[leader], "without-it").await;
    assert!(matches!(
        three.nodes[leader].remove("nobody").await,
        Err(Error::NoSuchNode(_))
    ));
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_leader_hands_over_first_and_learns_that_it_is_out() {
    let three = Three::start().await;
    let leader = three.leader();
    let gone = &three.nodes[leader];
    gone.remove(&format!("n{leader}")).await.unwrap();
    let other = &three.nodes[(leader + 1) % 3];
    until("it is out", || {
        let nodes = other.status().nodes;
        nodes.iter().all(|node| node.id != gone.node_id())
    })
    .await;
    write(other, "without-it").await;
    until("it knows", || {
        gone.fault().is_some_and(|fault| fault.contains("removed"))
    })
    .await;
    assert!(!gone.has_quorum());
    assert!(matches!(
        gone.propose(put("late")).await,
        Err(Error::Stopped(_))
    ));
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_do_not_keep_members_out() {
    let mut three = Three::start().await;
    let leader = three.leader();
    let away = (leader + 1) % 3;
    three.nodes[away].stop().await;
    let port = three.nodes[leader].peer_port();
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(tokio::net::TcpStream::connect(("127.0.0.1", port)).await);
    }
    three.restart(away, true).await;
    until("it is back", || three.nodes[away].caught_up_once()).await;
    drop(silent);
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_by_the_clusters_time() {
    let three = Three::start().await;
    let leader = &three.nodes[three.leader()];
    let actor = Actor("test".into());
    let token = leader.join_token(Duration::ZERO, actor).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let start = Start::Join {
        peers: vec![format!("127.0.0.1:{}", leader.peer_port())],
        token,
    };
    let late = Cluster::start(options(dir.path(), "late", start)).await;
    assert!(matches!(late.err(), Some(Error::TokenRefused)));
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_elsewhere_is_found() {
    let mut three = Three::start().await;
    let leader = three.leader();
    let [moved, asked, other] = [0, 1, 2].map(|i| (leader + i) % 3);
    let id = three.nodes[moved].node_id();
    let old_port = three.nodes[moved].peer_port();
    three.nodes[moved].stop().await;
    write(&three.nodes[asked], "while-away").await;
    let mut elsewhere = three.resumed(moved);
    elsewhere.advertise = "127.0.0.2".parse().unwrap();
    elsewhere.api_port = 4711;
    three.nodes[moved] = Cluster::start(elsewhere).await.unwrap();
    let back = three.nodes[moved].clone();
    assert_ne!(back.peer_port(), old_port);
    for node in [&three.nodes[asked], &three.nodes[other], &back] {
        until("its new address is known", || {
            let peers = node.peers();
            peers.iter().any(|peer| {
                peer.id == id
                    && peer.address == back.advertise()
                    && peer.peer_port == back.peer_port()
                    && peer.api_port == 4711
            })
        })
        .await;
    }
    // Only with it there is a majority, which must reach it where it is now.
    three.nodes[other].stop().await;
    write(&three.nodes[asked], "with-it").await;
    until("it has what was written", || has(&back, "with-it")).await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_learner_is_seen_and_can_be_removed() {
    let mut three = Three::start().await;
    let learner = three.join().await;
    let gone = &three.nodes[learner];
    gone.stop().await;
    let leader = &three.nodes[three.leader()];
    until("it is seen to be dead", || {
        sees_dead(leader, gone.node_id())
    })
    .await;
    let name = format!("n{learner}");
    leader.remove(&name).await.unwrap();
    assert!(matches!(leader.find(&name), Err(Error::NoSuchNode(_))));
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_would_leave_no_majority_is_refused() {
    let three = Three::start().await;
    let leader = three.leader();
    let [leader, dead, other] = [0, 1, 2].map(|i| &three.nodes[(leader + i) % 3]);
    dead.stop().await;
    until("it is seen to be dead", || {
        sees_dead(leader, dead.node_id())
    })
    .await;
    let refused = leader.remove(other.node_name()).await;
    assert!(
        matches!(&refused, Err(Error::Refused(why)) if why.contains("no majority")),
        "{refused:?}"
    );
    // The dead one can go, and then the other of two cannot.
    leader.remove(dead.node_name()).await.unwrap();
    other.stop().await;
    let late = leader.remove(other.node_name()).await;
    assert!(late.is_err(), "{late:?}");
    assert!(leader.find(other.node_name()).is_ok());
    three.stop().await;
}
