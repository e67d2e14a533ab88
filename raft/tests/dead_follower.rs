//! A dead follower costs the leader next to nothing. Alone in its process, so that its processor
//! time and its connections can be measured.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use muster_raft::{Cluster, Limits, Options, Role, Start, Timing};
use muster_storage::Actor;

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

/// Processor time of this process.
fn busy() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_leader_does_not_chase_a_dead_follower() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let found = Start::Found {
        admin_password_hash: "hash".into(),
    };
    let leader = Cluster::start(options(dirs[0].path(), "n0", found))
        .await
        .unwrap();
    let token = leader
        .join_token(Duration::from_secs(60), Actor("test".into()))
        .await
        .unwrap();
    let mut others = Vec::new();
    for (i, dir) in dirs.iter().enumerate().skip(1) {
        let start = Start::Join {
            peers: vec![format!("127.0.0.1:{}", leader.peer_port())],
            token: token.clone(),
        };
        let name = format!("n{i}");
        others.push(
            Cluster::start(options(dir.path(), &name, start))
                .await
                .unwrap(),
        );
    }
    let all_vote = || {
        let nodes = leader.status().nodes;
        nodes.iter().filter(|node| node.role == Role::Voter).count() == 3
    };
    while !all_vote() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let dead = others.pop().unwrap();
    let port = dead.peer_port();
    dead.stop().await;
    drop(dead);
    // In the dead one's place, count who knocks, and hang up at once.
    let knocks = Arc::new(AtomicU32::new(0));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .await
        .unwrap();
    let counter = Arc::clone(&knocks);
    let counting = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            drop(socket);
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (knocks_before, busy_before, start) =
        (knocks.load(Ordering::Relaxed), busy(), Instant::now());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let seconds = start.elapsed().as_secs_f64();
    let per_second = f64::from(knocks.load(Ordering::Relaxed) - knocks_before) / seconds;
    let share = (busy() - busy_before).as_secs_f64() / seconds;
    println!(
        "two nodes knock {per_second:.1} times a second and use {:.1} % of a core",
        share * 100.0
    );
    // Leader and follower both knock, and both are in this process.
    assert!(per_second < 10.0);
    assert!(share < 0.10);
    counting.abort();
    assert!(leader.has_quorum());
    leader.stop().await;
    others[0].stop().await;
}
