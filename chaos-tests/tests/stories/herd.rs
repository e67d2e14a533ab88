//! The power of a whole hall comes back: nodes and machines start at once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::crowd::{self, Arrivals, Errand, Patience};
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::invariant;
use muster_chaos::lab::wait_until;
use muster_chaos::summary::Latency;
use nix::sys::signal::Signal;

use crate::{PATIENCE, long, tell};

const HALL: &str = "\
kind: subnet
name: hall
cidr: 10.77.0.0/16
pools: [10.77.64.0-10.77.127.255]
lease_secs: 3600
";

/// Machines come out of their self-tests within this time.
const SPREAD_SECS: u32 = 5;

/// Counts packets that were too old when they were looked at.
const STALE: &str =
    "muster_dhcp_outcomes_total{type=\"discover\",outcome=\"silence\",reason=\"stale\"}";

/// As patient as ROMs, which do not discover anew: not one gives up.
#[test]
fn a_hall_is_served_after_a_power_cut() -> Result<()> {
    let machines: u32 = if long() { 10_000 } else { 2_000 };
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(HALL)?;
        cluster.wait_settled(PATIENCE)?;
        let port = Port::direct(&cluster.lab().host("hall", None)?)?;
        for node in cluster.nodes() {
            node.kill()?;
        }
        for node in cluster.nodes() {
            node.start()?;
        }
        let errands = (0..machines).map(|number| Errand::seek(Client::numbered(1, number)));
        let arrivals = Arrivals::PerSecond(f64::from(machines / SPREAD_SECS));
        let outcome = crowd::run(&port, errands, arrivals, &Patience::rom(), |_| false)?;
        let took = Latency::of(outcome.given.iter().map(|one| one.took))?;
        println!(
            "{} of {machines} served, {} repeats, {took}",
            outcome.given.len(),
            outcome.repeats
        );
        crowd::one_owner(&outcome.given)?;
        ensure!(outcome.gave_up.is_empty(), "{:?}", outcome.gave_up);
        ensure!(outcome.given.len() == machines as usize);
        invariant::one_owner_everywhere(&cluster)
    })
}

/// Nodes that were stopped for a while do not answer what nobody waits for any more, and answer
/// what is asked now.
#[test]
fn what_waited_for_too_long_is_not_answered() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(HALL)?;
        cluster.wait_settled(PATIENCE)?;
        let port = Port::direct(&cluster.lab().host("hall", None)?)?;
        for node in cluster.nodes() {
            node.freeze()?;
        }
        let discover = Client::numbered(1, 1).discover();
        let sent = Instant::now();
        port.send(&discover)?;
        // It grows old.
        let answer = port.first(&discover, Duration::from_secs(4))?;
        ensure!(answer.is_none(), "a stopped node answers");
        for node in cluster.nodes() {
            node.signal(Signal::SIGCONT)?;
        }
        wait_until("all nodes to have seen the old packet", PATIENCE, || {
            for node in cluster.nodes() {
                if node.metric(STALE)? < 1.0 {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })?;
        let answer = port.first(&discover, Duration::ZERO)?;
        ensure!(answer.is_none(), "answered after {:?}", sent.elapsed());
        port.bind(&Client::numbered(1, 2)).map(|_| ())
    })
}
