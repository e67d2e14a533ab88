//! A node that is cut off from the others goes on with what cannot do harm, and with nothing else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhcproto::v4::MessageType;
use muster_chaos::cluster::Cluster;
use muster_chaos::dhcp::{Client, Port, Reply};
use muster_chaos::lab::wait_until;
use muster_chaos::node::Node;
use muster_chaos::{content, fault, invariant};
use serde_json::Value;

use crate::{MAC, PATIENCE, curl, tell, wait_alone};

/// How long to listen before it is said that nobody answers.
const SILENCE: Duration = Duration::from_secs(2);

#[test]
fn a_node_alone_confirms_and_serves_but_promises_nothing_new() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        content::install(&cluster, &[("m1", MAC, "blue")])?;
        let host = cluster.lab().host("clients", None)?;
        let port = Port::direct(&host)?;
        for alone in [cluster.leader()?, (cluster.leader()? + 1) % 3] {
            let family = u8::try_from(alone)?;
            let client = Client::numbered(family, 0);
            let lease = port.bind(&client)?;
            cluster.wait_settled(PATIENCE)?;
            {
                let _cut = cut_off(&cluster, alone)?;
                wait_alone(&cluster, alone)?;
                knows_its_mode(&cluster, alone, true)?;
                promises_nothing(&cluster, &port, alone, family)?;
                let confirmed = port.insist(&client.reboot(lease.address()), MessageType::Ack)?;
                ensure!(confirmed.address() == lease.address(), "another address");
                ensure!(
                    confirmed.seconds() <= lease.seconds(),
                    "promised {:?} s of {:?}",
                    confirmed.seconds(),
                    lease.seconds()
                );
                serves(&cluster, alone)?;
            }
            cluster.wait_settled(PATIENCE)?;
            knows_its_mode(&cluster, alone, false)?;
            let newcomer = port.bind(&Client::numbered(family, 9))?;
            ensure!(newcomer.address() != lease.address(), "given twice");
            invariant::same_everywhere(&cluster)?;
        }
        Ok(())
    })
}

/// A client gives its address back, and asks a node for it again that has not heard of that: nobody
/// else gets the address when all nodes have heard, for as long as the client counts on it.
#[test]
fn what_a_node_alone_confirmed_after_its_release_is_not_given_to_others() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        content::install(&cluster, &[("m1", MAC, "blue")])?;
        let host = cluster.lab().host("clients", None)?;
        let port = Port::direct(&host)?;
        let alone = (cluster.leader()? + 1) % 3;
        let others = || (0..3).filter(|index| *index != alone);
        let other = cluster.node(cluster.leader()?).address();
        let (returner, leaver) = (Client::numbered(1, 0), Client::numbered(1, 1));
        let (kept, left) = (port.bind(&returner)?, port.bind(&leaver)?);
        cluster.wait_settled(PATIENCE)?;
        {
            let cut = |index: usize| {
                fault::cut_between(cluster.node(alone).host(), cluster.node(index).host())
            };
            let _cut: Vec<_> = others().map(cut).collect::<Result<_>>()?;
            wait_alone(&cluster, alone)?;
            let node = cluster.node(cluster.leader()?);
            for (client, lease) in [(&leaver, &left), (&returner, &kept)] {
                port.send(&client.release(lease.address(), other))?;
                wait_lease(node, lease, "to be given back", |it| {
                    it["state"] == "released"
                })?;
            }
            let silence = |index: usize| fault::silence_dhcp(cluster.node(index).host());
            let _silence: Vec<_> = others().map(silence).collect::<Result<_>>()?;
            let confirmed = port.insist(&returner.reboot(kept.address()), MessageType::Ack)?;
            ensure!(confirmed.address() == kept.address(), "another address");
        }
        cluster.wait_settled(PATIENCE)?;
        // What was given back before it goes to others at once, as always.
        let node = cluster.node(cluster.leader()?);
        let free = |lease: &Value| lease["free"] == true;
        wait_lease(node, &left, "to be free", free)?;
        ensure!(!free(&lease(node, &kept)?), "it may go to another client");
        let again = port.insist(&returner.reboot(kept.address()), MessageType::Ack)?;
        ensure!(again.address() == kept.address(), "another address");
        wait_lease(node, &kept, "to be bound anew", |it| it["state"] == "bound")?;
        // Its node vouches for the rest again.
        port.send(&returner.release(kept.address(), again.server().context("a server")?))?;
        wait_lease(node, &kept, "to be free", free)?;
        invariant::same_everywhere(&cluster)
    })
}

