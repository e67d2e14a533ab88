//! DHCPv4 (RFC 2131): any node answers, and any node finishes what another began.
//!
//! [`request`] types a packet, [`decide`] says what to do about it, [`reply`] writes the answer:
//! all three are pure. `service` is the shell around them, [`serve`] its life.

mod arp;
mod conflict;
pub mod decide;
pub mod facts;
pub mod firmware;
pub mod foreign;
mod frame;
mod icmp;
mod inbox;
pub mod interfaces;
pub mod metrics;
pub mod offers;
mod parameters;
pub mod rank;
mod refusals;
pub mod relays;
mod rendering;
pub mod reply;
pub mod request;
pub mod search;
mod service;
mod socket;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use muster_api::node::About;
use muster_raft::Cluster;
use muster_storage::command::Client;
use muster_storage::model::NodeId;
use muster_storage::{Actor, Command, Proposal, RequestId};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::boot::Recorder;
use conflict::Way;
use inbox::Inbox;
use interfaces::Interface;
pub use interfaces::Interfaces;
use service::Service;
use socket::{Link, Port};

/// How often interfaces and their addresses are looked at.
const RESCAN: Duration = Duration::from_secs(2);

/// How often the first registration is tried, so that service starts soon after the node.
const RESCAN_UNREGISTERED: Duration = Duration::from_millis(200);

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where.
    pub interfaces: Interfaces,
    /// 67.
    pub dhcp_port: u16,
    /// 4011.
    pub proxy_port: u16,
    /// Port of the HTTP boot service, for boot URLs.
    pub boot_port: u16,
    /// 69. Firmware has no way to be told another.
    pub tftp_port: u16,
    /// Address at which machines behind relays reach this node.
    pub advertise: IpAddr,
    /// Where it is noted which machines boot.
    pub recorder: Recorder,
}

/// Why DHCP cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not list its interfaces.
    #[error("interfaces cannot be listed: {0}")]
    Interfaces(#[from] nix::Error),
    /// A port cannot be bound.
    #[error(
        "UDP ports {port} and {proxy_port} cannot be bound on {interface}: {problem}; \
         is another DHCP server running, or the right to bind missing (root or CAP_NET_BIND_SERVICE)?"
    )]
    Bind {
        /// The interface.
        interface: String,
        /// The DHCP port.
        port: u16,
        /// The PXE boot server port.
        proxy_port: u16,
        /// What the kernel said.
        problem: io::Error,
    },
}

/// The DHCP service of a node: what it knows can be asked whether it serves yet or not.
#[derive(Clone)]
pub struct Server {
    cluster: Cluster,
    options: Options,
    service: Arc<Service>,
}

impl Server {
    /// One that does not serve yet.
    pub fn new(cluster: Cluster, options: Options) -> Self {
        Self {
            service: Service::new(cluster.clone(), options.clone()),
            cluster,
            options,
        }
    }

    /// Where it serves.
    pub fn interfaces(&self) -> &Interfaces {
        &self.options.interfaces
    }

    /// Serves until `shutdown`. Interfaces may come and go meanwhile.
    ///
    /// # Errors
    /// When an interface that is there at the start cannot be served.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        run(self.cluster, self.options, self.service, shutdown).await
    }

    /// What each of `clients` would be met with by this node now, and what nodes refused lately.
    pub async fn explain(&self, about: About, clients: &[Client]) -> Value {
        let now = clients.iter().map(|it| self.service.would_answer(it));
        let now: Vec<Value> = now.collect();
        let (refusals, unheard) = self.service.refused(about).await;
        self.cluster.read(|state| {
            let name = |node: NodeId| match state.member(node) {
                Some(member) => member.name.clone(),
                None => node.to_string(),
            };
            let refusals = refusals.into_iter().map(|(node, refusal)| {
                let mut told = json!(refusal);
                if let Value::Object(fields) = &mut told {
                    fields.insert("node".to_owned(), name(node).into());
                }
                told
            });
            let refusals: Vec<Value> = refusals.collect();
            let unheard: Vec<String> = unheard.into_iter().map(name).collect();
            json!({"now": now, "refusals": refusals, "unheard": unheard})
        })
    }
}

/// Serves DHCP until `shutdown`, as [`Server::serve`].
///
/// # Errors
/// When an interface that is there at the start cannot be served.
pub async fn serve(
    cluster: Cluster,
    options: Options,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    Server::new(cluster, options).serve(shutdown).await
}

