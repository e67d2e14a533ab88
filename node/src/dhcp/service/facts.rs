//! What this node heard on its links that people may have to look into.

use std::net::Ipv4Addr;
use std::sync::PoisonError;
use std::time::Instant;

use muster_storage::state::State;

use super::{Exchange, Service};
use crate::dhcp::foreign::Intruder;
use crate::dhcp::relays::Seen;

impl Service {
    /// Remembers the relays by which packets came.
    pub(super) fn note_relays(&self, state: &State, exchanges: &[Exchange]) {
        let relayed = || exchanges.iter().filter(|it| it.request.relayed());
        if relayed().next().is_none() {
            return;
        }
        let mut relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        for exchange in relayed() {
            let request = &*exchange.request;
            let subnet = state.subnets_of_link(&request.client.link).next();
            let subnet = subnet.map(|subnet| subnet.name.as_str());
            relays.note(request.giaddr, subnet, exchange.received);
        }
    }

    pub(in crate::dhcp) fn note_intruder(&self, server: Ipv4Addr, subnet: &str) {
        let mut seen = self
            .intruders
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        seen.note(server, subnet, Instant::now());
    }

    /// Relays that forwarded something to this node.
    pub fn relays(&self) -> Vec<Seen> {
        let relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        relays.seen(Instant::now())
    }

    /// Servers that clients chose and that should not be there.
    pub fn intruders(&self) -> Vec<Intruder> {
        let mut seen = self
            .intruders
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        seen.seen(Instant::now())
    }
}
