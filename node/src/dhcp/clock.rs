//! The wall clock, and whether it can be trusted without a leader to compare it with.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use muster_storage::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// A wall clock that moved by more than this against the boot clock has jumped.
const JUMP_MILLIS: i64 = 2000;

/// Compares the wall clock with the boot clock, which nobody sets.
#[derive(Debug)]
pub struct Clock {
    /// Wall clock less boot clock when a quorum was last seen; `MIN` before that.
    offset: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            offset: AtomicI64::new(i64::MIN),
        }
    }
}

impl Clock {
    /// The time, and whether the wall clock has run evenly since a quorum was last seen: promises
    /// without a quorum rest on that (DESIGN invariant 7).
    pub fn now(&self, quorum: bool) -> (Timestamp, bool) {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
            });
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME)
            .map_or(0, |time| time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000);
        let steady = self.observe(wall, boot, quorum);
        (Timestamp(u64::try_from(wall).unwrap_or(0)), steady)
    }

    fn observe(&self, wall: i64, boot: i64, quorum: bool) -> bool {
        let offset = wall.saturating_sub(boot);
        if quorum {
            self.offset.store(offset, Ordering::Relaxed);
            return true;
        }
        let last = self.offset.load(Ordering::Relaxed);
        last != i64::MIN && last.abs_diff(offset) <= JUMP_MILLIS.unsigned_abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_without_a_quorum_is_noticed_and_forgiven_with_one() {
        let clock = Clock::default();
        assert!(!clock.observe(1000, 0, false), "never compared");
        assert!(clock.observe(1000, 0, true));
        assert!(clock.observe(61_000, 60_000, false), "a minute on both");
        assert!(!clock.observe(161_000, 61_000, false), "set ahead");
        assert!(!clock.observe(1000, 61_000, false), "set back");
        assert!(clock.observe(161_000, 61_000, true));
        assert!(clock.observe(162_000, 62_000, false));
    }
}
