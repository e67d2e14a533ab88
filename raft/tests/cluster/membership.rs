//! Who belongs to the cluster, and who does not.

use std::time::Duration;

use muster_raft::{Cluster, Error, Start};
use muster_storage::{Actor, Command};

use crate::common::{Three, found, options, proposal, put, until, write};

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
