//! All nodes are killed at once while clients and operators write; what was acknowledged is found.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::load::Load;
use muster_chaos::{content, invariant};

use crate::{PATIENCE, tell};

#[test]
fn nothing_acknowledged_is_lost_by_sigkill_of_all() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(content::WIDE_SUBNET)?;
        for round in 0..2 {
            let stop = AtomicBool::new(false);
            let acknowledged = std::thread::scope(|scope| {
                let load = scope.spawn(|| Load::run(&cluster, round, &stop));
                std::thread::sleep(Duration::from_secs(4));
                let killed = kill_all(&cluster);
                stop.store(true, Ordering::Relaxed);
                let acknowledged = load.join().map_err(|_| anyhow::anyhow!("the load broke"))?;
                killed.and(acknowledged)
            })?;
            ensure!(
                acknowledged.leases.len() > 100 && acknowledged.objects.len() > 3,
                "too little to lose: {acknowledged}"
            );
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
