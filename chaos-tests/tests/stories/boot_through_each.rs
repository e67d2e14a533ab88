//! A machine boots through each node in turn, while the others do not answer DHCP.

use anyhow::{Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::machine::{Firmware, Machine};
use muster_chaos::{content, fault, invariant};

use crate::{BOOT, MAC, long, machines, tell};

#[test]
fn every_node_boots_a_machine_alone() -> Result<()> {
    let _turn = machines();
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        content::install(&cluster, &[("m1", MAC, "blue")])?;
        for node in 0..3 {
            boot_through(&cluster, node, Firmware::Bios)?;
        }
        boot_through(&cluster, 1, Firmware::Uefi)?;
        if long() {
            for node in [0, 2] {
                boot_through(&cluster, node, Firmware::Uefi)?;
            }
            for node in 0..3 {
                boot_through(&cluster, node, Firmware::UefiHttp)?;
            }
        }
        invariant::same_everywhere(&cluster)
    })
}

fn boot_through(cluster: &Cluster, node: usize, firmware: Firmware) -> Result<()> {
    let others = cluster.nodes().iter().enumerate();
    let _hush = others
        .filter(|(index, _)| *index != node)
        .map(|(_, other)| fault::silence_dhcp(other.host()))
        .collect::<Result<Vec<_>>>()?;
    let mut machine = Machine::boot(cluster.lab(), firmware, MAC)?;
    machine.wait_for("MUSTER-PAYLOAD hello m1 from", BOOT)?;
    let reported = machine.wait_for("MUSTER-REPORTED", BOOT)?;
    let address = cluster.node(node).address();
    let serial = machine.serial();
    // Who gave the lease gave the script, and the script names itself first.
    for expected in [
        format!("http://{address}:8091/boot.ipxe"),
        format!("from {address}"),
        "param blue".to_owned(),
    ] {
        ensure!(serial.contains(&expected), "no {expected:?} in\n{serial}");
    }
    println!("{firmware} through n{}: {reported:?}", node + 1);
    Ok(())
}
