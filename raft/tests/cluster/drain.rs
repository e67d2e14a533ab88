//! Nodes that are made ready to be stopped, by whichever node is asked.

use muster_raft::{Cluster, Error};
use muster_storage::NodeId;

use crate::common::{Three, until, write};

fn sees_dead(node: &Cluster, peer: NodeId) -> bool {
    let nodes = node.status().nodes;
    nodes.iter().any(|node| node.id == peer && !node.live)
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_drains_any_node() {
    let three = Three::start().await;
    let leader = three.leader();
    let [drained, asked, other] = [0, 1, 2].map(|i| &three.nodes[(leader + i) % 3]);
    asked.drain(drained.node_id()).await.unwrap();
    assert!(drained.is_draining() && !drained.is_leader());
    assert!(!asked.is_draining() && !other.is_draining());
    write(drained, "still-taken").await;
    // Asked again it is done already; a follower has nothing to hand over, and may ask for itself.
    other.drain(drained.node_id()).await.unwrap();
    let follower = [asked, other].into_iter().find(|node| !node.is_leader());
    let follower = follower.unwrap();
    drained.drain(follower.node_id()).await.unwrap();
    assert!(follower.is_draining());
    asked.drain(asked.node_id()).await.unwrap();
    assert!(asked.is_draining());
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_cannot_be_or_would_harm_is_refused() {
    let three = Three::start().await;
    let leader = three.leader();
    let [leader, dead, asked] = [0, 1, 2].map(|i| &three.nodes[(leader + i) % 3]);
    let unknown = asked.drain(NodeId(u64::MAX)).await;
    assert!(matches!(unknown, Err(Error::NoSuchNode(_))), "{unknown:?}");
    dead.stop().await;
    for node in [leader, asked] {
        until("the dead one is seen", || sees_dead(node, dead.node_id())).await;
    }
    let refused = asked.drain(dead.node_id()).await;
    assert!(
        matches!(&refused, Err(Error::Refused(why)) if why.contains("not live")),
        "{refused:?}"
    );
    for node in [leader, asked] {
        let refused = asked.drain(node.node_id()).await;
        assert!(
            matches!(&refused, Err(Error::Refused(why)) if why.contains("nothing could be written")),
            "{refused:?}"
        );
        assert!(!node.is_draining());
    }
    assert!(leader.is_leader());
    three.stop().await;
}
