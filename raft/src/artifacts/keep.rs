//! Files that nothing names yet, or not any more, and that are needed all the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_storage::model::Sha256;

/// What is needed, and how often. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Keep(Arc<Mutex<BTreeMap<Sha256, usize>>>);

impl Keep {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Sha256, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is needed.
    pub fn has(&self, sha: &Sha256) -> bool {
        self.lock().contains_key(sha)
    }

    /// From now on it is, for as long as what is returned lives.
    pub fn keep(&self, sha: Sha256) -> Kept {
        *self.lock().entry(sha).or_default() += 1;
        Kept {
            keep: self.clone(),
            sha,
        }
    }
}

/// Keeps a file from being removed.
#[derive(Debug)]
pub struct Kept {
    keep: Keep,
    sha: Sha256,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut kept = self.keep.lock();
        if let Some(count) = kept.get_mut(&self.sha) {
            *count -= 1;
            if *count == 0 {
                kept.remove(&self.sha);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_kept_until_nobody_needs_it() {
        let (keep, sha) = (Keep::default(), Sha256([1; 32]));
        let (one, other) = (keep.keep(sha), keep.clone().keep(sha));
        assert!(keep.has(&sha) && !keep.has(&Sha256([2; 32])));
        drop(one);
        assert!(keep.has(&sha));
        drop(other);
        assert!(!keep.has(&sha));
    }
}
