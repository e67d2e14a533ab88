//! A machine that nobody knows gets an address and waits; once it is created, it boots.

use anyhow::{Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::content;
use muster_chaos::machine::{Firmware, Machine};

use crate::{BOOT, MAC, machines, tell};

#[test]
fn an_unknown_machine_waits_until_it_is_created() -> Result<()> {
    let _turn = machines();
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        content::install(&cluster, &[])?;
        let mut machine = Machine::boot(cluster.lab(), Firmware::Bios, MAC)?;
        machine.wait_for(&format!("waits. MAC {MAC}"), BOOT)?;
        let document = content::machine("m1", MAC, "green");
        let node = cluster.node(0);
        node.cli_with(&["machines", "create", "-f", "-"], &document)?
            .ok()?;
        machine.wait_for("MUSTER-PAYLOAD hello m1 from", BOOT)?;
        machine.wait_for("MUSTER-REPORTED", BOOT)?;
        ensure!(
            machine.serial().contains("param green"),
            "{}",
            machine.serial()
        );
        Ok(())
    })
}
