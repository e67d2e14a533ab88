//! All nodes lose power at once: what is left is what was synced. And with syncing switched off
//! leases are lost, so that it is known that this story can fail.
//!
//! One round each; a hundred with `MUSTER_LONG=1`, every one from the same state and cut at another
//! moment.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::disk::Disk;
use muster_chaos::lab::Lab;
use muster_chaos::load::{self, Acknowledged};
use muster_chaos::{content, invariant};
use nix::sys::signal::Signal;

use crate::{PATIENCE, long, tell};

/// So much is worth losing.
const LEASES: usize = 200;
const OBJECTS: usize = 1;
/// The cut comes within so many more.
const LEASES_MORE: u64 = 400;
const ROUNDS: u8 = 100;

#[test]
fn nothing_acknowledged_is_lost_by_a_power_cut_of_all() -> Result<()> {
    let mut site = Site::found()?;
    for round in 0..rounds() {
        let acknowledged = site.cut_power(round, &[])?;
        tell(&site.cluster, || {
            acknowledged.find_everywhere(&site.cluster)?;
            invariant::same_everywhere(&site.cluster)
        })?;
        println!("round {round}: {acknowledged}, all found");
    }
    Ok(())
}

#[test]
fn without_syncing_a_power_cut_loses() -> Result<()> {
    let mut site = Site::found()?;
    let mut losing = 0;
    for round in 0..rounds() {
        let acknowledged = site.cut_power(round, &["--unsafe-no-sync"])?;
        let lost = tell(&site.cluster, || acknowledged.lost(&site.cluster))?;
        println!("round {round}: {acknowledged}, {} lost", lost.len());
        losing += u32::from(!lost.is_empty());
    }
    ensure!(
        losing * 10 >= u32::from(rounds()) * 9,
        "only {losing} of {} rounds lose anything: these cuts cut nothing",
        rounds()
    );
    Ok(())
}

fn rounds() -> u8 {
    if long() { ROUNDS } else { 1 }
}

/// Three nodes on disks of their own.
struct Site {
    cluster: Cluster,
    disks: Vec<Disk>,
    /// The disks as every round finds them.
    founded: Vec<PathBuf>,
}

impl Site {
    /// A cluster that was founded long ago, at rest.
    fn found() -> Result<Self> {
        let lab = Lab::new()?;
        let disks = ["n1", "n2", "n3"]
            .map(|name| Disk::for_node(&lab, name))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let cluster = Cluster::found_in(lab, 3)?;
        cluster.apply(content::WIDE_SUBNET)?;
        for node in cluster.nodes() {
            node.stop(PATIENCE)?;
        }
        for disk in &disks {
            disk.settle()?;
        }
        let founded = disks.iter().map(|disk| disk.snapshot("founded"));
        Ok(Self {
            founded: founded.collect::<Result<_>>()?,
            cluster,
            disks,
        })
    }

    /// Starts the site with `flags`, cuts its power under load, and starts it without them from what
    /// is left.
    fn cut_power(&mut self, round: u8, flags: &[&str]) -> Result<Acknowledged> {
        self.go_back_to(&self.founded.clone())?;
        for node in self.cluster.nodes() {
            node.start_with(flags)?;
        }
        self.cluster.wait_settled(PATIENCE)?;
        let leases = LEASES + usize::try_from(random() % LEASES_MORE)?;
        let (acknowledged, left) = load::during(&self.cluster, round, |load| {
            load.wait(leases, OBJECTS, PATIENCE)?;
            self.freeze()
        })?;
        ensure!(
            acknowledged.leases.len() >= LEASES,
            "only {acknowledged} before the cut"
        );
        self.go_back_to(&left)?;
        for node in self.cluster.nodes() {
            node.start()?;
        }
        self.cluster.wait_settled(PATIENCE)?;
        Ok(acknowledged)
    }

    /// Stops all processes and takes the images: nothing is acknowledged after the first copy begins.
    fn freeze(&self) -> Result<Vec<PathBuf>> {
        for node in self.cluster.nodes() {
            node.signal(Signal::SIGSTOP)?;
        }
        self.disks.iter().map(|disk| disk.snapshot("cut")).collect()
    }

    /// Kills what runs, and puts images in the place of the disks.
    fn go_back_to(&mut self, images: &[PathBuf]) -> Result<()> {
        for node in self.cluster.nodes().iter().filter(|node| node.is_running()) {
            node.kill()?;
        }
        self.disks = std::mem::take(&mut self.disks)
            .into_iter()
            .zip(images)
            .map(|(disk, image)| disk.restore(image))
            .collect::<Result<_>>()?;
        Ok(())
    }
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
