//! Machines behind a link that is narrower than Ethernet, as a tunnel to another site is.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::fleet::tftp::{self, Manner};

use crate::tell;

const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 20);
const BEHIND: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// The network behind the router, and the router's own address in it.
const NARROW: [&str; 2] = ["10.78.0.0/24", "10.78.0.1"];

/// Blocks fill an Ethernet frame, which is more than the link takes at a time. The first is lost, and its
/// router says why; sent again, it arrives in parts.
#[test]
fn a_loader_comes_through_a_narrow_link() -> Result<()> {
    let cluster = Cluster::found(1)?;
    tell(&cluster, || {
        let [network, gateway] = NARROW;
        let router = cluster.lab().host("router", Some(ROUTER))?;
        for name in [
            "ip_forward",
            "conf.all.send_redirects",
            "conf.eth0.send_redirects",
        ] {
            let value = u8::from(name == "ip_forward");
            router.run("sysctl", &["-qw", &format!("net.ipv4.{name}={value}")])?;
        }
        let own = format!("{gateway}/24");
        router.run("ip", &["address", "add", &own, "dev", "eth0"])?;
        let narrow = [network, "dev", "eth0", "mtu", "lock", "1400"];
        router.run("ip", &[&["route", "replace"], &narrow[..]].concat())?;

        let behind = cluster.lab().host("behind", None)?;
        let own = format!("{BEHIND}/24");
        behind.run("ip", &["address", "add", &own, "dev", "eth0"])?;
        behind.run("ip", &["route", "add", "default", "via", gateway])?;
        let node = cluster.node(0);
        let via = ROUTER.to_string();
        node.host()
            .run("ip", &["route", "add", network, "via", &via])?;

        let loader = behind
            .inside(|| tftp::read(BEHIND, node.address(), "undionly.kpxe", &Manner::PATIENT))
            .context("the loader")?;
        ensure!(loader.len() > 10_000, "{} octets", loader.len());
        let way = node
            .host()
            .run("ip", &["route", "get", &BEHIND.to_string()])?;
        ensure!(way.contains("mtu 1400"), "the router said nothing: {way}");
        Ok(())
    })
}
