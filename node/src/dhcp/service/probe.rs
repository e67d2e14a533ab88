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
use crate::dhcp::conflict::{Answer, Conflict, PROBES_MAX, Place, Probes, Way};
use crate::dhcp::foreign::Told;
use crate::dhcp::icmp::EchoSocket;
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
    ways: Mutex<HashMap<Way, mpsc::Sender<Due>>>,
    told: Mutex<Told>,
}

impl Prober {
    fn probes(&self) -> MutexGuard<'_, Probes> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ways(&self) -> MutexGuard<'_, HashMap<Way, mpsc::Sender<Due>>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether people are to be told of an address now.
    fn is_news(&self, address: Ipv4Addr) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.is_news(address, Instant::now())
    }
}

/// Who asks for addresses on one way.
enum Asker {
    Arp(ArpSocket),
    Echo(EchoSocket),
}

impl Asker {
    fn open(way: Way) -> io::Result<Self> {
        Ok(match way {
            Way::Arp(index) => Self::Arp(ArpSocket::open(index)?),
            Way::Echo => Self::Echo(EchoSocket::open(rand::random())?),
        })
    }

    fn probe(&self, address: Ipv4Addr) -> io::Result<()> {
        match self {
            Self::Arp(socket) => socket.probe(address),
            Self::Echo(socket) => socket.probe(address),
        }
    }

    /// The next answer, and from which hardware if it says so.
    async fn next(&self) -> io::Result<(Option<Mac>, Ipv4Addr)> {
        match self {
            Self::Arp(socket) => socket.next().await.map(|(by, it)| (Some(by), it)),
            Self::Echo(socket) => socket.next().await.map(|it| (None, it)),
        }
    }
}

impl Service {
    /// Has an address probed that is on offer to one who does not have it, by the first node to answer:
    /// by ARP on its own link, by ICMP behind a relay.
    pub(super) fn probe(&self, state: &State, exchange: &Exchange, reply: &Reply) {
        let request = &*exchange.request;
        let address = reply.yiaddr;
        if reply.kind != MessageType::Offer || exchange.received.elapsed() > PROMPT {
            return;
        }
        let known = state.lease(address).map(|record| &record.object);
        let held = known.is_some_and(|lease| lease.state == LeaseState::Bound);
        if held || state.is_reserved(address) {
            return;
        }
        let way = match request.relayed() {
            false => Way::Arp(exchange.link.index),
            true => Way::Echo,
        };
        // An echo does not tell who answers: one who had the address, or asks for it, may use it still.
        let may_be_its_own = request.client.requested == Some(address)
            || known.is_some_and(|lease| lease.mac == request.client.mac);
        if way == Way::Echo && may_be_its_own {
            return;
        }
        let Some(subnet) = state.subnet_with(&request.client.link, address) else {
            return;
        };
        if subnet.conflict_detection == ConflictDetection::Off {
            return;
        }
        let Some(asker) = self.prober.ways().get(&way).cloned() else {
            return;
        };
        let now = Instant::now();
        let mut probes = self.prober.probes();
        if probes.begin((way, address), &request.client, &subnet.name, now) {
            // One that finds no room is not sent: nothing depends on it.
            let _ = asker.try_send((exchange.received, address));
        }
    }

    /// Sends the probes of one way and hears the answers, until told to stop.
    pub async fn detect_conflicts(self: Arc<Self>, way: Way, stop: CancellationToken) {
        loop {
            let problem = tokio::select! {
                () = stop.cancelled() => return,
                Err(problem) = self.detect(way) => problem,
            };
            match problem.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported => {
                    tracing::warn!(?way, error = %problem, "addresses cannot be probed");
                    return;
                }
                // It is down, and may come up again.
                _ => tracing::debug!(?way, error = %problem, "no answer to probes is heard"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// The same until the socket breaks.
    async fn detect(self: &Arc<Self>, way: Way) -> io::Result<()> {
        let asker = Asker::open(way)?;
        let (sender, mut waiting) = mpsc::channel(PROBES_MAX as usize);
        // Whoever opens it anew takes this place; what is sent to one that ended is dropped.
        self.prober.ways().insert(way, sender);
        loop {
            tokio::select! {
                Some((since, address)) = waiting.recv() => {
                    if since.elapsed() <= PROMPT {
                        asker.probe(address)?;
                    }
                }
                heard = asker.next() => {
                    let (by, address) = heard?;
                    self.answered_by((way, address), by);
                }
            }
        }
    }

    fn answered_by(self: &Arc<Self>, place: Place, by: Option<Mac>) {
        let address = place.1;
        let answer = self.prober.probes().answered(place, by, Instant::now());
        match answer {
            Answer::InUse(conflict) => {
                let service = Arc::clone(self);
                tokio::spawn(async move { service.quarantine(address, by, conflict).await });
            }
            Answer::Disbelieved(subnet) => {
                let by = by.map(tracing::field::display);
                tracing::debug!(%address, mac = by, subnet, "too many addresses are answered for");
                metrics::conflict(&subnet, metrics::Conflict::Disbelieved);
            }
            Answer::Nothing => {}
        }
    }

    async fn quarantine(&self, address: Ipv4Addr, by: Option<Mac>, conflict: Box<Conflict>) {
        let Conflict { client, subnet } = *conflict;
        let hardware = by.map(tracing::field::display);
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
                tracing::warn!(%address, mac = hardware, subnet, error = %problem, "an address that was offered is in use, and is perhaps not quarantined");
                return metrics::conflict(&subnet, metrics::Conflict::NotWritten);
            }
        };
        match result {
            Ok(_) => {
                tracing::warn!(%address, mac = hardware, subnet, "an address that was offered is in use; it is quarantined");
                metrics::conflict(&subnet, metrics::Conflict::Quarantined);
            }
            // By the client, faster than this was written, or by another that a peer offered it to.
            // An echo may have come from that client: then there is nothing to tell of.
            Err(Rejection::AddressTaken { .. }) if by.is_none() => {
                return metrics::conflict(&subnet, metrics::Conflict::Taken);
            }
            Err(Rejection::AddressTaken { .. }) => {
                tracing::warn!(%address, mac = hardware, subnet, "an address that was offered is in use; a client has taken it all the same");
                metrics::conflict(&subnet, metrics::Conflict::Taken);
            }
            Err(rejection) => {
                tracing::debug!(%address, mac = hardware, subnet, error = %rejection, "not quarantined");
                return;
            }
        }
        if self.prober.is_news(address) {
            let trouble = Trouble::AddressInUse {
                subnet,
                address,
                by,
            };
            alert::raise(self.cluster.clone(), trouble).await;
        }
    }
}
