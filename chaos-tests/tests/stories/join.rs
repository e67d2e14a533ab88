//! Who may become a node: not one with a wrong token, not an erased disk by itself; one that comes
//! late gets all that there is.

use std::fs;

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::lab::wait_until;
use muster_chaos::{content, invariant};

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

/// The late node serves the kernel when it is the only one to have it.
fn has_the_octets(cluster: &Cluster, late: usize) -> Result<()> {
    let host = cluster.lab().host("client", Some([10, 77, 0, 40].into()))?;
    let path = content::KERNEL;
    let kernel = format!("{}/artifacts/{path}", cluster.node(late).boot_url());
    let (_, artifacts) = invariant::local(cluster.node(late), "artifacts")?;
    let size = artifacts
        .iter()
        .find(|artifact| artifact["path"] == path)
        .and_then(|artifact| artifact["size"].as_u64())
        .context("no size")?;
    wait_until("the octets to be on its disk", PATIENCE, || {
        let blobs = fs::read_dir(cluster.node(late).data_dir().join("blobs"))?;
        let sizes = blobs
            .flatten()
            .filter_map(|blob| Some(blob.metadata().ok()?.len()));
        Ok(sizes.into_iter().any(|length| length == size).then_some(()))
    })?;
    for index in 0..late {
        cluster.node(index).kill()?;
    }
    let to = cluster.lab().dir().join("late-kernel");
    curl(&host, &["--output", &to.display().to_string(), &kernel])?;
    ensure!(fs::metadata(&to)?.len() == size, "cut short");
    Ok(())
}

fn wrong_token(cluster: &mut Cluster) -> Result<()> {
    let token = cluster.cli(&["cluster", "join-token"])?.ok()?.stdout;
    // One character, in the middle.
    let wrong: String = {
        let mut characters: Vec<char> = token.trim().chars().collect();
        let middle = characters.len() * 3 / 4;
        characters[middle] = if characters[middle] == 'a' { 'b' } else { 'a' };
        characters.into_iter().collect()
    };
    let code = cluster.try_joiner(wrong.trim(), PATIENCE)?;
    ensure!(code == Some(1), "a wrong token: exit {code:?}");
    Ok(())
}

/// An empty directory and no word about founding or joining.
fn erased(cluster: &mut Cluster) -> Result<()> {
    let code = cluster.try_start(&[], PATIENCE)?;
    ensure!(code == Some(2), "an erased disk: exit {code:?}");
    Ok(())
}
