//! The way of a proposal: gathered on its node, forwarded to the leader in one message, put into
//! one log entry with what else is waiting there.
//!
//! There are no timers: a batch is what has queued up while earlier ones are on their way.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use muster_storage::{Command, Entry, Outcome, Proposal, Timestamp, schema};
use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::cluster::Inner;
use crate::types::EntryBytes;
use crate::wire::proto;
use crate::{Error, clock};

/// Proposals that may wait on a node.
const WAITING_MAX: usize = 16_384;
/// Proposals in one message to the leader.
const FORWARD_MAX: usize = 1024;
/// Messages to the leader on their way.
const FORWARDS_IN_FLIGHT: usize = 4;
/// Log entries on their way.
const ENTRIES_IN_FLIGHT: usize = 8;
/// Commands in one log entry, those inside of bundles counted.
const ENTRY_COMMANDS_MAX: usize = 1024;
/// Octets of proposals in one message or log entry, more only when the first alone has more.
const BATCH_BYTES: usize = 4 << 20;
/// Octets of one proposal: well below what one message of the peer link may hold.
const PROPOSAL_BYTES_MAX: usize = 32 << 20;
/// From the call to the answer.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks for a leader.
const RETRY: Duration = Duration::from_millis(25);
/// Longer than an election takes: without a quorum for as long as this nobody waits any more.
const MINORITY: Duration = Duration::from_secs(2);
/// Between two looks whether there is a quorum, while an answer is awaited.
const LOOK: Duration = Duration::from_millis(500);

/// Why there is no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Certainly not committed.
    NotLeader,
    /// Certainly not committed.
    Overloaded,
    /// Certainly not committed, and never will be.
    TooLarge,
    /// Certainly not committed: the leader's clock is in doubt.
    ClockInDoubt,
    /// Perhaps committed.
    Unknown,
}

/// A proposal that got no outcome, given back.
struct Setback {
    proposal: Proposal,
    why: Why,
}

/// A waiting proposal.
pub struct Ticket {
    proposal: Proposal,
    /// Octets of the proposal, encoded.
    bytes: usize,
    reply: oneshot::Sender<Result<Outcome, Setback>>,
}

impl Ticket {
    fn new(
        proposal: Proposal,
        bytes: usize,
    ) -> (Self, oneshot::Receiver<Result<Outcome, Setback>>) {
        let (reply, receiver) = oneshot::channel();
        let ticket = Self {
            proposal,
            bytes,
            reply,
        };
        (ticket, receiver)
    }

    fn give_back(self, why: Why) {
        // Whoever asked may have given up.
        let _ = self.reply.send(Err(Setback {
            proposal: self.proposal,
            why,
        }));
    }
}

/// Both queues of a node.
pub struct Desk {
    /// What this node's services propose.
    local: mpsc::Sender<Ticket>,
    /// What is to go into the log if this node leads.
    bench: mpsc::Sender<Ticket>,
    /// Since when there has been no quorum.
    minority: Mutex<Option<Instant>>,
}

/// The receiving ends, until the workers start.
pub struct Queues {
    local: mpsc::Receiver<Ticket>,
    bench: mpsc::Receiver<Ticket>,
}

impl Desk {
    /// Empty queues.
    pub fn new() -> (Self, Queues) {
        let (local, local_queue) = mpsc::channel(WAITING_MAX);
        let (bench, bench_queue) = mpsc::channel(WAITING_MAX);
        let queues = Queues {
            local: local_queue,
            bench: bench_queue,
        };
        let desk = Self {
            local,
            bench,
            minority: Mutex::new(None),
        };
        (desk, queues)
    }

