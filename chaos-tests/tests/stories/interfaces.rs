//! A node's interfaces come, change their addresses, and go while it runs.

use std::time::Duration;

use anyhow::{Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::dhcp::{Client, Port, Reply};
use muster_chaos::lab::{Host, wait_until};

use crate::{PATIENCE, tell};

const SUBNETS: &str = "\
kind: subnet
name: one
cidr: 192.168.77.0/24
pools: [192.168.77.2-192.168.77.250]
lease_secs: 3600
---
kind: subnet
name: other
cidr: 192.168.78.0/24
pools: [192.168.78.2-192.168.78.250]
lease_secs: 3600
";

/// A node looks at its interfaces every two seconds.
const ANSWER: Duration = Duration::from_secs(1);

#[test]
fn interfaces_are_followed() -> Result<()> {
    let cluster = Cluster::found(1)?;
    tell(&cluster, || {
        cluster.apply(SUBNETS)?;
        let host = cluster.node(0).host();
        for round in 1..=2 {
            ip(host, "link add lan type veth peer name far")?;
            ip(host, "link set dev far up")?;
            ip(host, "link set dev lan up")?;
            ip(host, "address add 192.168.77.1/24 broadcast + dev lan")?;
            // The clients' end of the cable.
            let port = host.inside(|| Port::direct_on("far"))?;
            served(&port, round, "192.168.77.1")?;
            ip(host, "address delete 192.168.77.1/24 dev lan")?;
            ip(host, "address add 192.168.78.1/24 broadcast + dev lan")?;
            served(&port, round, "192.168.78.1")?;
            // The second time the interface of this name is another one.
            ip(host, "link delete dev lan")?;
        }
        Ok(())
    })
}

/// Waits until clients are served under an address of the node.
fn served(port: &Port, family: u8, server: &str) -> Result<()> {
    let mut number = 0;
    let offer: Reply = wait_until(&format!("offers of {server}"), PATIENCE, || {
        number += 1;
        let discover = Client::numbered(family, number).discover();
        port.send(&discover)?;
        let answer = port.first(&discover, ANSWER)?;
        let from = |reply: &Reply| reply.server().is_some_and(|it| it.to_string() == server);
        Ok(answer.filter(from))
    })?;
    let client = Client::numbered(family, number);
    let bound = port.bind(&client)?;
    ensure!(
        bound.address() == offer.address(),
        "{} after an offer of {}",
        bound.address(),
        offer.address()
    );
    Ok(())
}

fn ip(host: &Host, arguments: &str) -> Result<()> {
    let arguments: Vec<&str> = arguments.split(' ').collect();
    host.run("ip", &arguments).map(drop)
}
