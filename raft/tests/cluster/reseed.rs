//! A node that was away for longer than the log reaches back is sent a snapshot, while writes go on.

use std::path::Path;
use std::time::Duration;

use muster_raft::{Cluster, Inspection, Limits, Options, Start};
use muster_storage::{Actor, State};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::common::{Three, found, has, options, until, voters, write};
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

/// Whether there is a snapshot whose name begins so.
fn holds(dir: &Path, prefix: &str) -> bool {
    let snapshots = std::fs::read_dir(dir.join("snapshots")).unwrap();
    let mut names = snapshots.map(|entry| entry.unwrap().file_name());
    names.any(|name| name.to_str().unwrap().starts_with(prefix))
}

fn arriving(dir: &Path) -> bool {
    holds(dir, "receive-")
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

/// The leader joined after the snapshot that it gives a new node was made: nothing in there tells the
/// new node of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_learns_from_a_leader_that_its_snapshot_does_not_know() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let options = |i: usize, start| Options {
        limits: LIMITS,
        ..options(dirs[i].path(), &format!("n{i}"), start)
    };
    let founder = Cluster::start(options(0, found())).await.unwrap();
    for n in 0..LIMITS.snapshot_every + LIMITS.keep {
        write(&founder, &format!("p{n}")).await;
    }
    let seeded = |i: usize| holds(dirs[i].path(), "snapshot-");
    until("there is a snapshot", || seeded(0)).await;
    let join = async |i, by: &Cluster| {
        let actor = Actor("test".into());
        let token = by.join_token(Duration::from_secs(3600), actor).await;
        let peers = vec![format!("127.0.0.1:{}", by.peer_port())];
        let token = token.unwrap();
        let node = Cluster::start(options(i, Start::Join { peers, token })).await;
        let node = node.unwrap();
        until("it has caught up", || node.caught_up_once()).await;
        assert!(seeded(i), "it was given a snapshot");
        node
    };
    let second = join(1, &founder).await;
    until("both vote", || voters(&second) == 2).await;
    founder.transfer(Some(second.node_id())).await.unwrap();
    until("the second leads", || second.is_leader()).await;
    let third = join(2, &second).await;
    write(&third, "last").await;
    until("all have it", || {
        has(&founder, "last") && has(&third, "last")
    })
    .await;
    for node in [founder, second, third] {
        node.stop().await;
    }
}
