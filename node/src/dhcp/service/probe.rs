//! Conflict detection in the background: a new holder's address is probed when it is offered, and
//! the offer does not wait. What answers is quarantined, as after a DECLINE.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dhcproto::v4::MessageType;
use muster_storage::command::Command;
use muster_storage::model::{ConflictDetection, LeaseState, Trouble};
use muster_storage::state::State;
use muster_storage::{Mac, Proposal, Rejection, RequestId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Exchange, Service};
use crate::alert;
use crate::dhcp::arp::ArpSocket;
use crate::dhcp::conflict::{Answer, Conflict, PROBES_MAX, Probes};
use crate::dhcp::foreign::Told;
use crate::dhcp::metrics;
use crate::dhcp::reply::Reply;

/// How old an offer may be when its address is probed. By then no client can have taken it and be
/// at its own detection, to which another's probe looks like a conflict (RFC 5227 §2.1.1).
const PROMPT: Duration = Duration::from_millis(200);

/// How long a link that cannot be heard is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// A probe to be sent, and of when the offer is.
type Due = (Instant, Ipv4Addr);

/// What is probed, and where.
#[derive(Debug, Default)]
pub(super) struct Prober {
    probes: Mutex<Probes>,
    /// By the index of the interface.
    links: Mutex<HashMap<u32, mpsc::Sender<Due>>>,
    told: Mutex<Told>,
}

impl Prober {
    fn probes(&self) -> MutexGuard<'_, Probes> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, HashMap<u32, mpsc::Sender<Due>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether people are to be told of an address now.
    fn is_news(&self, address: Ipv4Addr) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.is_news(address, Instant::now())
    }
}

impl Service {
    /// Has an address probed that is on offer to one who does not have it, on its own link, by the
    /// first node to answer.
    pub(super) fn probe(&self, state: &State, exchange: &Exchange, reply: &Reply) {
        let request = &*exchange.request;
        let address = reply.yiaddr;
        if reply.kind != MessageType::Offer
            || request.relayed()
            || exchange.received.elapsed() > PROMPT
        {
            return;
        }
        let held = state
            .lease(address)
            .is_some_and(|record| record.object.state == LeaseState::Bound);
        if held || state.is_reserved(address) {
            return;
        }
        let Some(subnet) = state.subnet_with(&request.client.link, address) else {
            return;
        };
        if subnet.conflict_detection == ConflictDetection::Off {
            return;
        }
        let index = exchange.link.index;
        let Some(link) = self.prober.links().get(&index).cloned() else {
            return;
        };
        let now = Instant::now();
        let mut probes = self.prober.probes();
        if probes.begin((index, address), &request.client, &subnet.name, now) {
            // One that finds no room is not sent: nothing depends on it.
            let _ = link.try_send((exchange.received, address));
        }
    }

    /// Sends the probes of a link and hears the answers, until told to stop.
    pub async fn detect_conflicts(self: Arc<Self>, index: u32, stop: CancellationToken) {
        loop {
            let problem = tokio::select! {
                () = stop.cancelled() => return,
                Err(problem) = self.detect(index) => problem,
            };
            match problem.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported => {
                    tracing::warn!(index, %problem, "addresses on this interface cannot be probed");
                    return;
                }
                // It is down, and may come up again.
                _ => tracing::debug!(index, %problem, "ARP is not heard"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// The same until the socket breaks.
    async fn detect(self: &Arc<Self>, index: u32) -> io::Result<()> {
        let socket = ArpSocket::open(index)?;
        let (sender, mut waiting) = mpsc::channel(PROBES_MAX as usize);
        // Whoever opens the link anew takes this place; what is sent to one that ended is dropped.
        self.prober.links().insert(index, sender);
        loop {
            tokio::select! {
                Some((since, address)) = waiting.recv() => {
                    if since.elapsed() <= PROMPT {
                        socket.probe(address)?;
                    }
                }
                heard = socket.next() => {
                    let (by, address) = heard?;
                    self.answered_by(index, address, by);
                }
            }
        }
    }

    fn answered_by(self: &Arc<Self>, index: u32, address: Ipv4Addr, by: Mac) {
        let answer = self
            .prober
            .probes()
            .answered((index, address), by, Instant::now());
        match answer {
            Answer::InUse(conflict) => {
                let service = Arc::clone(self);
                tokio::spawn(async move { service.quarantine(address, by, conflict).await });
            }
            Answer::Disbelieved(subnet) => {
                tracing::debug!(%address, %by, subnet, "too many addresses are answered for");
                metrics::conflict(&subnet, metrics::Conflict::Disbelieved);
            }
            Answer::Nothing => {}
        }
    }

    async fn quarantine(&self, address: Ipv4Addr, by: Mac, conflict: Box<Conflict>) {
        let Conflict { client, subnet } = *conflict;
        let proposal = Proposal {
            request: RequestId(uuid::Uuid::new_v4()),
            actor: self.actor.clone(),
            if_match: None,
            remember: None,
            command: Command::Quarantine {
                client: Box::new(client),
                address,
                node: self.node,
            },
        };
        let result = match self.cluster.propose(proposal).await {
            Ok(outcome) => outcome.result,
            Err(problem) => {
                tracing::warn!(%address, %by, subnet, %problem, "an address that was offered is in use, and is perhaps not quarantined");
                return metrics::conflict(&subnet, metrics::Conflict::NotWritten);
            }
        };
        match result {
            Ok(_) => {
                tracing::warn!(%address, %by, subnet, "an address that was offered is in use; it is quarantined");
                metrics::conflict(&subnet, metrics::Conflict::Quarantined);
            }
            // By the client, faster than this was written, or by another that a peer offered it to.
            Err(Rejection::AddressTaken { .. }) => {
                tracing::warn!(%address, %by, subnet, "an address that was offered is in use; a client has taken it all the same");
                metrics::conflict(&subnet, metrics::Conflict::Taken);
            }
            Err(rejection) => {
                tracing::debug!(%address, %by, subnet, %rejection, "not quarantined");
                return;
            }
        }
        if self.prober.is_news(address) {
            let by = Some(by);
            let trouble = Trouble::AddressInUse {
                subnet,
                address,
                by,
            };
            alert::raise(self.cluster.clone(), trouble).await;
        }
    }
}
