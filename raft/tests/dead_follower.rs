//! A dead follower costs the leader next to nothing. Alone in its process, so that its processor
//! time and its connections can be measured.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::Three;

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
    let mut three = Three::start().await;
    let leader = three.nodes.remove(three.leader());
    let mut others = three.nodes;
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
