//! Learners that never come back.
//!
//! A node that joined and was never heard of again has no vote, but is counted wherever all members
//! count: for the early reuse of released addresses, and for a new schema. The leader removes it by
//! itself once it has been silent for long enough. Voters are never removed without an order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::propose_removal;
use crate::inner::Inner;
use crate::view::View;

/// A learner that one leader has not heard of for as long as this is removed.
const PATIENCE: Duration = Duration::from_secs(72 * 3600);

/// Since when this leader has not heard of which learners. A new leader begins anew.
#[derive(Default)]
pub struct Silent(BTreeMap<u64, Instant>);

impl Silent {
    /// Takes down who is silent now; returns who has been so throughout for too long.
    fn look(&mut self, now: Instant, silent: impl Iterator<Item = u64>) -> Vec<u64> {
        let mut since = BTreeMap::new();
        for node in silent {
            since.insert(node, self.0.get(&node).copied().unwrap_or(now));
        }
        self.0 = since;
        let lost = self.0.iter();
        lost.filter(|(_, since)| now.saturating_duration_since(**since) >= PATIENCE)
            .map(|(node, _)| *node)
            .collect()
    }
}

/// Removes learners that have been silent for too long, as leader.
pub async fn remove(inner: &Arc<Inner>, view: &View, silent: &mut Silent) {
    let voters = view.all_voters();
    let learners = view.nodes.keys().filter(|id| !voters.contains(id));
    let unheard = learners.filter(|id| **id != inner.id.0 && !inner.board.is_live(**id));
    for node in silent.look(Instant::now(), unheard.copied()) {
        match propose_removal(inner, node).await {
            Ok(()) => tracing::warn!(
                node,
                hours = PATIENCE.as_secs() / 3600,
                "removed a learner that was silent for long; to have it back, empty its data \
                 directory and join anew"
            ),
            Err(error) => tracing::debug!(node, %error, "a lost learner is not removed yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_silent_throughout_is_lost() {
        let mut silent = Silent::default();
        let start = Instant::now();
        let mut look = |share: f64, nodes: &[u64]| {
            silent.look(start + PATIENCE.mul_f64(share), nodes.iter().copied())
        };
        assert!(look(0.0, &[7, 8, 9]).is_empty());
        // 8 is heard of in between.
        assert!(look(0.5, &[7, 9]).is_empty());
        assert!(look(0.9, &[7, 8, 9]).is_empty());
        assert_eq!(look(1.0, &[7, 8, 9]), [7, 9]);
        assert_eq!(look(1.9, &[8]), [8]);
    }
}
