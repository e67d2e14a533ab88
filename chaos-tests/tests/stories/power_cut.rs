//! All nodes lose power at once: what is left is what was synced. And with syncing switched off
//! leases are lost, so that it is known that this story can fail.

use anyhow::{Result, anyhow, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::disk::Disk;
use muster_chaos::lab::Lab;
use muster_chaos::load::{Acknowledged, Load};
use muster_chaos::{content, invariant};
use nix::sys::signal::Signal;

use crate::{PATIENCE, tell};

/// So much is worth losing.
const LEASES: usize = 200;
const OBJECTS: usize = 4;

#[test]
fn nothing_acknowledged_is_lost_by_a_power_cut_of_all() -> Result<()> {
    let (cluster, _disks, acknowledged) = cut_power(&[])?;
    tell(&cluster, || {
        acknowledged.find_everywhere(&cluster)?;
        invariant::same_everywhere(&cluster)?;
        println!("{acknowledged}, all found");
        Ok(())
    })
}

#[test]
fn without_syncing_a_power_cut_loses() -> Result<()> {
    let (cluster, _disks, acknowledged) = cut_power(&["--unsafe-no-sync"])?;
    tell(&cluster, || {
        let lost = acknowledged.lost(&cluster)?;
        println!("{acknowledged}, {} lost", lost.len());
        ensure!(!lost.is_empty(), "nothing is lost: this cut cuts nothing");
        Ok(())
    })
}

/// Founds a cluster on disks of its own, cuts its power under load and starts it again from what
/// is left. `flags` apply from before the load to the cut.
fn cut_power(flags: &[&str]) -> Result<(Cluster, Vec<Disk>, Acknowledged)> {
    let lab = Lab::new()?;
    let disks = ["n1", "n2", "n3"]
        .map(|name| Disk::for_node(&lab, name))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let cluster = Cluster::found_in(lab, 3)?;
    cluster.apply(content::WIDE_SUBNET)?;
    if !flags.is_empty() {
        for node in cluster.nodes() {
            node.stop(PATIENCE)?;
        }
        for node in cluster.nodes() {
            node.start_with(flags)?;
        }
        cluster.wait_settled(PATIENCE)?;
    }
    // Founding was long ago.
    for disk in &disks {
        disk.settle()?;
    }

    let load = Load::default();
    let (acknowledged, snapshots) = std::thread::scope(|scope| {
        let running = scope.spawn(|| load.run(&cluster, 0));
        let snapshots = load
            .wait(LEASES, OBJECTS, PATIENCE)
            .and_then(|()| freeze(&cluster, &disks));
        load.stop();
        let acknowledged = running.join().map_err(|_| anyhow!("the load broke"))??;
        anyhow::Ok((acknowledged, snapshots?))
    })?;
    for node in cluster.nodes() {
        node.kill()?;
    }
    let disks = disks
        .into_iter()
        .zip(&snapshots)
        .map(|(disk, snapshot)| disk.restore(snapshot))
        .collect::<Result<Vec<_>>>()?;
    for node in cluster.nodes() {
        node.start()?;
    }
    cluster.wait_settled(PATIENCE)?;
    Ok((cluster, disks, acknowledged))
}

/// Stops all processes and takes the images: nothing is acknowledged after the first copy begins.
fn freeze(cluster: &Cluster, disks: &[Disk]) -> Result<Vec<std::path::PathBuf>> {
    for node in cluster.nodes() {
        node.signal(Signal::SIGSTOP)?;
    }
    disks.iter().map(Disk::snapshot).collect()
}