    fn minority(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.minority.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether there is a quorum now; called often.
    pub fn note_quorum(&self, quorum: bool) {
        let mut since = self.minority();
        if quorum {
            *since = None;
        } else if since.is_none() {
            *since = Some(Instant::now());
        }
    }

    /// Whether there has been no quorum for longer than an election takes.
    fn in_minority(&self) -> bool {
        self.minority()
            .is_some_and(|since| since.elapsed() > MINORITY)
    }
}

/// Whether a command may be made twice without harm.
fn repeatable(command: &Command) -> bool {
    matches!(
        command,
        Command::Bind(_)
            | Command::Expire
            | Command::Reclaim { .. }
            | Command::UpdateMember(_)
            | Command::AddJoinToken(_)
            | Command::AddToken(_)
            | Command::Report { .. }
    )
}

fn weight(proposal: &Proposal) -> usize {
    match &proposal.command {
        Command::Many(commands) => commands.len().max(1),
        _ => 1,
    }
}

/// Octets of a proposal, encoded.
fn octets(proposal: &Proposal) -> Result<usize, Error> {
    struct Counter(usize);
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.saturating_add(bytes.len());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    match rmp_serde::encode::write_named(&mut counter, proposal) {
        Ok(()) => Ok(counter.0),
        Err(error) => Err(Error::Refused(format!(
            "the write cannot be encoded: {error}"
        ))),
    }
}

fn too_large() -> Error {
    Error::Refused(format!(
        "the write is larger than {} MiB; make it in parts",
        PROPOSAL_BYTES_MAX >> 20
    ))
}

/// Proposes, and waits for the outcome.
pub async fn propose(inner: &Inner, mut proposal: Proposal) -> Result<Outcome, Error> {
    let deadline = Instant::now() + DEADLINE;
    let may_repeat = repeatable(&proposal.command);
    let bytes = octets(&proposal)?;
    if bytes > PROPOSAL_BYTES_MAX {
        return Err(too_large());
    }
    // Whether an attempt may have been committed.
    let mut open = false;
    loop {
        inner.check_running()?;
        let (ticket, reply) = Ticket::new(proposal, bytes);
        inner.desk.local.try_send(ticket).map_err(|error| {
            metrics::counter!("muster_raft_proposals_shed_total").increment(1);
            match error {
                _ if open => Error::Timeout,
                mpsc::error::TrySendError::Full(_) => Error::Overloaded,
                mpsc::error::TrySendError::Closed(_) => {
                    Error::Stopped("it is shutting down".into())
                }
            }
        })?;
        let setback = match answer(inner, reply, deadline).await {
            Some(Ok(outcome)) => return Ok(outcome),
            Some(Err(setback)) => setback,
            None => return Err(Error::Timeout),
        };
        open |= setback.why == Why::Unknown;
        match setback.why {
            Why::Unknown if !may_repeat => return Err(Error::Timeout),
            Why::Unknown | Why::NotLeader => {}
            _ if open => return Err(Error::Timeout),
            Why::Overloaded => return Err(Error::Overloaded),
            Why::TooLarge => return Err(too_large()),
            Why::ClockInDoubt => {
                return Err(Error::Refused(
                    "the leader's clock is in doubt, so it expires nothing".into(),
                ));
            }
        }
        proposal = setback.proposal;
        let mut view = inner.view.clone();
        let _ = tokio::time::timeout(RETRY, view.changed()).await;
        if Instant::now() >= deadline || inner.desk.in_minority() {
            return Err(if open {
                Error::Timeout
            } else {
                Error::NoLeader
            });
        }
    }
}

/// Waits for what becomes of a ticket; nothing when that takes too long.
async fn answer(
    inner: &Inner,
    mut reply: oneshot::Receiver<Result<Outcome, Setback>>,
    deadline: Instant,
) -> Option<Result<Outcome, Setback>> {
    loop {
        let look = deadline.min(Instant::now() + LOOK);
        match tokio::time::timeout_at(look, &mut reply).await {
            Ok(Ok(answered)) => return Some(answered),
            // The node is stopping.
            Ok(Err(_)) => return None,
            Err(_) if Instant::now() >= deadline || inner.desk.in_minority() => return None,
            Err(_) => {}
        }
    }
}

/// Starts the workers.
pub fn start(inner: &Arc<Inner>, queues: Queues) {
    inner.spawn(dispatch(Arc::clone(inner), queues.local));
    inner.spawn(make_entries(Arc::clone(inner), queues.bench));
}

/// What one batch may hold.
#[derive(Clone, Copy)]
struct Limits {
    proposals: usize,
    commands: usize,
    bytes: usize,
}

/// Takes from a queue what fits into one batch.
struct Batches {
    queue: mpsc::Receiver<Ticket>,
    limits: Limits,
    /// What did not fit into the last one.
    held: Option<Ticket>,
}

impl Batches {
    fn new(queue: mpsc::Receiver<Ticket>, limits: Limits) -> Self {
        Self {
            queue,
            limits,
            held: None,
        }
    }

