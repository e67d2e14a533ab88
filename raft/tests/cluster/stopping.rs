//! Nodes that stop in an orderly way.

use std::time::Duration;

use muster_raft::Cluster;

use crate::common::{Three, found, has, options, write};

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over_before_a_stop() {
    let three = Three::start().await;
    let leader = three.leader();
    let other = &three.nodes[(leader + 1) % 3];
    let stopping = &three.nodes[leader];
    stopping.prepare_to_stop().await;
    assert!(stopping.is_draining() && !stopping.is_leader());
    stopping.stop().await;
    write(other, "after-stop").await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_nobody_waits_for_ends_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path(), "n0", found());
    let node = Cluster::start(options.clone()).await.unwrap();
    write(&node, "a").await;
    let _ = tokio::time::timeout(Duration::ZERO, node.stop()).await;
    // Waits for the same stop; the directory is free afterwards.
    node.stop().await;
    let again = Cluster::start(options).await.unwrap();
    assert!(has(&again, "a"));
    again.stop().await;
}
