//! Nodes in one process, over loopback TLS, on disks of their own.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use muster_raft::{Cluster, Error, Limits, Options, Role, Start, Timing};
use muster_storage::command::PutMode;
use muster_storage::model::{Object, ObjectKind, Profile};
use muster_storage::{Actor, Command, NodeId, Outcome, Proposal, RequestId};
use tempfile::TempDir;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

/// A node on `dir` with free ports.
pub fn options(dir: &Path, name: &str, start: Start) -> Options {
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

pub fn found() -> Start {
    Start::Found {
        admin_password_hash: "hash".into(),
    }
}

pub fn proposal(command: Command) -> Proposal {
    Proposal {
        request: RequestId(Uuid::new_v4()),
        actor: Actor("test".into()),
        if_match: None,
        remember: None,
        command,
    }
}

pub fn put(name: &str) -> Proposal {
    let profile: Profile = serde_json::from_value(serde_json::json!({ "name": name })).unwrap();
    proposal(Command::Put {
        object: Object::Profile(profile),
        mode: PutMode::Apply,
    })
}

pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
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
pub async fn write(cluster: &Cluster, name: &str) -> Outcome {
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

pub fn has(cluster: &Cluster, name: &str) -> bool {
    cluster.read(|state| state.object(ObjectKind::Profile, name).is_some())
}

pub fn voters(cluster: &Cluster) -> usize {
    let nodes = cluster.status().nodes;
    nodes.iter().filter(|node| node.role == Role::Voter).count()
}

/// Whether a node takes another one for dead.
pub fn sees_dead(node: &Cluster, peer: NodeId) -> bool {
    let nodes = node.status().nodes;
    nodes.iter().any(|node| node.id == peer && !node.live)
}

/// Three voters, `n0` to `n2`.
pub struct Three {
    pub dirs: Vec<TempDir>,
    pub nodes: Vec<Cluster>,
    limits: Limits,
}

impl Three {
    pub async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    pub async fn with(limits: Limits) -> Self {
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
            let all_live = || node.status().nodes.iter().all(|node| node.live);
            until("all hear of each other", all_live).await;
        }
        three
    }

    /// Has one more node join, by the leader; it learns first. Returns its position.
    pub async fn join(&mut self) -> usize {
        let (i, leader) = (self.nodes.len(), self.leader());
        let actor = Actor("test".into());
        let token = self.nodes[leader].join_token(Duration::from_secs(3600), actor);
        let start = Start::Join {
            peers: vec![format!("127.0.0.1:{}", self.nodes[leader].peer_port())],
            token: token.await.unwrap(),
        };
        self.dirs.push(tempfile::tempdir().unwrap());
        let mut options = options(self.dirs[i].path(), &format!("n{i}"), start);
        options.limits = self.limits;
        self.nodes.push(Cluster::start(options).await.unwrap());
        i
    }

    /// How a stopped node starts again.
    pub fn resumed(&self, i: usize) -> Options {
        let mut options = options(self.dirs[i].path(), &format!("n{i}"), Start::Resume);
        options.limits = self.limits;
        options
    }

    /// Starts a stopped node again, at another port or at the one that it had.
    pub async fn restart(&mut self, i: usize, same_port: bool) {
        let mut options = self.resumed(i);
        if same_port {
            options.peer_port = self.nodes[i].peer_port();
        }
        self.nodes[i] = Cluster::start(options).await.unwrap();
    }

    pub fn leader(&self) -> usize {
        self.nodes.iter().position(Cluster::is_leader).unwrap()
    }

    pub async fn agree(&self) {
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

    pub async fn stop(&self) {
        for node in &self.nodes {
            node.stop().await;
        }
    }
}
