//! Clients and an operator who write without a pause, and what they were told is safe.

use std::fmt::{self, Display};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow, ensure};

use crate::cluster::Cluster;
use crate::crowd::{self, Given};
use crate::dhcp::{Client, Port};
use crate::invariant;
use crate::node::Node;
use crate::wire::mac_text;

/// How many clients are on their way at any time.
const AT_ONCE: usize = 16;
/// More than can be served in the time of a test.
const CLIENTS: u32 = 40_000;

/// Writes that go on until they are stopped.
pub struct Load;

/// What was acknowledged.
#[derive(Debug, Default)]
pub struct Acknowledged {
    /// Leases, by the ACK that the client got.
    pub leases: Vec<Given>,
    /// Names of profiles, by the command line's success.
    pub objects: Vec<String>,
}

impl Load {
    /// Has clients get addresses and an operator make profiles, until `stop`. Each `round` has
    /// clients and names of its own. Writes that fail are not acknowledged, which is all they are.
    pub fn run(cluster: &Cluster, round: u8, stop: &AtomicBool) -> Result<Acknowledged> {
        let host = cluster.lab().host(&format!("load{round}"), None)?;
        let port = Port::direct(&host)?;
        let clients: Vec<Client> = (0..CLIENTS)
            .map(|number| Client::numbered(round, number))
            .collect();
        std::thread::scope(|scope| {
            let operator = scope.spawn(|| create_profiles(cluster, round, stop));
            let served = crowd::seek(&port, &clients, AT_ONCE, |_| stop.load(Ordering::Relaxed))?;
            let objects = operator.join().map_err(|_| anyhow!("the operator broke"))?;
            Ok(Acknowledged {
                leases: served.given,
                objects: objects?,
            })
        })
    }
}

fn create_profiles(cluster: &Cluster, round: u8, stop: &AtomicBool) -> Result<Vec<String>> {
    let mut created = Vec::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let node = cluster.node(number % cluster.nodes().len());
        let name = format!("load-{round}-{number}");
        let call = ["--timeout", "1s", "profiles", "create", "-f", "-"];
        if node.cli_with(&call, &format!("name: {name}\n"))?.code == 0 {
            created.push(name);
        }
        number += 1;
    }
    Ok(created)
}

impl Acknowledged {
    /// Fails unless every running node has all of it.
    pub fn find_everywhere(&self, cluster: &Cluster) -> Result<()> {
        let lost = self.lost(cluster)?;
        ensure!(
            lost.is_empty(),
            "{} of {self} are lost, among them {:?}",
            lost.len(),
            &lost[..lost.len().min(5)]
        );
        Ok(())
    }

    /// What some running node does not have.
    pub fn lost(&self, cluster: &Cluster) -> Result<Vec<String>> {
        let mut lost = Vec::new();
        for node in cluster.running() {
            let on = node.name();
            lost.extend(self.missing(node)?.map(|what| format!("{what} on {on}")));
        }
        Ok(lost)
    }

    fn missing(&self, node: &Node) -> Result<impl Iterator<Item = String>> {
        let bound = invariant::bound(node)?;
        let (_, profiles) = invariant::local(node, "profiles")?;
        let owned = |mac: &str, address: Ipv4Addr| {
            bound.get(&address).is_some_and(|(owner, _)| owner == mac)
        };
        let leases = self.leases.iter().filter_map(|given| {
            let mac = mac_text(given.mac);
            (!owned(&mac, given.address)).then(|| format!("{} of {mac}", given.address))
        });
        let objects = self
            .objects
            .iter()
            .filter(|name| !profiles.iter().any(|profile| profile["name"] == ***name));
        let missing: Vec<String> = leases.chain(objects.cloned()).collect();
        Ok(missing.into_iter())
    }
}

impl Display for Acknowledged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (leases, objects) = (self.leases.len(), self.objects.len());
        write!(f, "{leases} leases and {objects} objects acknowledged")
    }
}
