//! How many writes a second three nodes commit, at the leader and at a follower, each synced on a
//! quorum: `make bench`. Three nodes in one process share the disk and the cores.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use muster_raft::{Cluster, Limits, Options, Role, Start, Timing};
use muster_storage::command::PutMode;
use muster_storage::model::Object;
use muster_storage::{Actor, Command, Proposal, RequestId};
use uuid::Uuid;

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

#[tokio::main]
async fn main() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let found = Start::Found {
        admin_password_hash: "hash".into(),
    };
    let mut nodes = vec![
        Cluster::start(options(dirs[0].path(), "n0", found))
            .await
            .unwrap(),
    ];
    let token = nodes[0]
        .join_token(Duration::from_secs(600), Actor("test".into()))
        .await
        .unwrap();
    for (i, dir) in dirs.iter().enumerate().skip(1) {
        let start = Start::Join {
            peers: vec![format!("127.0.0.1:{}", nodes[0].peer_port())],
            token: token.clone(),
        };
        let name = format!("n{i}");
        nodes.push(
            Cluster::start(options(dir.path(), &name, start))
                .await
                .unwrap(),
        );
    }
    let voters = |node: &Cluster| {
        let nodes = node.status().nodes;
        nodes.iter().filter(|node| node.role == Role::Voter).count()
    };
    while voters(&nodes[0]) < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (place, node) in [("leader", &nodes[0]), ("follower", &nodes[1])] {
        for clients in [1, 64, 512, 4096] {
            let done = Arc::new(AtomicU64::new(0));
            let end = Instant::now() + Duration::from_secs(4);
            let tasks: Vec<_> = (0..clients)
                .map(|client| {
                    let (node, done) = (node.clone(), Arc::clone(&done));
                    tokio::spawn(async move {
                        let mut written = 0;
                        while Instant::now() < end {
                            written += 1;
                            let profile = serde_json::json!({
                                "name": format!("c{client}"),
                                "params": { "written": written },
                            });
                            let object = Object::Profile(serde_json::from_value(profile).unwrap());
                            let proposal = Proposal {
                                request: RequestId(Uuid::new_v4()),
                                actor: Actor("test".into()),
                                if_match: None,
                                command: Command::Put {
                                    object,
                                    mode: PutMode::Apply,
                                },
                            };
                            node.propose(proposal).await.unwrap();
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            let rate = done.load(Ordering::Relaxed) / 4;
            println!("{clients:5} clients at the {place}: {rate} writes/s");
        }
    }
    for node in &nodes {
        node.stop().await;
    }
}
