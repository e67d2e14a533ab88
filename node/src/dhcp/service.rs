//! The shell: batches of packets become decisions under one read of the state, decisions become
//! replies and proposals.

mod facts;
mod gossip;
mod later;
mod look;
mod probe;
mod sight;
mod why;

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dhcproto::v4::MessageType;
use muster_raft::Cluster;
use muster_storage::model::{NodeId, Step};
use muster_storage::{Actor, Command, Outcome, Proposal, RequestId, State, Timestamp};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::Options;
use super::decide::{Action, Reason, conclude};
use super::foreign::{self, Intruders};
use super::inbox::Packet;
use super::metrics::{self, Commit};
use super::offers::{ClientHash, ExchangeHash, Notice, Progress, Recent, SAME_COPY};
use super::rank;
use super::refusals::{Refusals, Refused};
use super::relays::Relays;
use super::rendering::{self, Rendered};
use super::reply::Reply;
use super::request::Request;
use super::socket::{Link, Port};
use crate::spans::{Protocol, Visit};
use gossip::Outbox;
use later::Later;
use look::{Looked, Stage, Verdict};
use probe::Prober;
use sight::Sight;

/// Requests that wait for a commit, a read-index or a peer, at most; more are dropped.
const WAITING_MAX: usize = 4096;

/// Below this many free places only clients that already chose an address are taken.
const DISCOVER_PLACES: usize = WAITING_MAX / 4;

/// How long a commit may take until its client has certainly asked again.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a node catches up before it stays silent (DESIGN invariant 4).
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a packet is kept while the cluster elects a leader: clients send a copy after 4 s
/// (RFC 2131 §4.1, PXE 2.1 §2.2.5), and that one starts anew.
const PATIENCE: Duration = Duration::from_millis(3500);

/// How much longer to wait for a peer that has proposed the write.
const PROPOSED_GRACE: Duration = Duration::from_millis(400);

/// How old a packet may be when it is first looked at: after that its sender has sent a copy or given
/// up. A DECLINE is not repeated, and nobody waits for it.
fn fresh_for(kind: MessageType) -> Duration {
    match kind {
        MessageType::Decline => Duration::from_secs(10),
        _ => PATIENCE,
    }
}

/// What all links share.
pub struct Service {
    cluster: Cluster,
    node: NodeId,
    actor: Actor,
    options: Options,
    recent: Mutex<Recent>,
    refusals: Mutex<Refusals>,
    told: Mutex<foreign::Told>,
    intruders: Mutex<Intruders>,
    relays: Mutex<Relays>,
    prober: Prober,
    /// Peers that are there.
    live: watch::Receiver<Vec<u64>>,
    waiting: Arc<Semaphore>,
    outbox: Outbox,
    later: Later,
}

/// A request on its way.
#[derive(Clone)]
struct Exchange {
    request: Arc<Request>,
    link: Arc<Link>,
    hash: ExchangeHash,
    received: Instant,
    rendered: Arc<Rendered>,
}

/// What is asked, without how it came.
#[derive(Clone, Copy)]
struct Asked<'a> {
    request: &'a Request,
    hash: ExchangeHash,
    rendered: &'a Rendered,
}

impl Exchange {
    fn asked(&self) -> Asked<'_> {
        Asked {
            request: &self.request,
            hash: self.hash,
            rendered: &self.rendered,
        }
    }
}

