//! Conflict detection in the background: a new holder's address is probed when it is offered, and
//! the offer does not wait. What answers is quarantined, as after a DECLINE.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dhcproto::v4::MessageType;
use muster_storage::command::Command;
use muster_storage::model::{ConflictDetection, LeaseState, Trouble};
use muster_storage::state::State;
use muster_storage::{Mac, Proposal, RequestId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Exchange, Service};
use crate::alert;
use crate::dhcp::arp::ArpSocket;
use crate::dhcp::conflict::{Conflict, Probes};
use crate::dhcp::metrics;
use crate::dhcp::reply::Reply;

/// Probes that wait to be sent on one link.
const WAITING_MAX: usize = 64;

/// How long a link that cannot be heard is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// What is probed, and where.
#[derive(Debug, Default)]
pub(super) struct Prober {
    probes: Mutex<Probes>,
    /// By the index of the interface.
    links: Mutex<HashMap<u32, mpsc::Sender<Ipv4Addr>>>,
}

impl Prober {
    fn probes(&self) -> MutexGuard<'_, Probes> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, HashMap<u32, mpsc::Sender<Ipv4Addr>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Has an address probed that is on offer to one who does not have it, on its own link.
    pub(super) fn probe(&self, state: &State, exchange: &Exchange, reply: &Reply) {
        let request = &*exchange.request;
        let address = reply.yiaddr;
        if reply.kind != MessageType::Offer || request.relayed() {
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
        let Some(link) = self.prober.links().get(&exchange.link.index).cloned() else {
            return;
        };
        let mut probes = self.prober.probes();
        if probes.begin(address, &request.client, &subnet.name, exchange.received) {
            // One that finds no room is not sent: nothing depends on it.
            let _ = link.try_send(address);
        }
    }

    /// Sends the probes of a link and hears the answers, until told to stop.
    pub async fn detect_conflicts(self: Arc<Self>, index: u32, stop: CancellationToken) {
        let socket = match ArpSocket::open(index) {
            Ok(socket) => socket,
            Err(problem) => {
                tracing::warn!(index, %problem, "addresses on this interface cannot be probed");
                return;
            }
        };
        let (sender, mut waiting) = mpsc::channel(WAITING_MAX);
        self.prober.links().insert(index, sender.clone());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(address) = waiting.recv() => {
                    if let Err(problem) = socket.probe(address) {
                        tracing::debug!(%address, %problem, "not probed");
                    }
                }
                heard = socket.next() => match heard {
                    Ok((by, address)) => self.answered_by(address, by),
                    Err(problem) => {
                        // It is down, and may come up again.
                        tracing::debug!(index, %problem, "ARP is not heard");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
        let mut links = self.prober.links();
        // The link may have been opened anew by now.
        if links.get(&index).is_some_and(|it| it.same_channel(&sender)) {
            links.remove(&index);
        }
    }

    fn answered_by(self: &Arc<Self>, address: Ipv4Addr, by: Mac) {
        let conflict = self.prober.probes().answered(address, by, Instant::now());
        if let Some(conflict) = conflict {
            let service = Arc::clone(self);
            tokio::spawn(async move { service.quarantine(address, by, conflict).await });
        }
    }

    async fn quarantine(&self, address: Ipv4Addr, by: Mac, conflict: Conflict) {
        let Conflict { client, subnet } = conflict;
        metrics::conflict(&subnet);
        tracing::warn!(%address, %by, subnet, "an address that was offered is in use; it is quarantined");
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
        match self.cluster.propose(proposal).await {
            Ok(outcome) if outcome.result.is_ok() => {
                let by = Some(by);
                let trouble = Trouble::AddressInUse {
                    subnet,
                    address,
                    by,
                };
                alert::raise(self.cluster.clone(), trouble).await;
            }
            Ok(outcome) => {
                tracing::debug!(%address, ?outcome, "not quarantined: it has a holder");
            }
            Err(problem) => tracing::warn!(%address, %problem, "not quarantined"),
        }
    }
}
