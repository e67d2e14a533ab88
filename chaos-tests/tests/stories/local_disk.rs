//! A machine whose boot environment is `local` asks the network and then boots its own disk.

use anyhow::{Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::machine::{Firmware, Machine};
use muster_chaos::{content, localdisk};

use crate::{BOOT, MAC, machines, tell};

#[test]
fn bios_and_uefi_boot_the_local_disk() -> Result<()> {
    let _turn = machines();
    let cluster = Cluster::found(1)?;
    tell(&cluster, || {
        cluster.apply(&format!(
            "{}---\nkind: machine\nname: m1\nmacs: [\"{MAC}\"]\nbootenv: local\n",
            content::SUBNET
        ))?;
        for firmware in [Firmware::Bios, Firmware::Uefi] {
            let disk = localdisk::make(cluster.lab(), firmware)?;
            let disk: Vec<&str> = disk.iter().map(String::as_str).collect();
            let mut machine = Machine::start(cluster.lab(), firmware, MAC, &disk)?;
            let booted = machine.wait_for(localdisk::BOOTED, BOOT)?;
            let asked = machine.seen("boots its local disk");
            ensure!(
                asked.is_some_and(|asked| asked <= booted),
                "it did not ask first:\n{}",
                machine.serial()
            );
            machine.wait_off(BOOT)?;
            println!("{firmware}: its own disk after {booted:?}");
        }
        Ok(())
    })
}
