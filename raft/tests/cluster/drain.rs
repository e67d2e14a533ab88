//! Nodes that are made ready to be stopped, by whichever node is asked.

use muster_raft::{Cluster, Error};
use muster_storage::NodeId;

use crate::common::{Three, sees_dead, until, write};

fn sees_draining(node: &Cluster, peer: NodeId) -> bool {
    let nodes = node.status().nodes;
    nodes.iter().any(|node| node.id == peer && node.draining)
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_drains_any_node_one_after_the_other() {
    let mut three = Three::start().await;
    let leader = three.leader();
    let [drained, asked, other] = [0, 1, 2].map(|i| three.nodes[(leader + i) % 3].clone());
    asked.drain(drained.node_id()).await.unwrap();
    assert!(drained.is_draining() && !drained.is_leader());
    assert!(!asked.is_draining() && !other.is_draining());
    write(&drained, "still-taken").await;
    // Asked again it is done already.
    other.drain(drained.node_id()).await.unwrap();
    for node in [&drained, &asked, &other] {
        until("all know", || sees_draining(node, drained.node_id())).await;
    }
    // No second one, whether it leads or not, and whoever is asked.
    for second in [&asked, &other] {
        for asked in [&drained, &asked, &other] {
            let refused = asked.drain(second.node_id()).await;
            let reason = format!("node `{}` is draining", drained.node_name());
            assert!(
                matches!(&refused, Err(Error::Refused(why)) if why.contains(&reason)),
                "{refused:?}"
            );
        }
        assert!(!second.is_draining());
    }
    drained.stop().await;
    three.restart(leader, true).await;
    for node in &three.nodes {
        until("it is back", || {
            let nodes = node.status().nodes;
            nodes.iter().all(|node| node.live && !node.draining)
        })
        .await;
    }
    // A node may ask for itself.
    asked.drain(asked.node_id()).await.unwrap();
    assert!(asked.is_draining());
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_nodes_drained_at_the_same_time_one_stays() {
    let three = Three::start().await;
    let [a, b, _] = &three.nodes[..] else {
        unreachable!("three of them");
    };
    let (first, second) = tokio::join!(a.drain(a.node_id()), b.drain(b.node_id()));
    assert!(first.is_err() || second.is_err());
    assert_eq!(a.is_draining(), first.is_ok());
    assert_eq!(b.is_draining(), second.is_ok());
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_does_not_go_to_a_node_that_is_draining() {
    let three = Three::start().await;
    let leader = three.leader();
    let [leader, draining, other] = [0, 1, 2].map(|i| &three.nodes[(leader + i) % 3]);
    draining.drain(draining.node_id()).await.unwrap();
    until("the leader knows", || {
        sees_draining(leader, draining.node_id())
    })
    .await;
    let refused = leader.transfer(Some(draining.node_id())).await;
    assert!(
        matches!(&refused, Err(Error::Refused(why)) if why.contains("draining")),
        "{refused:?}"
    );
    leader.transfer(None).await.unwrap();
    until("the other leads", || other.is_leader()).await;
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
