//! Which node holds which artifact, by each node's own word: with every beat it says a mark of what it
//! holds, and whoever does not know what that stands for asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_storage::model::Sha256;
use tokio::sync::Notify;

use crate::Error;
use crate::inner::Inner;
use crate::wire::proto;

/// Artifacts that a node tells of: a message of 16 MiB.
const TOLD_MAX: usize = 1 << 19;
const DIGEST_OCTETS: usize = 32;
/// How long a node may take to tell.
const TELLING: Duration = Duration::from_secs(5);
/// Before nodes are asked again: files come in bursts.
const PAUSE: Duration = Duration::from_millis(500);

type Digests = Arc<BTreeSet<Sha256>>;

/// What peers hold.
#[derive(Default)]
pub struct Holdings {
    peers: Mutex<BTreeMap<u64, Word>>,
    /// Somebody holds something else than was known.
    news: Notify,
}

/// What a peer said.
#[derive(Default)]
struct Word {
    /// Last.
    mark: u64,
    /// With which mark, when it was asked last.
    told: Option<(u64, Digests)>,
}

impl Holdings {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Word>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer said the mark of what it holds.
    pub fn heard(&self, peer: u64, mark: u64) {
        let mut peers = self.lock();
        let word = peers.entry(peer).or_default();
        word.mark = mark;
        if word.told.as_ref().is_none_or(|(told, _)| *told != mark) {
            self.news.notify_one();
        }
    }

    /// A peer left the cluster.
    pub fn forget(&self, peer: u64) {
        self.lock().remove(&peer);
    }

    /// What a peer holds by its last word; nothing when it has not been heard.
    fn of(&self, peer: u64) -> Option<Digests> {
        let peers = self.lock();
        let (_, held) = peers.get(&peer)?.told.as_ref()?;
        Some(Arc::clone(held))
    }

    /// Peers whose word is not known yet, with their marks.
    fn unknown(&self) -> Vec<(u64, u64)> {
        let peers = self.lock();
        let unknown = peers.iter().filter(|(_, word)| {
            word.told
                .as_ref()
                .is_none_or(|(told, _)| *told != word.mark)
        });
        unknown.map(|(peer, word)| (*peer, word.mark)).collect()
    }

    fn learn(&self, peer: u64, mark: u64, held: Digests) {
        if let Some(word) = self.lock().get_mut(&peer) {
            word.told = Some((mark, held));
        }
    }
}

/// A mark of what is held: equal for equal sets, and hardly ever for others.
pub fn mark(held: &BTreeSet<Sha256>) -> u64 {
    held.iter().fold(held.len() as u64, |sum, sha| {
        let first = sha.0.first_chunk().copied().unwrap_or_default();
        sum.wrapping_add(u64::from_le_bytes(first))
    })
}

/// Answers a peer that asks what this node holds.
pub fn serve(inner: &Inner) -> proto::HoldingsReply {
    let held = inner.blobs.held();
    let mut digests = Vec::with_capacity(held.len().min(TOLD_MAX) * DIGEST_OCTETS);
    for sha in held.iter().take(TOLD_MAX) {
        digests.extend_from_slice(&sha.0);
    }
    proto::HoldingsReply {
        mark: mark(&held),
        digests: digests.into(),
    }
}

async fn ask(inner: &Inner, peer: u64) -> Result<(u64, Digests), Error> {
    let mut fast = inner.links.to(peer)?.fast;
    let call = fast.holdings(proto::HoldingsRequest {});
    let reply = tokio::time::timeout(TELLING, call)
        .await
        .map_err(|_| Error::Timeout)?
        .map_err(|status| Error::Refused(status.message().to_owned()))?
        .into_inner();
    let (digests, _) = reply.digests.as_chunks::<DIGEST_OCTETS>();
    let held = digests.iter().take(TOLD_MAX).copied().map(Sha256);
    Ok((reply.mark, Arc::new(held.collect())))
}

