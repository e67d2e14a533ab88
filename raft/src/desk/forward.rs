//! Both ends of forwarding: a follower sends what its services propose to the leader, and the
//! leader answers.

use std::sync::Arc;
use std::time::Duration;

use muster_storage::{Outcome, Timestamp, schema};
use tokio::sync::{Semaphore, mpsc};
use tonic::{Code, Status};

use super::DEADLINE;
use super::batch::{BATCH_BYTES, Batches, Limits};
use super::ticket::{PROPOSAL_BYTES_MAX, Ticket, Why, encode, give_up_late, octets, settle};
use crate::inner::Inner;
use crate::wire::proto;

/// Proposals in one message to the leader.
const FORWARD_MAX: usize = 1024;
/// Messages to the leader on their way. Few, so that a busy node gathers more into each.
const FORWARDS_IN_FLIGHT: usize = 2;

/// Sends what this node's services propose on its way: to the bench if this node leads, else to who
/// does.
pub async fn dispatch(inner: Arc<Inner>, queue: mpsc::Receiver<Ticket>) {
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
        give_up_late(&mut tickets);
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

async fn forward(inner: &Inner, leader: u64, mut tickets: Vec<Ticket>) {
    metrics::histogram!("muster_raft_forward_proposals").record(tickets.len() as f64);
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
    if !inner.view().leading || inner.check_running().is_err() {
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

fn decode_result(proposed: proto::Proposed) -> Result<Outcome, Why> {
    use proto::proposed::Result as R;
    match proposed.result {
        Some(R::Outcome(bytes)) => rmp_serde::from_slice(&bytes).map_err(|_| Why::Unknown),
        Some(R::Failure(failure)) => Err(match proto::Failure::try_from(failure) {
            Ok(proto::Failure::NotLeader) => Why::NotLeader,
            Ok(proto::Failure::Overloaded) => Why::Overloaded,
            Ok(proto::Failure::TooLarge) => Why::TooLarge,
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
        Err(Why::Unknown) => failure(proto::Failure::Unknown),
    };
    proto::Proposed {
        result: Some(result),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lacks_the_leader_is_told_apart_from_who_was_refused() {
        assert!(certainly_not_done(&Status::failed_precondition("")));
        assert!(certainly_not_done(&Status::permission_denied("")));
        // A full window or a size limit may be met after the proposal was taken.
        assert!(!certainly_not_done(&Status::resource_exhausted("")));
        assert!(!certainly_not_done(&Status::unavailable("")));
    }
}
