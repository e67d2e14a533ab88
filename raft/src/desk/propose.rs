//! Proposing, on whichever node: again and again until there is an answer or no time left.

use std::time::Duration;

use muster_storage::schema::{self, Needs};
use muster_storage::{Command, Outcome, Proposal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::DEADLINE;
use super::ticket::{PROPOSAL_BYTES_MAX, Setback, Ticket, Why, octets};
use crate::Error;
use crate::inner::Inner;

/// Between two looks for a leader.
const RETRY: Duration = Duration::from_millis(25);
/// Between two looks whether there is a quorum, while an answer is awaited.
const LOOK: Duration = Duration::from_millis(500);

/// Proposes, and waits for the outcome.
pub async fn propose(inner: &Inner, mut proposal: Proposal) -> Result<Outcome, Error> {
    let deadline = Instant::now() + DEADLINE;
    let may_repeat = proposal.remember.is_some() || repeatable(&proposal.command);
    let bytes = octets(&proposal)?;
    if bytes > PROPOSAL_BYTES_MAX {
        return Err(too_large());
    }
    // The leader may be of a version that cannot read it.
    if proposal.command.needs() > schema::OLDEST {
        let known = inner
            .memory
            .read(|state| state.check_needs(&proposal.command));
        known.map_err(|rejection| Error::Refused(rejection.to_string()))?;
    }
    // Whether an attempt may have been committed.
    let mut open = false;
    loop {
        inner
            .check_running()
            .map_err(|error| if open { Error::Timeout } else { error })?;
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
            // Refused, but an earlier copy may still arrive and not be.
            Some(Ok(outcome)) if open && outcome.result.is_err() => return Err(Error::Timeout),
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
        }
        proposal = setback.proposal;
        // A leader that lost its quorum refuses at once: without the pause this would spin.
        let mut view = inner.view.clone();
        view.mark_unchanged();
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

/// Waits until there is a quorum; false when there has been none for longer than an election takes.
pub async fn outlast_election(inner: &Inner) -> bool {
    let mut view = inner.view.clone();
    loop {
        if inner.has_quorum() {
            return true;
        }
        if inner.desk.in_minority() || inner.check_running().is_err() {
            return false;
        }
        let _ = tokio::time::timeout(RETRY, view.changed()).await;
    }
}

/// Whether a command may be made twice without harm, though nobody remembers the first.
fn repeatable(command: &Command) -> bool {
    matches!(
        command,
        Command::Bind(_)
            | Command::Expire
            | Command::Reclaim { .. }
            | Command::CorrectTime { .. }
            | Command::UpdateMember(_)
            | Command::RaiseSchema { .. }
            | Command::AddJoinToken(_)
            | Command::AddToken(_)
            | Command::Report { .. }
            | Command::OpenAttempt { .. }
            | Command::LockMachine { .. }
            | Command::UnlockMachine { .. }
            | Command::LabelMachine { .. }
            | Command::BootStalled { .. }
    )
}

fn too_large() -> Error {
    Error::Refused(format!(
        "the write is larger than {} MiB; make it in parts",
        PROPOSAL_BYTES_MAX >> 20
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use muster_storage::{Actor, NodeId, RequestId};
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn what_is_too_large_for_the_peer_link_is_refused_before_it_is_written() {
        let cluster = crate::Cluster::solo().await;
        let proposal = Proposal {
            request: RequestId(Uuid::nil()),
            actor: Actor("x".repeat(PROPOSAL_BYTES_MAX)),
            if_match: None,
            remember: None,
            command: Command::RemoveMember { node: NodeId(7) },
        };
        let before = cluster.read(muster_storage::State::revision);
        let refused = cluster.propose(proposal).await;
        assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
        assert_eq!(cluster.read(muster_storage::State::revision), before);
    }
}
