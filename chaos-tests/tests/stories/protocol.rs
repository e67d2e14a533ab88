//! What RFC 2131 says beyond the common way: INFORM, DECLINE, addresses of other networks, and who
//! is told what to boot.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhcproto::v4::{MessageType, OptionCode};
use muster_chaos::cluster::Cluster;
use muster_chaos::content;
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::invariant;
use muster_chaos::lab::wait_until;
use serde_json::Value;

use crate::{PATIENCE, tell};

/// How long to listen before it is said that nobody answers.
const SILENCE: Duration = Duration::from_secs(2);

#[test]
fn three_nodes_speak_as_one_server() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(content::SUBNET)?;
        let port = Port::direct(&cluster.lab().host("clients", None)?)?;
        one_answer_to_each(&port)?;
        inform(&cluster, &port)?;
        renew_and_rebind(&port)?;
        decline(&cluster, &port)?;
        release(&cluster, &port)?;
        remembered(&port)?;
        who_boots(&port)
    })
}

/// However many nodes hear it, a client hears one of them while all are well.
fn one_answer_to_each(port: &Port) -> Result<()> {
    let mut offers = 0;
    for number in 0..20 {
        let client = Client::numbered(0, number);
        let discover = client.discover();
        port.send(&discover)?;
        let replies = port.replies(&discover, Duration::from_millis(500))?;
        let first = replies.first().context("nobody offers")?;
        let same = |reply: &muster_chaos::dhcp::Reply| reply.address() == first.address();
        ensure!(
            replies.iter().all(same),
            "{client} is offered several addresses"
        );
        offers += replies.len();
    }
    println!("{offers} offers to 20 clients");
    // A busy node may be late, and another may then have answered in its place.
    ensure!(
        offers < 30,
        "{offers} offers to 20 clients: all nodes answer"
    );
    Ok(())
}

fn inform(cluster: &Cluster, port: &Port) -> Result<()> {
    let client = Client::numbered(1, 0);
    let address = Ipv4Addr::new(10, 77, 0, 90);
    let inform = client.inform(address);
    let node = cluster.node(0);
    port.send_to(
        &inform,
        (muster_chaos::wire::EVERYBODY, Ipv4Addr::BROADCAST),
    )?;
    let ack = port
        .first(&inform, PATIENCE)?
        .context("no ACK to an INFORM")?;
    ensure!(ack.kind() == Some(MessageType::Ack), "{:?}", ack.kind());
    ensure!(ack.to == address, "the ACK went to {}", ack.to);
    ensure!(ack.address().is_unspecified(), "it gives an address");
    for none in [
        OptionCode::AddressLeaseTime,
        OptionCode::Renewal,
        OptionCode::Rebinding,
    ] {
        ensure!(ack.option(none).is_none(), "it has {none:?}");
    }
    ensure!(ack.option(OptionCode::Router).is_some(), "it tells nothing");
    ensure!(
        !invariant::bound(node)?.contains_key(&address),
        "an INFORM made a lease"
    );
    Ok(())
}

fn renew_and_rebind(port: &Port) -> Result<()> {
    let client = Client::numbered(2, 0);
    let ack = port.bind(&client)?;
    let server = ack.server().context("no identifier")?;
    let renew = client.renew(ack.address());
    port.send_to(&renew, (ack.from_mac.context("a MAC")?, *ack.from.ip()))?;
    let renewed = port
        .first(&renew, PATIENCE)?
        .context("no answer to RENEW")?;
    ensure!(
        renewed.kind() == Some(MessageType::Ack),
        "{:?}",
        renewed.kind()
    );
    ensure!(
        renewed.address() == ack.address() && renewed.server() == Some(server),
        "renewed as {} by {:?}",
        renewed.address(),
        renewed.server()
    );
    ensure!(
        renewed.to == ack.address(),
        "the ACK went to {}",
        renewed.to
    );

    let rebind = client.renew(ack.address());
    port.send_to(
        &rebind,
        (muster_chaos::wire::EVERYBODY, Ipv4Addr::BROADCAST),
    )?;
    let rebound = port
        .first(&rebind, PATIENCE)?
        .context("no answer to REBIND")?;
    ensure!(
        rebound.kind() == Some(MessageType::Ack),
        "{:?}",
        rebound.kind()
    );

    let stranger = Client::numbered(2, 1).renew(ack.address());
    port.send(&stranger)?;
    let replies = port.replies(&stranger, SILENCE)?;
    ensure!(
        replies
            .iter()
            .all(|reply| reply.kind() != Some(MessageType::Ack)),
        "a stranger's renewal of {} was acknowledged",
        ack.address()
    );
    Ok(())
}

