//! The time that a leader writes into entries: its wall clock, unless that has run away.
//!
//! Leases expire by the time of entries. A leader whose clock jumped ahead would expire all of them
//! at once, and their addresses would be given to others; so a jump is taken for a fault until the
//! members' clocks, or a restart with them agreeing, say otherwise.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_storage::Timestamp;

use crate::host::Host;
use crate::inner::Inner;
use crate::manage;

/// A clock further ahead than this is not believed, in milliseconds.
const FAR: u64 = 60_000;
/// How long a first leader waits to hear the others' clocks.
const HEARING: Duration = Duration::from_secs(2);

/// What to write into an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The time.
    pub at: Timestamp,
    /// The wall clock is not believed: nothing may expire by it.
    pub suspicious: bool,
}

/// The time for an entry, by the wall clock, the time of the last entry and how long ago that was,
/// by a clock that nobody sets. All in milliseconds.
fn stamp(wall: u64, last_entry: u64, elapsed: u64) -> Stamp {
    let expected = last_entry.saturating_add(elapsed);
    let suspicious = wall > expected.saturating_add(FAR);
    Stamp {
        at: Timestamp(if suspicious { expected } else { wall }),
        suspicious,
    }
}

/// The clock that a majority of `voters` has reached, if so many of them have told theirs.
fn of_majority(voters: usize, mut told: Vec<u64>) -> Option<u64> {
    told.sort_unstable();
    told.get(voters / 2).copied()
}

/// The stamp of a first leader after a start, who has seen no entry made: its clock must agree with
/// those of a majority, itself included. Nothing when too few have told theirs to know.
fn first(wall: u64, voters: usize, told: &[u64]) -> Option<Stamp> {
    let agree = told.iter().filter(|told| told.abs_diff(wall) <= FAR);
    (agree.count() > voters / 2).then(|| stamp(wall, wall, 0))
}

/// The time of entries as this node has followed it since its start.
#[derive(Default)]
pub struct Clock {
    host: Host,
    /// Set once this node has caught up: before that, entries say nothing of the present.
    live: AtomicBool,
    /// Time of an entry with the boot clock when it was seen, of the furthest such pair.
    last: Mutex<Option<(u64, u64)>>,
    /// Leadership has been handed over because of the clock.
    alarmed: AtomicBool,
}

impl Clock {
    /// Nothing seen yet.
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

    fn boot(&self) -> u64 {
        self.host.boot()
    }

    fn last(&self) -> MutexGuard<'_, Option<(u64, u64)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on entries are applied as they are made.
    pub fn caught_up(&self) {
        self.live.store(true, Ordering::Release);
    }

    /// An entry was applied.
    pub fn saw(&self, at: Timestamp) {
        if self.live.load(Ordering::Acquire) {
            self.note(at.0, self.boot());
        }
    }

    fn note(&self, at: u64, boot: u64) {
        let mut last = self.last();
        let ahead = |(known, when): (u64, u64)| known.saturating_add(boot.saturating_sub(when));
        if last.is_none_or(|last| at > ahead(last)) {
            *last = Some((at, boot));
        }
    }

    /// The stamp by what this node has seen; nothing when it has seen nothing yet.
    fn by_entries(&self, wall: u64, boot: u64) -> Option<Stamp> {
        let (at, when) = (*self.last())?;
        Some(stamp(wall, at, boot.saturating_sub(when)))
    }
}

