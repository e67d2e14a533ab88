//! A machine is installed through whichever nodes there are: ordered on one, booted through another,
//! while a third is killed; never without a quorum, and not for ever.

use std::fs;

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::lab::{Host, wait_until};
use muster_chaos::node::Node;
use muster_chaos::{content, invariant, wire};
use serde_json::Value;

use crate::{MAC, PATIENCE, curl, tell, wait_alone};

const OBJECTS: &str = r#"kind: bootenv
name: deb
kernel: deb/vmlinuz
initrds: [deb/initrd.img]
kernel_args: 'report={{ machine.url }}/report token={{ machine.token }}'
installs: true
---
kind: machine
name: m1
macs: ["52:54:00:00:00:50"]
---
kind: reservation
address: 10.77.0.50
machine: m1
"#;

/// The machine as nodes see it: a host with its address, and its MAC in its requests.
struct Machine {
    host: Host,
}

impl Machine {
    /// Writes what it needs, and gives it its address as its ROM is.
    fn new(cluster: &Cluster) -> Result<Self> {
        for name in ["vmlinuz", "initrd.img"] {
            let file = cluster.lab().dir().join(name);
            fs::write(&file, name.repeat(10_000))?;
            let (file, path) = (file.display().to_string(), format!("deb/{name}"));
            let upload = ["artifacts", "upload", &file, "--path", &path];
            cluster.cli(&upload)?.ok()?;
        }
        cluster.apply(&format!("{}---\n{OBJECTS}", content::SUBNET))?;
        let card = cluster.lab().host("card", None)?;
        let lease = Port::direct(&card)?.bind(&Client::new(wire::mac(MAC)?).pxe())?;
        ensure!(lease.address().to_string() == "10.77.0.50", "{lease:?}");
        let host = cluster.lab().host("m1", Some(lease.address()))?;
        Ok(Self { host })
    }

    fn script(&self, node: &Node) -> Result<String> {
        let url = format!("{}/boot.ipxe?mac={MAC}", node.boot_url());
        curl(&self.host, &[&url])
    }

    /// Reads its script from a node; the token in it.
    fn begin(&self, node: &Node) -> Result<String> {
        let script = self.script(node)?;
        let token = script.split("token=").nth(1).map(str::split_whitespace);
        let token = token.and_then(|mut words| words.next());
        Ok(token
            .with_context(|| format!("no token in\n{script}"))?
            .to_owned())
    }

    /// Fetches what is booted.
    fn load(&self, node: &Node) -> Result<()> {
        for path in ["deb/initrd.img", "deb/vmlinuz"] {
            let url = format!("{}/artifacts/{path}", node.boot_url());
            curl(&self.host, &["--output", "/dev/null", &url])?;
        }
        Ok(())
    }

    fn report(&self, cluster: &Cluster, node: &Node, token: &str) -> Result<()> {
        let machine = shown(cluster.node(cluster.leader()?))?;
        let uuid = machine.get("uuid").and_then(Value::as_str);
        let uuid = uuid.context("a machine has a uuid")?;
        let url = format!("{}/machines/{uuid}/report?status=done", node.boot_url());
        let bearer = format!("Authorization: Bearer {token}");
        curl(&self.host, &["--header", &bearer, "--data", "it is", &url]).map(drop)
    }
}

fn shown(node: &Node) -> Result<Value> {
    node.cli(&["machines", "get", "m1"])?.json()
}

fn facts(node: &Node) -> Result<Vec<Value>> {
    node.cli(&["machines", "timeline", "m1"])?.json()
}

/// Whether a node tells people of this.
fn is_told(node: &Node, alert: &str) -> Result<bool> {
    let alerts: Vec<Value> = node.cli(&["events", "list", "--kind", "alert"])?.json()?;
    Ok(alerts.iter().any(|it| it.get("key") == Some(&alert.into())))
}

fn is(fact: &Value, word: &str) -> bool {
    fact.get("fact") == Some(&word.into())
}

fn order(node: &Node, attempts: &str) -> Result<()> {
    let order = ["machines", "install", "m1", "--bootenv", "deb"];
    let call = [&order[..], &["--attempts", attempts]].concat();
    node.cli(&call)?.ok().map(drop)
}

