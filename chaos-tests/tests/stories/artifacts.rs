//! A file is uploaded to one node and fetched from every node, by HTTP and TFTP, whole and in part;
//! also from one that has not got its octets yet. Where a disk gets full artifacts stop long before
//! the log has to. An upload goes on where it broke off; what is damaged on a disk is repaired, and what
//! nothing names any more is removed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::disk::Disk;
use muster_chaos::invariant;
use muster_chaos::lab::{Host, Lab, run, wait_until};
use muster_chaos::node::Node;
use serde::Deserialize;

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
        wait_holders(&cluster, "files/one", 2)?;
        let missing = shown(&cluster, 0, "files/one")?.missing;
        ensure!(missing == ["n3"], "{missing:?} are shown to lack it");
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

/// Fast enough to wait for, slow enough to be interrupted.
const UPLINK_MEGABITS: u32 = 60;

#[test]
fn an_upload_goes_on_after_its_node_was_killed() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        let host = cluster.lab().host("client", Some([10, 77, 0, 20].into()))?;
        let leader = cluster.wait_leader(PATIENCE)?;
        let node = cluster.node((leader + 1) % 3);
        cluster.lab().slow(node.name(), UPLINK_MEGABITS)?;
        let big = pattern(cluster.lab().dir(), "big", SIZE)?;
        let uploading = remote_upload(&cluster, node, &host, &big, "files/big")?.spawn()?;
        let partial = node.data_dir().join("artifacts/partial");
        let longer_than = |least| {
            let what = format!("more than {least} octets of it to be there");
            let found = || Ok(part(&partial).filter(|(_, length)| *length > least));
            wait_until(&what, PATIENCE, found)
        };
        let (name, _) = longer_than(1 << 20)?;
        node.kill()?;
        let at_death = part(&partial).context("nothing is left of it")?;
        node.start()?;
        ensure!(longer_than(at_death.1)?.0 == name, "it has begun anew");
        let ended = uploading.wait_with_output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "the upload ends with {said}");
        by_http(&cluster, leader, &host, &big, "files/big")?;
        ensure!(part(&partial).is_none(), "something is left of it");
        wait_holders(&cluster, "files/big", 3)
    })
}

/// The name and the length of what is being uploaded.
fn part(dir: &Path) -> Option<(PathBuf, u64)> {
    let mut files = fs::read_dir(dir).ok()?.flatten().map(|file| file.path());
    let path = files.find(|path| path.extension().is_none())?;
    let length = fs::metadata(&path).ok()?.len();
    Some((path, length))
}

/// An upload to a node over the network.
fn remote_upload(
    cluster: &Cluster,
    node: &Node,
    host: &Host,
    file: &Path,
    path: &str,
) -> Result<Command> {
    let founder = cluster.node(0).data_dir();
    let password = fs::read_to_string(founder.join("admin-password"))?;
    let mut command = host.command(muster_chaos::node::binary()?);
    muster_chaos::node::clean(&mut command)
        .env("MUSTER_PASSWORD", password.trim())
        .arg("--endpoint")
        .arg(format!("https://{}:8092", node.address()))
        .arg("--ca-file")
        .arg(founder.join("ca.pem"))
        .args(["artifacts", "upload", "--path", path])
        .arg(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command)
}

#[test]
fn artifacts_are_placed_repaired_and_forgotten() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        let host = cluster.lab().host("client", Some([10, 77, 0, 20].into()))?;
        let dir = cluster.lab().dir().to_owned();
        let (one, two) = (
            pattern(&dir, "one", SMALL)?,
            pattern(&dir, "two", SMALL + 1)?,
        );
        upload(&cluster, 0, &one, "files/it")?;
        wait_holders(&cluster, "files/it", 3)?;

        // An octet of it changes on a disk: found, put aside, told, and pulled again.
        let old = shown(&cluster, 0, "files/it")?.sha256;
        let damaged = cluster.node(1);
        let stored = damaged
            .data_dir()
            .join("artifacts")
            .join(&old[..2])
            .join(&old);
        let mut octets = fs::read(&stored)?;
        octets[SMALL / 2] ^= 1;
        fs::write(&stored, &octets)?;
        set(&cluster, "{verify_secs: 1}")?;
        wait_until("the damage to be found", PATIENCE, || {
            let found = damaged.metric("muster_artifacts_damaged_total")?;
            Ok((found >= 1.0).then_some(()))
        })?;
        wait_until("it to be whole again", PATIENCE, || {
            Ok((fs::read(&stored).ok() == Some(fs::read(&one)?)).then_some(()))
        })?;
        let aside = damaged
            .data_dir()
            .join(format!("artifacts/damaged/{old}.damaged"));
        ensure!(fs::read(aside)? == octets, "the damaged file is gone");
        by_http(&cluster, 1, &host, &one, "files/it")?;
        wait_until("everybody to be told", PATIENCE, || {
            let events = cluster
                .node(2)
                .cli(&["events", "list", "--kind", "alert"])?;
            Ok(events
                .ok()?
                .stdout
                .contains("artifact_damaged")
                .then_some(()))
        })?;
        wait_holders(&cluster, "files/it", 3)?;

        // What was replaced is there for those who were told of it, for a while.
        upload(&cluster, 2, &two, "files/it")?;
        let pinned = format!("files/it?sha256={old}");
        for node in 0..3 {
            by_http(&cluster, node, &host, &one, &pinned)?;
        }
        set(&cluster, "{grace_secs: 1}")?;
        for node in cluster.nodes() {
            let stored = node.data_dir().join("artifacts").join(&old[..2]).join(&old);
            wait_until("it to be removed", PATIENCE, || {
                Ok((!stored.exists()).then_some(()))
            })?;
        }
        by_http(&cluster, 0, &host, &two, "files/it")?;
        set(&cluster, &format!("{{quota_bytes: {SMALL}}}"))?;
        refused(cluster.node(1), &one, "quota")?;
        invariant::same_everywhere(&cluster)
    })
}

fn set(cluster: &Cluster, artifacts: &str) -> Result<()> {
    let patch = ["settings", "patch", "cluster", "-f", "-"];
    let changes = format!("artifacts: {artifacts}\n");
    cluster.node(0).cli_with(&patch, &changes)?.ok().map(drop)
}

/// An artifact as a node shows it.
#[derive(Deserialize)]
struct Shown {
    sha256: String,
    holders: Vec<String>,
    missing: Vec<String>,
}

fn shown(cluster: &Cluster, node: usize, path: &str) -> Result<Shown> {
    cluster.node(node).cli(&["artifacts", "get", path])?.json()
}

/// Waits until every node knows that so many hold it.
fn wait_holders(cluster: &Cluster, path: &str, count: usize) -> Result<()> {
    for node in 0..cluster.nodes().len() {
        wait_until(&format!("{count} holders of {path}"), PATIENCE, || {
            let shown = shown(cluster, node, path)?;
            Ok((shown.holders.len() == count).then_some(()))
        })?;
    }
    Ok(())
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
