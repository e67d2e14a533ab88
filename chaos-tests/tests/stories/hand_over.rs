//! The leader is told to stop: another leads before it is gone, and no write fails meanwhile.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::invariant;
use muster_chaos::lab::wait_until;
use nix::sys::signal::Signal;

use crate::{PATIENCE, tell};

/// Writes on either side of a hand-over, so that one could fail.
const WRITES: usize = 3;

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
    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| write(cluster, writer, round, &stop, &written));
        let some_more = || {
            let before = written.load(Ordering::Relaxed);
            wait_until("a few writes", PATIENCE, || {
                ensure!(!writes.is_finished(), "the writer has ended");
                let made = written.load(Ordering::Relaxed) - before;
                Ok((made >= WRITES).then_some(()))
            })
        };
        let handed_over = some_more()
            .and_then(|()| watch(cluster, leader))
            .and_then(|()| some_more());
        stop.store(true, Ordering::Relaxed);
        let ended = writes.join().map_err(|_| anyhow!("the writer broke"))?;
        ended.and(handed_over)
    })?;
    println!("{written:?} writes, none failed");
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
    wait_until("the leader to end", PATIENCE, || {
        Ok((!node.is_running()).then_some(()))
    })?;
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
fn write(
    cluster: &Cluster,
    node: usize,
    round: usize,
    stop: &AtomicBool,
    written: &AtomicUsize,
) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let number = written.load(Ordering::Relaxed);
        let name = format!("name: hand-over-{round}-{number}\n");
        let create = ["profiles", "create", "-f", "-"];
        cluster.node(node).cli_with(&create, &name)?.ok()?;
        written.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