/// Waits until a node shows this of the install.
fn wait_install(node: &Node, member: &str, expected: &Value) -> Result<()> {
    let path = format!("/install/{member}");
    wait_until(&format!("{member} to be {expected}"), PATIENCE, || {
        Ok((shown(node)?.pointer(&path) == Some(expected)).then_some(()))
    })
}

#[test]
fn an_install_goes_on_when_the_leader_is_killed() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        let machine = Machine::new(&cluster)?;
        let leader = cluster.wait_leader(PATIENCE)?;
        let [a, b, c] = [0, 1, 2].map(|step| cluster.node((leader + step) % 3));
        order(a, "3")?;
        let token = machine.begin(b)?;
        // What a node saw last goes with it.
        wait_until("what was seen to be written", PATIENCE, || {
            Ok(facts(b)?.iter().any(|it| is(it, "bound")).then_some(()))
        })?;
        a.kill()?;
        // At once, while there is no leader: the node keeps the machine until there is one, or has
        // it ask again.
        let again = wait_until("a script", PATIENCE, || Ok(machine.begin(c).ok()))?;
        ensure!(again == token, "it is the same attempt");
        machine.load(c)?;
        wait_until("the callback to be taken", PATIENCE, || {
            Ok(machine.report(&cluster, b, &token).ok())
        })?;
        let done = shown(c)?;
        ensure!(done.get("bootenv") == Some(&"local".into()), "{done:#}");
        for node in [b, c] {
            let script = machine.script(node)?;
            ensure!(script.contains("sanboot"), "{}: {script}", node.name());
        }
        a.start()?;
        cluster.wait_settled(PATIENCE)?;

        // One story, told by every node, of what different nodes did.
        wait_install(a, "phase", &"installed".into())?;
        let facts = facts(a)?;
        let by = |fact: &str| {
            let found = facts.iter().find(|it| is(it, fact));
            let node = found.and_then(|it| it.get("node")?.as_str());
            node.unwrap_or_default().to_owned()
        };
        for (fact, node) in [
            ("script", b),
            ("kernel", c),
            ("reported", b),
            ("install", b),
        ] {
            ensure!(by(fact) == node.name(), "{fact}: {facts:#?}");
        }
        ensure!(!by("bound").is_empty(), "{facts:#?}");

        // Another time nothing more is seen of it, and people are told.
        cluster.apply("kind: settings\nname: cluster\nboot_stall_secs: 1\n")?;
        order(c, "3")?;
        machine.begin(a)?;
        wait_until("the stall to be told of", PATIENCE, || {
            Ok(is_told(b, "boot_stalled")?.then_some(()))
        })?;
        invariant::same_everywhere(&cluster)
    })
}

#[test]
fn a_loop_of_installs_is_broken_on_whichever_node_it_turns() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        let machine = Machine::new(&cluster)?;
        let [first, second, third] = [0, 1, 2].map(|index| cluster.node(index));
        order(first, "2")?;

        // A node alone destroys nothing.
        second.kill()?;
        third.kill()?;
        wait_alone(&cluster, 0)?;
        let script = machine.script(first)?;
        ensure!(script.contains("an install needs a quorum"), "{script}");
        second.start()?;
        third.start()?;
        cluster.wait_settled(PATIENCE)?;

        let mut tokens = Vec::new();
        for (node, next) in [(first, second), (second, third)] {
            tokens.push(machine.begin(node)?);
            machine.load(node)?;
            wait_install(next, "started", &true.into())?;
        }
        ensure!(tokens[0] != tokens[1], "each attempt has its own token");
        let script = machine.script(third)?;
        ensure!(script.contains("sanboot"), "{script}");
        for node in cluster.nodes() {
            wait_install(node, "phase", &"failed".into())?;
            let told = is_told(node, "install_failed")?;
            ensure!(told, "{} does not tell of it", node.name());
        }
        let late = machine.report(&cluster, first, &tokens[1]);
        ensure!(late.is_err(), "its attempt is over");
        ensure!(
            shown(first)?.pointer("/install/phase") == Some(&"failed".into()),
            "it is"
        );
        invariant::same_everywhere(&cluster)
    })
}
