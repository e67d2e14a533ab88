//! `make e2e-debian`: a real Debian is installed on an empty disk and boots to its login prompt, with its
//! own name, network and SSH key from rendered files. Takes minutes, and is told only when
//! `MUSTER_DEBIAN=1` asks for it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::lab::wait_until;
use muster_chaos::machine::{Firmware, Machine};
use muster_chaos::{content, localdisk, payload};
use serde_json::Value;

use crate::{MAC, machines, tell};

/// Of every step. An emulated machine writes an image of 768 MiB in a minute or two.
const STEP: Duration = Duration::from_secs(600);

/// Outside the pool: only the rendered file can have told the machine.
const ADDRESS: &str = "10.77.0.60";

const HOSTNAME: &str = "{{ machine.name }}\n";
const KEYS: &str = "{{ params.ssh_key }}\n";
const NETWORK: &str = "[Match]\nType=ether\n\n[Network]\nAddress={{ params.address }}/24\n\
                       Gateway=10.77.0.1\nLinkLocalAddressing=no\n";

#[test]
fn debian_is_installed_and_reached_by_ssh() -> Result<()> {
    if std::env::var_os("MUSTER_DEBIAN").is_none_or(|value| value == "0") {
        println!("not told: MUSTER_DEBIAN is not set");
        return Ok(());
    }
    let _turn = machines();
    let image = payload::debian_image()?;
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        let key = cluster.lab().dir().join("ssh-key");
        let key = key.display().to_string();
        let admin = cluster.lab().host("admin", Some([10, 77, 0, 3].into()))?;
        admin.run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &key])?;
        let public = fs::read_to_string(format!("{key}.pub")).context("reading a key")?;
        let files = [
            ("etc/hostname", HOSTNAME),
            ("etc/systemd/network/lan.network", NETWORK),
            ("root/.ssh/authorized_keys", KEYS),
        ];
        content::installer(&cluster, &image, &files)?;
        cluster.apply(&format!(
            "kind: machine\nname: web1\nmacs: [\"{MAC}\"]\nparams:\n  address: {ADDRESS}\n  \
             ssh_key: {}\n",
            public.trim()
        ))?;
        let order = ["machines", "install", "web1", "--bootenv", "install"];
        cluster.cli(&order)?.ok()?;

        let disk = localdisk::empty(cluster.lab(), 1024)?;
        let mut disk: Vec<&str> = disk.iter().map(String::as_str).collect();
        disk.extend(["-m", "1024"]);
        let mut machine = Machine::start(cluster.lab(), Firmware::Bios, MAC, &disk)?;
        machine.wait_for("MUSTER-REPORTED", STEP)?;
        machine.wait_off(STEP)?;
        show("installed", &machine, &["MUSTER-"]);
        let described: Value = cluster.cli(&["machines", "get", "web1"])?.json()?;
        ensure!(
            described["install"]["phase"] == "installed",
            "{described:#}"
        );
        drop(machine);

        let mut machine = Machine::start(cluster.lab(), Firmware::Bios, MAC, &disk)?;
        machine.wait_for("web1 login:", STEP)?;
        let told = ["boots its local disk", "GRUB", "Linux version", "login:"];
        show("booted from its disk", &machine, &told);
        let began = Instant::now();
        let answer = wait_until("SSH to answer", STEP, || {
            let target = format!("root@{ADDRESS}");
            let call = [
                "-i",
                &key,
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "BatchMode=yes",
                "-o",
                "ConnectTimeout=60",
                &target,
                "hostname; . /etc/os-release; echo $PRETTY_NAME; ip -brief -4 address show scope global; \
                 findmnt -n -o SOURCE,FSTYPE /",
            ];
            admin.run("ssh", &call).map(Some)
        })?;
        println!("by SSH, {:?} after the prompt:", began.elapsed());
        for line in answer.lines() {
            println!("| {line}");
        }
        for expected in ["web1", "Debian GNU/Linux 12", ADDRESS, "/dev/vda1"] {
            ensure!(answer.contains(expected), "no {expected} in {answer}");
        }
        Ok(())
    })
}

fn show(what: &str, machine: &Machine, needles: &[&str]) {
    println!("{what}, {:?} after power-on:", machine.age());
    // The kernel's own messages begin with their time; its command line holds all words.
    let lines = machine.lines_with(needles);
    for line in lines.iter().filter(|line| !line.contains("ommand line")) {
        println!("| {line}");
    }
}
