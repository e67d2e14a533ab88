//! The tool that users load their staging networks with, against a cluster.

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::invariant;
use muster_chaos::lab::wait_until;
use serde_json::Value;

use crate::{PATIENCE, tell};

const SUBNET: &str = "\
kind: subnet
name: staging
cidr: 10.77.0.0/16
pools: [10.77.64.0-10.77.127.255]
lease_secs: 3600
";

/// Addresses are sought and renewed through a relay, every ACK is compared with what is recorded,
/// and all are given back.
#[test]
fn a_staging_network_is_loaded_and_audited() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(SUBNET)?;
        let relay = cluster.lab().host("relay", Some([10, 77, 0, 2].into()))?;
        let servers: Vec<String> = cluster
            .nodes()
            .iter()
            .map(|node| node.address().to_string())
            .collect();
        let output = relay
            .command(env!("CARGO_BIN_EXE_muster-chaos"))
            .env("MUSTER_DATA_DIR", cluster.node(0).data_dir())
            .args(["dhcp", "load", "--relay", "10.77.0.2", "--servers"])
            .arg(servers.join(","))
            .args(["--clients", "300", "--in-flight", "32", "--warm", "0"])
            .args(["--renew", "1", "--audit", "--release", "-o", "json"])
            .output()
            .context("starting the tool")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{said}");
        let report: Value = serde_json::from_slice(&output.stdout).context("the report")?;
        let count = |pointer: &str| report.pointer(pointer).and_then(Value::as_u64);
        ensure!(count("/seek/served") == Some(300), "{report:#}");
        ensure!(count("/renew/gave_up") == Some(0), "{report:#}");
        ensure!(count("/renew/served") > Some(0), "{report:#}");
        for nothing in ["/given_twice", "/unrecorded"] {
            let list = report.pointer(nothing).and_then(Value::as_array);
            ensure!(list.is_some_and(Vec::is_empty), "{nothing}: {report:#}");
        }
        wait_until("all addresses to be given back", PATIENCE, || {
            let left = invariant::bound(cluster.node(0))?;
            Ok(left.is_empty().then_some(()))
        })
    })
}
