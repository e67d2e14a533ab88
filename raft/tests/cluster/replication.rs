//! Entries reach every node, and what was acknowledged outlives the loss of nodes.

use std::time::Duration;

use muster_raft::{Cluster, Error, Limits};
use muster_storage::model::ObjectKind;

use crate::common::{Three, found, has, options, put, until, write};

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_replicate_lose_their_leader_and_restart() {
    let mut three = Three::start().await;
    for i in 0..3 {
        let name = format!("from-n{i}");
        let outcome = write(&three.nodes[i], &name).await;
        assert!(outcome.result.is_ok());
        for node in &three.nodes {
            node.applied(outcome.revision).await;
            assert!(has(node, &name));
            assert!(
                node.read_linear(|state| state.object(ObjectKind::Profile, &name).is_some())
                    .await
                    .unwrap()
            );
        }
    }
    three.agree().await;

    let leader = three.leader();
    three.nodes[leader].stop().await;
    let other = (leader + 1) % 3;
    let started = std::time::Instant::now();
    write(&three.nodes[other], "after-loss").await;
    println!(
        "a write went through {:?} after the leader stopped",
        started.elapsed()
    );
    until("the dead one is seen as dead", || {
        let status = three.nodes[other].status();
        status.nodes.iter().filter(|node| !node.live).count() == 1
    })
    .await;

    three.restart(leader, false).await;
    until("it has what it missed", || {
        has(&three.nodes[leader], "after-loss")
    })
    .await;
    three.agree().await;

    three.stop().await;
    for i in 0..3 {
        three.restart(i, true).await;
    }
    write(&three.nodes[0], "after-restart").await;
    for node in &three.nodes {
        until("all is there", || {
            has(node, "from-n2") && has(node, "after-restart")
        })
        .await;
    }
    three.agree().await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_gets_a_snapshot() {
    let mut three = Three::with(Limits {
        snapshot_every: 50,
        keep: 10,
        ..Limits::default()
    })
    .await;
    let away = (three.leader() + 1) % 3;
    three.nodes[away].stop().await;
    let writer = three.leader();
    for i in 0..300 {
        write(&three.nodes[writer], &format!("p{i}")).await;
    }
    three.restart(away, false).await;
    until("it has caught up", || has(&three.nodes[away], "p299")).await;
    three.agree().await;
    write(&three.nodes[away], "after-snapshot").await;
    three.agree().await;
    // What came by snapshot is on the disk.
    three.nodes[away].stop().await;
    three.restart(away, false).await;
    assert!(has(&three.nodes[away], "p299"));
    three.agree().await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_large_entries_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), "n0", found());
    options.limits.bytes = 100_000;
    let node = Cluster::start(options.clone()).await.unwrap();
    let log_files = || {
        std::fs::read_dir(dir.path().join("snapshots"))
            .unwrap()
            .count()
    };
    let mut written = 0;
    while log_files() == 0 {
        write(&node, &format!("p{written}")).await;
        written += 1;
    }
    for i in 0..100 {
        write(&node, &format!("q{i}")).await;
    }
    let before = node.read(|state| (state.revision(), state.digest()));
    node.stop().await;
    let node = Cluster::start(options).await.unwrap();
    assert!(has(&node, "p0") && has(&node, "q99"));
    assert_eq!(
        node.read(|state| (state.revision(), state.digest())),
        before
    );
    node.stop().await;
}

/// Writes without pause until told to stop; returns the names that were acknowledged.
pub async fn keep_writing(
    node: Cluster,
    prefix: String,
    stop: tokio_util::sync::CancellationToken,
) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for i in 0.. {
        if stop.is_cancelled() {
            break;
        }
        let name = format!("{prefix}-{i}");
        match node.propose(put(&name)).await {
            Ok(outcome) => {
                assert!(outcome.result.is_ok());
                acknowledged.push(name);
            }
            Err(Error::Stopped(_)) => break,
            Err(_) => {}
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_while_nodes_come_and_go() {
    let mut three = Three::with(Limits {
        snapshot_every: 500,
        keep: 100,
        ..Limits::default()
    })
    .await;
    let mut acknowledged = Vec::new();
    for round in 0..6 {
        let stop = tokio_util::sync::CancellationToken::new();
        let writers: Vec<_> = (0..12)
            .map(|writer| {
                let node = three.nodes[writer % 3].clone();
                let prefix = format!("r{round}-w{writer}");
                tokio::spawn(keep_writing(node, prefix, stop.clone()))
            })
            .collect();
        // The leader in every other round, else a follower.
        let leader = three.leader();
        let victim = (leader + round % 2) % 3;
        let before = three.nodes[leader].read(muster_storage::State::revision);
        until("some writes went through", || {
            let now = three.nodes[leader].read(muster_storage::State::revision);
            now.log_index() > before.log_index() + 100
        })
        .await;
        three.nodes[victim].stop().await;
        let other = (victim + 1) % 3;
        let before = three.nodes[other].read(muster_storage::State::revision);
        until("the others go on", || {
            let now = three.nodes[other].read(muster_storage::State::revision);
            now.log_index() > before.log_index() + 300
        })
        .await;
        three.restart(victim, round % 3 == 0).await;
        until("it is back", || three.nodes[victim].caught_up_once()).await;
        stop.cancel();
        for writer in writers {
            acknowledged.extend(writer.await.unwrap());
        }
        until("there is a leader", || {
            three.nodes.iter().any(Cluster::is_leader)
        })
        .await;
    }
    write(&three.nodes[0], "last").await;
    three.agree().await;
    println!("{} writes acknowledged", acknowledged.len());
    for node in &three.nodes {
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|name| !has(node, name))
            .collect();
        assert!(lost.is_empty(), "lost {} writes: {lost:?}", lost.len());
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_says_so_soon() {
    let three = Three::start().await;
    let left = three.leader();
    for i in (0..3).filter(|i| *i != left) {
        three.nodes[i].stop().await;
    }
    until("it has no quorum", || !three.nodes[left].has_quorum()).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let started = std::time::Instant::now();
    let refused = three.nodes[left].propose(put("a")).await;
    assert!(
        matches!(refused, Err(Error::NoLeader | Error::Timeout)),
        "{refused:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(2));
    three.nodes[left].stop().await;
}
