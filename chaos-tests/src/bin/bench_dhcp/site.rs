//! One of those that are measured: its servers, and the relay that its clients are behind.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use muster_chaos::cluster::Cluster;
use muster_chaos::crowd::{self, Arrivals, Errand, Given, Patience};
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::lab::Lab;

use crate::kea::Kea;

/// The relay's address.
pub const RELAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// Two million addresses, on the subnet that has the relay and the servers in it.
pub const CIDR: &str = "10.64.0.0/10";
/// The pool in it.
pub const POOL: &str = "10.80.0.0-10.111.255.255";
/// The same for all.
pub const LEASE_SECS: u32 = 3600;

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Three nodes of Muster
    Muster,
    /// Two servers of Kea, hot-standby, multi-threaded
    KeaHa,
    /// One server of Kea, multi-threaded
    Kea,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 3] = [Self::Muster, Self::KeaHa, Self::Kea];

    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Muster => "Muster",
            Self::KeaHa => "Kea HA",
            Self::Kea => "Kea alone",
        }
    }
}

/// Its processes, and its clients.
pub struct Site {
    pub kind: Kind,
    pub port: Port,
    /// The number of the next client that was never seen.
    pub next: u32,
    /// Leases that may be renewed.
    pub given: Vec<Given>,
    servers: Servers,
}

enum Servers {
    Muster(Cluster),
    Kea(Kea),
}

impl Site {
    /// Starts the servers and waits until they serve.
    pub fn start(kind: Kind) -> Result<Self> {
        let lab = Lab::new()?;
        let relay = lab.host("relay", Some(RELAY))?;
        let (servers, addresses) = match kind {
            Kind::Muster => {
                let cluster = Cluster::found_in(lab, 3)?;
                cluster.apply(&subnet())?;
                let nodes = cluster.nodes().iter();
                let addresses = nodes.map(|node| node.address()).collect::<Vec<_>>();
                (Servers::Muster(cluster), addresses)
            }
            Kind::KeaHa | Kind::Kea => {
                let kea = Kea::start(&lab, if kind == Kind::Kea { 1 } else { 2 })?;
                let addresses = kea.addresses().collect();
                (Servers::Kea(kea), addresses)
            }
        };
        let port = Port::relay(&relay, &addresses, Vec::new())?;
        let site = Self {
            kind,
            port,
            next: 1,
            given: Vec::new(),
            servers,
        };
        site.wait_serving()?;
        Ok(site)
    }

    fn wait_serving(&self) -> Result<()> {
        let patience = Patience {
            waits: vec![Duration::from_millis(500); 240],
            anew_after: None,
        };
        let first = std::iter::once(Errand::seek(Client::numbered(1, 0)));
        let all = Arrivals::InFlight(1);
        let outcome = crowd::run(&self.port, first, all, &patience, |_| false)?;
        ensure!(
            outcome.gave_up.is_empty(),
            "{} does not serve: {}",
            self.kind.name(),
            self.logs()
        );
        Ok(())
    }

    fn logs(&self) -> String {
        match &self.servers {
            Servers::Muster(cluster) => cluster.logs(),
            Servers::Kea(kea) => kea.logs(),
        }
    }

    /// Processor time that all its servers have used.
    pub fn processor_time(&self) -> Result<Duration> {
        match &self.servers {
            Servers::Muster(cluster) => {
                let nodes = cluster.nodes().iter();
                nodes.map(|node| node.processor_time()).sum()
            }
            Servers::Kea(kea) => kea.processor_time(),
        }
        .context("asking for processor time")
    }
}

fn subnet() -> String {
    format!(
        "kind: subnet\nname: bench\ncidr: {CIDR}\npools: [{POOL}]\nrouters: [10.77.0.1]\n\
         lease_secs: {LEASE_SECS}\n"
    )
}