async fn run(
    cluster: Cluster,
    options: Options,
    service: Arc<Service>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    if options.interfaces == Interfaces::None {
        // What it registered before would keep it a place among those that answer.
        while !register(&cluster, std::iter::empty()).await {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(RESCAN_UNREGISTERED) => {}
            }
        }
        shutdown.cancelled().await;
        return Ok(());
    }
    metrics::describe();
    let mut tasks = JoinSet::new();
    let mut peers = tasks.spawn(listen_to_peers(cluster.clone(), Arc::clone(&service)));
    let mut gossip = tasks.spawn(Arc::clone(&service).spread());
    let mut turns = tasks.spawn(Arc::clone(&service).take_turns());
    tasks.spawn(Arc::clone(&service).detect_conflicts(Way::Echo, shutdown.clone()));
    let mut links: BTreeMap<String, (Arc<Link>, CancellationToken)> = BTreeMap::new();
    let mut first = true;
    loop {
        let present = match options.interfaces.present() {
            Ok(present) => present,
            Err(problem) if first => return Err(problem.into()),
            Err(problem) => {
                tracing::warn!(error = %problem, "interfaces cannot be listed; trying again");
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(RESCAN) => continue,
                }
            }
        };
        links.retain(|name, (link, stop)| {
            let stays = present
                .get(name)
                .is_some_and(|interface| interface.index == link.index)
                && !stop.is_cancelled();
            if !stays {
                tracing::info!(interface = name, "no longer served");
                stop.cancel();
            }
            stays
        });
        for (name, interface) in &present {
            if let Some((link, _)) = links.get(name) {
                link.set_addresses(&interface.addresses);
                continue;
            }
            match Link::open(interface, options.dhcp_port, options.proxy_port) {
                Ok(link) => {
                    tracing::info!(interface = name, addresses = ?interface.addresses, "served");
                    let (link, stop) = (Arc::new(link), shutdown.child_token());
                    for port in [Port::Server, Port::BootServer] {
                        tasks.spawn(pump(
                            Arc::clone(&service),
                            Arc::clone(&link),
                            port,
                            stop.clone(),
                        ));
                    }
                    let service = Arc::clone(&service);
                    let way = Way::Arp(interface.index);
                    tasks.spawn(service.detect_conflicts(way, stop.clone()));
                    links.insert(name.clone(), (link, stop));
                }
                Err(problem) if first => {
                    return Err(Error::Bind {
                        interface: name.clone(),
                        port: options.dhcp_port,
                        proxy_port: options.proxy_port,
                        problem,
                    });
                }
                Err(problem) => tracing::warn!(interface = name, error = %problem, "not served"),
            }
        }
        first = false;
        let registered = tokio::select! {
            () = shutdown.cancelled() => break,
            registered = register(&cluster, present.values()) => registered,
        };
        let pause = if registered {
            RESCAN
        } else {
            RESCAN_UNREGISTERED
        };
        while let Some(ended) = tasks.try_join_next() {
            if let Err(problem) = ended {
                tracing::error!(error = %problem, "a DHCP task ended badly; starting it anew");
                metrics::dropped("task_failed");
            }
        }
        if peers.is_finished() {
            peers = tasks.spawn(listen_to_peers(cluster.clone(), Arc::clone(&service)));
        }
        if gossip.is_finished() {
            gossip = tasks.spawn(Arc::clone(&service).spread());
        }
        if turns.is_finished() {
            turns = tasks.spawn(Arc::clone(&service).take_turns());
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    tasks.shutdown().await;
    Ok(())
}

/// Feeds the packets of one port to the service until told to stop or the socket breaks.
async fn pump(service: Arc<Service>, link: Arc<Link>, port: Port, stop: CancellationToken) {
    // However this ends, the next scan sees it and opens the link again.
    let _ended = stop.clone().drop_guard();
    let mut inbox = Inbox::default();
    loop {
        let batch = tokio::select! {
            () = stop.cancelled() => return,
            batch = link.receive(port, &mut inbox) => batch,
        };
        match batch {
            Ok(batch) => service.receive(&link, batch),
            Err(problem) => {
                tracing::warn!(interface = link.name, error = %problem, "cannot receive; opening anew");
                return;
            }
        }
    }
}

async fn listen_to_peers(cluster: Cluster, service: Arc<Service>) {
    let mut gossips = cluster.gossips();
    loop {
        match gossips.recv().await {
            Ok((_, bytes)) if service.answer_peer(&bytes) => {}
            Ok((_, bytes)) => service.heard(&bytes),
            // Lost notices cost a double answer at most.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}

/// Registers this node's addresses on the served interfaces by a committed entry, so that any node
/// can finish what this one begins. Says whether they stand so.
async fn register(cluster: &Cluster, present: impl Iterator<Item = &Interface>) -> bool {
    let mut addresses: Vec<Ipv4Addr> = present
        .flat_map(|interface| interface.addresses.iter().copied())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    let Some(mut member) = cluster.read(|state| state.member(cluster.node_id()).cloned()) else {
        return false;
    };
    if member.identifiers == addresses {
        return true;
    }
    member.identifiers = addresses;
    let proposal = Proposal {
        request: RequestId(uuid::Uuid::new_v4()),
        actor: Actor(format!("node:{}", cluster.node_name())),
        if_match: None,
        remember: None,
        command: Command::UpdateMember(Box::new(member)),
    };
    match tokio::time::timeout(RESCAN, cluster.propose(proposal)).await {
        Ok(Ok(outcome)) => outcome.result.is_ok(),
        _ => false,
    }
}
