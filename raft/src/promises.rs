//! What this node has promised clients without a write, and how far it therefore lets addresses
//! that were given back go to others.
//!
//! A client may give its address back at one node and have it confirmed at once by another, which has
//! not heard of that. The client then has an address that the log says is free. So a node that finds
//! that an address was given back which it has confirmed lately vouches for nothing from there on,
//! until its promise has ended or the client is bound anew. What a node promised in an earlier life it
//! does not know, and takes the worst for granted. See ADR 18.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use muster_storage::model::{ClientKey, Lease, Record};
use muster_storage::{Command, Revision, State, Timestamp};

use crate::inner::Inner;
#[cfg(test)]
use crate::sim::{Mutant, broken};

#[cfg(test)]
mod tests;

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
    given: Mutex<Given>,
    /// What this node vouched for last, and when it found out.
    told: Mutex<Option<(u64, Revision)>>,
}

#[derive(Default)]
struct Given {
    promises: BTreeMap<Ipv4Addr, Promise>,
    /// Addresses with when they were promised, about in that order: what is to be looked at whether it
    /// can be forgotten.
    order: VecDeque<(u64, Ipv4Addr)>,
}

/// How what was promised stands to what was given back.
struct Rule<'a> {
    state: &'a State,
    now: Moment,
    /// The margin of leases, in milliseconds.
    margin: u64,
}

impl Rule<'_> {
    /// The latest time at which what was given back before `boot` by the boot clock is written. The
    /// margin covers what nodes' ideas of the time differ by.
    fn late(&self, boot: u64) -> Timestamp {
        let time = self.now.time_at(boot);
        Timestamp(time.saturating_add(Command::RELEASE_MS + self.margin))
    }

    fn is_over(&self, promise: &Promise) -> bool {
        promise.until.saturating_add(self.margin) <= self.now.boot
    }

    /// Whether the client may have given `lease` back before it was promised it.
    fn forbids(&self, promise: &Promise, lease: &Record<Lease>) -> bool {
        lease.object.is_returned()
            && lease.object.client == promise.client
            && lease.updated_at <= self.late(promise.given)
            && !self.is_over(promise)
    }
}

impl Given {
    /// Forgets what is of no consequence any more.
    fn trim(&mut self, rule: &Rule<'_>) {
        for _ in 0..self.order.len() {
            let Some((when, address)) = self.order.pop_front() else {
                return;
            };
            let Some(promise) = self.promises.get(&address) else {
                continue;
            };
            if promise.given != when {
                continue;
            }
            let lease = rule.state.lease(address);
            if lease.is_some_and(|lease| rule.forbids(promise, lease)) {
                self.order.push_back((when, address));
            } else if rule.is_over(promise) || rule.state.time() > rule.late(when) {
                // What is written from now on was given back after the promise.
                self.promises.remove(&address);
            } else {
                self.order.push_front((when, address));
                return;
            }
        }
    }
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

    fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, Option<(u64, Revision)>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client is told that it has `lease` for `secs` more. To be noted in the same read of the state
    /// that said so.
    pub fn give(&self, lease: &Lease, secs: u32, boot: u64) {
        let until = boot.saturating_add(u64::from(secs) * 1000);
        let mut given = self.given();
        let before = given.promises.get(&lease.address);
        let before = before.filter(|promise| promise.client == lease.client);
        let promise = Promise {
            client: lease.client.clone(),
            given: boot,
            // An answer that is lost takes back nothing of the one before.
            until: before.map_or(until, |promise| promise.until.max(until)),
        };
        given.promises.insert(lease.address, promise);
        given.order.push_back((boot, lease.address));
    }

    /// The client of `lease` told this node that it does not hold it any more, before `when` by the boot
    /// clock: what was promised until then is over.
    pub fn end(&self, lease: &Lease, when: u64) {
        let mut given = self.given();
        let over = |promise: &Promise| promise.client == lease.client && promise.given < when;
        if given.promises.get(&lease.address).is_some_and(over) {
            given.promises.remove(&lease.address);
        }
    }

    /// The last revision of which this node knows that no address which was given back up to it is in
    /// the hands of a client by this node's word.
    pub fn vouched(&self, state: &State, now: Moment) -> Revision {
        let rule = Rule {
            state,
            now,
            margin: u64::from(state.settings().lease_margin_secs) * 1000,
        };
        let mut given = self.given();
        given.trim(&rule);
        let promised = |lease: &Record<Lease>| {
            let promise = given.promises.get(&lease.object.address);
            promise.is_some_and(|promise| rule.forbids(promise, lease))
        };
        let unknown = |lease: &Record<Lease>| {
            let resumed = self.resumed.map(|boot| rule.late(boot));
            resumed.is_some_and(|late| lease.updated_at <= late)
        };
        let first = match given.promises.is_empty() {
            // Those of an earlier life come first.
            true => state.returned().next().filter(|lease| unknown(lease)),
            false => state
                .returned()
                .find(|lease| unknown(lease) || promised(lease)),
        };
        first.map_or(state.revision(), |first| {
            Revision(first.revision.0.saturating_sub(1))
        })
    }
}

/// The last revision that this node vouches for; none before it knows what the time is.
pub fn vouched(inner: &Inner) -> Revision {
    let applied = inner.progress.borrow().revision;
    #[cfg(test)]
    if broken(inner.memory.host(), Mutant::ForgetPromises) {
        return applied;
    }
    let Some(time) = inner.memory.clock().now().map(Timestamp) else {
        return Revision::default();
    };
    let boot = inner.memory.host().boot();
    let vouched = inner.memory.read(|state| {
        let time = time.max(state.time());
        inner.promises.vouched(state, Moment { time, boot })
    });
    let vouched = vouched.min(applied);
    *inner.promises.told() = Some((boot, vouched));
    vouched
}

/// The same, or what was found within the last second: it stays true.
pub fn vouched_lately(inner: &Inner) -> Revision {
    let told = *inner.promises.told();
    let boot = inner.memory.host().boot();
    match told {
        Some((when, vouched)) if boot.saturating_sub(when) < LASTS => vouched,
        _ => vouched(inner),
    }
}
