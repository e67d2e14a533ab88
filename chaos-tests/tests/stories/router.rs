//! On a link whose subnet says so, who solicits a router is told at once that there is none here, and
//! takes nothing from it.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::content;
use muster_chaos::lab::{Host, wait_until};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{PATIENCE, tell};

/// A node looks at its subnets every two seconds.
const FOLLOWED: Duration = Duration::from_secs(10);

#[test]
fn solicitations_are_answered_where_the_subnet_says_so() -> Result<()> {
    let cluster = Cluster::found(1)?;
    tell(&cluster, || {
        cluster.apply(content::SUBNET)?;
        let host = cluster.lab().client("52:54:00:00:00:60")?;
        // The kernel solicits three times, four seconds apart; the second time the first one would
        // have been answered.
        wait_until("two solicitations", PATIENCE, || {
            Ok((count(&host, "Icmp6OutRouterSolicits")? >= 2).then_some(()))
        })?;
        ensure!(
            advertisements(&host)? == 0,
            "nobody asked for advertisements"
        );

        cluster.apply(&format!("{}router_advertisement: true\n", content::SUBNET))?;
        wait_until("an advertisement", FOLLOWED, || {
            solicit(&host, 255)?;
            Ok((advertisements(&host)? > 0).then_some(()))
        })?;
        let routes = host.run("ip", &["-6", "route", "show", "default"])?;
        ensure!(
            routes.trim().is_empty(),
            "the node is taken for a router: {routes}"
        );
        let addresses = host.run("ip", &["-6", "address", "show", "scope", "global"])?;
        ensure!(
            addresses.trim().is_empty(),
            "an address was given: {addresses}"
        );

        // What a router has passed on is not answered: it would be answered before the next.
        wait_until("all answers", FOLLOWED, || quiet(&host))?;
        let before = advertisements(&host)?;
        solicit(&host, 64)?;
        solicit(&host, 255)?;
        wait_until("one more advertisement", FOLLOWED, || {
            Ok((advertisements(&host)? > before).then_some(()))
        })?;
        let after = advertisements(&host)?;
        ensure!(after == before + 1, "{} answers to one", after - before);
        Ok(())
    })
}

/// Sends a solicitation with this hop limit from the host's link-local address.
fn solicit(host: &Host, hop_limit: u32) -> Result<()> {
    host.inside(|| {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.bind_device(Some(b"eth0"))?;
        socket.set_multicast_hops_v6(hop_limit)?;
        let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
        let index = nix::net::if_::if_nametoindex("eth0")?;
        let to = SocketAddrV6::new(routers, 0, 0, index);
        socket.send_to(&[133, 0, 0, 0, 0, 0, 0, 0], &to.into())?;
        Ok(())
    })
}

fn advertisements(host: &Host) -> Result<u64> {
    count(host, "Icmp6InRouterAdvertisements")
}

/// Whether nothing has come in between two looks.
fn quiet(host: &Host) -> Result<Option<()>> {
    let before = advertisements(host)?;
    solicit(host, 255)?;
    wait_until("an answer", FOLLOWED, || {
        Ok((advertisements(host)? > before).then_some(()))
    })?;
    Ok((advertisements(host)? == before + 1).then_some(()))
}

fn count(host: &Host, counter: &str) -> Result<u64> {
    let counters = host.run("cat", &["/proc/net/snmp6"])?;
    let line = counters
        .lines()
        .find(|line| line.split_whitespace().next() == Some(counter));
    let value = line.and_then(|line| line.split_whitespace().nth(1));
    value
        .with_context(|| format!("no {counter}"))?
        .parse()
        .context("a count")
}