    /// The next batch, never empty; nothing when the queue has ended.
    async fn next(&mut self) -> Option<Vec<Ticket>> {
        let first = match self.held.take() {
            Some(ticket) => ticket,
            None => self.queue.recv().await?,
        };
        let mut commands = weight(&first.proposal);
        let mut bytes = first.bytes;
        let mut tickets = vec![first];
        while tickets.len() < self.limits.proposals {
            let Ok(ticket) = self.queue.try_recv() else {
                break;
            };
            commands = commands.saturating_add(weight(&ticket.proposal));
            bytes = bytes.saturating_add(ticket.bytes);
            if commands > self.limits.commands || bytes > self.limits.bytes {
                self.held = Some(ticket);
                break;
            }
            tickets.push(ticket);
        }
        Some(tickets)
    }
}

async fn dispatch(inner: Arc<Inner>, queue: mpsc::Receiver<Ticket>) {
    let in_flight = Arc::new(Semaphore::new(FORWARDS_IN_FLIGHT));
    let mut batches = Batches::new(
        queue,
        Limits {
            proposals: FORWARD_MAX,
            commands: usize::MAX,
            bytes: BATCH_BYTES,
        },
    );
    loop {
        let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else {
            return;
        };
        let Some(mut tickets) = batches.next().await else {
            return;
        };
        // Those who gave up need not be served.
        tickets.retain(|ticket| !ticket.reply.is_closed());
        let (leading, leader) = inner.leadership();
        if leading {
            drop(permit);
            for ticket in tickets {
                if let Err(error) = inner.desk.bench.send(ticket).await {
                    error.0.give_back(Why::NotLeader);
                }
            }
            continue;
        }
        match leader {
            Some(leader) => {
                let forwarder = Arc::clone(&inner);
                inner.spawn(async move {
                    forward(&forwarder, leader, tickets).await;
                    drop(permit);
                });
            }
            _ => {
                for ticket in tickets {
                    ticket.give_back(Why::NotLeader);
                }
            }
        }
    }
}

fn settle(tickets: Vec<Ticket>, results: Vec<Result<Outcome, Why>>) {
    let results = results
        .into_iter()
        .chain(std::iter::repeat(Err(Why::Unknown)));
    for (ticket, result) in tickets.into_iter().zip(results) {
        match result {
            Ok(outcome) => {
                let _ = ticket.reply.send(Ok(outcome));
            }
            Err(why) => ticket.give_back(why),
        }
    }
}

/// The tickets' proposals as one entry, encoded; the tickets keep theirs.
fn encode(at: Timestamp, tickets: &mut [Ticket]) -> Result<Bytes, schema::Corrupt> {
    let take = |ticket: &mut Ticket| {
        let spare = Proposal {
            request: ticket.proposal.request,
            actor: ticket.proposal.actor.clone(),
            if_match: None,
            command: Command::Expire,
        };
        std::mem::replace(&mut ticket.proposal, spare)
    };
    let entry = Entry {
        at,
        proposals: tickets.iter_mut().map(take).collect(),
    };
    let bytes = schema::encode_entry(&entry);
    for (ticket, proposal) in tickets.iter_mut().zip(entry.proposals) {
        ticket.proposal = proposal;
    }
    bytes.map(Bytes::from)
}

async fn forward(inner: &Inner, leader: u64, mut tickets: Vec<Ticket>) {
    metrics::histogram!("muster_raft_forward_batch").record(tickets.len() as f64);
    let bytes = match encode(Timestamp(0), &mut tickets) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::error!(%error, "cannot encode proposals");
            return settle(tickets, Vec::new());
        }
    };
    let Ok(link) = inner.links.to(leader) else {
        let results = tickets.iter().map(|_| Err(Why::NotLeader)).collect();
        return settle(tickets, results);
    };
    let mut fast = link.fast;
    let call = fast.propose(proto::ProposeRequest { proposals: bytes });
    let results = tokio::select! {
        reply = tokio::time::timeout(DEADLINE, call) => match reply {
            Ok(Ok(reply)) => reply.into_inner().results.into_iter().map(decode_result).collect(),
            Ok(Err(status)) => {
                let why = if certainly_not_done(&status) { Why::NotLeader } else { Why::Unknown };
                tickets.iter().map(|_| Err(why)).collect()
            }
            Err(_) => Vec::new(),
        },
        () = leader_lost(inner, leader) => Vec::new(),
    };
    settle(tickets, results);
}