impl Service {
    pub fn new(cluster: Cluster, options: Options) -> Arc<Self> {
        Arc::new(Self {
            node: cluster.node_id(),
            actor: Actor(format!("node:{}", cluster.node_name())),
            live: cluster.serving(),
            cluster,
            options,
            recent: Mutex::default(),
            refusals: Mutex::default(),
            told: Mutex::default(),
            intruders: Mutex::default(),
            relays: Mutex::default(),
            prober: Prober::default(),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            outbox: Outbox::default(),
            later: Later::default(),
        })
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what a peer said.
    pub fn heard(&self, bytes: &[u8]) {
        let notices = Notice::decode(bytes);
        let now = Instant::now();
        let mut recent = self.recent();
        for notice in notices {
            recent.note(notice, now);
        }
    }

    /// Decides a batch of packets from one link.
    pub fn receive(self: &Arc<Self>, link: &Arc<Link>, batch: Vec<Packet>) {
        let mut exchanges: Vec<Exchange> = batch
            .into_iter()
            .filter_map(
                |packet| match Request::parse(&packet.bytes, packet.arrival) {
                    Ok(request) => Some(Exchange {
                        hash: exchange_hash(&request),
                        request: Arc::new(request),
                        link: Arc::clone(link),
                        received: packet.received,
                        rendered: Arc::default(),
                    }),
                    Err(malformed) => {
                        tracing::debug!(interface = link.name, error = %malformed, "packet dropped");
                        metrics::dropped(malformed.label());
                        None
                    }
                },
            )
            .collect();
        metrics::received(exchanges.iter().map(|exchange| exchange.request.kind));
        exchanges.retain(|exchange| !self.is_stale(exchange));
        let standing = self.standing();
        let verdicts: Vec<Verdict> = self.cluster.read(|state| {
            self.note_relays(state, &exchanges);
            exchanges
                .iter()
                .map(|exchange| self.first_look(state, &standing, exchange))
                .collect()
        });
        let mut notices = Vec::new();
        for (exchange, verdict) in exchanges.into_iter().zip(verdicts) {
            match verdict {
                Verdict::Now(looked) => match looked.action {
                    Action::Reply(reply) => {
                        self.send(
                            &exchange,
                            &reply,
                            looked.source,
                            looked.client,
                            Commit::None,
                            &mut notices,
                        );
                    }
                    Action::Silent(reason) if !worth_keeping(&exchange, reason) => {
                        self.silent(&exchange, reason);
                    }
                    _ => {
                        if matches!(looked.action, Action::Propose(_)) {
                            notices.push(Notice::Exchange(exchange.hash, Progress::Proposed));
                        }
                        self.wait(&exchange.clone(), move |service| async move {
                            service.finish(exchange, *looked).await;
                        });
                    }
                },
                Verdict::After(delay) => {
                    if let Some(place) = self.place(&exchange) {
                        self.later.push(exchange, delay, place);
                    }
                }
                Verdict::Render => {
                    self.wait(&exchange.clone(), move |service| async move {
                        service.look_and_finish(exchange, false).await;
                    });
                }
            }
        }
        self.tell(&notices);
    }

    /// Drops a packet that waited in the kernel for too long.
    fn is_stale(&self, exchange: &Exchange) -> bool {
        let stale = exchange.received.elapsed() > fresh_for(exchange.request.kind);
        if stale {
            self.silent(exchange, Reason::Stale);
        }
        stale
    }

    /// Room for a packet that has to wait, if there is any.
    fn place(&self, exchange: &Exchange) -> Option<OwnedSemaphorePermit> {
        let scarce = self.waiting.available_permits() < DISCOVER_PLACES;
        let first_to_go = exchange.request.kind == MessageType::Discover;
        match Arc::clone(&self.waiting).try_acquire_owned() {
            Ok(place) if !(scarce && first_to_go) => Some(place),
            _ => {
                self.silent(exchange, Reason::Overload);
                None
            }
        }
    }

    /// Runs what has to wait, if there is room for it.
    fn wait<F, W>(self: &Arc<Self>, exchange: &Exchange, work: F)
    where
        F: FnOnce(Arc<Self>) -> W + Send + 'static,
        W: Future<Output = ()> + Send,
    {
        if let Some(place) = self.place(exchange) {
            self.spawn(place, work);
        }
    }

    fn spawn<F, W>(self: &Arc<Self>, place: OwnedSemaphorePermit, work: F)
    where
        F: FnOnce(Arc<Self>) -> W + Send + 'static,
        W: Future<Output = ()> + Send,
    {
        let service = Arc::clone(self);
        tokio::spawn(async move {
            work(service).await;
            drop(place);
        });
    }

    /// Decides one packet by itself. `unheard` says that it came by a relay and that the nodes that
    /// come first said nothing of it.
    async fn look_and_finish(self: Arc<Self>, mut exchange: Exchange, unheard: bool) {
        if self
            .cluster
            .read(|state| rendering::needed(state, &exchange.request))
        {
            let rendered = rendering::render(&self.cluster, &exchange.request).await;
            exchange.rendered = Arc::new(rendered);
        }
        let looked = self.look(&exchange, Stage::InTurn);
        if unheard && matches!(looked.action, Action::Reply(_) | Action::Propose(_)) {
            // They would have answered too: the relay does not send to them.
            let relay = exchange.request.giaddr;
            self.recent().only_here(relay, Instant::now());
        }
        self.finish(exchange, looked).await;
    }

    fn progress(&self, exchange: &Exchange) -> Option<Progress> {
        Self::progress_in(&self.recent(), exchange)
    }

    fn progress_in(recent: &Recent, exchange: &Exchange) -> Option<Progress> {
        // A peer may have had the packet before us, and told us so before we looked at it.
        let since = exchange
            .received
            .checked_sub(SAME_COPY)
            .unwrap_or(exchange.received);
        recent.progress(exchange.hash, since, Instant::now())
    }

    /// Carries an action through to its reply.
    async fn finish(self: Arc<Self>, exchange: Exchange, mut looked: Looked) {
        let mut notices = Vec::new();
        let mut stage = Stage::InTurn;
        loop {
            let caught_up = match looked.action {
                Action::Reply(reply) => {
                    self.send(
                        &exchange,
                        &reply,
                        looked.source,
                        looked.client,
                        Commit::None,
                        &mut notices,
                    );
                    break;
                }
                Action::Propose(command) => {
                    self.propose(&exchange, command, looked.source, &mut notices)
                        .await;
                    break;
                }
                Action::Confirm if stage == Stage::CaughtUp => {
                    return self.silent(&exchange, Reason::NotCaughtUp);
                }
                Action::Confirm => self.catch_up().await,
                Action::Silent(reason) if worth_keeping(&exchange, reason) => false,
                Action::Silent(reason) => return self.silent(&exchange, reason),
            };
            if !caught_up && let Err(reason) = self.outlast_election(&exchange).await {
                return self.silent(&exchange, reason);
            }
            if caught_up {
                stage = Stage::CaughtUp;
            }
            looked = self.look(&exchange, stage);
        }
        self.tell(&notices);
    }

    async fn catch_up(&self) -> bool {
        let catch_up = self.cluster.read_linear(|_| ());
        matches!(
            tokio::time::timeout(CONFIRM_TIMEOUT, catch_up).await,
            Ok(Ok(()))
        )
    }

    /// Keeps a packet that came while there was no leader until there is one, and then until those
    /// that come first have had their time; the reason why not, when that is in vain.
    async fn outlast_election(&self, exchange: &Exchange) -> Result<(), Reason> {
        if exchange.received.elapsed() >= PATIENCE {
            return Err(Reason::NotCaughtUp);
        }
        let end = tokio::time::Instant::from_std(exchange.received + PATIENCE);
        let elected = tokio::time::timeout_at(end, self.cluster.outlast_election()).await;
        if elected != Ok(true) {
            return Err(Reason::NoQuorum);
        }
        let standing = self.standing();
        let rank = self
            .cluster
            .read(|state| Sight::new(self, state, &standing, exchange.asked()).rank());
        tokio::time::sleep(rank::delay(
            rank.unwrap_or_default(),
            exchange.request.relayed(),
        ))
        .await;
        match self.progress(exchange) {
            Some(Progress::Answered) => Err(Reason::Answered),
            _ => Ok(()),
        }
    }

    /// Commit before promise: what is not committed in time is not answered.
    async fn propose(
        &self,
        exchange: &Exchange,
        command: Command,
        source: Ipv4Addr,
        notices: &mut Vec<Notice>,
    ) {
        if self.progress(exchange).is_none() {
            self.tell(&[Notice::Exchange(exchange.hash, Progress::Proposed)]);
        }
        let proposal = Proposal {
            request: RequestId(uuid::Uuid::new_v4()),
            actor: self.actor.clone(),
            if_match: None,
            remember: None,
            command: self.dated(command, exchange.received),
        };
        let commit = self.cluster.propose(proposal);
        let outcome: Outcome = match tokio::time::timeout(COMMIT_TIMEOUT, commit).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(problem)) => {
                tracing::debug!(error = %problem, "not committed");
                return self.silent(exchange, Reason::NotCommitted);
            }
            Err(_) => return self.silent(exchange, Reason::CommitTimeout),
        };
        let standing = self.standing();
        let reply = self.cluster.read(|state| {
            let sight = Sight::new(self, state, &standing, exchange.asked());
            sight.view(Stage::CaughtUp, |view| {
                conclude(state, &exchange.request, &outcome, view, standing.now)
            })
        });
        match reply {
            Ok(Some(reply)) => {
                self.send(exchange, &reply, source, None, Commit::Waited, notices);
            }
            Ok(None) => {
                metrics::done(exchange.request.kind);
                notices.push(Notice::Exchange(exchange.hash, Progress::Answered));
            }
            Err(reason) => {
                if let Err(rejection) = &outcome.result {
                    metrics::rejected(rejection);
                }
                self.silent(exchange, reason);
            }
        }
    }

    /// A RELEASE with the time when it was sent: it must not end what its client is given meanwhile.
    /// Older nodes do not know of that.
    fn dated(&self, mut command: Command, received: Instant) -> Command {
        if let Command::Release { sent, .. } = &mut command
            && self.cluster.read(State::schema) >= 2
        {
            let ago = u64::try_from(received.elapsed().as_millis()).unwrap_or(u64::MAX);
            *sent = Some(Timestamp(self.cluster.now().0.saturating_sub(ago)));
        }
        command
    }

    /// Counts a packet that is not answered, and remembers why.
    fn silent(&self, exchange: &Exchange, reason: Reason) {
        metrics::silent(std::iter::once(exchange.request.kind), reason.label());
        self.remember_silence(exchange, reason);
    }

    fn remember_silence(&self, exchange: &Exchange, reason: Reason) {
        tracing::debug!(
            interface = exchange.link.name,
            client = %hex::encode(exchange.request.sender()),
            kind = metrics::label(exchange.request.kind),
            reason = reason.label(),
            "not answered"
        );
        if reason.concerns_client() {
            self.note_refusal(exchange, Refused::Silent(reason));
        }
    }

    /// Notes for the timeline of a machine that boots that it has an address.
    fn note_boot(&self, request: &Request, reply: &Reply, received: Instant) {
        let (Some(mac), Some(step)) = (request.client.mac, boot_step(request, reply)) else {
            return;
        };
        let machine = self
            .cluster
            .read(|state| state.machine_with_mac(mac).map(|machine| machine.uuid));
        if let Some(machine) = machine {
            let visit = Visit {
                protocol: Protocol::Dhcp,
                began: received,
            };
            self.options.recorder.note(machine, step, visit);
        }
    }

    fn send(
        &self,
        exchange: &Exchange,
        reply: &Reply,
        source: Ipv4Addr,
        client: Option<ClientHash>,
        commit: Commit,
        notices: &mut Vec<Notice>,
    ) {
        let request = &*exchange.request;
        let port = match request.arrival.boot_server {
            true => Port::BootServer,
            false => Port::Server,
        };
        let bytes = reply.encode(request);
        let destination = reply.destination(request);
        if let Err(problem) = exchange.link.send(port, source, destination, &bytes) {
            tracing::debug!(address = ?destination, error = %problem, "reply not sent");
            return self.silent(exchange, Reason::SendFailed);
        }
        notices.extend(offered(reply, client));
        notices.push(Notice::Exchange(exchange.hash, Progress::Answered));
        metrics::answered(request.kind, reply, commit, exchange.received.elapsed());
        self.note_boot(request, reply, exchange.received);
        if let Some(nak) = reply.nak {
            self.note_refusal(exchange, Refused::Nak(nak));
        }
        tracing::debug!(
            interface = exchange.link.name,
            client = %hex::encode(request.sender()),
            kind = metrics::label(reply.kind),
            address = %reply.yiaddr,
            "answered"
        );
    }
}

