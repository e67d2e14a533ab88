//! A DHCP server that nobody knows of appears beside the cluster.

use anyhow::{Context, Result, ensure};
use dhcproto::v4::DhcpOption;
use muster_chaos::cluster::Cluster;
use muster_chaos::content;
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::lab::wait_until;
use serde_json::Value;

use crate::{PATIENCE, tell};

#[test]
fn a_foreign_server_is_told_of() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        content::install(&cluster, &[])?;
        let host = cluster.lab().host("clients", None)?;
        let port = Port::direct(&host)?;
        // Clients take its offers, each by a broadcast that all nodes hear.
        for number in 0..5 {
            let client = Client::numbered(1, number);
            let discover = client.discover();
            port.send(&discover)?;
            let offer = port.first(&discover, PATIENCE)?.context("no offer")?;
            let mut taken = client.select(&offer)?;
            let foreign = DhcpOption::ServerIdentifier([10, 77, 0, 9].into());
            taken.opts_mut().insert(foreign);
            port.send(&taken)?;
        }
        let alerts = || {
            let call = ["events", "list", "--kind", "alert", "-o", "json"];
            cluster.node(0).cli(&call)?.json::<Vec<Value>>()
        };
        let counted = || {
            let nodes = cluster.nodes().iter();
            let counts = nodes.map(|node| node.metric("muster_dhcp_foreign_servers_total"));
            anyhow::Ok(counts.collect::<Result<Vec<f64>>>()?.iter().sum::<f64>())
        };
        wait_until("each choice to be counted once", PATIENCE, || {
            Ok((counted()? >= 5.0).then_some(()))
        })?;
        let told = wait_until("an event", PATIENCE, || {
            let told = alerts()?;
            Ok((!told.is_empty()).then_some(told))
        })?;
        let event = told.first().context("an event")?;
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
        ensure!(
            text("/key") == Some("foreign_server")
                && text("/object/server") == Some("10.77.0.9")
                && text("/object/subnet") == Some("lab"),
            "{event:#}"
        );
        ensure!(counted()? == 5.0, "counted by more nodes than one");
        ensure!(
            told.len() <= 3,
            "each node tells of it once at most: {told:#?}"
        );
        let doctor = cluster.node(1).cli(&["doctor"])?;
        let findings: Vec<Value> = serde_json::from_str(&doctor.stdout)?;
        let rogue = |finding: &Value| {
            let found = finding["finding"].as_str().unwrap_or_default();
            finding["check"] == "rogue-dhcp" && found.contains("10.77.0.9")
        };
        ensure!(
            doctor.code == 1 && findings.iter().any(rogue),
            "whichever node is asked finds it: {findings:#?}"
        );
        Ok(())
    })
}
