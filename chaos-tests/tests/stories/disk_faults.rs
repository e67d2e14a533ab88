//! The leader's disk becomes read-only or fails: it stops taking part and says why, the others go on
//! and show it, and once the disk is mended it has all that it missed. A disk that hangs or is full
//! holds up nobody else for long, and its node goes on by itself when the disk does.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::disk::Disk;
use muster_chaos::lab::{Lab, wait_until};
use muster_chaos::load::{self, Acknowledged};
use muster_chaos::node::{Member, Node};
use muster_chaos::{content, invariant};
use serde_json::Value;

use crate::{PATIENCE, tell};

const SIZE: u64 = 192 << 20;
/// The node whose disk fails.
const VICTIM: usize = 2;
/// Acknowledged before the fault, and once more after it.
const LEASES: usize = 100;
const OBJECTS: usize = 2;

#[test]
fn a_disk_that_becomes_read_only() -> Result<()> {
    story(Disk::become_read_only)
}

#[test]
fn a_disk_that_fails() -> Result<()> {
    story(Disk::fail)
}

#[test]
fn a_follower_whose_disk_hangs() -> Result<()> {
    hanging(0)
}

#[test]
fn a_leader_whose_disk_hangs() -> Result<()> {
    hanging(VICTIM)
}

/// Three nodes, the victim on a disk of its own.
fn site(size: u64) -> Result<(Disk, Cluster)> {
    let lab = Lab::new()?;
    let disk = Disk::of_size(&lab, "n3", size)?;
    let cluster = Cluster::found_in(lab, 3)?;
    cluster.apply(content::WIDE_SUBNET)?;
    Ok((disk, cluster))
}

/// All nodes are back, and have all that was acknowledged.
fn all_is_well(cluster: &Cluster, acknowledged: &Acknowledged) -> Result<()> {
    cluster.wait_settled(PATIENCE)?;
    acknowledged.find_everywhere(cluster)?;
    invariant::same_everywhere(cluster)?;
    println!("{acknowledged}, all found");
    Ok(())
}

fn hanging(leader: usize) -> Result<()> {
    let (disk, cluster) = site(SIZE)?;
    tell(&cluster, || {
        cluster.transfer(leader)?;
        let (acknowledged, ()) = load::during(&cluster, 0, |load| {
            load.wait(LEASES, OBJECTS, PATIENCE)?;
            let _hanging = disk.hang()?;
            load.wait(3 * LEASES, 3 * OBJECTS, PATIENCE)?;
            wait_shown(&cluster, "see to the disk")?;
            let leads = cluster.node(0).status()?.leader_name().map(str::to_owned);
            let kept = leads.as_deref() == Some(cluster.node(leader).name());
            ensure!(kept == (leader != VICTIM), "{leads:?} leads");
            Ok(())
        })?;
        all_is_well(&cluster, &acknowledged)
    })
}

#[test]
fn a_disk_that_is_full() -> Result<()> {
    let (disk, cluster) = site(2 * SIZE)?;
    tell(&cluster, || {
        let victim = cluster.node(VICTIM);
        cluster.transfer(VICTIM)?;

        let (acknowledged, ()) = load::during(&cluster, 0, |load| {
            load.wait(LEASES, OBJECTS, PATIENCE)?;
            let filled = disk.fill()?;
            wait_shown(&cluster, "make room")?;
            load.wait(2 * LEASES, 2 * OBJECTS, PATIENCE)?;
            drop(filled);
            // Nobody restarts it.
            wait_until("it to go on by itself", PATIENCE, || {
                Ok(shown_on(cluster.node(0), &cluster)?.live.then_some(()))
            })?;
            load.wait(3 * LEASES, 3 * OBJECTS, PATIENCE)
        })?;
        cluster.wait_settled(PATIENCE)?;
        acknowledged.find_everywhere(&cluster)?;

        let filled = disk.fill()?;
        victim.kill()?;
        victim.start()?;
        let code = victim.wait_end(PATIENCE)?;
        ensure!(code == Some(1), "the node ends with {code:?}");
        ensure!(victim.log().contains("make room"), "{}", victim.log());
        drop(filled);
        victim.start()?;
        all_is_well(&cluster, &acknowledged)
    })
}

#[test]
fn a_log_that_was_cut_while_the_node_was_stopped() -> Result<()> {
    let cluster = Cluster::found(1)?;
    tell(&cluster, || {
        cluster.apply(content::WIDE_SUBNET)?;
        let node = cluster.node(0);
        node.stop(PATIENCE)?;
        let check = || node.cli(&["node", "check"]);
        check()?.ok()?;
        let log = node.data_dir().join("log");
        for entry in fs::read_dir(&log)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                let file = File::options().write(true).open(&path)?;
                file.set_len(file.metadata()?.len() / 2)?;
            }
        }
        let checked = check()?;
        ensure!(checked.code == 1, "the check ends with {}", checked.code);
        ensure!(
            checked.stderr.contains("join anew"),
            "the check says: {}",
            checked.stderr
        );
        node.start()?;
        let code = node.wait_end(PATIENCE)?;
        ensure!(code == Some(1), "the node ends with {code:?}");
        ensure!(node.log().contains("join anew"), "{}", node.log());
        Ok(())
    })
}

/// `strike` happens to the leader's disk under load.
fn story(strike: impl Fn(&Disk) -> Result<()> + Sync) -> Result<()> {
    let (disk, cluster) = site(SIZE)?;
    tell(&cluster, || {
        let victim = cluster.node(VICTIM);
        cluster.transfer(VICTIM)?;

        let (acknowledged, ()) = load::during(&cluster, 0, |load| {
            load.wait(LEASES, OBJECTS, PATIENCE)?;
            strike(&disk)?;
            wait_shown(&cluster, "see to the disk")?;
            load.wait(2 * LEASES, 2 * OBJECTS, PATIENCE)
        })?;
        ensure!(victim.is_running(), "the node ended");
        ensure!(victim.metric("muster_raft_fault")? > 0.0, "no alarm");
        victim.kill()?;
        acknowledged.find_everywhere(&cluster)?;

        let _disk = disk.mend()?;
        victim.start()?;
        all_is_well(&cluster, &acknowledged)
    })
}

/// Waits until the others show the victim's fault, with what to do.
fn wait_shown(cluster: &Cluster, what_to_do: &str) -> Result<()> {
    let name = cluster.node(VICTIM).name();
    wait_until("the fault to be shown", PATIENCE, || {
        for node in cluster.nodes().iter().filter(|node| node.name() != name) {
            let shown = shown_on(node, cluster)?;
            let fault = shown.rest.get("fault").and_then(Value::as_str);
            let fault = fault.context("no fault is shown")?;
            ensure!(!shown.live, "it is held for live");
            ensure!(fault.contains(what_to_do), "the fault is told as: {fault}");
        }
        Ok(Some(()))
    })
}

/// The victim as another node shows it.
fn shown_on(node: &Node, cluster: &Cluster) -> Result<Member> {
    let name = cluster.node(VICTIM).name();
    let nodes = node.status()?.nodes;
    let mut shown = nodes.into_iter().filter(|member| member.name == name);
    shown.next().context("it is no member")
}
