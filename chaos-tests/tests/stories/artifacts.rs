//! A file is uploaded to one node and fetched from every node, by HTTP and TFTP, whole and in part;
//! also from one that has not got its octets yet. Where a disk gets full artifacts stop long before
//! the log has to.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::disk::Disk;
use muster_chaos::invariant;
use muster_chaos::lab::{Host, Lab, run, wait_until};
use muster_chaos::node::Node;

use crate::{PATIENCE, curl, tell};

/// Odd, more than one TFTP block number's worth of 512, and large enough to be under way a while.
const SIZE: usize = 40_000_003;
/// Small enough for a client that waits for each block.
const SMALL: usize = 300_007;

#[test]
fn every_node_serves_what_one_was_given() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        let host = cluster.lab().host("client", Some([10, 77, 0, 20].into()))?;
        let dir = cluster.lab().dir().to_owned();
        let leader = cluster.wait_leader(PATIENCE)?;
        let (follower, away) = ((leader + 1) % 3, (leader + 2) % 3);
        let (big, small) = (pattern(&dir, "big", SIZE)?, pattern(&dir, "small", SMALL)?);
        upload(&cluster, follower, &small, "files/small")?;
        for node in 0..3 {
            by_http(&cluster, node, &host, &small, "files/small")?;
            by_tftp(&cluster, node, &host, &small, "files/small")?;
        }

        // With one node away the other two are a quorum, and the upload is acknowledged.
        cluster.node(away).kill()?;
        upload(&cluster, follower, &big, "files/big")?;
        let revision = cluster.node(follower).status()?.revision;
        cluster.node(away).start()?;
        cluster.node(away).wait_applied(revision, PATIENCE)?;
        for node in [away, leader, follower] {
            by_http(&cluster, node, &host, &big, "files/big")?;
        }
        Ok(())
    })
}

/// A disk of this size spares 192 MiB for the log.
const DISK: u64 = 768 << 20;
/// What is left of it is too little for artifacts, and plenty for the log.
const LEFT: u64 = 150 << 20;

#[test]
fn a_disk_that_gets_full_takes_no_artifacts_and_its_node_goes_on() -> Result<()> {
    let lab = Lab::new()?;
    let disks = [
        Disk::of_size(&lab, "n2", DISK)?,
        Disk::of_size(&lab, "n3", DISK)?,
    ];
    let cluster = Cluster::found_in(lab, 3)?;
    tell(&cluster, || {
        let host = cluster.lab().host("client", Some([10, 77, 0, 20].into()))?;
        let dir = cluster.lab().dir().to_owned();
        let [first, full] = [0, 2].map(|index| cluster.node(index));

        // Too long for the disk: not a single octet is taken.
        let endless = dir.join("endless");
        File::create(&endless)?.set_len(DISK)?;
        refused(full, &endless, "not for artifacts")?;

        let filled = disks[1].fill_but(LEFT)?;
        let files = [("one", SMALL), ("two", SMALL + 1)];
        let [one, two] = files.map(|(name, size)| pattern(&dir, name, size));
        let (one, two) = (one?, two?);
        refused(full, &one, "make room")?;
        // The others are a quorum; this one waits, and gives what it has not got all the same.
        upload(&cluster, 0, &one, "files/one")?;
        wait_missing(full, 1)?;
        ensure!(turned_away(full)? >= 3.0, "its waiting is not counted");
        by_http(&cluster, 2, &host, &one, "files/one")?;
        let profile = ["profiles", "create", "-f", "-"];
        full.cli_with(&profile, "name: written-meanwhile\n")?.ok()?;
        ensure!(full.metric("muster_raft_fault")? == 0.0, "it is out");

        let also_filled = disks[0].fill_but(LEFT)?;
        refused(first, &two, "fewer than a quorum of nodes have room")?;
        drop(also_filled);
        upload(&cluster, 0, &two, "files/two")?;
        wait_missing(full, 2)?;
        drop(filled);
        wait_missing(full, 0)?;
        upload(&cluster, 2, &two, "files/three")?;
        invariant::same_everywhere(&cluster)
    })
}