/// The voters' clocks as they are now, this node's included.
fn told(inner: &Inner, wall: u64) -> (usize, Vec<u64>) {
    let voters = inner.view.borrow().all_voters();
    let clocks = voters.iter().filter_map(|id| {
        if *id == inner.id.0 {
            return Some(wall);
        }
        let contact = inner.board.contact(*id).filter(|contact| contact.live())?;
        let age = u64::try_from(contact.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        (contact.status.wall != 0).then(|| contact.status.wall.saturating_add(age))
    });
    (voters.len(), clocks.collect())
}

/// The time for an entry that this node makes as leader. Sounds the alarm when its clock has run
/// away.
pub async fn stamp_now(inner: &Arc<Inner>) -> Stamp {
    let clock = inner.memory.clock();
    let deadline = tokio::time::Instant::now() + HEARING;
    let stamped = loop {
        let wall = clock.wall();
        let (voters, told) = told(inner, wall);
        let least = told.iter().copied().min().unwrap_or(wall);
        let agreed = first(wall, voters, &told);
        let by_majority = of_majority(voters, told).map(|majority| stamp(wall, majority, 0));
        let by_entries = clock.by_entries(wall, clock.boot());
        match (by_majority, by_entries.or(agreed)) {
            (Some(ahead), _) if ahead.suspicious => break ahead,
            (_, Some(known)) => break known,
            // The first leader after a start waits to hear what the time is.
            _ if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            _ => {
                tracing::warn!("no majority agrees on the time; going by the earliest clock");
                let stamped = stamp(wall, least, 0);
                clock.note(stamped.at.0, clock.boot());
                break stamped;
            }
        }
    };
    metrics::gauge!("muster_raft_clock_in_doubt").set(f64::from(u8::from(stamped.suspicious)));
    if !stamped.suspicious {
        clock.note(stamped.at.0, clock.boot());
        clock.alarmed.store(false, Ordering::Release);
    } else if !clock.alarmed.swap(true, Ordering::AcqRel) {
        alarm(inner, stamped);
    }
    stamped
}

fn alarm(inner: &Arc<Inner>, stamped: Stamp) {
    tracing::error!(
        ahead_seconds = inner.memory.clock().wall().saturating_sub(stamped.at.0) / 1000,
        "this node's clock is far ahead of the cluster's; no lease expires by it. Correct it, or \
         restart the nodes if the cluster's time is the one that is wrong"
    );
    let handing = Arc::clone(inner);
    inner.spawn(async move {
        if handing.view.borrow().all_voters().len() < 2 {
            return;
        }
        match manage::transfer(&handing, None).await {
            Ok(()) => tracing::info!("handed leadership over because of the clock"),
            Err(error) => tracing::warn!(%error, "cannot hand leadership over"),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_ran_away_is_not_believed() {
        const HOUR: u64 = 3_600_000;
        // (wall, last entry, elapsed) and (at, suspicious).
        let table = [
            ((1_000_000, 1_000_000, 0), (1_000_000, false)),
            ((1_030_000, 1_000_000, 30_000), (1_030_000, false)),
            // Behind: state time does not run back anyway.
            ((900_000, 1_000_000, 0), (900_000, false)),
            // Just within, and just beyond.
            ((1_060_000, 1_000_000, 0), (1_060_000, false)),
            ((1_060_001, 1_000_000, 0), (1_000_000, true)),
            ((1_000_000 + HOUR, 1_000_000, 5_000), (1_005_000, true)),
            // Idle for an hour.
            (
                (1_000_000 + HOUR, 1_000_000, HOUR),
                (1_000_000 + HOUR, false),
            ),
            ((u64::MAX, u64::MAX - 5, 10), (u64::MAX, false)),
        ];
        for ((wall, last, elapsed), (at, suspicious)) in table {
            assert_eq!(
                stamp(wall, last, elapsed),
                Stamp {
                    at: Timestamp(at),
                    suspicious
                },
                "{wall} {last} {elapsed}"
            );
        }
    }

    #[test]
    fn a_majority_outvotes_one_clock() {
        assert_eq!(of_majority(1, vec![7]), Some(7));
        // Two of three agree, and one is ahead of them.
        assert_eq!(of_majority(3, vec![900, 7, 8]), Some(8));
        // One of three says nothing.
        assert_eq!(of_majority(3, vec![7, 900]), Some(900));
        assert_eq!(of_majority(3, vec![900]), None);
        assert_eq!(of_majority(5, vec![1, 2, 3, 900, 901]), Some(3));
    }

    #[test]
    fn a_first_leader_needs_a_majority_that_agrees() {
        let believed = |wall, voters, told: &[u64]| first(wall, voters, told).is_some();
        assert!(believed(7, 1, &[7]));
        assert!(believed(7, 3, &[7, 50_000]));
        assert!(!believed(900_000, 3, &[900_000, 7]));
        assert!(!believed(900_000, 3, &[900_000, 7, 8]));
        assert!(!believed(7, 3, &[7]));
    }

    #[test]
    fn entries_of_before_the_start_say_nothing_of_the_present() {
        let clock = Clock::default();
        clock.saw(Timestamp(5));
        assert_eq!(clock.by_entries(1_000_000, 0), None);
        clock.caught_up();
        clock.note(1_000_000, 10_000);
        // An older one that comes late changes nothing.
        clock.note(900_000, 20_000);
        let jumped = clock.by_entries(2_000_000, 20_000);
        assert_eq!(
            jumped,
            Some(Stamp {
                at: Timestamp(1_010_000),
                suspicious: true
            })
        );
    }
}
