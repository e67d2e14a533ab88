//! Drills on a site that works: a node fails on order, the report says what clients saw of it, and
//! nothing of the drill stays but the report.

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::content;
use muster_chaos::invariant;
use muster_chaos::lab::wait_until;
use muster_chaos::node::{binary, clean};
use serde_json::Value;

use crate::{PATIENCE, tell};

/// Of the synthetic client.
const MAC: &str = "02:4d:55:53:54:52";

#[test]
fn a_drill_measures_a_failure_and_leaves_nothing_but_its_report() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        content::install(&cluster, &[])?;
        let lost = loss(&cluster)?;
        let killed = kill(&cluster)?;
        let lease = cluster.cli(&["leases", "list"])?.json::<Vec<Value>>()?;
        let own = lease.iter().filter(|lease| lease["mac"] == MAC);
        let own: Vec<&Value> = own.collect();
        ensure!(!own.is_empty(), "the client had no address");
        ensure!(
            own.iter().all(|lease| lease["state"] != "bound"),
            "an address is left bound: {own:#?}"
        );
        let (code, listed, said) = on_host(&cluster, 0, &["list"])?;
        ensure!(code == 0, "{said}");
        let listed: Vec<Value> = serde_json::from_str(&listed)?;
        ensure!(listed.len() == 2, "{listed:#?}");
        for report in [lost, killed] {
            let name = report["name"].as_str().context("a name")?;
            let (code, kept, said) = on_host(&cluster, 1, &["get", name])?;
            ensure!(code == 0, "{said}");
            let kept: Value = serde_json::from_str(&kept)?;
            ensure!(kept == report, "{name} is another report");
        }
        refused(&cluster)?;
        invariant::same_everywhere(&cluster)
    })
}

/// Carries out a drill from a node's host; the exit code, and what it printed.
fn drill(cluster: &Cluster, on: usize, arguments: &[&str]) -> Result<(i32, String, String)> {
    let all = [arguments, &["--yes", "--minutes", "0.1"]].concat();
    on_host(cluster, on, &all)
}

/// Gives an order about drills on a node's host, which reaches all nodes.
fn on_host(cluster: &Cluster, on: usize, arguments: &[&str]) -> Result<(i32, String, String)> {
    let node = cluster.node(on);
    let output = clean(&mut node.host().command(binary()?))
        .arg("--data-dir")
        .arg(node.data_dir())
        .args(["-o", "json", "cluster", "drill"])
        .args(arguments)
        .output()
        .context("starting a drill")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().unwrap_or(-1);
    Ok((code, text(&output.stdout), text(&output.stderr)))
}

fn report(drilled: (i32, String, String)) -> Result<Value> {
    let (code, printed, said) = drilled;
    ensure!(code == 0, "the drill ended with {code}: {printed}{said}");
    let report: Value = serde_json::from_str(&printed).with_context(|| printed.clone())?;
    println!("{report:#}");
    for service in ["api", "dhcp", "http", "tftp"] {
        let found = &report["services"][service];
        let count = |pointer: &str| found.pointer(pointer).and_then(Value::as_u64);
        for phase in ["before", "after"] {
            let done = count(&format!("/{phase}/attempts")) > count(&format!("/{phase}/failures"));
            ensure!(done, "{service} {phase} the failure: {found:#}");
        }
        ensure!(count("/longest_gap_ms").is_some(), "{service}: {found:#}");
    }
    Ok(report)
}

/// A node falls silent, and comes back by itself.
fn loss(cluster: &Cluster) -> Result<Value> {
    let leader = cluster.wait_leader(PATIENCE)?;
    let (on, lost) = ((leader + 1) % 3, (leader + 2) % 3);
    let name = cluster.node(lost).name();
    let report = report(drill(cluster, on, &["node-loss", "--node", name])?)?;
    ensure!(report["node"] == name && report["led"] == false);
    cluster.wait_settled(PATIENCE)?;
    ensure!(cluster.node(lost).log().contains("this node is back"));
    Ok(report)
}

/// The leader kills itself, and is started again as its service manager would.
fn kill(cluster: &Cluster) -> Result<Value> {
    let leader = cluster.wait_leader(PATIENCE)?;
    let node = cluster.node(leader);
    let report = std::thread::scope(|scope| {
        let on = (leader + 1) % 3;
        let drilled = scope.spawn(move || drill(cluster, on, &["leader-kill", "--force"]));
        wait_until("the leader to end", PATIENCE, || {
            Ok((!node.is_running() || drilled.is_finished()).then_some(()))
        })?;
        if !drilled.is_finished() {
            ensure!(node.wait_end(PATIENCE)?.is_none(), "it was not killed");
            // Started at once it might lead again before anyone else does.
            cluster.wait_leader(PATIENCE)?;
            node.start()?;
        }
        report(
            drilled
                .join()
                .unwrap_or_else(|_| anyhow::bail!("it broke"))?,
        )
    })?;
    ensure!(report["node"] == node.name() && report["led"] == true);
    ensure!(report["new_leader_ms"].is_u64(), "{report:#}");
    ensure!(report["leader"].is_string(), "{report:#}");
    cluster.wait_settled(PATIENCE)?;
    Ok(report)
}

/// When one more failure would be one too many, nothing fails.
fn refused(cluster: &Cluster) -> Result<()> {
    let leader = cluster.wait_leader(PATIENCE)?;
    let (on, down) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.node(down).kill()?;
    wait_until("it to be missed", PATIENCE, || {
        let status = cluster.node(on).status()?;
        Ok(status.nodes.iter().any(|node| !node.live).then_some(()))
    })?;
    let (code, printed, said) = drill(cluster, on, &["leader-kill", "--force"])?;
    ensure!(
        code == 4 && said.contains("voters"),
        "{code}: {printed}{said}"
    );
    ensure!(cluster.node(leader).is_running(), "the leader is gone");
    cluster.node(down).start()?;
    cluster.wait_settled(PATIENCE)
}
