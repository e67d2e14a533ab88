//! Taking from a queue what fits into one message or log entry.

use std::collections::VecDeque;

use muster_storage::{Command, Proposal};
use tokio::sync::mpsc;

use super::ticket::Ticket;

/// Octets of proposals in one message or log entry, more only when the first alone has more.
pub const BATCH_BYTES: usize = 4 << 20;

/// What one batch may hold.
#[derive(Clone, Copy)]
pub struct Limits {
    pub proposals: usize,
    pub commands: usize,
    pub bytes: usize,
}

/// Takes from a queue what fits into one batch.
pub struct Batches {
    queue: mpsc::Receiver<Ticket>,
    limits: Limits,
    /// Taken from the queue already.
    held: VecDeque<Ticket>,
}

impl Batches {
    pub fn new(queue: mpsc::Receiver<Ticket>, limits: Limits) -> Self {
        Self {
            queue,
            limits,
            held: VecDeque::new(),
        }
    }

    /// Waits until so many proposals wait, or the queue has ended.
    pub async fn gather(&mut self, enough: usize) {
        while self.queue.len().saturating_add(self.held.len()) < enough {
            let Some(ticket) = self.queue.recv().await else {
                return;
            };
            self.held.push_back(ticket);
        }
    }

    /// The next batch, never empty; nothing when the queue has ended.
    pub async fn next(&mut self) -> Option<Vec<Ticket>> {
        let first = match self.held.pop_front() {
            Some(ticket) => ticket,
            None => self.queue.recv().await?,
        };
        let mut commands = weight(&first.proposal);
        let mut bytes = first.bytes;
        let mut tickets = vec![first];
        while tickets.len() < self.limits.proposals {
            let next = self.held.pop_front();
            let Some(ticket) = next.or_else(|| self.queue.try_recv().ok()) else {
                break;
            };
            commands = commands.saturating_add(weight(&ticket.proposal));
            bytes = bytes.saturating_add(ticket.bytes);
            if commands > self.limits.commands || bytes > self.limits.bytes {
                self.held.push_front(ticket);
                break;
            }
            tickets.push(ticket);
        }
        Some(tickets)
    }
}

fn weight(proposal: &Proposal) -> usize {
    match &proposal.command {
        Command::Many(commands) => commands.len().max(1),
        _ => 1,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use muster_storage::{Actor, RequestId};
    use uuid::Uuid;

    use super::*;

    fn ticket(bytes: usize, command: Command) -> Ticket {
        let proposal = Proposal {
            request: RequestId(Uuid::nil()),
            actor: Actor("test".into()),
            if_match: None,
            remember: None,
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

    #[tokio::test]
    async fn what_was_gathered_comes_first_and_in_order() {
        let limits = Limits {
            proposals: 8,
            commands: 8,
            bytes: 10,
        };
        let (sender, queue) = mpsc::channel(64);
        let mut batches = Batches::new(queue, limits);
        let send = |bytes| sender.try_send(small(bytes)).ok().unwrap();
        for bytes in [4, 5, 6] {
            send(bytes);
        }
        batches.gather(2).await;
        assert_eq!(batches.held.len(), 0, "enough wait in the queue");
        tokio::select! {
            biased;
            () = batches.gather(5) => unreachable!("there are three"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(batches.held.len(), 3, "none is lost by giving up");
        send(7);
        for expected in [vec![4, 5], vec![6], vec![7]] {
            let batch = batches.next().await.unwrap();
            let sizes: Vec<usize> = batch.iter().map(|ticket| ticket.bytes).collect();
            assert_eq!(sizes, expected);
        }
        drop(sender);
        batches.gather(1).await;
        assert!(batches.next().await.is_none());
    }
}
