//! What a node takes for its own when it starts.

use std::fs;

use muster_raft::{Cluster, Error, Inspection};

use crate::common::{found, has, options, until, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_log_was_emptied_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path(), "n0", found());
    let node = Cluster::start(options.clone()).await.unwrap();
    write(&node, "a").await;
    node.stop().await;
    drop(node);
    let log = dir.path().join("log");
    let kept = dir.path().join("kept");
    fs::rename(&log, &kept).unwrap();
    let refused = Cluster::start(options.clone()).await.err();
    assert!(matches!(refused, Some(Error::Corrupt(_))), "{refused:?}");
    fs::create_dir(&log).unwrap();
    let refused = Cluster::start(options.clone()).await.err();
    assert!(
        matches!(&refused, Some(Error::Corrupt(why)) if why.contains("join anew")),
        "{refused:?}"
    );
    // Nothing was made in its place, and with its log it goes on.
    fs::remove_dir(&log).unwrap();
    fs::rename(&kept, &log).unwrap();
    let node = Cluster::start(options).await.unwrap();
    assert!(has(&node, "a"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_state_is_put_back_from_log_and_snapshot_or_the_node_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), "n0", found());
    options.limits.snapshot_every = 50;
    options.limits.keep = 10;
    let state = dir.path().join("state");
    let stop_and_lose_state = async |node: Cluster| {
        node.stop().await;
        drop(node);
        fs::remove_dir_all(&state).unwrap();
    };
    let node = Cluster::start(options.clone()).await.unwrap();
    write(&node, "a").await;
    stop_and_lose_state(node).await;

    // The log reaches back to the beginning.
    let mut node = Cluster::start(options.clone()).await.unwrap();
    until("the log is applied anew", || has(&node, "a")).await;
    let mut written = 0;
    loop {
        for _ in 0..100 {
            write(&node, &format!("p{written}")).await;
            written += 1;
        }
        node.stop().await;
        let log = Inspection::open(dir.path()).unwrap().log().unwrap();
        if *log.unwrap().start() > 1 {
            break;
        }
        node = Cluster::start(options.clone()).await.unwrap();
    }
    stop_and_lose_state(node).await;

    // What the log has given up is in the snapshot.
    let node = Cluster::start(options.clone()).await.unwrap();
    let last = format!("p{}", written - 1);
    until("it has all", || has(&node, "a") && has(&node, &last)).await;
    stop_and_lose_state(node).await;

    fs::remove_dir_all(dir.path().join("snapshots")).unwrap();
    let refused = Cluster::start(options).await.err();
    assert!(
        matches!(&refused, Some(Error::Corrupt(why)) if why.contains("join anew")),
        "{refused:?}"
    );
}