/// Resolves when another leader is known and the old one has had a moment to answer still.
async fn leader_lost(inner: &Inner, leader: u64) {
    let mut view = inner.view.clone();
    let changed = view
        .wait_for(|view| view.leader.is_some_and(|now| now != leader))
        .await
        .is_ok();
    if !changed {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn certainly_not_done(status: &Status) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    matches!(
        status.code(),
        Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::Unimplemented
    )
}

fn decode_result(proposed: proto::Proposed) -> Result<Outcome, Why> {
    use proto::proposed::Result as R;
    match proposed.result {
        Some(R::Outcome(bytes)) => rmp_serde::from_slice(&bytes).map_err(|_| Why::Unknown),
        Some(R::Failure(failure)) => Err(match proto::Failure::try_from(failure) {
            Ok(proto::Failure::NotLeader) => Why::NotLeader,
            Ok(proto::Failure::Overloaded) => Why::Overloaded,
            Ok(proto::Failure::TooLarge) => Why::TooLarge,
            Ok(proto::Failure::ClockInDoubt) => Why::ClockInDoubt,
            _ => Why::Unknown,
        }),
        None => Err(Why::Unknown),
    }
}

fn encode_result(result: Result<Outcome, Why>) -> proto::Proposed {
    use proto::proposed::Result as R;
    let failure = |failure: proto::Failure| R::Failure(failure.into());
    let result = match result {
        Ok(outcome) => match rmp_serde::to_vec_named(&outcome) {
            Ok(bytes) => R::Outcome(bytes.into()),
            Err(_) => failure(proto::Failure::Unknown),
        },
        Err(Why::NotLeader) => failure(proto::Failure::NotLeader),
        Err(Why::Overloaded) => failure(proto::Failure::Overloaded),
        Err(Why::TooLarge) => failure(proto::Failure::TooLarge),
        Err(Why::ClockInDoubt) => failure(proto::Failure::ClockInDoubt),
        Err(Why::Unknown) => failure(proto::Failure::Unknown),
    };
    proto::Proposed {
        result: Some(result),
    }
}

/// Answers a peer that took this node for the leader.
pub async fn serve(
    inner: &Inner,
    request: proto::ProposeRequest,
) -> Result<proto::ProposeReply, Status> {
    let entry = schema::decode_entry(&request.proposals)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let count = entry.proposals.len();
    let all = |why| proto::ProposeReply {
        results: (0..count).map(|_| encode_result(Err(why))).collect(),
    };
    if !inner.view.borrow().leading {
        return Ok(all(Why::NotLeader));
    }
    let Ok(places) = inner.desk.bench.try_reserve_many(count) else {
        return Ok(all(Why::Overloaded));
    };
    let mut replies = Vec::with_capacity(count);
    for (place, proposal) in places.zip(entry.proposals) {
        let bytes = octets(&proposal).unwrap_or(usize::MAX);
        if bytes > PROPOSAL_BYTES_MAX {
            replies.push(Err(Why::TooLarge));
            continue;
        }
        let (ticket, reply) = Ticket::new(proposal, bytes);
        place.send(ticket);
        replies.push(Ok(reply));
    }
    let mut results = Vec::with_capacity(count);
    for reply in replies {
        let result = match reply {
            Ok(reply) => match reply.await {
                Ok(Ok(outcome)) => Ok(outcome),
                Ok(Err(setback)) => Err(setback.why),
                Err(_) => Err(Why::Unknown),
            },
            Err(why) => Err(why),
        };
        results.push(encode_result(result));
    }
    Ok(proto::ProposeReply { results })
}

async fn make_entries(inner: Arc<Inner>, queue: mpsc::Receiver<Ticket>) {
    let in_flight = Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT));
    let mut batches = Batches::new(
        queue,
        Limits {
            proposals: Entry::PROPOSALS_MAX,
            commands: ENTRY_COMMANDS_MAX,
            bytes: BATCH_BYTES,
        },
    );
    loop {
        let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else {
            return;
        };
        let Some(tickets) = batches.next().await else {
            return;
        };
        let writer = Arc::clone(&inner);
        inner.spawn(async move {
            write(&writer, tickets).await;
            drop(permit);
        });
    }
}

fn expires(command: &Command) -> bool {
    match command {
        Command::Expire => true,
        Command::Many(commands) => commands.iter().any(expires),
        _ => false,
    }
}

