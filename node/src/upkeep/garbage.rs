//! Files that no artifact names any more are removed after a grace: scripts that were served before
//! may still ask for them by their digest.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use metrics::counter;
use muster_raft::Cluster;
use muster_storage::State;
use muster_storage::model::{Object, ObjectKind, Sha256};
use tokio::time::sleep;

use super::REMOVED;

/// Between two looks: no longer than this, and a part of the grace.
const LOOK_MAX: Duration = Duration::from_secs(60);
const LOOK_MIN: Duration = Duration::from_millis(500);
const LOOKS_IN_GRACE: u32 = 4;

/// What was found damaged is kept for as long as this, for people to look into.
const ASIDE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Since when files are seen that nothing names.
#[derive(Debug, Default)]
struct Unnamed(BTreeMap<Sha256, Instant>);

impl Unnamed {
    /// Those of the files that are held to be removed: unnamed at each look for as long as the grace.
    fn due(
        &mut self,
        held: &BTreeSet<Sha256>,
        is_named: impl Fn(&Sha256) -> bool,
        now: Instant,
        grace: Duration,
    ) -> Vec<Sha256> {
        let unnamed = held.iter().filter(|sha| !is_named(sha));
        let since = |sha: &Sha256| self.0.get(sha).copied().unwrap_or(now);
        self.0 = unnamed.map(|sha| (*sha, since(sha))).collect();
        let old = |since: &Instant| *since < now && now.duration_since(*since) >= grace;
        let due = self.0.iter().filter(|(_, since)| old(since));
        due.map(|(sha, _)| *sha).collect()
    }
}

/// Removes garbage for ever.
pub(super) async fn run(cluster: Cluster) {
    let mut unnamed = Unnamed::default();
    loop {
        let grace = cluster.read(|state| state.settings().artifacts.grace_secs);
        let grace = Duration::from_secs(u64::from(grace));
        sleep((grace / LOOKS_IN_GRACE).clamp(LOOK_MIN, LOOK_MAX)).await;
        // What this node does not know to be named another one may.
        if !(cluster.caught_up_once() && cluster.has_quorum()) {
            unnamed = Unnamed::default();
            continue;
        }
        let named = cluster.read(named);
        let is_named = |sha: &Sha256| named.contains(sha) || cluster.keeps_blob(sha);
        let held = cluster.blobs().held();
        let due = unnamed.due(&held, is_named, Instant::now(), grace);
        if let Err(error) = remove(&cluster, due).await {
            tracing::warn!(%error, "garbage among the artifacts cannot be removed");
        }
    }
}

/// Digests that artifacts have.
fn named(state: &State) -> BTreeSet<Sha256> {
    let artifacts = state.objects_after(ObjectKind::Artifact, None);
    let digests = artifacts.filter_map(|record| match &record.object {
        Object::Artifact(artifact) => Some(artifact.sha256),
        _ => None,
    });
    digests.collect()
}

async fn remove(cluster: &Cluster, due: Vec<Sha256>) -> io::Result<()> {
    let cluster = cluster.clone();
    let work = move || {
        cluster.clear_uploads();
        cluster.clear_aside_blobs(ASIDE)?;
        for sha256 in due {
            cluster.blobs().remove(&sha256)?;
            counter!(REMOVED).increment(1);
            tracing::info!(%sha256, "a file that no artifact names any more is removed");
        }
        Ok(())
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unnamed_for_the_grace_is_due_and_what_is_named_again_begins_anew() {
        let sha = |n: u8| Sha256([n; 32]);
        let held = BTreeSet::from([sha(1), sha(2)]);
        let begin = Instant::now();
        let grace = Duration::from_secs(60);
        let mut unnamed = Unnamed::default();
        // Seconds since the beginning, what is named, and what is due.
        let looks: [(u64, &[u8], &[u8]); 9] = [
            (0, &[1, 2], &[]),
            (10, &[1], &[]),
            (69, &[1], &[]),
            (70, &[1], &[2]),
            // Not removed, for some reason: due until it is.
            (71, &[1], &[2]),
            (80, &[1, 2], &[]),
            (90, &[], &[]),
            (149, &[], &[]),
            (150, &[], &[1, 2]),
        ];
        for (secs, named, due) in looks {
            let is_named = |found: &Sha256| named.iter().any(|n| sha(*n) == *found);
            let now = begin + Duration::from_secs(secs);
            let found = unnamed.due(&held, is_named, now, grace);
            let due: Vec<Sha256> = due.iter().map(|n| sha(*n)).collect();
            assert_eq!(found, due, "after {secs} s");
        }
    }

    #[test]
    fn nothing_is_due_when_it_is_first_seen() {
        let held = BTreeSet::from([Sha256([1; 32])]);
        let mut unnamed = Unnamed::default();
        let now = Instant::now();
        assert!(
            unnamed
                .due(&held, |_| false, now, Duration::ZERO)
                .is_empty()
        );
        let later = now + LOOK_MIN;
        assert_eq!(
            unnamed.due(&held, |_| false, later, Duration::ZERO).len(),
            1
        );
    }
}
