//! What this node has promised clients without a write, and how far it therefore lets addresses
//! that were given back go to others.
//!
//! A client may give its address back at one node and have it confirmed at once by another, which has
//! not heard of that. The client then has an address that the log says is free. So a node that finds
//! that an address was given back which it has confirmed lately vouches for nothing from there on,
//! until its promise has ended or the client is bound anew. What a node promised in an earlier life it
//! does not know, and takes the worst for granted. See ADR 18.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use muster_storage::model::{ClientKey, Lease};
use muster_storage::{Revision, State, Timestamp};

use crate::inner::Inner;
#[cfg(test)]
use crate::sim::{Mutant, broken};

#[cfg(test)]
mod tests;

/// Nodes write what clients give back no later than so long after it was sent, in milliseconds; the
/// margin of leases comes on top for what their ideas of the time differ by. A packet is dropped
/// when it has waited for 3.5 s, and its write given up after 5 s.
const LATE: u64 = 20_000;
/// For so long what was found last is told to peers, in milliseconds: the leader looks each second.
const LASTS: u64 = 1000;

/// A lease that was confirmed. Times are those of the boot clock, in milliseconds, which neither
/// stands still nor is corrected.
struct Promise {
    client: ClientKey,
    given: u64,
    until: u64,
}

/// The present: the cluster's time, and this node's boot clock.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub time: Timestamp,
    pub boot: u64,
}

impl Moment {
    /// The cluster's time at an earlier reading of the boot clock.
    fn time_at(self, boot: u64) -> u64 {
        let ago = self.boot.saturating_sub(boot);
        self.time.0.saturating_sub(ago)
    }
}

/// The promises of this node.
pub struct Promises {
    /// When this life began, if there were others: promises of those may still hold.
    resumed: Option<u64>,
    given: Mutex<BTreeMap<Ipv4Addr, Promise>>,
    /// What this node vouched for last, and when it found out.
    told: Mutex<Option<(u64, Revision)>>,
}

impl Promises {
    /// Of a node that begins at `boot` by the boot clock; `resumes` says that it has lived before.
    pub fn new(resumes: bool, boot: u64) -> Self {
        Self {
            resumed: resumes.then_some(boot),
            given: Mutex::default(),
            told: Mutex::default(),
        }
    }

    fn given(&self) -> MutexGuard<'_, BTreeMap<Ipv4Addr, Promise>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client is told that it has `lease` for `secs` more. To be noted in the same read of the state
    /// that said so.
    pub fn give(&self, lease: &Lease, secs: u32, boot: u64) {
        let promise = Promise {
            client: lease.client.clone(),
            given: boot,
            until: boot.saturating_add(u64::from(secs) * 1000),
        };
        self.given().insert(lease.address, promise);
    }

    /// The client told this node that it does not hold `address` any more, at `when` by the boot
    /// clock: what was promised before is over.
    pub fn end(&self, address: Ipv4Addr, client: &ClientKey, when: u64) {
        let mut given = self.given();
        let over = |promise: &Promise| promise.client == *client && promise.given <= when;
        if given.get(&address).is_some_and(over) {
            given.remove(&address);
        }
    }

    /// The last revision of which this node knows that no address which was given back up to it is in
    /// the hands of a client by this node's word.
    pub fn vouched(&self, state: &State, now: Moment) -> Revision {
        let margin = u64::from(state.settings().lease_margin_secs) * 1000;
        let late = margin.saturating_add(LATE);
        let unknown = self.resumed.and_then(|boot| {
            let until = Timestamp(now.time_at(boot).saturating_add(late));
            let first = state.returned().next();
            first.filter(|record| record.updated_at <= until)
        });
        let mut first = unknown.map(|record| record.revision);
        self.given().retain(|address, promise| {
            if promise.until.saturating_add(margin) <= now.boot {
                return false;
            }
            let overtaken = Timestamp(now.time_at(promise.given).saturating_add(late));
            let returned = state.lease(*address).filter(|record| {
                record.object.is_returned()
                    && record.object.client == promise.client
                    && record.updated_at <= overtaken
            });
            let Some(record) = returned else {
                // What is written from now on was given back after the promise.
                return state.time() <= overtaken;
            };
            let earliest = first.map_or(record.revision, |first| first.min(record.revision));
            first = Some(earliest);
            true
        });
        first.map_or(state.revision(), |first| {
            Revision(first.0.saturating_sub(1))
        })
    }
}

fn moment(inner: &Inner) -> Option<Moment> {
    let clock = inner.memory.clock();
    Some(Moment {
        time: Timestamp(clock.now()?),
        boot: inner.memory.host().boot(),
    })
}

/// The last revision that this node vouches for; none before it knows what the time is.
pub fn vouched(inner: &Inner) -> Revision {
    let applied = inner.progress.borrow().revision;
    #[cfg(test)]
    if broken(inner.memory.host(), Mutant::ForgetPromises) {
        return applied;
    }
    let Some(now) = moment(inner) else {
        return Revision::default();
    };
    let vouched = inner.memory.read(|state| {
        let time = now.time.max(state.time());
        inner.promises.vouched(state, Moment { time, ..now })
    });
    let vouched = vouched.min(applied);
    let mut told = inner
        .promises
        .told
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    *told = Some((now.boot, vouched));
    vouched
}

/// The same, or what was found within the last second: it stays true.
pub fn vouched_lately(inner: &Inner) -> Revision {
    let told = *inner
        .promises
        .told
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let boot = inner.memory.host().boot();
    match told {
        Some((when, vouched)) if boot.saturating_sub(when) < LASTS => vouched,
        _ => vouched(inner),
    }
}
