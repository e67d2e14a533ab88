//! A file is uploaded to one node and fetched from every node, by HTTP and TFTP, whole and in part;
//! also from one that has not got its octets yet.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::lab::{Host, run};

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
