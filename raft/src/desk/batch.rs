//! Taking from a queue what fits into one message or log entry.

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
    /// What did not fit into the last one.
    held: Option<Ticket>,
}

impl Batches {
    pub fn new(queue: mpsc::Receiver<Ticket>, limits: Limits) -> Self {
        Self {
            queue,
            limits,
            held: None,
        }
    }

    /// How many proposals wait.
    pub fn waiting(&self) -> usize {
        self.queue.len() + usize::from(self.held.is_some())
    }

    /// The next batch, never empty; nothing when the queue has ended.
    pub async fn next(&mut self) -> Option<Vec<Ticket>> {
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
}