fn decline(cluster: &Cluster, port: &Port) -> Result<()> {
    let client = Client::numbered(3, 0);
    let ack = port.bind(&client)?;
    let (address, server) = (ack.address(), ack.server().context("no identifier")?);
    port.send(&client.decline(address, server))?;
    wait_until("a declined address to be put aside", PATIENCE, || {
        let lease: Value = cluster
            .cli(&["leases", "get", &address.to_string()])?
            .json()?;
        ensure!(lease["state"] == "declined", "{lease}");
        Ok(Some(()))
    })?;
    let again = port.bind(&client)?;
    ensure!(again.address() != address, "it is given the same again");
    let other = Client::numbered(3, 1).reboot(address);
    port.send(&other)?;
    let replies = port.replies(&other, SILENCE)?;
    ensure!(
        replies
            .iter()
            .all(|reply| reply.kind() != Some(MessageType::Ack)),
        "another is given a declined address"
    );
    Ok(())
}

fn release(cluster: &Cluster, port: &Port) -> Result<()> {
    let client = Client::numbered(4, 0);
    let ack = port.bind(&client)?;
    let (address, server) = (ack.address(), ack.server().context("no identifier")?);
    let state = |wanted: &str| {
        wait_until(&format!("{address} to be {wanted}"), PATIENCE, || {
            let lease: Value = cluster
                .cli(&["leases", "get", &address.to_string()])?
                .json()?;
            ensure!(lease["state"] == wanted, "{lease}");
            Ok(Some(()))
        })
    };
    state("bound")?;
    port.send_to(
        &client.release(address, server),
        (ack.from_mac.context("a MAC")?, server),
    )?;
    state("released")?;
    let again = port.bind(&client)?;
    ensure!(
        again.address() == address,
        "its old address is not remembered"
    );
    Ok(())
}

/// INIT-REBOOT: right, wrong, of another network, and of somebody who is not known.
fn remembered(port: &Port) -> Result<()> {
    let client = Client::numbered(5, 0);
    let ack = port.bind(&client)?;
    let right = port.insist(&client.reboot(ack.address()), MessageType::Ack)?;
    ensure!(right.address() == ack.address(), "{}", right.address());
    for wrong in [[10, 77, 0, 198], [192, 168, 9, 9]] {
        let nak = port.insist(&client.reboot(wrong.into()), MessageType::Nak)?;
        ensure!(nak.address().is_unspecified(), "a NAK with an address");
        ensure!(nak.to == Ipv4Addr::BROADCAST, "a NAK to {}", nak.to);
    }
    let stranger = Client::numbered(5, 1);
    port.insist(&stranger.reboot([192, 168, 9, 9].into()), MessageType::Nak)?;
    let unknown = stranger.reboot([10, 77, 0, 197].into());
    port.send(&unknown)?;
    let replies = port.replies(&unknown, SILENCE)?;
    ensure!(
        replies.is_empty(),
        "a client of whom nothing is known is told {:?}",
        replies[0].kind()
    );
    Ok(())
}

fn who_boots(port: &Port) -> Result<()> {
    let plain = Client::numbered(6, 0);
    let offer = port.insist(&plain.discover(), MessageType::Offer)?;
    ensure!(!offer.boots(), "an operating system is told what to boot");
    let ack = port.insist(&plain.select(&offer)?, MessageType::Ack)?;
    ensure!(!ack.boots(), "an operating system is told what to boot");
    let rom = Client::numbered(6, 1).pxe();
    let offer = port.insist(&rom.discover(), MessageType::Offer)?;
    ensure!(offer.boots(), "a ROM is not told what to boot");
    Ok(())
}
