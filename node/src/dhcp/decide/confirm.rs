//! What may be said without a write.

use std::net::Ipv4Addr;

use muster_storage::command::Client;
use muster_storage::model::Lease;

use super::{Action, Case, Reason};

/// Whether a lease may be confirmed without a write.
pub(super) enum Confirmable<'a> {
    /// Yes, and for so many seconds.
    Yes(&'a Lease, u32),
    /// It would need a write.
    No,
    /// This node has not caught up since it started.
    Unchecked,
}

impl Case<'_> {
    /// What may be confirmed now without a write: with a quorum the full promise, without one
    /// whatever the committed lease still allows.
    pub(super) fn confirmable(&self, address: Ipv4Addr) -> Confirmable<'_> {
        let client = &self.request.client;
        let found = if self.view.quorum {
            self.state.confirmable(client, address, self.now)
        } else {
            let left = self
                .state
                .lease(address)
                .map_or(0, |record| self.left(&record.object));
            let shorter = Client {
                lease_secs: Some(client.lease_secs.unwrap_or(u32::MAX).min(left)),
                ..client.clone()
            };
            self.state.confirmable(&shorter, address, self.now)
        };
        match found.filter(|(lease, secs)| *secs <= self.left(lease)) {
            None => Confirmable::No,
            Some((lease, secs)) if self.view.caught_up || self.view.confirmed => {
                Confirmable::Yes(lease, secs)
            }
            Some(_) => Confirmable::Unchecked,
        }
    }

    /// What a node does that has not caught up since it started, before it confirms anything.
    pub(super) fn check(&self) -> Action {
        if self.view.quorum {
            Action::Confirm
        } else {
            Action::Silent(Reason::NotCaughtUp)
        }
    }

    /// Seconds that may be promised on a committed lease: to its end less the margin, which
    /// covers what nodes' ideas of the time differ by.
    fn left(&self, lease: &Lease) -> u32 {
        let margin = u64::from(self.state.settings().lease_margin_secs);
        let left = lease.expires_at.secs_since(self.now).saturating_sub(margin);
        u32::try_from(left).unwrap_or(u32::MAX)
    }
}
