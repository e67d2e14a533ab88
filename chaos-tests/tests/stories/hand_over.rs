//! The leader is told to stop: another leads before it is gone, and no write fails meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::invariant;
use nix::sys::signal::Signal;

use crate::{PATIENCE, tell};

#[test]
fn a_leader_that_is_stopped_hands_over() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        for round in 0..3 {
            hand_over(&cluster, round)?;
        }
        invariant::same_everywhere(&cluster)
    })
}

fn hand_over(cluster: &Cluster, round: usize) -> Result<()> {
    let leader = cluster.wait_leader(PATIENCE)?;
    let writer = (leader + 1) % 3;
    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writes = scope.spawn(|| write(cluster, writer, round, &stop));
        std::thread::sleep(Duration::from_secs(1));
        let handed_over = watch(cluster, leader);
        std::thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        let written = writes.join().map_err(|_| anyhow!("the writer broke"))?;
        handed_over.and(written)
    })?;
    ensure!(written > 5, "only {written} writes: too few to fail");
    println!("{written} writes, none failed");
    cluster.node(leader).start()?;
    cluster.wait_settled(PATIENCE)
}

/// Stops a leader and waits until it is gone. Another leads at that moment: an election without
/// its help would only have begun.
fn watch(cluster: &Cluster, leader: usize) -> Result<()> {
    let node = cluster.node(leader);
    let others = [(leader + 1) % 3, (leader + 2) % 3].map(|other| cluster.node(other));
    node.signal(Signal::SIGTERM)?;
    let began = Instant::now();
    while node.is_running() {
        ensure!(began.elapsed() < PATIENCE, "{} does not stop", node.name());
        std::thread::sleep(Duration::from_millis(2));
    }
    let took = began.elapsed();
    for other in others {
        let status = other.quick_status()?;
        let leads = status.leader_name().context("nobody leads")?;
        ensure!(
            leads != node.name(),
            "{} holds the dead for the leader",
            other.name()
        );
    }
    let status = node.stop(PATIENCE)?;
    ensure!(status.success(), "it ended with {status}");
    println!("{} was gone after {took:?}", node.name());
    Ok(())
}

/// Creates one profile after another on a node that stays, each of which has to succeed.
fn write(cluster: &Cluster, node: usize, round: usize, stop: &AtomicBool) -> Result<usize> {
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        let name = format!("name: hand-over-{round}-{written}\n");
        let create = ["profiles", "create", "-f", "-"];
        cluster.node(node).cli_with(&create, &name)?.ok()?;
        written += 1;
    }
    Ok(written)
}
