//! A proposal that waits, and what becomes of it.

use std::io;

use bytes::Bytes;
use muster_storage::{Command, Entry, Outcome, Proposal, Timestamp, schema};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::DEADLINE;
use crate::Error;

/// Octets of one proposal: well below what one message of the peer link may hold.
pub const PROPOSAL_BYTES_MAX: usize = 32 << 20;

/// Why there is no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Certainly not committed.
    NotLeader,
    /// Certainly not committed.
    Overloaded,
    /// Certainly not committed, and never will be.
    TooLarge,
    /// Perhaps committed.
    Unknown,
}

/// A proposal that got no outcome, given back.
pub struct Setback {
    pub proposal: Proposal,
    pub why: Why,
}

/// A waiting proposal.
pub struct Ticket {
    pub proposal: Proposal,
    /// Octets of the proposal, encoded.
    pub bytes: usize,
    pub reply: oneshot::Sender<Result<Outcome, Setback>>,
    since: Instant,
}

impl Ticket {
    pub fn new(
        proposal: Proposal,
        bytes: usize,
    ) -> (Self, oneshot::Receiver<Result<Outcome, Setback>>) {
        let (reply, receiver) = oneshot::channel();
        let ticket = Self {
            proposal,
            bytes,
            reply,
            since: Instant::now(),
        };
        (ticket, receiver)
    }

    /// Whether it has waited here for so long that nobody counts on it, or whoever asked has given up:
    /// a write that comes much later than it was asked for may meet another world.
    fn is_over(&self) -> bool {
        self.reply.is_closed() || self.since.elapsed() > DEADLINE
    }

    pub fn give_back(self, why: Why) {
        // Whoever asked may have given up.
        let _ = self.reply.send(Err(Setback {
            proposal: self.proposal,
            why,
        }));
    }
}

/// Gives back those that need not be served any more.
pub fn give_up_late(tickets: &mut Vec<Ticket>) {
    for late in tickets.extract_if(.., |ticket| ticket.is_over()) {
        late.give_back(Why::NotLeader);
    }
}

/// Octets of a proposal, encoded.
pub fn octets(proposal: &Proposal) -> Result<usize, Error> {
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

/// Tells every ticket its result; those that have none, that it is not known.
pub fn settle(tickets: Vec<Ticket>, results: Vec<Result<Outcome, Why>>) {
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
pub fn encode(at: Timestamp, tickets: &mut [Ticket]) -> Result<Bytes, schema::Corrupt> {
    let take = |ticket: &mut Ticket| {
        let spare = Proposal {
            request: ticket.proposal.request,
            actor: ticket.proposal.actor.clone(),
            if_match: None,
            remember: None,
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use muster_storage::{Actor, RequestId};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn octets_are_those_of_the_encoding() {
        let proposal = Proposal {
            request: RequestId(Uuid::nil()),
            actor: Actor("test".into()),
            if_match: None,
            remember: None,
            command: Command::RevokeJoinTokens,
        };
        let encoded = rmp_serde::to_vec_named(&proposal).unwrap();
        assert_eq!(octets(&proposal).unwrap(), encoded.len());
    }
}
