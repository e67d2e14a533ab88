//! A machine boots through three nodes, and what they did for it is one trace.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::collector::{Collector, Taken};
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::lab::{Host, wait_until};
use muster_chaos::node::Node;
use muster_chaos::wire::mac_text;
use muster_chaos::{content, fault};

use crate::{PATIENCE, curl, tell};

/// What a boot through three nodes comes to: DHCP by the first, TFTP by the second, HTTP by the third.
const STEPS: [(&str, &str); 7] = [
    ("dhcp offered", "n1"),
    ("dhcp bound", "n1"),
    ("tftp loader", "n2"),
    ("http script", "n3"),
    ("http kernel", "n3"),
    ("http initrd", "n3"),
    ("http reported", "n3"),
];

#[test]
fn a_boot_through_three_nodes_is_one_trace() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        let host = cluster.lab().host("traces", Some([10, 77, 0, 70].into()))?;
        let collector = Collector::start(&host)?;
        for node in cluster.nodes() {
            node.stop(PATIENCE)?;
            node.start_with(&["--otlp-endpoint", &collector.url()])?;
            cluster.wait_settled(PATIENCE)?;
        }
        let client = Client::numbered(1, 0).pxe();
        content::install(&cluster, &[("m1", &mac_text(client.mac), "blue")])?;
        let machine = cluster.lab().host("machine", None)?;
        let port = Port::direct(&machine)?;

        let mut traces = BTreeSet::new();
        for boots in 1..=2 {
            boot(&cluster, boots, &machine, &port, &client)?;
            for node in cluster.nodes() {
                wait_known(node, "reported", boots)?;
            }
            let spans = wait_until("all spans", PATIENCE, || {
                let spans = collector.taken();
                Ok((spans.len() >= boots * STEPS.len()).then_some(spans))
            })
            .with_context(|| format!("{:#?}", collector.taken()))?;
            let spans = spans.get((boots - 1) * STEPS.len()..).context("spans")?;
            traces.insert(one_trace(&cluster, spans)?);
        }
        ensure!(traces.len() == 2, "two boots are one trace: {traces:?}");

        // Nobody takes spans any more: machines boot all the same, and it is counted.
        cluster.lab().plug(host.name(), false)?;
        boot(&cluster, 3, &machine, &port, &client)?;
        wait_until("dropped spans to be counted", PATIENCE, || {
            let dropped = cluster.node(2).metric("muster_trace_spans_dropped_total")?;
            Ok((dropped > 0.0).then_some(()))
        })
    })
}

/// Waits until a node knows of so many facts of a kind.
fn wait_known(node: &Node, fact: &str, count: usize) -> Result<()> {
    let told = format!("\"fact\":\"{fact}\"");
    wait_until(&format!("{fact} to be known"), PATIENCE, || {
        let (status, body) = node.get("/api/v1/machines/m1/timeline?consistency=local")?;
        ensure!(status == 200, "{status}: {body}");
        Ok((body.matches(&told).count() >= count).then_some(()))
    })
}

/// Plays a machine for the so manieth time, from its ROM's DISCOVER to its callback.
fn boot(
    cluster: &Cluster,
    boots: usize,
    machine: &Host,
    port: &Port,
    client: &Client,
) -> Result<()> {
    let hush: Vec<_> = (1..3)
        .map(|node| fault::silence_dhcp(cluster.node(node).host()))
        .collect::<Result<_>>()?;
    let address = port.bind(client)?.address().to_string();
    drop(hush);
    // No firmware has its kernel within the second that it takes until all nodes know what one saw.
    for node in cluster.nodes() {
        wait_known(node, "offered", boots)?;
    }
    let own = format!("{address}/24");
    machine.run("ip", &["address", "replace", &own, "dev", "eth0"])?;
    let fetch = |url: &str| curl(machine, &["--interface", &address, "--output", "-", url]);
    let discard = |url: &str| {
        curl(
            machine,
            &["--interface", &address, "--output", "/dev/null", url],
        )
    };
    discard(&format!(
        "tftp://{}/undionly.kpxe",
        cluster.node(1).address()
    ))?;
    let boot = cluster.node(2).boot_url();
    let script = fetch(&format!("{boot}/boot.ipxe?mac={}", mac_text(client.mac)))?;
    let words = || script.split(|letter: char| letter.is_whitespace() || letter == '"');
    let of_node = |name: &str| {
        let mut found = words().filter(|word| word.starts_with(&boot) && word.contains(name));
        found.next().map(str::to_owned)
    };
    for name in [content::KERNEL, content::INITRD] {
        discard(&of_node(name).with_context(|| format!("no {name} in\n{script}"))?)?;
    }
    let mut reports = words().filter_map(|word| word.strip_prefix("lab.report="));
    let report = reports.find(|url| url.starts_with(&boot));
    let report = report.with_context(|| format!("no callback in\n{script}"))?;
    curl(machine, &["--interface", &address, "--data", "up", report]).map(drop)
}

/// The trace that all these spans are part of. All nodes' logs have it as well.
fn one_trace(cluster: &Cluster, spans: &[Taken]) -> Result<String> {
    let trace = &spans.first().context("no span")?.trace;
    let others = spans
        .iter()
        .filter(|span| span.trace != *trace || span.machine != "m1");
    let others: Vec<&Taken> = others.collect();
    ensure!(others.is_empty(), "not of {trace}: {others:#?}");
    let done: BTreeSet<(&str, &str)> = spans
        .iter()
        .map(|span| (span.name.as_str(), span.node.as_str()))
        .collect();
    ensure!(done == BTreeSet::from(STEPS), "{spans:#?}");
    for node in cluster.nodes() {
        ensure!(
            node.log().contains(trace),
            "{} did not log {trace}",
            node.name()
        );
    }
    Ok(trace.clone())
}