/// Learns what peers hold, whenever that changes.
pub async fn run(inner: Arc<Inner>) {
    loop {
        let own = inner.blobs.held();
        let mut failed = false;
        for (peer, said) in inner.holdings.unknown() {
            if !inner.board.is_live(peer) {
                continue;
            }
            // Most of the time all hold the same.
            if said == mark(&own) {
                inner.holdings.learn(peer, said, Arc::clone(&own));
                continue;
            }
            match ask(&inner, peer).await {
                Ok((mark, held)) => inner.holdings.learn(peer, mark, held),
                Err(error) => {
                    tracing::debug!(peer, %error, "a peer does not say what it holds");
                    failed = true;
                }
            }
        }
        if failed {
            tokio::time::sleep(TELLING).await;
        } else {
            inner.holdings.news.notified().await;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Which node holds what, at a moment.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    /// Names of the nodes, with what they hold as far as that is known.
    nodes: Vec<(String, Option<Digests>)>,
}

impl Placement {
    /// As this node knows it.
    pub(crate) fn of(inner: &Inner) -> Self {
        let members: Vec<(u64, String)> = inner.memory.read(|state| {
            let members = state.members();
            members
                .map(|member| (member.id.0, member.name.clone()))
                .collect()
        });
        let held = |id| match id == inner.id.0 {
            true => Some(inner.blobs.held()),
            false => inner.holdings.of(id),
        };
        Self {
            nodes: members
                .into_iter()
                .map(|(id, name)| (name, held(id)))
                .collect(),
        }
    }

    /// Names of the nodes that hold an artifact.
    pub fn holders(&self, sha: &Sha256) -> Vec<&str> {
        self.named(|held| held.contains(sha))
    }

    /// Names of those that are known to lack it.
    pub fn missing(&self, sha: &Sha256) -> Vec<&str> {
        self.named(|held| !held.contains(sha))
    }

    fn named(&self, is: impl Fn(&BTreeSet<Sha256>) -> bool) -> Vec<&str> {
        let named = self.nodes.iter().filter_map(|(name, held)| {
            let held = held.as_deref()?;
            is(held).then_some(name.as_str())
        });
        named.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[u8]) -> BTreeSet<Sha256> {
        numbers.iter().map(|n| Sha256([*n; 32])).collect()
    }

    #[test]
    fn marks_are_equal_for_equal_sets() {
        let sets: [&[u8]; 5] = [&[], &[0], &[1], &[1, 2], &[3]];
        for (i, one) in sets.iter().enumerate() {
            for (j, other) in sets.iter().enumerate() {
                assert_eq!(
                    mark(&set(one)) == mark(&set(other)),
                    i == j,
                    "{one:?} {other:?}"
                );
            }
        }
    }

    #[test]
    fn a_peer_is_asked_until_what_it_said_last_is_known() {
        let holdings = Holdings::default();
        assert!(holdings.of(2).is_none() && holdings.unknown().is_empty());
        let held = Arc::new(set(&[1]));
        let first = mark(&held);
        holdings.heard(2, first);
        assert_eq!(holdings.unknown(), [(2, first)]);
        holdings.learn(2, first, Arc::clone(&held));
        holdings.heard(2, first);
        assert!(holdings.unknown().is_empty());
        holdings.heard(2, first + 1);
        assert_eq!(holdings.unknown(), [(2, first + 1)]);
        assert_eq!(
            holdings.of(2),
            Some(held),
            "its last word counts until then"
        );
        holdings.forget(2);
        assert!(holdings.unknown().is_empty() && holdings.of(2).is_none());
        holdings.learn(2, first, Arc::default());
        assert!(holdings.of(2).is_none(), "it left while it was asked");
    }

    #[test]
    fn nodes_that_were_not_heard_are_neither_holders_nor_missing() {
        let placement = Placement {
            nodes: vec![
                ("n1".into(), Some(Arc::new(set(&[1])))),
                ("n2".into(), Some(Arc::default())),
                ("n3".into(), None),
            ],
        };
        let sha = Sha256([1; 32]);
        assert_eq!(placement.holders(&sha), ["n1"]);
        assert_eq!(placement.missing(&sha), ["n2"]);
    }
}
