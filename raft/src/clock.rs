//! The cluster's time, which leaders write into entries and by which leases end.
//!
//! Promises to clients are spans of real time, so the cluster's time must pass as real time does,
//! whatever anyone sets a wall clock to. Wall clocks are asked for it once, when no node knows it:
//! at founding, and after all nodes were down. From then on it is counted by clocks that nobody sets,
//! and passed on from node to node. When a majority of the wall clocks comes to agree that the
//! cluster's time is behind, the leader moves it forward by a command that moves the ends of leases
//! as well, so that no promise is cut short. It never moves back. See ADR 8.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_storage::{State, Timestamp};

use crate::host::Host;
use crate::inner::Inner;
use crate::store::Memory;

/// Wall clocks no further apart than this agree, in milliseconds. With [`BEHIND`] not more than the
/// margin of leases: by so much may the time jump when all nodes were down.
const AGREE: u64 = 8000;
/// The cluster's time is moved when it is further behind than this, in milliseconds.
const BEHIND: u64 = 2000;
/// How long a first leader waits to hear what the time is.
const HEARING: Duration = Duration::from_secs(2);

/// The cluster's time as this node knows it.
#[derive(Default)]
pub struct Clock {
    host: Host,
    /// Set once this node has caught up: before that, entries say nothing of the present.
    live: AtomicBool,
    /// The time with the boot clock when it was known, of the furthest such pair.
    known: Mutex<Option<(u64, u64)>>,
    /// This node's wall clock is wrong, and that was said.
    wrong: AtomicBool,
}

impl Clock {
    /// Nothing known yet.
    pub fn new(host: Host) -> Self {
        Self {
            host,
            ..Self::default()
        }
    }

    /// Milliseconds since 1970 by this node's wall clock.
    pub fn wall(&self) -> u64 {
        self.host.wall()
    }

    /// The cluster's time, in milliseconds since 1970; absent until it is known here.
    pub fn now(&self) -> Option<u64> {
        let known = *self.known();
        known.map(|pair| at_boot(pair, self.host.boot()))
    }

    fn known(&self) -> MutexGuard<'_, Option<(u64, u64)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on entries are applied as they are made.
    pub fn caught_up(&self) {
        self.live.store(true, Ordering::Release);
    }

    /// An entry was applied, and the state's time is this.
    pub fn applied(&self, time: Timestamp) {
        if self.live.load(Ordering::Acquire) {
            self.learn(time.0);
        }
    }

    /// A node that knows the time said this.
    pub fn learn(&self, time: u64) {
        let boot = self.host.boot();
        let mut known = self.known();
        if known.is_none_or(|pair| time > at_boot(pair, boot)) {
            *known = Some((time, boot));
        }
    }
}

fn at_boot((time, when): (u64, u64), boot: u64) -> u64 {
    time.saturating_add(boot.saturating_sub(when))
}

/// The earliest of wall clocks of a majority of `voters` that agree; absent when no majority does.
fn agreed(voters: usize, mut told: Vec<u64>) -> Option<u64> {
    told.sort_unstable();
    let agree = told.windows(voters / 2 + 1).find(|clocks| {
        matches!(clocks, [first, .., last] if last - first <= AGREE) || clocks.len() == 1
    })?;
    agree.first().copied()
}

/// The wall clocks of a majority of the voters as they are now, if they agree.
fn agreed_now(inner: &Inner) -> Option<u64> {
    let voters = inner.view().all_voters();
    let told = voters.iter().filter_map(|id| {
        if *id == inner.id.0 {
            return Some(inner.memory.clock().wall());
        }
        let contact = inner.board.contact(*id).filter(|contact| contact.live())?;
        let age = u64::try_from(contact.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        (contact.status.wall != 0).then(|| contact.status.wall.saturating_add(age))
    });
    agreed(voters.len(), told.collect())
}

/// The cluster's time; this node's own clock until it has heard what the time is.
pub fn present(memory: &Memory) -> Timestamp {
    let clock = memory.clock();
    let now = clock.now().unwrap_or_else(|| clock.wall());
    Timestamp(now).max(memory.read(State::time))
}

/// The time for an entry that this node makes as leader.
pub async fn stamp(inner: &Arc<Inner>) -> Timestamp {
    let clock = inner.memory.clock();
    let last = || inner.memory.read(State::time).0;
    let deadline = tokio::time::Instant::now() + HEARING;
    loop {
        if let Some(now) = clock.now() {
            #[cfg(test)]
            let now = crate::sim::trusted_wall(inner).unwrap_or(now);
            return Timestamp(now);
        }
        if let Some(wall) = agreed_now(inner) {
            clock.learn(wall.max(last()));
        } else if tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        } else {
            tracing::warn!(
                "no majority of the nodes' clocks agrees; the cluster's time goes on from its last \
                 entry, and leases end later than they would. Set the nodes' clocks"
            );
            clock.learn(last());
        }
    }
}

/// What the cluster's time is to be moved to, when it is behind.
pub fn behind(inner: &Inner) -> Option<Timestamp> {
    let now = inner.memory.clock().now()?;
    let agreed = agreed_now(inner)?;
    (agreed > now.saturating_add(BEHIND)).then_some(Timestamp(agreed))
}

/// Says how far this node's wall clock is from the cluster's time; called often.
pub fn watch(inner: &Inner) {
    let clock = inner.memory.clock();
    let Some(now) = clock.now() else {
        return;
    };
    let wall = clock.wall();
    let seconds = (wall as f64 - now as f64) / 1000.0;
    metrics::gauge!("muster_raft_clock_offset_seconds").set(seconds);
    let wrong = wall.abs_diff(now) > AGREE;
    if wrong && !clock.wrong.swap(wrong, Ordering::AcqRel) {
        tracing::error!(
            offset_seconds = seconds,
            "this node's clock is far from the cluster's time. Leases are safe, they do not go by \
             it; set the clock, or if the clock is right, stop all nodes at once and start them"
        );
    } else if !wrong {
        clock.wrong.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_that_agrees_tells_the_time() {
        let table = [
            (1, vec![7], Some(7)),
            (3, vec![7, 5000], Some(7)),
            // One of three is far ahead, or far behind.
            (3, vec![900_000, 7, 8], Some(7)),
            (3, vec![7, 900_000, 900_008], Some(900_000)),
            // Too few, or none that agree.
            (3, vec![7], None),
            (3, vec![7, 900_000], None),
            (3, vec![7, 900_000, 1_800_000], None),
            (3, vec![7, 8 + AGREE], None),
            (4, vec![7, 8, 900_000, 900_001], None),
            (5, vec![900_000, 1, 2, 3, 900_001], Some(1)),
        ];
        for (voters, told, time) in table {
            assert_eq!(agreed(voters, told.clone()), time, "{voters} {told:?}");
        }
    }

    #[test]
    fn entries_of_before_the_start_say_nothing_of_the_present() {
        let clock = Clock::default();
        clock.applied(Timestamp(5));
        assert_eq!(clock.now(), None);
        clock.caught_up();
        clock.applied(Timestamp(5));
        assert!(clock.now().is_some());
    }

    #[test]
    fn time_does_not_go_back() {
        let clock = Clock::default();
        clock.learn(1_000_000);
        // An older one that comes late changes nothing, one from further on does.
        clock.learn(900_000);
        assert!(clock.now().is_some_and(|now| now >= 1_000_000));
        clock.learn(2_000_000);
        assert!(clock.now().is_some_and(|now| now >= 2_000_000));
    }
}
