//! The state of a node is altered on its disk while it is stopped, in a way that no checksum tells:
//! it finds that it differs from the others, answers nothing any more, says what to do, and is well
//! again when that was done.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhcproto::v4::MessageType;
use muster_chaos::cluster::Cluster;
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::lab::wait_until;
use muster_chaos::{content, fault, invariant};
use muster_storage::engine::{Engine, digest_of};
use muster_storage::state::RowWrite;
use serde_json::Value;

use crate::{MAC, PATIENCE, curl, tell};

/// How long to listen before it is said that nobody answers.
const SILENCE: Duration = Duration::from_secs(2);
/// A param of a machine, and what stands there afterwards.
const WAS: &[u8] = b"mauve";
const IS: &[u8] = b"green";
/// The node whose disk is altered.
const WRONG: usize = 2;

#[test]
fn a_node_with_altered_rows_is_out_until_it_has_joined_anew() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        content::install(&cluster, &[("m1", MAC, std::str::from_utf8(WAS)?)])?;
        cluster.transfer(0)?;
        let host = cluster.lab().host("client", Some([10, 77, 0, 20].into()))?;
        let clients = cluster.lab().host("clients", None)?;
        let port = Port::direct(&clients)?;
        let lease = port.bind(&Client::numbered(1, 0))?;
        cluster.wait_settled(PATIENCE)?;

        let wrong = cluster.node(WRONG);
        wrong.stop(PATIENCE)?;
        alter(wrong.data_dir())?;
        wrong
            .cli(&["node", "check"])?
            .ok()
            .context("no checksum tells")?;
        wrong.start()?;
        let fault = wait_out(&cluster)?;
        for said in ["state differs", "muster cluster remove", "join anew"] {
            ensure!(fault.contains(said), "the others say: {fault}");
            ensure!(wrong.log().contains(said), "no {said:?} in its log");
        }

        serves_nothing(&cluster, &port, lease.address())?;
        let script = format!("{}/boot.ipxe?mac={MAC}", wrong.boot_url());
        ensure!(curl(&host, &[&script]).is_err(), "it serves a script");
        let tftp = format!("tftp://{}/ipxe.efi", wrong.address());
        ensure!(
            curl(&host, &["--output", "/dev/null", &tftp]).is_err(),
            "it serves TFTP"
        );
        // The others are enough.
        cluster.apply("kind: profile\nname: written-meanwhile\n")?;

        // A restart makes nothing better.
        wrong.stop(PATIENCE)?;
        wrong.start()?;
        let code = wrong.wait_end(PATIENCE)?;
        ensure!(code == Some(1), "the node ends with {code:?}");

        // What it said is to be done.
        cluster.cli(&["cluster", "remove", wrong.name()])?.ok()?;
        fs::remove_dir_all(wrong.data_dir())?;
        wrong.start()?;
        cluster.wait_settled(PATIENCE)?;
        invariant::same_everywhere(&cluster)?;
        let script = curl(&host, &[&script]).context("the script")?;
        ensure!(script.contains(content::KERNEL), "{script}");
        ensure!(readiness(&cluster)? == 200, "it is not ready");
        let _others = silence_others(&cluster)?;
        let confirmed = Client::numbered(1, 0).reboot(lease.address());
        port.insist(&confirmed, MessageType::Ack).map(drop)
    })
}

/// Changes rows as a bit flip in memory before they were written would: checksums and the digest
/// that is kept with them are those of what stands there.
fn alter(dir: &Path) -> Result<()> {
    let engine = Engine::open(dir).context("opening the stores")?;
    let rows = &engine.rows;
    let (mut changed, mut after) = (Vec::new(), None::<Vec<u8>>);
    loop {
        let page = rows.page(after.as_deref(), 1000)?;
        let Some((last, _)) = page.last() else {
            break;
        };
        after = Some(last.clone());
        for (key, mut value) in page {
            let places = value.windows(WAS.len()).position(|part| part == WAS);
            if let Some(place) = places {
                value[place..place + IS.len()].copy_from_slice(IS);
                changed.push(RowWrite {
                    key,
                    value: Some(value),
                });
            }
        }
    }
    ensure!(!changed.is_empty(), "nothing to alter");
    rows.write(&changed, &[])?;
    let digest = digest_of(&**rows)?;
    let note = "digest";
    ensure!(
        rows.note(note)?.is_some_and(|old| old != digest.0),
        "no such note"
    );
    rows.write(&[], &[(note, digest.0.to_vec())])?;
    rows.sync()?;
    engine.close();
    Ok(())
}

/// Waits until all others show that the node is out; why it is.
fn wait_out(cluster: &Cluster) -> Result<String> {
    let name = cluster.node(WRONG).name();
    wait_until("the node to be out", PATIENCE, || {
        let mut why = None;
        for node in &cluster.nodes()[..WRONG] {
            let nodes = node.status()?.nodes;
            let shown = nodes.into_iter().find(|member| member.name == name);
            let shown = shown.context("it is no member")?;
            ensure!(!shown.live, "{} holds it for live", node.name());
            let fault = shown.rest.get("fault").and_then(Value::as_str);
            why = Some(fault.context("no fault is shown")?.to_owned());
        }
        Ok(why)
    })
}

fn readiness(cluster: &Cluster) -> Result<u16> {
    Ok(cluster.node(WRONG).get("/readyz")?.0)
}

/// Cuts the others off from DHCP clients.
fn silence_others(cluster: &Cluster) -> Result<Vec<fault::Fault>> {
    let others = cluster.nodes()[..WRONG].iter();
    others
        .map(|node| fault::silence_dhcp(node.host()))
        .collect()
}

fn serves_nothing(cluster: &Cluster, port: &Port, bound: std::net::Ipv4Addr) -> Result<()> {
    let node = cluster.node(WRONG);
    wait_until("it to say that it is not ready", PATIENCE, || {
        Ok((readiness(cluster)? == 503).then_some(()))
    })?;
    for path in ["/api/v1/machines", "/api/v1/machines?consistency=local"] {
        let (status, why) = node.get(path)?;
        ensure!(
            status == 503 && why.contains("join anew"),
            "{path}: {status}: {why}"
        );
    }
    let (status, health) = node.get("/healthz")?;
    ensure!(
        status == 200 && health.contains("state differs"),
        "{status}: {health}"
    );
    ensure!(node.metric("muster_raft_diverged")? == 1.0, "no alarm");
    let _others = silence_others(cluster)?;
    let known = Client::numbered(1, 0);
    for question in [
        known.reboot(bound),
        known.renew(bound),
        Client::numbered(1, 1).discover(),
    ] {
        port.send(&question)?;
        let replies = port.replies(&question, SILENCE)?;
        ensure!(
            replies.is_empty(),
            "{:?} from a node that is out",
            replies[0].kind()
        );
    }
    Ok(())
}
