//! A dead follower costs the leader next to nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::lab::wait_until;
use muster_chaos::node::Member;

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
        let (node, dead) = (cluster.node(leader), cluster.node(follower).name());
        wait_until("the death to be noticed", PATIENCE, || {
            let status = node.quick_status()?;
            let gone = |member: &Member| member.name == dead && !member.live;
            Ok(status.nodes.iter().any(gone).then_some(()))
        })?;

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
