//! Who may become a node: not one with a wrong token, not an erased disk by itself; one that comes
//! late gets all that there is.

use std::fs;

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::lab::wait_until;
use muster_chaos::{content, invariant};
use serde_json::Value;

use crate::{MAC, PATIENCE, curl, tell};

#[test]
fn a_late_node_gets_everything_and_a_false_one_nothing() -> Result<()> {
    let mut cluster = Cluster::found(2)?;
    content::install(&cluster, &[("m1", MAC, "blue")])?;
    let late = cluster.add_joiner()?;
    wrong_token(&mut cluster)?;
    erased(&mut cluster)?;
    tell(&cluster, || {
        cluster.wait_settled(PATIENCE)?;
        invariant::same_everywhere(&cluster)?;
        has_the_octets(&cluster, late)
    })
}

/// The late node has pulled all octets and serves them when it is the only one left.
fn has_the_octets(cluster: &Cluster, late: usize) -> Result<()> {
    let host = cluster.lab().host("client", Some([10, 77, 0, 40].into()))?;
    let node = cluster.node(late);
    let (_, artifacts) = invariant::local(node, "artifacts")?;
    let size = |artifact: &Value| artifact["size"].as_u64().context("no size");
    let all: u64 = artifacts.iter().map(size).sum::<Result<_>>()?;
    wait_until("the octets to be pulled", PATIENCE, || {
        let pulled = node.metric("muster_raft_artifact_pulled_bytes_total")?;
        Ok((pulled as u64 >= all).then_some(()))
    })?;
    for index in 0..late {
        cluster.node(index).kill()?;
    }
    for artifact in &artifacts {
        let path = artifact["path"].as_str().context("no path")?;
        let url = format!("{}/artifacts/{path}", node.boot_url());
        let to = cluster.lab().dir().join("fetched");
        curl(&host, &["--output", &to.display().to_string(), &url])?;
        ensure!(
            fs::metadata(&to)?.len() == size(artifact)?,
            "{path} is cut short"
        );
    }
    Ok(())
}

fn wrong_token(cluster: &mut Cluster) -> Result<()> {
    let token = cluster.cli(&["cluster", "join-token"])?.ok()?.stdout;
    // One character of the secret, which comes first; behind it is what tells the cluster.
    let mut wrong: Vec<char> = token.trim().chars().collect();
    wrong[20] = if wrong[20] == 'a' { 'b' } else { 'a' };
    let code = cluster.try_joiner(&String::from_iter(wrong), PATIENCE)?;
    ensure!(code == Some(1), "a wrong token: exit {code:?}");
    Ok(())
}

/// An empty directory and no word about founding or joining.
fn erased(cluster: &mut Cluster) -> Result<()> {
    let code = cluster.try_start(&[], PATIENCE)?;
    ensure!(code == Some(2), "an erased disk: exit {code:?}");
    Ok(())
}
