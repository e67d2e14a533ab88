//! An operator asks any node why a client has the address that it has, or none.

use anyhow::{Context, Result, ensure};
use dhcproto::v4::MessageType;
use muster_chaos::cluster::Cluster;
use muster_chaos::content;
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::lab::wait_until;
use muster_chaos::wire::mac_text;
use serde_json::Value;

use crate::{PATIENCE, tell};

#[test]
fn any_node_tells_the_story_of_a_lease() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        content::install(&cluster, &[])?;
        let host = cluster.lab().host("clients", None)?;
        let port = Port::direct(&host)?;
        let client = Client::numbered(1, 0);
        let lease = port.bind(&client)?;
        let (mac, address) = (mac_text(client.mac), lease.address().to_string());
        // A client that moved: of all nodes the one that says no remembers it, and all tell of it.
        port.insist(&client.reboot([192, 168, 9, 9].into()), MessageType::Nak)?;
        for node in cluster.nodes() {
            for key in [&mac, &address] {
                let story: Value = node.cli(&["leases", "why", key, "-o", "json"])?.json()?;
                let text = |pointer: &str| story.pointer(pointer).and_then(Value::as_str);
                ensure!(
                    text("/leases/0/rule") == Some("pool")
                        && text("/history/0/what") == Some("bound")
                        && text("/history/0/mac") == Some(&mac)
                        && text("/history/0/node").is_some(),
                    "{}, {key}: {story:#}",
                    node.name()
                );
                ensure!(
                    text("/now/0/outcome") == Some("offer")
                        && text("/now/0/address") == Some(&address)
                        && text("/now/0/rule") == Some("binding"),
                    "{}, {key}: {story:#}",
                    node.name()
                );
            }
            let refused = wait_until("the NAK to be told of", PATIENCE, || {
                let story: Value = node.cli(&["leases", "why", &mac, "-o", "json"])?.json()?;
                Ok(story.pointer("/refusals/0").cloned())
            })?;
            ensure!(
                refused.get("outcome") == Some(&"nak".into())
                    && refused.get("address") == Some(&"192.168.9.9".into()),
                "{refused:#}"
            );
        }
        let people = cluster.node(0).cli(&["leases", "why", &address])?.ok()?;
        ensure!(people.stdout.contains(&mac), "{}", people.stdout);

        // Exactly one node writes each change down.
        let logged = wait_until("the lease to be logged", PATIENCE, || {
            let logs: Vec<String> = cluster.nodes().iter().map(|node| node.log()).collect();
            let lines = logs.iter().flat_map(|log| log.lines());
            let bound: Vec<String> = lines
                .filter(|line| line.contains("lease bound") && line.contains(&mac))
                .map(str::to_owned)
                .collect();
            Ok((!bound.is_empty()).then_some(bound))
        })?;
        ensure!(logged.len() == 1, "{logged:#?}");
        let line = logged.first().context("a line")?;
        for part in [&address, "revision", "rule", "node"] {
            ensure!(line.contains(part), "no {part} in {line}");
        }

        let used: f64 = cluster
            .node(0)
            .metric("muster_dhcp_pool_taken{subnet=\"lab\"")?;
        ensure!(used >= 1.0, "{used} addresses are taken");
        Ok(())
    })
}
