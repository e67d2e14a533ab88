//! The one source of chance of a run, also for what asks the operating system for randomness.

use std::cell::Cell;
use std::ffi::{c_uint, c_void};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::libc;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng};

/// A seeded generator that everything in a run shares.
pub struct Chance(Mutex<StdRng>);

impl Chance {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    fn with<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A number of the range; the range's start when it is empty.
    pub fn range(&self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return range.start;
        }
        self.with(|rng| rng.random_range(range))
    }

    /// Whether something that happens once in `of` times happens now.
    pub fn once_in(&self, of: u64) -> bool {
        self.range(0..of) == 0
    }

    /// A duration of so many milliseconds, in steps of a microsecond.
    pub fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.range(range.start * 1000..range.end * 1000))
    }

    /// One of several; nothing when there is none.
    pub fn pick<T: Clone>(&self, of: &[T]) -> Option<T> {
        let index = usize::try_from(self.range(0..of.len() as u64)).ok()?;
        of.get(index).cloned()
    }
}

thread_local! {
    /// State of this thread's stand-in for the operating system's randomness.
    static STREAM: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on this thread gets what it asks of the operating system's randomness from the seed:
/// hash maps, ids, election time-outs and `select!` draw from it.
pub fn seed_this_thread(seed: u64) {
    STREAM.set(Some(seed ^ 0x6d75_7374_6572));
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Stands before the C library's function of this name in the test binary.
///
/// # Safety
/// As getrandom(2): `buffer` must have room for `length` octets.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    let Some(mut state) = STREAM.get() else {
        // SAFETY: the caller's promise, handed on.
        let got = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return isize::try_from(got).unwrap_or(-1);
    };
    // SAFETY: the caller promises the room.
    let octets = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for chunk in octets.chunks_mut(8) {
        let drawn = next(&mut state).to_le_bytes();
        for (octet, drawn) in chunk.iter_mut().zip(drawn) {
            *octet = drawn;
        }
    }
    STREAM.set(Some(state));
    isize::try_from(length).unwrap_or(isize::MAX)
}
