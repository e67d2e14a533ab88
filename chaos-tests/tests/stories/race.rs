//! Hundreds of clients race for addresses, some directly and some through relays to all nodes, and
//! the leader dies among them. No two of them get one address, and none gives up.

use anyhow::{Result, anyhow, ensure};
use dhcproto::v4::relay::RelayInfo;
use muster_chaos::cluster::Cluster;
use muster_chaos::crowd::{self, Outcome};
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::invariant;
use muster_chaos::wire::mac_text;

use crate::{PATIENCE, tell};

/// For each of three places; the pool has 254 addresses for 240 of them.
const CLIENTS: u32 = 80;
const SUBNET: &str = "\
kind: subnet
name: lab
cidr: 10.77.0.0/16
pools: [10.77.9.1-10.77.9.254]
routers: [10.77.0.1]
lease_secs: 3600
";

#[test]
fn no_address_has_two_owners() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        cluster.apply(SUBNET)?;
        let lab = cluster.lab();
        let servers: Vec<_> = cluster.nodes().iter().map(|node| node.address()).collect();
        let mut ports = vec![Port::direct(&lab.host("clients", None)?)?];
        for (last, name) in [(2, "relay1"), (3, "relay2")] {
            let host = lab.host(name, Some([10, 77, 0, last].into()))?;
            let circuit = RelayInfo::AgentCircuitId(name.as_bytes().to_vec());
            ports.push(Port::relay(&host, &servers, vec![circuit])?);
        }
        let leader = cluster.wait_leader(PATIENCE)?;
        let outcomes = std::thread::scope(|scope| {
            let crowds: Vec<_> = (0u8..)
                .zip(&ports)
                .map(|(family, port)| scope.spawn(move || run(port, family)))
                .collect();
            std::thread::sleep(std::time::Duration::from_millis(300));
            let killed = cluster.node(leader).kill();
            let outcomes: Result<Vec<Outcome>> = crowds
                .into_iter()
                .map(|crowd| crowd.join().map_err(|_| anyhow!("a crowd broke"))?)
                .collect();
            killed.and(outcomes)
        })?;

        let given: Vec<_> = outcomes
            .iter()
            .flat_map(|outcome| outcome.given.clone())
            .collect();
        let gave_up: usize = outcomes.iter().map(|outcome| outcome.gave_up.len()).sum();
        let refused: usize = outcomes.iter().map(|outcome| outcome.refused).sum();
        let longest = given.iter().map(|one| one.took).max().unwrap_or_default();
        println!(
            "{} served, the last after {longest:?}; {refused} refused, {gave_up} gave up",
            given.len()
        );
        crowd::one_owner(&given)?;
        ensure!(gave_up == 0, "{gave_up} clients gave up");

        cluster.node(leader).start()?;
        cluster.wait_settled(PATIENCE)?;
        invariant::one_owner_everywhere(&cluster)?;
        let bound = invariant::bound(cluster.node(leader))?;
        for one in &given {
            let owner = bound.get(&one.address).map(|(mac, _)| mac);
            ensure!(
                owner.is_some_and(|owner| *owner == mac_text(one.mac)),
                "{one:?} is recorded for {owner:?}"
            );
        }
        Ok(())
    })
}

fn run(port: &Port, family: u8) -> Result<Outcome> {
    let clients: Vec<Client> = (0..CLIENTS)
        .map(|number| Client::numbered(family, number))
        .collect();
    crowd::seek(port, &clients, 24, |_| false)
}
