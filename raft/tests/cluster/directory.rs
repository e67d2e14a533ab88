//! What a node takes for its own when it starts.

use muster_raft::{Cluster, Error};

use crate::common::{found, has, options, write};

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
    std::fs::rename(&log, &kept).unwrap();
    let refused = Cluster::start(options.clone()).await.err();
    assert!(matches!(refused, Some(Error::Corrupt(_))), "{refused:?}");
    std::fs::create_dir(&log).unwrap();
    let refused = Cluster::start(options.clone()).await.err();
    assert!(
        matches!(&refused, Some(Error::Corrupt(why)) if why.contains("join anew")),
        "{refused:?}"
    );
    // Nothing was made in its place, and with its log it goes on.
    std::fs::remove_dir(&log).unwrap();
    std::fs::rename(&kept, &log).unwrap();
    let node = Cluster::start(options).await.unwrap();
    assert!(has(&node, "a"));
    node.stop().await;
}