/// A lease as a node shows it.
fn lease(node: &Node, granted: &Reply) -> Result<Value> {
    let address = granted.address().to_string();
    node.cli(&["leases", "get", &address, "-o", "json"])?.json()
}

fn wait_lease(node: &Node, granted: &Reply, what: &str, is: impl Fn(&Value) -> bool) -> Result<()> {
    wait_until(&format!("{} {what}", granted.address()), PATIENCE, || {
        Ok(is(&lease(node, granted)?).then_some(()))
    })
}

/// A node says that it is in minority mode, or that it was: in its status, its metrics and its log,
/// and afterwards as an event of the cluster.
fn knows_its_mode(cluster: &Cluster, alone: usize, in_minority: bool) -> Result<()> {
    let node = cluster.node(alone);
    wait_until("the mode to be known", PATIENCE, || {
        let status = node.quick_status()?;
        let since = status.rest.get("minority_since").and_then(Value::as_str);
        let metric = node.metric("muster_minority")? > 0.0;
        Ok((since.is_some() == in_minority && metric == in_minority).then_some(()))
    })?;
    let told = match in_minority {
        true => "minority mode begins",
        false => "minority mode ends",
    };
    ensure!(
        node.log().contains(told),
        "{} has not logged: {told}",
        node.name()
    );
    if in_minority {
        return Ok(());
    }
    wait_until("an event of it", PATIENCE, || {
        let call = ["events", "list", "--kind", "alert", "-o", "json"];
        let events: Vec<Value> = node.cli(&call)?.json()?;
        let text = |event: &Value, pointer: &str| {
            let found = event.pointer(pointer).and_then(Value::as_str);
            found.map(str::to_owned)
        };
        let told = events.iter().any(|event| {
            text(event, "/key").as_deref() == Some("minority")
                && text(event, "/object/node").as_deref() == Some(node.name())
                && text(event, "/object/since") < text(event, "/object/until")
        });
        Ok(told.then_some(()))
    })
}

/// Cuts a node off from the others, and the others off from DHCP clients.
fn cut_off(cluster: &Cluster, alone: usize) -> Result<Vec<fault::Fault>> {
    let node = cluster.node(alone).host();
    let others = (0..3).filter(|index| *index != alone);
    let mut faults = Vec::new();
    for other in others.map(|index| cluster.node(index).host()) {
        faults.push(fault::cut_between(node, other)?);
        faults.push(fault::silence_dhcp(other)?);
    }
    Ok(faults)
}

fn promises_nothing(cluster: &Cluster, port: &Port, alone: usize, family: u8) -> Result<()> {
    let newcomer = Client::numbered(family, 1);
    let stranger = Client::numbered(family, 2);
    let questions = [
        newcomer.discover(),
        stranger.reboot([192, 168, 9, 9].into()),
        stranger.reboot([10, 77, 0, 150].into()),
    ];
    for question in &questions {
        port.send(question)?;
        let replies = port.replies(question, SILENCE)?;
        if let Some(reply) = replies.first() {
            anyhow::bail!("{:?} without a quorum", reply.kind());
        }
    }
    let node = cluster.node(alone);
    // Nor does it say that something is not there which the others may have made meanwhile.
    let writes: [(&[&str], &str); 3] = [
        (&["create", "-f", "-"], "name: nobody\n"),
        (&["patch", "made-elsewhere", "-f", "-"], "params: {}\n"),
        (&["delete", "made-elsewhere"], ""),
    ];
    for (write, document) in writes {
        let call = [&["--timeout", "1s", "profiles"], write].concat();
        let code = node.cli_with(&call, document)?.code;
        ensure!(code == 5, "{write:?} without a quorum: exit {code}");
    }
    let (status, _) = node.get("/readyz")?;
    ensure!(status == 503, "/readyz is {status} without a quorum");
    let (status, _) = node.get("/healthz")?;
    ensure!(status == 200, "/healthz is {status} without a quorum");
    Ok(())
}

fn serves(cluster: &Cluster, alone: usize) -> Result<()> {
    let node = cluster.node(alone);
    let client = cluster.lab().host(
        &format!("curl{alone}"),
        Some([10, 77, 0, 20 + u8::try_from(alone)?].into()),
    )?;
    let script = format!("{}/boot.ipxe?mac={MAC}", node.boot_url());
    let script = curl(&client, &[&script]).context("the script")?;
    ensure!(script.contains("lab/vmlinuz"), "{script}");
    let kernel = format!("{}/artifacts/{}", node.boot_url(), content::KERNEL);
    let head = curl(&client, &["--range", "0-1", "--output", "-", &kernel]);
    ensure!(head.context("the kernel")?.len() == 2, "not two octets");
    Ok(())
}
