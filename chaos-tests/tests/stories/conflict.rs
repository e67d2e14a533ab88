//! A host has an address by its own will that is in the pool.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use dhcproto::v4::relay::RelayInfo;
use muster_chaos::cluster::Cluster;
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::lab::wait_until;
use muster_chaos::node::Node;
use serde_json::Value;

use crate::{PATIENCE, tell};

const SUBNET: &str = "\
kind: subnet
name: lab
cidr: 10.77.0.0/24
pools: [10.77.0.150-10.77.0.151]
lease_secs: 3600
";

/// Two addresses for two clients: one of them is offered this one, again and again, until nobody is.
fn ask_until_declined(cluster: &Cluster, port: &Port, address: &str) -> Result<Value> {
    let mut number = 0;
    wait_until("the address to be quarantined", PATIENCE, || {
        number = 3 - number.max(1);
        port.send(&Client::numbered(1, number).discover())?;
        let leases: Vec<Value> = cluster.cli(&["leases", "list", "-o", "json"])?.json()?;
        let declined = |lease: &Value| {
            lease.get("address") == Some(&address.into())
                && lease.get("state") == Some(&"declined".into())
        };
        Ok(leases.into_iter().find(declined))
    })
}

#[test]
fn an_address_that_is_in_use_behind_a_relay_is_quarantined() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(&SUBNET.replace("10.77.0.", "10.78.0."))?;
        let relay = cluster.lab().host("relay", Some([10, 77, 0, 9].into()))?;
        // Whoever has the address is behind the relay, which routes to it.
        relay.run("ip", &["address", "add", "10.78.0.150/32", "dev", "lo"])?;
        for node in cluster.nodes() {
            let route = ["route", "add", "10.78.0.0/24", "via", "10.77.0.9"];
            node.host().run("ip", &route)?;
        }
        let servers: Vec<Ipv4Addr> = cluster.nodes().iter().map(Node::address).collect();
        let link = RelayInfo::LinkSelection([10, 78, 0, 1].into());
        let port = Port::relay(&relay, &servers, vec![link])?;
        ask_until_declined(&cluster, &port, "10.78.0.150")?;
        let bound = wait_until("the other address to be had", PATIENCE, || {
            port.bind(&Client::numbered(1, 1)).map(Some)
        })?;
        ensure!(
            bound.address().octets() == [10, 78, 0, 151],
            "{}",
            bound.address()
        );
        Ok(())
    })
}

#[test]
fn an_address_that_is_in_use_is_quarantined() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(SUBNET)?;
        let _squatter = cluster
            .lab()
            .host("squatter", Some([10, 77, 0, 150].into()))?;
        let host = cluster.lab().host("clients", None)?;
        let port = Port::direct(&host)?;
        let declined = ask_until_declined(&cluster, &port, "10.77.0.150")?;
        ensure!(
            declined.get("subnet") == Some(&"lab".into()),
            "{declined:#}"
        );
        let event = wait_until("an event", PATIENCE, || {
            let call = ["events", "list", "--kind", "alert", "-o", "json"];
            let told: Vec<Value> = cluster.node(0).cli(&call)?.json()?;
            let about = |event: &Value| event.get("key") == Some(&"address_in_use".into());
            Ok(told.into_iter().find(about))
        })?;
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
        ensure!(
            text("/object/address") == Some("10.77.0.150") && text("/object/by").is_some(),
            "{event:#}"
        );
        // The other one is nobody's and is had; it is not taken for one in use.
        let client = Client::numbered(1, 1);
        let bound = wait_until("the other address to be had", PATIENCE, || {
            port.bind(&client).map(Some)
        })?;
        ensure!(
            bound.address().octets() == [10, 77, 0, 151],
            "{}",
            bound.address()
        );
        let other = cluster
            .node(0)
            .cli(&["leases", "get", "10.77.0.151", "-o", "json"])?;
        let other: Value = other.json().context("the other lease")?;
        ensure!(other.get("state") == Some(&"bound".into()), "{other:#}");
        Ok(())
    })
}
