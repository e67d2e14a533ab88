//! Damage to what a stopped node stores: it is named before the start, and the start either refuses
//! it or puts it right.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod cases;
#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use cases::Outcome::{Heals, Refuses};
use cases::{Case, WITH_SNAPSHOT, WITH_WHOLE_LOG, flip, largest, snapshot};
use common::{Three, found, has, options, until, write};
use muster_raft::{Cluster, Error, Limits, Options, Start, damages};
use muster_storage::Actor;
use tempfile::TempDir;

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (
            entry.as_ref().unwrap().path(),
            to.join(entry.unwrap().file_name()),
        );
        match from.is_dir() {
            true => copy_dir(&from, &to),
            false => drop(fs::copy(from, to).unwrap()),
        }
    }
}

/// Stopped nodes; cases begin with copies of their directories.
struct Stopped {
    dirs: Vec<TempDir>,
    ports: Vec<u16>,
    limits: Limits,
    last: String,
}

impl Stopped {
    /// Three nodes with some data, the most of it written after a first restart: their stores have
    /// files, and write-ahead logs.
    async fn with(limits: Limits) -> Self {
        let mut three = Three::with(limits).await;
        for i in 0..40 {
            write(&three.nodes[0], &format!("p{i}")).await;
        }
        three.agree().await;
        three.stop().await;
        for i in 0..3 {
            three.restart(i, true).await;
        }
        for i in 0..150 {
            write(&three.nodes[0], &format!("q{i}")).await;
        }
        three.agree().await;
        three.stop().await;
        Self {
            ports: three.nodes.iter().map(Cluster::peer_port).collect(),
            dirs: three.dirs,
            limits,
            last: "q149".into(),
        }
    }

    fn options(&self, dir: &Path, i: usize) -> Options {
        let mut options = options(dir, &format!("n{i}"), Start::Resume);
        options.limits = self.limits;
        options.peer_port = self.ports[i];
        options
    }

    async fn try_case(&self, case: &Case) {
        let Case { name, start, .. } = case;
        println!("{name}");
        let copies: Vec<TempDir> = self.dirs.iter().map(|_| TempDir::new().unwrap()).collect();
        for (dir, copy) in self.dirs.iter().zip(&copies) {
            copy_dir(dir.path(), copy.path());
        }
        let damaged = copies[2].path();
        (case.damage)(damaged);
        let found = damages(damaged).unwrap();
        let parts: Vec<_> = found.iter().map(|damage| damage.part).collect();
        assert_eq!(parts, case.found, "{name}: {found:?}");
        match start {
            Refuses(words) => {
                let refused = Cluster::start(self.options(damaged, 2)).await.err();
                let refused = refused.as_ref().map(Error::to_string).unwrap_or_default();
                assert!(refused.contains(words), "{name}: {refused}");
                assert!(
                    found.iter().any(|damage| damage.problem.contains(words)),
                    "{name}: {found:?}"
                );
            }
            Heals => {
                let told = "start the node: it puts the state back";
                let promised = |part: &str, words: &str| {
                    let mut of_part = found.iter().filter(|damage| damage.part == part);
                    of_part.all(|damage| damage.problem.contains(words))
                };
                assert!(
                    promised("state", told) && promised("snapshots", "remove it"),
                    "{name}: {found:?}"
                );
                self.heals(name, &copies).await;
            }
        }
    }

    async fn heals(&self, name: &str, copies: &[TempDir]) {
        let mut nodes = Vec::new();
        for (i, copy) in copies.iter().enumerate() {
            let started = Cluster::start(self.options(copy.path(), i)).await;
            nodes.push(started.unwrap_or_else(|error| panic!("{name}: {error}")));
        }
        write(&nodes[0], "after").await;
        until(name, || {
            nodes
                .iter()
                .all(|node| has(node, "after") && has(node, &self.last))
        })
        .await;
        let seen = |node: &Cluster| node.read(|state| (state.revision(), state.digest()));
        until(name, || {
            nodes.iter().all(|node| seen(node) == seen(&nodes[0]))
        })
        .await;
        for node in &nodes {
            assert_eq!(node.fault(), None, "{name}");
            node.stop().await;
        }
        drop(nodes);
        // A snapshot that nobody has asked for since is made anew when somebody does.
        let left = damages(copies[2].path()).unwrap();
        assert!(
            left.iter().all(|damage| damage.part == "snapshots"),
            "{name}: afterwards: {left:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_a_node_with_its_whole_log() {
    let stopped = Stopped::with(Limits::default()).await;
    for case in WITH_WHOLE_LOG {
        stopped.try_case(case).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_a_node_with_a_snapshot() {
    let limits = Limits {
        snapshot_every: 50,
        keep: 10,
        ..Limits::default()
    };
    let stopped = Stopped::with(limits).await;
    for case in WITH_SNAPSHOT {
        stopped.try_case(case).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_snapshot_is_damaged_makes_another_for_a_new_node() {
    let dir = TempDir::new().unwrap();
    let mut options = options(dir.path(), "n0", found());
    options.limits.snapshot_every = 50;
    options.limits.keep = 10;
    let mut leader = Cluster::start(options.clone()).await.unwrap();
    options.peer_port = leader.peer_port();
    for i in 0..150 {
        write(&leader, &format!("p{i}")).await;
    }
    let damages_made: [fn(&Path); 2] = [
        |dir| flip(&largest(&snapshot(dir).join("files"), ".sst"), 20),
        |dir| fs::remove_dir_all(dir.join("snapshots")).unwrap(),
    ];
    for (i, damage) in damages_made.into_iter().enumerate() {
        leader.stop().await;
        drop(leader);
        damage(dir.path());
        leader = Cluster::start(options.clone()).await.unwrap();
        until("it leads", || leader.has_quorum()).await;
        let joined = TempDir::new().unwrap();
        let start = Start::Join {
            peers: vec![format!("127.0.0.1:{}", leader.peer_port())],
            token: leader
                .join_token(Duration::from_secs(60), Actor("test".into()))
                .await
                .unwrap(),
        };
        let name = format!("n{}", i + 1);
        let new = common::options(joined.path(), &name, start);
        let new = Cluster::start(new).await.unwrap();
        until("it has all", || has(&new, "p149")).await;
        leader.remove(&name).await.unwrap();
        new.stop().await;
    }
    leader.stop().await;
    drop(leader);
    assert_eq!(damages(dir.path()).unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_gone_is_no_node() {
    let dir = TempDir::new().unwrap();
    let gone = dir.path().join("gone");
    for _ in 0..2 {
        let checked = damages(&gone);
        assert!(matches!(checked, Err(Error::NoCluster(_))), "{checked:?}");
        let refused = Cluster::start(options(&gone, "n0", Start::Resume))
            .await
            .err();
        assert!(matches!(refused, Some(Error::NoCluster(_))), "{refused:?}");
    }
}
