//! What this node knows of its peers' health: heard from their own mouth, moments ago.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::wire::proto;

/// A peer that has been silent for as long as this is dead.
const SILENCE: Duration = Duration::from_millis(700);

/// The last that was heard of a peer.
#[derive(Clone, Debug)]
pub struct Contact {
    /// When.
    pub at: Instant,
    /// What it said.
    pub status: proto::Status,
    /// Its machine refused a connection since: nobody listens there.
    refused: bool,
}

impl Contact {
    /// Whether the peer is there.
    pub fn live(&self) -> bool {
        !self.refused && self.status.fault.is_empty() && self.at.elapsed() < SILENCE
    }
}

/// All peers' contacts.
pub struct Board {
    contacts: Mutex<BTreeMap<u64, Contact>>,
    live: watch::Sender<Vec<u64>>,
    /// Those of them that are not about to stop.
    serving: watch::Sender<Vec<u64>>,
    /// Wakes whoever waits for [`Board::end_seen`].
    ends: Notify,
    /// Those whose state is seen to differ from this node's.
    differing: Mutex<BTreeSet<u64>>,
}

impl Board {
    /// Nothing heard yet.
    pub fn new() -> Self {
        Self {
            contacts: Mutex::default(),
            live: watch::Sender::default(),
            serving: watch::Sender::default(),
            ends: Notify::new(),
            differing: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Contact>> {
        self.contacts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer said how it is.
    pub fn heard(&self, peer: u64, status: proto::Status) {
        let ended = status.ended != 0;
        let contact = Contact {
            at: Instant::now(),
            status,
            refused: false,
        };
        self.lock().insert(peer, contact);
        self.refresh();
        if ended {
            self.ends.notify_one();
        }
    }

    /// A peer's machine refused a connection.
    pub fn refused(&self, peer: u64) {
        if let Some(contact) = self.lock().get_mut(&peer) {
            contact.refused = true;
        }
        self.refresh();
        self.ends.notify_one();
    }

    /// Waits until this node or another one sees that a peer's process has ended.
    pub async fn end_seen(&self) {
        self.ends.notified().await;
    }

    /// Whether a peer's process is seen to have ended: its machine is there, and nobody listens.
    pub fn has_ended(&self, peer: u64) -> bool {
        self.lock()
            .get(&peer)
            .is_some_and(|contact| contact.refused)
    }

    /// A peer left the cluster.
    pub fn forget(&self, peer: u64) {
        self.lock().remove(&peer);
        self.refresh();
    }

    /// The last contact with a peer.
    pub fn contact(&self, peer: u64) -> Option<Contact> {
        self.lock().get(&peer).cloned()
    }

    /// Whether a peer is there.
    pub fn is_live(&self, peer: u64) -> bool {
        self.lock().get(&peer).is_some_and(Contact::live)
    }

    /// Whether a peer is there but about to stop.
    pub fn is_draining(&self, peer: u64) -> bool {
        self.lock()
            .get(&peer)
            .is_some_and(|contact| contact.live() && contact.status.draining)
    }

    /// Whether a peer was there and is not any more. A peer not heard of yet is neither.
    pub fn is_dead(&self, peer: u64) -> bool {
        self.lock()
            .get(&peer)
            .is_some_and(|contact| !contact.live())
    }

    /// Notices silence; called often.
    pub fn refresh(&self) {
        let (mut live, mut serving) = (Vec::new(), Vec::new());
        for (id, contact) in self.lock().iter().filter(|(_, contact)| contact.live()) {
            live.push(*id);
            if !contact.status.draining {
                serving.push(*id);
            }
        }
        self.serving.send_if_modified(|known| {
            let changed = *known != serving;
            *known = serving;
            changed
        });
        self.live.send_if_modified(|known| {
            let changed = *known != live;
            if changed {
                metrics::gauge!("muster_raft_live_peers").set(live.len() as f64);
                *known = live;
            }
            changed
        });
    }

    /// Notes whose state differs from this node's; returns those of whom it was not known.
    pub fn set_differing(&self, peers: BTreeSet<u64>) -> Vec<u64> {
        metrics::gauge!("muster_raft_diverged_peers").set(peers.len() as f64);
        let mut known = self
            .differing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let new = peers.difference(&known).copied().collect();
        *known = peers;
        new
    }

    /// Whether a peer's state is seen to differ from this node's.
    pub fn differs(&self, peer: u64) -> bool {
        self.differing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&peer)
    }

    /// The live peers that are not about to stop, and a way to wait for changes.
    pub fn serving(&self) -> watch::Receiver<Vec<u64>> {
        self.serving.subscribe()
    }

    /// The live peers, and a way to wait for changes.
    pub fn live(&self) -> watch::Receiver<Vec<u64>> {
        self.live.subscribe()
    }
}
