//! A dead follower costs the leader next to nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;

use crate::{PATIENCE, tell};

/// Shares of a processor and of seconds are taken over this time.
const WINDOW: Duration = Duration::from_secs(10);

#[test]
fn an_idle_leader_with_a_dead_follower_rests() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        let leader = cluster.wait_leader(PATIENCE)?;
        let follower = (leader + 1) % 3;
        cluster.node(follower).kill()?;
        // It is noticed, and what was under way comes to an end.
        std::thread::sleep(Duration::from_secs(5));

        let node = cluster.node(leader);
        let (connects, worked) = (node.connects()?, node.processor_time()?);
        std::thread::sleep(WINDOW);
        let connects = node.connects()? - connects;
        let worked = node.processor_time()?.saturating_sub(worked);
        println!("in {WINDOW:?}: {connects} connects, {worked:?} of processor time");
        ensure!(
            cluster.leader()? == leader,
            "another node leads: this one had nothing to do"
        );
        let seconds = WINDOW.as_secs();
        ensure!(
            connects < 5 * seconds,
            "{connects} connects in {seconds} s: it dials the dead"
        );
        ensure!(
            worked < WINDOW.mul_f64(0.05),
            "{worked:?} in {seconds} s: it is not idle"
        );
        cluster.node(follower).start()?;
        cluster.wait_settled(PATIENCE).context("after its return")
    })
}
