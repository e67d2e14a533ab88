//! A secret that one node took is rendered by every other, also when the node that took it is gone.

use anyhow::{Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::invariant;

use crate::{PATIENCE, tell};

#[test]
fn a_secret_outlives_the_node_that_took_it() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        let taker = cluster.wait_leader(PATIENCE)?;
        cluster
            .node(taker)
            .cli_with(
                &["apply", "-f", "-"],
                "kind: param\nname: pw\nsecure: true\n---\n\
                 kind: template\nname: t\ncontents: 'password {{ params.pw }}'\n---\n\
                 kind: machine\nname: m1\nmacs: ['52:54:00:00:00:50']\nparams: {pw: hush}\n",
            )?
            .ok()?;
        let text = |node: usize| -> Result<String> {
            let answer = cluster.node(node).cli(&["render", "m1", "t"])?;
            Ok(answer.ok()?.stdout)
        };
        for node in 0..3 {
            ensure!(text(node)? == "password hush", "n{}", node + 1);
        }
        cluster.cli(&["cluster", "rotate-keys"])?.ok()?;
        cluster.node(taker).kill()?;
        cluster.wait_leader(PATIENCE)?;
        for node in (0..3).filter(|node| *node != taker) {
            ensure!(text(node)? == "password hush", "n{}", node + 1);
        }
        cluster.node(taker).start()?;
        cluster.wait_settled(PATIENCE)?;
        ensure!(text(taker)? == "password hush", "after its return");
        invariant::same_everywhere(&cluster)
    })
}
