//! Crowds of clients race for addresses, some directly and some through relays to all nodes. No two
//! of them get one address, and none gives up.

use anyhow::{Result, anyhow, ensure};
use dhcproto::v4::relay::RelayInfo;
use muster_chaos::cluster::Cluster;
use muster_chaos::crowd::{self, Given, Outcome};
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::invariant;
use muster_chaos::lab::wait_until;
use muster_chaos::wire::mac_text;

use crate::{PATIENCE, tell};

/// 254 addresses for 240 clients.
const SMALL: &str = "\
kind: subnet
name: lab
cidr: 10.77.0.0/16
pools: [10.77.9.1-10.77.9.254]
routers: [10.77.0.1]
lease_secs: 3600
";

/// 1,010 addresses for 1,000 clients.
const TIGHT: &str = "\
kind: subnet
name: lab
cidr: 10.77.0.0/16
pools: [10.77.8.1-10.77.11.242]
routers: [10.77.0.1]
lease_secs: 3600
";

/// Counts writes that were refused because another client was first.
const LOST: &str = "muster_dhcp_rejected_total";

/// The leader dies among them.
#[test]
fn no_address_has_two_owners() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(SMALL)?;
        let ports = places(&cluster)?;
        let leader = cluster.wait_leader(PATIENCE)?;
        let given = race(&ports, [80, 80, 80], 24, || {
            wait_until("the first clients to be served", PATIENCE, || {
                let bound = invariant::bound(cluster.node(leader))?;
                Ok((bound.len() >= 24).then_some(()))
            })?;
            cluster.node(leader).kill().map(|_| ())
        })?;
        cluster.node(leader).start()?;
        cluster.wait_settled(PATIENCE)?;
        recorded(&cluster, leader, &given)
    })
}

/// A hall is switched on: a thousand clients at once for a pool that has ten addresses more.
#[test]
fn the_last_addresses_are_found() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(TIGHT)?;
        let ports = places(&cluster)?;
        let given = race(&ports, [334, 333, 333], 334, || Ok(()))?;
        for node in cluster.nodes() {
            println!("{}: {} races lost", node.name(), node.metric(LOST)?);
        }
        recorded(&cluster, 0, &given)
    })
}

/// One port on the nodes' segment and two behind relays.
fn places(cluster: &Cluster) -> Result<Vec<Port>> {
    let lab = cluster.lab();
    let servers: Vec<_> = cluster.nodes().iter().map(|node| node.address()).collect();
    let mut ports = vec![Port::direct(&lab.host("clients", None)?)?];
    for (last, name) in [(2, "relay1"), (3, "relay2")] {
        let host = lab.host(name, Some([10, 77, 0, last].into()))?;
        let circuit = RelayInfo::AgentCircuitId(name.as_bytes().to_vec());
        ports.push(Port::relay(&host, &servers, vec![circuit])?);
    }
    Ok(ports)
}

/// Has so many clients at each port find an address, `at_once` of them at any time, while
/// something happens. All must be served, each with an address of its own.
fn race(
    ports: &[Port],
    counts: [u32; 3],
    at_once: usize,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<Vec<Given>> {
    let outcomes = std::thread::scope(|scope| {
        let crowds: Vec<_> = (0u8..)
            .zip(ports)
            .zip(counts)
            .map(|((family, port), count)| scope.spawn(move || run(port, family, count, at_once)))
            .collect();
        let happened = meanwhile();
        let outcomes: Result<Vec<Outcome>> = crowds
            .into_iter()
            .map(|crowd| crowd.join().map_err(|_| anyhow!("a crowd broke"))?)
            .collect();
        happened.and(outcomes)
    })?;
    let gave_up: usize = outcomes.iter().map(|outcome| outcome.gave_up.len()).sum();
    let refused: usize = outcomes.iter().map(|outcome| outcome.refused).sum();
    let given: Vec<Given> = outcomes
        .into_iter()
        .flat_map(|outcome| outcome.given)
        .collect();
    let longest = given.iter().map(|one| one.took).max().unwrap_or_default();
    println!(
        "{} served, the last after {longest:?}; {refused} began anew, {gave_up} gave up",
        given.len()
    );
    crowd::one_owner(&given)?;
    ensure!(gave_up == 0, "{gave_up} clients gave up");
    Ok(given)
}

fn run(port: &Port, family: u8, count: u32, at_once: usize) -> Result<Outcome> {
    let clients: Vec<Client> = (0..count)
        .map(|number| Client::numbered(family, number))
        .collect();
    crowd::seek(port, &clients, at_once, |_| false)
}

/// All nodes agree, and what clients were given is recorded for them.
fn recorded(cluster: &Cluster, node: usize, given: &[Given]) -> Result<()> {
    invariant::one_owner_everywhere(cluster)?;
    let bound = invariant::bound(cluster.node(node))?;
    for one in given {
        let owner = bound.get(&one.address).map(|(mac, _)| mac);
        ensure!(
            owner.is_some_and(|owner| *owner == mac_text(one.mac)),
            "{one:?} is recorded for {owner:?}"
        );
    }
    Ok(())
}
