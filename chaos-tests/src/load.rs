//! Clients and an operator who write without a pause, and what they were told is safe.

use std::fmt::{self, Display};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};

use crate::cluster::Cluster;
use crate::crowd::{self, Given};
use crate::dhcp::{Client, Port};
use crate::invariant;
use crate::lab::wait_until;
use crate::node::Node;
use crate::wire::mac_text;

/// How many clients are on their way at any time.
const AT_ONCE: usize = 16;
/// More than can be served in the time of a test.
const CLIENTS: u32 = 40_000;

/// Writes that go on until they are stopped.
#[derive(Debug, Default)]
pub struct Load {
    stop: AtomicBool,
    /// Acknowledged so far.
    leases: AtomicUsize,
    objects: AtomicUsize,
}

/// What was acknowledged.
#[derive(Debug, Default)]
pub struct Acknowledged {
    /// Leases, by the ACK that the client got.
    pub leases: Vec<Given>,
    /// Names of profiles, by the command line's success.
    pub objects: Vec<String>,
}

/// Writes without a pause while something happens; what was acknowledged, and what came of it. Each
/// `round` has clients and names of its own.
pub fn during<T>(
    cluster: &Cluster,
    round: u8,
    happens: impl FnOnce(&Load) -> Result<T>,
) -> Result<(Acknowledged, T)> {
    let load = Load::default();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| load.run(cluster, round));
        let happened = happens(&load);
        load.stop();
        let acknowledged = running.join().map_err(|_| anyhow!("the load broke"))?;
        // What went wrong meanwhile tells more than that the load suffered from it.
        let happened = happened?;
        Ok((acknowledged?, happened))
    })
}

impl Load {
    /// Has clients get addresses and an operator make profiles, until [`Load::stop`]. Writes that
    /// fail are not acknowledged, which is all they are.
    fn run(&self, cluster: &Cluster, round: u8) -> Result<Acknowledged> {
        let host = cluster.lab().host(&format!("load{round}"), None)?;
        let port = Port::direct(&host)?;
        let clients: Vec<Client> = (0..CLIENTS)
            .map(|number| Client::numbered(round, number))
            .collect();
        let acknowledged = std::thread::scope(|scope| {
            let operator = scope.spawn(|| self.create_profiles(cluster, round));
            let served = crowd::seek(&port, &clients, AT_ONCE, |served| {
                self.leases.store(served.given.len(), Ordering::Relaxed);
                self.stop.load(Ordering::Relaxed)
            })?;
            let objects = operator.join().map_err(|_| anyhow!("the operator broke"))?;
            Ok::<_, anyhow::Error>(Acknowledged {
                leases: served.given,
                objects: objects?,
            })
        })?;
        drop(port);
        // The next one is as fast: every host hears every broadcast.
        cluster.lab().remove_host(host)?;
        Ok(acknowledged)
    }

    /// Waits until so many writes of each kind are acknowledged.
    pub fn wait(&self, leases: usize, objects: usize, timeout: Duration) -> Result<()> {
        wait_until("writes to be acknowledged", timeout, || {
            let enough = self.leases.load(Ordering::Relaxed) >= leases
                && self.objects.load(Ordering::Relaxed) >= objects;
            Ok(enough.then_some(()))
        })
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn create_profiles(&self, cluster: &Cluster, round: u8) -> Result<Vec<String>> {
        let mut created = Vec::new();
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let node = cluster.node(number % cluster.nodes().len());
            let name = format!("load-{round}-{number}");
            let call = ["--timeout", "1s", "profiles", "create", "-f", "-"];
            if node.cli_with(&call, &format!("name: {name}\n"))?.code == 0 {
                created.push(name);
                self.objects.store(created.len(), Ordering::Relaxed);
            }
            number += 1;
        }
        Ok(created)
    }
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
