//! All nodes are killed at once while clients and operators write; what was acknowledged is found.

use anyhow::{Context, Result};
use muster_chaos::cluster::Cluster;
use muster_chaos::load;
use muster_chaos::{content, invariant};

use crate::{PATIENCE, tell};

/// So much is worth losing.
const LEASES: usize = 200;
const OBJECTS: usize = 4;

#[test]
fn nothing_acknowledged_is_lost_by_sigkill_of_all() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(content::WIDE_SUBNET)?;
        for round in 0..2 {
            let (acknowledged, ()) = load::during(&cluster, round, |load| {
                load.wait(LEASES, OBJECTS, PATIENCE)?;
                kill_all(&cluster)
            })?;
            for node in cluster.nodes() {
                node.start()?;
            }
            cluster.wait_settled(PATIENCE)?;
            acknowledged.find_everywhere(&cluster)?;
            invariant::same_everywhere(&cluster)?;
            println!("round {round}: {acknowledged}, all found");
        }
        Ok(())
    })
}

/// SIGKILL to all before any is waited for.
fn kill_all(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        node.signal(nix::sys::signal::Signal::SIGKILL)?;
    }
    for node in cluster.nodes() {
        node.kill().context("burying a node")?;
    }
    Ok(())
}
