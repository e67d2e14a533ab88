//! A machine is ordered to be installed: it boots the installer, which writes an image to its disk, calls
//! back and starts anew; then its own disk boots, and nothing writes over it again.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::machine::{Firmware, Machine};
use muster_chaos::{content, invariant, localdisk, payload};
use serde_json::Value;

use crate::{BOOT, MAC, PATIENCE, machines, tell};

/// So slow that there is a middle to the image of 13 MB, which is fetched in pieces of 4 MiB.
const SLOW: u32 = 20;

/// Enough for the small image.
const MEBIBYTES: u64 = 32;

const HOSTNAME: (&str, &str) = ("etc/hostname", "{{ machine.name }}\n");

#[test]
fn a_machine_is_installed_and_boots_its_disk() -> Result<()> {
    let _turn = machines();
    let cluster = prepare()?;
    tell(&cluster, || {
        let disk = localdisk::empty(cluster.lab(), MEBIBYTES)?;
        let mut machine = order(&cluster, &disk)?;
        finish(&cluster, &mut machine)?;
        drop(machine);
        boots_its_disk(&cluster, &disk)
    })
}

/// The node that sends the image dies: another goes on where it was.
#[test]
fn the_node_that_sends_the_image_dies() -> Result<()> {
    let _turn = machines();
    let cluster = prepare()?;
    tell(&cluster, || {
        let disk = localdisk::empty(cluster.lab(), MEBIBYTES)?;
        let mut machine = order(&cluster, &disk)?;
        machine.wait_for("MUSTER-KERNEL", BOOT)?;
        machine.slow_link(SLOW)?;
        machine.wait_for("MUSTER-IMAGE 4194304 of", BOOT)?;
        let server = sender(&machine)?;
        let node = cluster.node_at(server).context("no node has its address")?;
        let killed = cluster.node(node).kill()?;
        machine.slow_link(1000)?;
        machine.wait_for(&format!("MUSTER-RETRY {server}:8091 failed at"), BOOT)?;
        machine.wait_for("MUSTER-WRITTEN", BOOT)?;
        println!("written {:?} after the death of {server}", killed.elapsed());
        ensure!(
            sender(&machine)? != server,
            "nobody else sent anything:\n{}",
            machine.serial()
        );
        finish(&cluster, &mut machine)?;
        drop(machine);
        cluster.node(node).start()?;
        cluster.wait_settled(PATIENCE)?;
        boots_its_disk(&cluster, &disk)?;
        invariant::same_everywhere(&cluster)
    })
}

fn prepare() -> Result<Cluster> {
    let cluster = Cluster::found(3)?;
    content::installer(&cluster, &payload::small_image()?, &[HOSTNAME])?;
    cluster.apply(&format!("kind: machine\nname: m1\nmacs: [\"{MAC}\"]\n"))?;
    Ok(cluster)
}

/// Orders the install, and switches the machine on.
fn order(cluster: &Cluster, disk: &[String]) -> Result<Machine> {
    cluster
        .cli(&["machines", "install", "m1", "--bootenv", "install"])?
        .ok()?;
    start(cluster, disk)
}

fn start(cluster: &Cluster, disk: &[String]) -> Result<Machine> {
    let disk: Vec<&str> = disk.iter().map(String::as_str).collect();
    Machine::start(cluster.lab(), Firmware::Bios, MAC, &disk)
}

/// Waits until the machine has called back and wants to start anew, which switches it off here.
fn finish(cluster: &Cluster, machine: &mut Machine) -> Result<()> {
    machine.wait_for("MUSTER-REPORTED", BOOT)?;
    machine.wait_off(BOOT)?;
    for line in machine.lines_with(&["MUSTER-"]) {
        println!("| {line}");
    }
    println!("installed {:?} after power-on", machine.age());
    let described: Value = cluster.cli(&["machines", "get", "m1"])?.json()?;
    ensure!(
        described["install"]["phase"] == "installed",
        "{described:#}"
    );
    ensure!(described["bootenv"] == "local", "{described:#}");
    Ok(())
}

/// It asks the network first, which has it boot its disk, where its own name is.
fn boots_its_disk(cluster: &Cluster, disk: &[String]) -> Result<()> {
    let mut machine = start(cluster, disk)?;
    let booted = machine.wait_for("MUSTER-DISK m1", BOOT)?;
    let asked = machine.seen("boots its local disk");
    ensure!(
        asked.is_some_and(|asked| asked < booted),
        "it did not ask first:\n{}",
        machine.serial()
    );
    machine.wait_off(BOOT)?;
    println!("its own disk after {booted:?}");
    Ok(())
}

/// The node that sent the last piece of the image.
fn sender(machine: &Machine) -> Result<Ipv4Addr> {
    let lines = machine.lines_with(&["MUSTER-IMAGE"]);
    let place = lines.last().and_then(|line| line.rsplit(' ').next());
    let place = place
        .and_then(|place| place.split(':').next())
        .context("no image")?;
    place
        .parse()
        .with_context(|| format!("{place} is no address"))
}
