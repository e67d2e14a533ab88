//! The leader is killed in the middle of what it does for a client, and another finishes it.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dhcproto::v4::MessageType;
use muster_chaos::cluster::Cluster;
use muster_chaos::dhcp::{Client, Port, RETRIES, Reply};
use muster_chaos::lab::wait_until;
use muster_chaos::machine::{Firmware, Machine};
use muster_chaos::{content, invariant};

use crate::{BOOT, MAC, PATIENCE, long, machines, tell};

/// What a machine says on its serial port about something that it fetches.
struct Transfer {
    begin: &'static str,
    end: &'static str,
    /// So slow that there is a middle.
    megabits: u32,
}

const KERNEL: Transfer = Transfer {
    begin: "/artifacts/lab/vmlinuz",
    end: "Linux version",
    megabits: 20,
};
const LOADER: Transfer = Transfer {
    begin: "Downloading NBP file",
    end: "NBP file downloaded successfully",
    megabits: 1,
};

#[test]
fn between_offer_and_request() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(content::SUBNET)?;
        let host = cluster.lab().host("clients", None)?;
        between(&cluster, &Port::direct(&host)?, 1)?;
        let relay = cluster.lab().host("relay", Some([10, 77, 0, 2].into()))?;
        let servers: Vec<_> = cluster.nodes().iter().map(|node| node.address()).collect();
        between(&cluster, &Port::relay(&relay, &servers, Vec::new())?, 2)
    })
}

fn between(cluster: &Cluster, port: &Port, family: u8) -> Result<()> {
    let leader = cluster.wait_leader(PATIENCE)?;
    let dead = cluster.node(leader).address();
    // Which node offers is a matter of the client's hash: one that hears the leader is found soon.
    let (client, offer) = offered_by(port, family, dead)?;
    cluster.node(leader).kill()?;

    let request = client.select(&offer)?;
    let asked = Instant::now();
    port.send(&request)?;
    // Whoever has heard it keeps it until there is a new leader: no copy is needed.
    let ack = port
        .heard(&request, MessageType::Ack, RETRIES[0])?
        .context("the client has to send its REQUEST again")?;
    println!("ACK {:?} after the death of its server", asked.elapsed());
    ensure!(
        ack.address() == offer.address(),
        "another address than offered"
    );
    ensure!(
        ack.server() == Some(dead),
        "the client asked {dead}, and the ACK says that it is from {:?}",
        ack.server()
    );
    ensure!(*ack.from.ip() != dead, "the dead node answered");
    cluster.node(leader).start()?;
    cluster.wait_settled(PATIENCE)?;
    invariant::one_owner_everywhere(cluster)
}

fn offered_by(port: &Port, family: u8, server: std::net::Ipv4Addr) -> Result<(Client, Reply)> {
    for number in 0..50 {
        let client = Client::numbered(family, number);
        let offer = port.insist(&client.discover(), MessageType::Offer)?;
        if offer.server() == Some(server) {
            return Ok((client, offer));
        }
    }
    anyhow::bail!("{server} offers nothing to any of 50 clients")
}

/// The middle of an HTTP transfer: iPXE turns to the next node by itself.
#[test]
fn while_it_sends_a_kernel() -> Result<()> {
    let _turn = machines();
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        content::install(&cluster, &[("m1", MAC, "blue")])?;
        while_sending(&cluster, Firmware::Bios, &KERNEL)?;
        if long() {
            while_sending(&cluster, Firmware::Uefi, &KERNEL)?;
        }
        Ok(())
    })
}

/// The middle of TFTP: firmware gives up this entry of its boot order, and its next one, HTTP, is
/// answered by the others.
#[test]
fn while_it_sends_a_loader() -> Result<()> {
    let _turn = machines();
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        content::install(&cluster, &[("m1", MAC, "blue")])?;
        while_sending(&cluster, Firmware::Uefi, &LOADER)
    })
}

/// Kills the node that a machine is fetching something from, as the machine says on its serial
/// port, after making it the leader. The machine has to come up without help.
fn while_sending(cluster: &Cluster, firmware: Firmware, transfer: &Transfer) -> Result<()> {
    let mut machine = Machine::boot(cluster.lab(), firmware, MAC)?;
    machine.slow_link(transfer.megabits)?;
    machine.wait_for(transfer.begin, BOOT)?;
    let server = server_of(cluster, &machine)?;
    if cluster.leader()? != server {
        cluster.transfer(server)?;
    }
    let serial = machine.serial();
    ensure!(
        !serial.contains(transfer.end),
        "all was sent before its server could die:\n{serial}"
    );
    let killed = cluster.node(server).kill()?;
    let name = cluster.node(server).name();
    // What is left is fetched from others at full speed.
    machine.slow_link(1000)?;
    machine.wait_for("MUSTER-PAYLOAD hello m1 from", BOOT)?;
    machine.wait_for("MUSTER-REPORTED", BOOT)?;
    println!(
        "{firmware}: up {:?} after the death of {name}",
        killed.elapsed()
    );
    drop(machine);
    cluster.node(server).start()?;
    cluster.wait_settled(PATIENCE)?;
    invariant::same_everywhere(cluster)
}

/// The node that the machine fetches from: the last one that it has named on its serial port.
fn server_of(cluster: &Cluster, machine: &Machine) -> Result<usize> {
    let named = |serial: &str| {
        let places = cluster
            .nodes()
            .iter()
            .enumerate()
            .filter_map(|(index, node)| Some((serial.rfind(&node.address().to_string())?, index)));
        places.max().map(|(_, index)| index)
    };
    wait_until("the machine to name its server", PATIENCE, || {
        Ok(named(&machine.serial()))
    })
    .with_context(|| machine.serial())
}