fn refused(node: &Node, file: &Path, why: &str) -> Result<()> {
    let file = file.display().to_string();
    let answer = node.cli(&["artifacts", "upload", &file, "--path", "files/refused"])?;
    ensure!(answer.code == 1, "exit {}: {}", answer.code, answer.stderr);
    ensure!(answer.stderr.contains(why), "it says: {}", answer.stderr);
    Ok(())
}

fn wait_missing(node: &Node, count: u32) -> Result<()> {
    wait_until(
        &format!("{count} artifacts to be missing"),
        PATIENCE,
        || {
            let missing = node.metric("muster_raft_artifacts_missing")?;
            Ok((missing == f64::from(count)).then_some(()))
        },
    )
}

fn turned_away(node: &Node) -> Result<f64> {
    node.metric("muster_raft_artifacts_without_room_total")
}

/// A file whose octets tell their place.
fn pattern(dir: &Path, name: &str, size: usize) -> Result<std::path::PathBuf> {
    let path = dir.join(name);
    let octets: Vec<u8> = (0..size.div_ceil(4))
        .flat_map(|place| (place as u32).wrapping_mul(0x9e37_79b1).to_le_bytes())
        .take(size)
        .collect();
    fs::write(&path, octets).context("writing a file")?;
    Ok(path)
}

fn upload(cluster: &Cluster, node: usize, file: &Path, path: &str) -> Result<()> {
    let file = file.display().to_string();
    let call = ["artifacts", "upload", &file, "--path", path];
    cluster.node(node).cli(&call)?.ok().map(drop)
}

fn by_http(cluster: &Cluster, node: usize, host: &Host, file: &Path, path: &str) -> Result<()> {
    let url = format!("{}/artifacts/{path}", cluster.node(node).boot_url());
    let got = file.with_extension("got");
    let to = got.display().to_string();
    curl(host, &["--output", &to, &url]).with_context(|| url.clone())?;
    same(file, &got).with_context(|| url.clone())?;

    let size = fs::metadata(file)?.len();
    let (from, until) = (size / 2, size / 2 + 9_999);
    let range = format!("{from}-{until}");
    let head = curl(
        host,
        &[
            "--output",
            &to,
            "--range",
            &range,
            "--dump-header",
            "-",
            &url,
        ],
    )?;
    let head = head.to_lowercase();
    for expected in [
        " 206 ".to_owned(),
        "content-length: 10000\r".to_owned(),
        format!("content-range: bytes {range}/{size}\r"),
    ] {
        ensure!(head.contains(&expected), "no {expected:?} in {head}");
    }
    let whole = fs::read(file)?;
    let (from, until) = (usize::try_from(from)?, usize::try_from(until)?);
    ensure!(
        fs::read(&got)? == whole[from..=until],
        "{url}: a wrong part"
    );
    Ok(())
}

fn by_tftp(cluster: &Cluster, node: usize, host: &Host, file: &Path, path: &str) -> Result<()> {
    let address = cluster.node(node).address().to_string();
    let got = file.with_extension("got");
    let to = got.display().to_string();
    let url = format!("tftp://{address}/artifacts/{path}");
    curl(host, &["--output", &to, "--tftp-blksize", "1432", &url]).context("curl, TFTP")?;
    same(file, &got).context("curl, TFTP")?;

    fs::remove_file(&got)?;
    let remote = format!("artifacts/{path}");
    for options in [
        &[][..],
        &["--option", "blksize 1024", "--option", "windowsize 8"],
    ] {
        let get = [
            "--get",
            "--remote-file",
            &remote,
            "--local-file",
            &to,
            &address,
        ];
        host.run("atftp", &[options, &get].concat())
            .context("atftp")?;
        same(file, &got).with_context(|| format!("atftp {options:?}"))?;
    }
    Ok(())
}

fn same(one: &Path, other: &Path) -> Result<()> {
    run(Command::new("cmp").args([one, other])).map(drop)
}
