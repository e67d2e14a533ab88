//! Nodes in one process, over loopback TLS, on disks of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use muster_raft::{Cluster, Error, Limits, Options, Role, Start, Timing};
use muster_storage::command::PutMode;
use muster_storage::model::{Object, ObjectKind, Profile};
use muster_storage::{Actor, Command, Effect, Outcome, Proposal, RequestId, Revision};
use tempfile::TempDir;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

fn options(dir: &Path, name: &str, start: Start) -> Options {
    Options {
        data_dir: dir.to_owned(),
        node_name: name.into(),
        advertise: IpAddr::V4(Ipv4Addr::LOCALHOST),
        peer_port: 0,
        api_port: 1,
        boot_port: 2,
        version: "test".into(),
        start,
        timing: Timing::default(),
        limits: Limits::default(),
        unsafe_no_sync: false,
    }
}

fn found() -> Start {
    Start::Found {
        admin_password_hash: "hash".into(),
    }
}

fn put(name: &str) -> Proposal {
    let profile: Profile = serde_json::from_value(serde_json::json!({ "name": name })).unwrap();
    Proposal {
        request: RequestId(Uuid::new_v4()),
        actor: Actor("test".into()),
        if_match: None,
        command: Command::Put {
            object: Object::Profile(profile),
            mode: PutMode::Apply,
        },
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// Proposes until it is taken; for writes that may be made twice.
async fn write(cluster: &Cluster, name: &str) -> Outcome {
    let writing = async {
        loop {
            match cluster.propose(put(name)).await {
                Ok(outcome) => return outcome,
                Err(Error::Timeout | Error::NoLeader) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, writing)
        .await
        .expect("a write")
}

fn has(cluster: &Cluster, name: &str) -> bool {
    cluster.read(|state| state.object(ObjectKind::Profile, name).is_some())
}

fn voters(cluster: &Cluster) -> usize {
    let nodes = cluster.status().nodes;
    nodes.iter().filter(|node| node.role == Role::Voter).count()
}

struct Three {
    dirs: Vec<TempDir>,
    nodes: Vec<Cluster>,
    limits: Limits,
}

impl Three {
    async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Self {
        let dirs: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut first = options(dirs[0].path(), "n0", found());
        first.limits = limits;
        let founder = Cluster::start(first).await.unwrap();
        let token = founder
            .join_token(Duration::from_secs(3600), Actor("test".into()))
            .await
            .unwrap();
        let peers = vec![format!("127.0.0.1:{}", founder.peer_port())];
        let joining = (1..3).map(|i| {
            let start = Start::Join {
                peers: peers.clone(),
                token: token.clone(),
            };
            let mut options = options(dirs[i].path(), &format!("n{i}"), start);
            options.limits = limits;
            Cluster::start(options)
        });
        let mut nodes = vec![founder];
        // Both at once: joins queue.
        for joined in futures::future::join_all(joining).await {
            nodes.push(joined.unwrap());
        }
        let three = Self {
            dirs,
            nodes,
            limits,
        };
        for node in &three.nodes {
            until("all vote", || voters(node) == 3 && node.has_quorum()).await;
        }
        three
    }

    /// Starts a stopped node again, at another port or at the one that it had.
    async fn restart(&mut self, i: usize, same_port: bool) {
        let name = format!("n{i}");
        let mut options = options(self.dirs[i].path(), &name, Start::Resume);
        options.limits = self.limits;
        if same_port {
            options.peer_port = self.nodes[i].peer_port();
        }
        self.nodes[i] = Cluster::start(options).await.unwrap();
    }

    fn leader(&self) -> usize {
        self.nodes.iter().position(Cluster::is_leader).unwrap()
    }

    async fn agree(&self) {
        let digests = || -> Vec<_> {
            self.nodes
                .iter()
                .map(|node| node.read(|state| (state.revision(), state.digest())))
                .collect()
        };
        until("all have the same state", || {
            let digests = digests();
            digests.iter().all(|digest| *digest == digests[0])
        })
        .await;
    }
}

#[tokio::test]
async fn solo_proposes_reads_and_follows() {
    let cluster = Cluster::solo().await;
    let mut follow = cluster.follow(cluster.read(muster_storage::State::revision));
    let outcome = cluster.propose(put("a")).await.unwrap();
    assert!(matches!(
        outcome.result,
        Ok(Effect::Stored { created: true, .. })
    ));
    assert!(
        cluster
            .read_linear(|state| state.object(ObjectKind::Profile, "a").is_some())
            .await
            .unwrap()
    );
    let changes = loop {
        let changes = follow.next().await.unwrap();
        if changes
            .iter()
            .any(|change| change.revision == outcome.revision)
        {
            break changes;
        }
    };
    assert_eq!(changes.last().unwrap().subject.key(), "a");
    assert!(cluster.is_leader() && cluster.has_quorum());
    assert_eq!(
        cluster.applied_by_all(),
        Some(Revision::new(outcome.revision.log_index(), 0))
    );
    until("it has caught up", || cluster.caught_up_once()).await;
    cluster.drain_and_stop().await;
    assert!(matches!(
        cluster.propose(put("b")).await,
        Err(Error::Stopped(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_proposals_share_entries() {
    let cluster = Cluster::solo().await;
    let names: Vec<String> = (0..2000).map(|i| format!("p{i}")).collect();
    let outcomes =
        futures::future::join_all(names.iter().map(|name| cluster.propose(put(name)))).await;
    let mut revisions: Vec<u64> = outcomes
        .into_iter()
        .map(|o| o.unwrap().revision.0)
        .collect();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 2000);
    let entries = revisions.last().unwrap() / 256 - revisions[0] / 256;
    assert!(entries < 500, "2000 proposals took {entries} entries");
}

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

    for node in &three.nodes {
        node.stop().await;
    }
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
    for node in &three.nodes {
        node.drain_and_stop().await;
    }
}

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
        .propose(Proposal {
            command: Command::RevokeJoinTokens,
            ..put("unused")
        })
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
async fn leadership_is_handed_over_before_a_stop() {
    let three = Three::start().await;
    let leader = three.leader();
    let other = &three.nodes[(leader + 1) % 3];
    let started = std::time::Instant::now();
    three.nodes[leader].drain_and_stop().await;
    write(other, "after-drain").await;
    println!(
        "a write went through {:?} after the drain began",
        started.elapsed()
    );
    for node in &three.nodes {
        node.stop().await;
    }
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
    for node in &three.nodes {
        node.stop().await;
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_spread_pulled_and_streamed() {
    use futures::TryStreamExt;
    let three = Three::start().await;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|i| i.to_le_bytes()[1]).collect();
    let mut writer = three.nodes[0].blobs().writer().unwrap();
    writer.write(&bytes).unwrap();
    let (sha, size) = writer.finish(None).unwrap();
    let streamed = three.nodes[1].fetch_blob(sha, 1000).await.unwrap();
    let pieces: Vec<bytes::Bytes> = streamed.try_collect().await.unwrap();
    assert!(pieces.concat() == bytes[1000..]);
    let holders = three.nodes[0].spread(sha, size).await.unwrap();
    assert!(holders.len() >= 2);
    for node in &three.nodes {
        until("all have it", || node.blobs().size(&sha) == Some(size)).await;
    }

    // What was committed while a node did not have it is pulled without being asked.
    let mut writer = three.nodes[2].blobs().writer().unwrap();
    writer.write(b"small").unwrap();
    let (sha, size) = writer.finish(None).unwrap();
    let artifact = serde_json::json!({ "path": "a/b", "sha256": sha, "size": size });
    let outcome = three.nodes[1]
        .propose(Proposal {
            command: Command::Put {
                object: Object::Artifact(serde_json::from_value(artifact).unwrap()),
                mode: PutMode::Apply,
            },
            ..put("unused")
        })
        .await
        .unwrap();
    outcome.result.unwrap();
    for node in &three.nodes {
        until("all pulled it", || node.blobs().size(&sha) == Some(size)).await;
    }
    assert!(
        three.nodes[0]
            .fetch_blob(muster_storage::model::Sha256([1; 32]), 0)
            .await
            .is_err()
    );

    let mut heard = three.nodes[2].gossips();
    let heard = async { heard.recv().await.unwrap() };
    let say = async {
        loop {
            three.nodes[0].gossip("hello".into());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (from, said) = tokio::select! { heard = heard => heard, () = say => unreachable!() };
    assert_eq!((from, &said[..]), (three.nodes[0].node_id(), &b"hello"[..]));
    for node in &three.nodes {
        node.stop().await;
    }
}

/// Writes without pause until told to stop; returns the names that were acknowledged.
async fn keep_writing(
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
    for node in &three.nodes {
        node.stop().await;
    }
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
    for node in &three.nodes {
        node.stop().await;
    }
}

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

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_nobody_waits_for_ends_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path(), "n0", found());
    let node = Cluster::start(options.clone()).await.unwrap();
    write(&node, "a").await;
    let _ = tokio::time::timeout(Duration::ZERO, node.drain_and_stop()).await;
    // Waits for the same stop; the directory is free afterwards.
    node.stop().await;
    let again = Cluster::start(options).await.unwrap();
    assert!(has(&again, "a"));
    again.stop().await;
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
    for node in &three.nodes {
        node.stop().await;
    }
}