/// What a reply is in the boot of a machine. What runs renews without being booted.
fn boot_step(request: &Request, reply: &Reply) -> Option<Step> {
    let address = reply.yiaddr;
    if !request.client.boots || !request.ciaddr.is_unspecified() || address.is_unspecified() {
        return None;
    }
    match reply.kind {
        MessageType::Offer => Some(Step::Offered { address }),
        MessageType::Ack => Some(Step::Bound { address }),
        _ => None,
    }
}

/// The offer that a reply makes.
fn offered(reply: &Reply, client: Option<ClientHash>) -> Option<Notice> {
    let offer = reply.kind == MessageType::Offer && !reply.yiaddr.is_unspecified();
    Some(Notice::Offered(reply.yiaddr, client.filter(|_| offer)?))
}

fn exchange_hash(request: &Request) -> ExchangeHash {
    let xid = u64::from(request.xid) << 8 | u64::from(u8::from(request.kind));
    rank::mix(rank::hash(request.sender()) ^ rank::mix(xid))
}

/// Whether a packet that came while there was no leader waits for one. A RELEASE does not: what its
/// sender does next may be answered before it, and it would end a lease that was confirmed since.
fn worth_keeping(exchange: &Exchange, reason: Reason) -> bool {
    reason == Reason::NoQuorum && exchange.request.kind != MessageType::Release
}
