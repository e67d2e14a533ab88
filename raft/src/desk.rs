//! The way of a proposal: gathered on its node, forwarded to the leader in one message, put into
//! one log entry with what else is waiting there.
//!
//! There are no timers: a batch is what has queued up while earlier ones are on their way.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use muster_storage::{Command, Entry, Outcome, Proposal, Timestamp, schema};
use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::Error;
use crate::cluster::Inner;
use crate::types::EntryBytes;
use crate::wire::proto;

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
/// From the call to the answer.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks for a leader.
const RETRY: Duration = Duration::from_millis(25);

/// Why there is no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Certainly not committed.
    NotLeader,
    /// Certainly not committed.
    Overloaded,
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
    reply: oneshot::Sender<Result<Outcome, Setback>>,
}

impl Ticket {
    fn new(proposal: Proposal) -> (Self, oneshot::Receiver<Result<Outcome, Setback>>) {
        let (reply, receiver) = oneshot::channel();
        (Self { proposal, reply }, receiver)
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
        (Self { local, bench }, queues)
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

/// Proposes, and waits for the outcome.
pub async fn propose(inner: &Inner, mut proposal: Proposal) -> Result<Outcome, Error> {
    let deadline = Instant::now() + DEADLINE;
    let may_repeat = repeatable(&proposal.command);
    loop {
        inner.check_running()?;
        let (ticket, reply) = Ticket::new(proposal);
        inner.desk.local.try_send(ticket).map_err(|error| {
            metrics::counter!("muster_raft_proposals_shed_total").increment(1);
            match error {
                mpsc::error::TrySendError::Full(_) => Error::Overloaded,
                mpsc::error::TrySendError::Closed(_) => {
                    Error::Stopped("it is shutting down".into())
                }
            }
        })?;
        let setback = match tokio::time::timeout_at(deadline, reply).await {
            Ok(Ok(Ok(outcome))) => return Ok(outcome),
            Ok(Ok(Err(setback))) => setback,
            Ok(Err(_)) | Err(_) => return Err(Error::Timeout),
        };
        match setback.why {
            Why::Overloaded => return Err(Error::Overloaded),
            Why::Unknown if !may_repeat => return Err(Error::Timeout),
            Why::Unknown | Why::NotLeader => {}
        }
        proposal = setback.proposal;
        let mut view = inner.view.clone();
        let _ = tokio::time::timeout(RETRY, view.changed()).await;
        if Instant::now() >= deadline {
            return Err(match setback.why {
                Why::Unknown => Error::Timeout,
                _ => Error::NoLeader,
            });
        }
    }
}

/// Starts the workers.
pub fn start(inner: &Arc<Inner>, queues: Queues) {
    inner.spawn(dispatch(Arc::clone(inner), queues.local));
    inner.spawn(make_entries(Arc::clone(inner), queues.bench));
}

async fn dispatch(inner: Arc<Inner>, mut queue: mpsc::Receiver<Ticket>) {
    let in_flight = Arc::new(Semaphore::new(FORWARDS_IN_FLIGHT));
    let mut tickets = Vec::new();
    loop {
        let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else {
            return;
        };
        if queue.recv_many(&mut tickets, FORWARD_MAX).await == 0 {
            return;
        }
        // Those who gave up need not be served.
        tickets.retain(|ticket| !ticket.reply.is_closed());
        let (leading, leader) = inner.leadership();
        if leading {
            drop(permit);
            for ticket in tickets.drain(..) {
                if let Err(error) = inner.desk.bench.send(ticket).await {
                    error.0.give_back(Why::NotLeader);
                }
            }
            continue;
        }
        let tickets = std::mem::take(&mut tickets);
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
            | Code::ResourceExhausted
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
        let (ticket, reply) = Ticket::new(proposal);
        place.send(ticket);
        replies.push(reply);
    }
    let mut results = Vec::with_capacity(count);
    for reply in replies {
        let result = match reply.await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(setback)) => Err(setback.why),
            Err(_) => Err(Why::Unknown),
        };
        results.push(encode_result(result));
    }
    Ok(proto::ProposeReply { results })
}

fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

async fn make_entries(inner: Arc<Inner>, mut queue: mpsc::Receiver<Ticket>) {
    let in_flight = Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT));
    let mut held: Option<Ticket> = None;
    loop {
        let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else {
            return;
        };
        let first = match held.take() {
            Some(ticket) => ticket,
            None => match queue.recv().await {
                Some(ticket) => ticket,
                None => return,
            },
        };
        let mut commands = weight(&first.proposal);
        let mut tickets = vec![first];
        while tickets.len() < Entry::PROPOSALS_MAX {
            let Ok(ticket) = queue.try_recv() else {
                break;
            };
            commands += weight(&ticket.proposal);
            if commands > ENTRY_COMMANDS_MAX {
                held = Some(ticket);
                break;
            }
            tickets.push(ticket);
        }
        let writer = Arc::clone(&inner);
        inner.spawn(async move {
            write(&writer, tickets).await;
            drop(permit);
        });
    }
}

async fn write(inner: &Inner, mut tickets: Vec<Ticket>) {
    metrics::histogram!("muster_raft_entry_proposals").record(tickets.len() as f64);
    let bytes = match encode(now(), &mut tickets) {
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
