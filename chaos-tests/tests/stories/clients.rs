//! Debian's own DHCP clients obtain, renew and give back their addresses.

use std::time::Duration;

use anyhow::{Result, ensure};
use muster_chaos::client::{Kind, Running};
use muster_chaos::cluster::Cluster;
use muster_chaos::invariant;
use muster_chaos::lab::wait_until;

use crate::{PATIENCE, tell};

/// Short leases: dhclient renews when half of its time is over.
const SUBNET: &str = "\
kind: subnet
name: lab
cidr: 10.77.0.0/24
pools: [10.77.0.100-10.77.0.199]
routers: [10.77.0.1]
dns_servers: [10.77.0.1]
domain_name: lab.example
lease_secs: 20
";

#[test]
fn udhcpc_obtains_renews_and_releases() -> Result<()> {
    through(Kind::Udhcpc, "02:6d:00:00:00:01", "domain")
}

#[test]
fn dhclient_obtains_renews_and_releases() -> Result<()> {
    through(Kind::Dhclient, "02:6d:00:00:00:02", "new_domain_name")
}

fn through(kind: Kind, mac: &str, domain: &str) -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(SUBNET)?;
        let host = cluster.lab().client(mac)?;
        let mut client = Running::start(kind, &host, &[])?;
        let first = client.wait_given(1, PATIENCE)?;
        ensure!(first.seconds == 20, "a lease of {} s", first.seconds);
        ensure!(
            first
                .variables
                .get(domain)
                .is_some_and(|name| name == "lab.example"),
            "no domain name in {:?}",
            first.variables
        );
        let held = |node: usize| {
            anyhow::Ok(
                invariant::bound(cluster.node(node))?
                    .get(&first.address)
                    .cloned(),
            )
        };
        invariant::one_owner_everywhere(&cluster)?;
        ensure!(
            held(0)?.is_some_and(|(owner, _)| owner == mac),
            "{} is not recorded for {mac}",
            first.address
        );

        if kind == Kind::Udhcpc {
            client.renew()?;
        }
        let second = client.wait_given(2, Duration::from_secs(30))?;
        ensure!(
            (second.address, second.server) == (first.address, first.server),
            "renewed {first:?} to {second:?}"
        );

        client.release()?;
        wait_until("the address to be free on every node", PATIENCE, || {
            for node in 0..3 {
                ensure!(held(node)?.is_none(), "n{} holds it", node + 1);
            }
            Ok(Some(()))
        })
    })
}
