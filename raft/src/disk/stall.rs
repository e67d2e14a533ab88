//! A disk that hangs: a write that was begun does not end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A write that takes longer holds up whoever waits for this node.
const PATIENCE: Duration = Duration::from_secs(5);

/// Writes that are under way. Clones share them.
#[derive(Clone, Default)]
pub struct Pending(Arc<Mutex<Writes>>);

#[derive(Default)]
struct Writes {
    next: u64,
    begun: BTreeMap<u64, Instant>,
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Writes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out a write.
    pub fn write<T>(&self, write: impl FnOnce() -> T) -> T {
        let number = {
            let mut writes = self.lock();
            let number = writes.next;
            writes.next = number.wrapping_add(1);
            writes.begun.insert(number, Instant::now());
            number
        };
        let result = write();
        self.lock().begun.remove(&number);
        result
    }

    /// For how long the oldest write has been under way.
    fn age(&self) -> Duration {
        let oldest = self.lock().begun.values().min().copied();
        oldest.map_or(Duration::ZERO, |begun| begun.elapsed())
    }

    /// Shows how long writes take that have not ended.
    pub fn measure(&self) {
        metrics::gauge!("muster_raft_disk_wait_seconds").set(self.age().as_secs_f64());
    }

    /// What is wrong and what to do, while the disk hangs.
    pub fn fault(&self) -> Option<String> {
        let age = self.age();
        (age > PATIENCE).then(|| {
            format!(
                "its disk has not finished a write for {} s; see to the disk of its data directory: \
                 the node goes on by itself when the disk does",
                age.as_secs()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_without_an_end_is_a_fault_and_its_end_mends_it() {
        let pending = Pending::default();
        let (begun, wait_begun) = std::sync::mpsc::channel();
        let (end, wait_end) = std::sync::mpsc::channel::<()>();
        let writer = std::thread::spawn({
            let pending = pending.clone();
            move || {
                pending.write(|| {
                    begun.send(()).unwrap();
                    wait_end.recv().unwrap();
                });
            }
        });
        wait_begun.recv().unwrap();
        assert_eq!(pending.fault(), None);
        for begun in pending.lock().begun.values_mut() {
            *begun = begun.checked_sub(Duration::from_secs(7)).unwrap();
        }
        let said = pending.fault().unwrap();
        assert!(said.contains("see to the disk"), "{said}");
        // Writes that go well beside it do not hide it.
        pending.write(|| ());
        assert!(pending.fault().is_some());
        end.send(()).unwrap();
        writer.join().unwrap();
        assert_eq!(pending.fault(), None);
    }
}