async fn write(inner: &Arc<Inner>, tickets: Vec<Ticket>) {
    let stamp = clock::stamp_now(inner).await;
    let (refused, mut tickets): (Vec<_>, Vec<_>) = tickets
        .into_iter()
        .partition(|ticket| stamp.suspicious && expires(&ticket.proposal.command));
    for ticket in refused {
        ticket.give_back(Why::ClockInDoubt);
    }
    if tickets.is_empty() {
        return;
    }
    metrics::histogram!("muster_raft_entry_proposals").record(tickets.len() as f64);
    let bytes = match encode(stamp.at, &mut tickets) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::error!(%error, "cannot encode a log entry");
            return settle(tickets, Vec::new());
        }
    };
    let start = Instant::now();
    let why = match inner.raft.client_write(EntryBytes(bytes)).await {
        Ok(response) => {
            metrics::histogram!("muster_raft_commit_seconds").record(start.elapsed());
            return settle(tickets, response.data.0.into_iter().map(Ok).collect());
        }
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Why::NotLeader,
        Err(error) => {
            tracing::warn!(%error, "proposals without a known outcome");
            Why::Unknown
        }
    };
    let results = tickets.iter().map(|_| Err(why)).collect();
    settle(tickets, results);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use muster_storage::{Actor, NodeId, RequestId};
    use uuid::Uuid;

    use super::*;

    fn ticket(bytes: usize, command: Command) -> Ticket {
        let proposal = Proposal {
            request: RequestId(Uuid::nil()),
            actor: Actor("test".into()),
            if_match: None,
            command,
        };
        Ticket::new(proposal, bytes).0
    }

    fn small(bytes: usize) -> Ticket {
        ticket(bytes, Command::RevokeJoinTokens)
    }

    async fn batches(limits: Limits, tickets: Vec<Ticket>) -> Vec<Vec<usize>> {
        let (sender, queue) = mpsc::channel(64);
        for ticket in tickets {
            sender.try_send(ticket).ok().unwrap();
        }
        drop(sender);
        let mut batches = Batches::new(queue, limits);
        let mut all = Vec::new();
        while let Some(batch) = batches.next().await {
            all.push(batch.iter().map(|ticket| ticket.bytes).collect());
        }
        all
    }

    #[tokio::test]
    async fn a_batch_is_bounded_in_proposals_commands_and_octets() {
        let limits = Limits {
            proposals: 3,
            commands: 4,
            bytes: 100,
        };
        let tickets = [50, 50, 1, 300, 99, 2, 1, 1, 1].map(small).into();
        assert_eq!(
            batches(limits, tickets).await,
            [
                vec![50, 50],
                vec![1],
                vec![300],
                vec![99],
                vec![2, 1, 1],
                vec![1]
            ]
        );
        let many = |count| Command::Many(vec![Command::RevokeJoinTokens; count]);
        let tickets = vec![ticket(1, many(3)), ticket(2, many(2)), small(3), small(4)];
        assert_eq!(batches(limits, tickets).await, [vec![1], vec![2, 3, 4]]);
    }

    #[test]
    fn octets_are_those_of_the_encoding() {
        let ticket = small(0);
        let encoded = rmp_serde::to_vec_named(&ticket.proposal).unwrap();
        assert_eq!(octets(&ticket.proposal).unwrap(), encoded.len());
    }

    #[tokio::test]
    async fn what_is_too_large_for_the_peer_link_is_refused_before_it_is_written() {
        let cluster = crate::Cluster::solo().await;
        let proposal = Proposal {
            request: RequestId(Uuid::nil()),
            actor: Actor("x".repeat(PROPOSAL_BYTES_MAX)),
            if_match: None,
            command: Command::RemoveMember { node: NodeId(7) },
        };
        let before = cluster.read(muster_storage::State::revision);
        let refused = cluster.propose(proposal).await;
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
        assert_eq!(cluster.read(muster_storage::State::revision), before);
    }

    #[test]
    fn an_expiry_is_found_in_a_bundle() {
        assert!(expires(&Command::Many(vec![
            Command::RevokeJoinTokens,
            Command::Expire
        ])));
        assert!(!expires(&Command::RevokeJoinTokens));
    }

    #[test]
    fn who_lacks_the_leader_is_told_apart_from_who_was_refused() {
        assert!(certainly_not_done(&Status::failed_precondition("")));
        assert!(certainly_not_done(&Status::permission_denied("")));
        // A full window or a size limit may be met after the proposal was taken.
        assert!(!certainly_not_done(&Status::resource_exhausted("")));
        assert!(!certainly_not_done(&Status::unavailable("")));
    }
}
