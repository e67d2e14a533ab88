//! A node that was away for longer than the log reaches back is sent a snapshot, while writes go on.

use std::path::Path;

use muster_raft::{Cluster, Inspection, Limits};
use muster_storage::State;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::common::{Three, has, until};
use crate::replication::keep_writing;

/// A log that is soon too short.
const LIMITS: Limits = Limits {
    snapshot_every: 200,
    keep: 20,
    bytes: 512 << 20,
};

/// Clients that write through some nodes until they are told to stop.
struct Load {
    stop: CancellationToken,
    writers: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(nodes: &[&Cluster]) -> Self {
        let stop = CancellationToken::new();
        let writers = (0..8).map(|writer| {
            let node = nodes[writer % nodes.len()].clone();
            tokio::spawn(keep_writing(node, format!("w{writer}"), stop.clone()))
        });
        Self {
            writers: writers.collect(),
            stop,
        }
    }

    async fn stop(self) -> Vec<String> {
        self.stop.cancel();
        let mut acknowledged = Vec::new();
        for writer in self.writers {
            acknowledged.extend(writer.await.unwrap());
        }
        acknowledged
    }
}

fn index(node: &Cluster) -> u64 {
    node.read(State::revision).log_index()
}

/// Stops a follower, and has the others write until their log has nothing left for it. Returns which
/// it is, and the writers.
async fn leave(three: &Three) -> (usize, Load) {
    let leader = three.leader();
    let away = (leader + 1) % 3;
    let others = [&three.nodes[leader], &three.nodes[(leader + 2) % 3]];
    three.nodes[away].stop().await;
    let left = index(&three.nodes[away]);
    let load = Load::start(&others);
    until("the log is cut beyond it", || {
        index(others[0]) > left + 3 * (LIMITS.snapshot_every + LIMITS.keep)
    })
    .await;
    (away, load)
}

fn check_all(three: &Three, acknowledged: &[String]) {
    for node in &three.nodes {
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|name| !has(node, name))
            .collect();
        assert!(lost.is_empty(), "lost {} writes: {lost:?}", lost.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_is_seeded_anew_under_load() {
    let mut three = Three::with(LIMITS).await;
    let (away, load) = leave(&three).await;
    let left = index(&three.nodes[away]);
    three.restart(away, true).await;
    let goal = index(&three.nodes[(away + 1) % 3]);
    until("it has caught up", || index(&three.nodes[away]) >= goal).await;
    let acknowledged = load.stop().await;
    three.agree().await;
    check_all(&three, &acknowledged);
    three.stop().await;
    // The entries that it missed never came.
    let log = Inspection::open(three.dirs[away].path()).unwrap().log();
    assert!(*log.unwrap().unwrap().start() > left + 1);
}

fn arriving(dir: &Path) -> bool {
    let snapshots = std::fs::read_dir(dir.join("snapshots")).unwrap();
    let mut names = snapshots.map(|entry| entry.unwrap().file_name());
    names.any(|name| name.to_str().unwrap().starts_with("receive-"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_is_interrupted_begins_anew() {
    let mut three = Three::with(LIMITS).await;
    let (away, load) = leave(&three).await;
    for _ in 0..5 {
        three.restart(away, true).await;
        let dir = three.dirs[away].path();
        let node = &three.nodes[away];
        until("a snapshot comes", || {
            arriving(dir) || node.caught_up_once()
        })
        .await;
        node.stop().await;
    }
    three.restart(away, true).await;
    let goal = index(&three.nodes[(away + 1) % 3]);
    until("it has caught up", || index(&three.nodes[away]) >= goal).await;
    let acknowledged = load.stop().await;
    three.agree().await;
    check_all(&three, &acknowledged);
    three.stop().await;
    assert!(!arriving(three.dirs[away].path()));
}
