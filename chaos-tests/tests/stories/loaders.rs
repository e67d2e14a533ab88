//! Machines boot by other loaders than the iPXE of their ROM, and reach their disks from them.

use std::time::Duration;

use anyhow::{Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::machine::{Firmware, Machine};
use muster_chaos::{content, localdisk};

use crate::{BOOT, MAC, long, machines, tell};

/// Debian's files, and the paths that they are kept under.
const FILES: [(&str, &str); 5] = [
    ("/usr/lib/PXELINUX/pxelinux.0", "bios/pxelinux.0"),
    (
        "/usr/lib/syslinux/modules/bios/ldlinux.c32",
        "bios/ldlinux.c32",
    ),
    ("/usr/lib/syslinux/modules/bios/chain.c32", "bios/chain.c32"),
    (
        "/usr/lib/syslinux/modules/bios/libcom32.c32",
        "bios/libcom32.c32",
    ),
    (
        "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
        "grubnetx64.efi.signed",
    ),
];

fn prepare(loaders: &str) -> Result<Cluster> {
    let cluster = Cluster::found(1)?;
    content::install(&cluster, &[("m1", MAC, "blue")])?;
    for (file, path) in FILES {
        cluster
            .cli(&["artifacts", "upload", file, "--path", path])?
            .ok()?;
    }
    set_subnet(&cluster, loaders)?;
    Ok(cluster)
}

fn set_subnet(cluster: &Cluster, fields: &str) -> Result<()> {
    cluster.apply(&format!("{}{fields}\n", content::SUBNET))
}

fn boots(cluster: &Cluster, firmware: Firmware, by: &[&str]) -> Result<Duration> {
    let mut machine = Machine::boot(cluster.lab(), firmware, MAC)?;
    let reported = machine.wait_for("MUSTER-REPORTED", BOOT)?;
    let serial = machine.serial();
    for expected in by {
        ensure!(serial.contains(expected), "no {expected:?} in\n{serial}");
    }
    println!("{firmware} by {by:?}: {reported:?}");
    Ok(reported)
}

fn boots_its_disk(cluster: &Cluster, firmware: Firmware, by: &str) -> Result<()> {
    let disk = localdisk::make(cluster.lab(), firmware)?;
    let disk: Vec<&str> = disk.iter().map(String::as_str).collect();
    let mut machine = Machine::start(cluster.lab(), firmware, MAC, &disk)?;
    let booted = machine.wait_for(localdisk::BOOTED, BOOT)?;
    let asked = machine.seen(by);
    ensure!(
        asked.is_some_and(|asked| asked <= booted),
        "no {by:?} before it:\n{}",
        machine.serial()
    );
    println!("{firmware} by {by:?}: its own disk after {booted:?}");
    Ok(())
}

#[test]
fn pxelinux_boots_a_machine_and_its_disk() -> Result<()> {
    if !long() {
        return Ok(());
    }
    let _turn = machines();
    let cluster = prepare("loaders: {ipxe-bios: bios/pxelinux.0}\nrouter_advertisement: true")?;
    tell(&cluster, || {
        boots(
            &cluster,
            Firmware::Bios,
            &["PXELINUX", "muster: m1 boots lab/vmlinuz"],
        )?;
        for how in ["auto", "exit", "sanboot"] {
            cluster.apply(&format!(
                "kind: machine\nname: m1\nmacs: [\"{MAC}\"]\nlocal_boot: {how}\n"
            ))?;
            boots_its_disk(&cluster, Firmware::Bios, "PXELINUX")?;
        }
        Ok(())
    })
}

#[test]
fn grub_boots_a_machine_and_its_disk() -> Result<()> {
    if !long() {
        return Ok(());
    }
    let _turn = machines();
    let cluster = prepare("loaders: {uefi-x64: grubnetx64.efi.signed}")?;
    tell(&cluster, || {
        boots(&cluster, Firmware::Uefi, &["muster: m1 boots lab/vmlinuz"])?;
        cluster.apply(&format!("kind: machine\nname: m1\nmacs: [\"{MAC}\"]\n"))?;
        boots_its_disk(&cluster, Firmware::Uefi, "muster: m1 boots its local disk")
    })
}

/// UEFI HTTP Boot is told that there is no loader, and goes on to the disk without one.
#[test]
fn uefi_http_finds_the_disk_by_finding_nothing() -> Result<()> {
    if !long() {
        return Ok(());
    }
    let _turn = machines();
    let cluster = prepare("")?;
    tell(&cluster, || {
        cluster.apply(&format!("kind: machine\nname: m1\nmacs: [\"{MAC}\"]\n"))?;
        boots_its_disk(&cluster, Firmware::UefiHttp, "UEFI HTTPv4")?;
        cluster.apply(&format!(
            "kind: machine\nname: m1\nmacs: [\"{MAC}\"]\nlocal_boot: refuse\n"
        ))?;
        boots_its_disk(&cluster, Firmware::Uefi, "UEFI PXEv4")
    })
}

/// The iPXE of the ROM loads another, once; advertisements spare both of them a wait for IPv6.
#[test]
fn a_rom_loads_another_ipxe_and_waits_for_no_router() -> Result<()> {
    if !long() {
        return Ok(());
    }
    let _turn = machines();
    let cluster = prepare("loaders: {ipxe-bios: undionly.kpxe}")?;
    tell(&cluster, || {
        let by = ["undionly.kpxe... ok", "muster: m1 boots lab/vmlinuz"];
        let silent = boots(&cluster, Firmware::Bios, &by)?;
        let told = "loaders: {ipxe-bios: undionly.kpxe}\nrouter_advertisement: true";
        set_subnet(&cluster, told)?;
        let advertised = boots(&cluster, Firmware::Bios, &by)?;
        println!("two stages of iPXE: {silent:?}, with advertisements {advertised:?}");
        // Twice 13 s and more, less what a busy host takes longer.
        ensure!(
            advertised + Duration::from_secs(10) < silent,
            "iPXE waited for a router"
        );
        Ok(())
    })
}
