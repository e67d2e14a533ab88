//! Proposals that were made, so that a second copy of one has no second effect.
//!
//! Two kinds are kept apart: those that their node may repeat when a leader is lost, of which the
//! latest are kept; and those that a client gave a key, kept for a day.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::row::{Row, RowKey};
use super::table::{Context, State};
use crate::command::{Effect, Outcome, Rejection, Remember, RequestId};
use crate::model::{Revision, Sha256, Timestamp};

/// Proposals that may be repeated, as many as are remembered: seconds of the fastest writing.
pub const RETRIES_MAX: usize = 128 * 1024;

/// How long they are: longer than a node goes on repeating.
pub const RETRY_MILLIS: u64 = 60_000;

/// Keys that are remembered at most.
pub const KEYS_MAX: usize = 100_000;

/// Octets of what is remembered of either kind, as stored: bundles have long effects.
pub const OCTETS_MAX: usize = 64 << 20;

/// How long a key is remembered.
pub const KEY_MILLIS: u64 = 24 * 3_600_000;

/// Younger keys do not make room for new ones: their clients may still try again.
pub const KEY_MILLIS_MIN: u64 = 15 * 60_000;

/// Forgotten at most with one entry of either kind, so that no entry takes long; more than one
/// adds.
const FORGET_MAX: usize = 1024;

/// A proposal that had an effect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    /// Its id.
    pub request: RequestId,
    /// When it was made, and as what.
    pub revision: Revision,
    /// Entry time.
    pub at: Timestamp,
    /// Digest of what was asked, when a client gave it a key.
    pub asked: Option<Sha256>,
    /// What it did.
    pub effect: Effect,
}

/// What is remembered, by request and by age.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    by_request: BTreeMap<RequestId, (Remembered, usize)>,
    retries: ByAge,
    keys: ByAge,
}

/// One kind, oldest first.
#[derive(Clone, Debug, Default)]
struct ByAge {
    requests: BTreeSet<(Revision, RequestId)>,
    octets: usize,
}

impl Memory {
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        let all = self.by_request.values();
        all.map(|(remembered, _)| Row::Remembered(Box::new(remembered.clone())))
    }

    /// Puts in, with the octets of its row, or takes out; returns what stood there.
    pub fn index(
        &mut self,
        request: RequestId,
        new: Option<Remembered>,
        octets: usize,
    ) -> Option<Remembered> {
        let place = new.as_ref().map(|new| (new.asked, new.revision));
        let old = match new {
            Some(new) => self.by_request.insert(request, (new, octets)),
            None => self.by_request.remove(&request),
        };
        if let Some((old, octets)) = &old {
            let kind = self.by_age(old.asked);
            kind.requests.remove(&(old.revision, request));
            kind.octets = kind.octets.saturating_sub(*octets);
        }
        if let Some((asked, revision)) = place {
            let kind = self.by_age(asked);
            kind.requests.insert((revision, request));
            kind.octets = kind.octets.saturating_add(octets);
        }
        old.map(|(old, _)| old)
    }

    fn by_age(&mut self, asked: Option<Sha256>) -> &mut ByAge {
        match asked {
            Some(_) => &mut self.keys,
            None => &mut self.retries,
        }
    }

    /// The oldest of a kind that are beyond its number or its age.
    fn outdated(
        &self,
        kind: &ByAge,
        most: usize,
        millis: u64,
        now: Timestamp,
    ) -> Vec<(Revision, RequestId)> {
        let mut excess = kind.requests.len().saturating_sub(most);
        let mut octets = kind.octets;
        let oldest = kind.requests.iter().take(FORGET_MAX);
        let outdated = oldest.take_while(|(_, request)| {
            let Some((old, size)) = self.by_request.get(request) else {
                return true;
            };
            let beyond = excess > 0 || octets > OCTETS_MAX;
            excess = excess.saturating_sub(1);
            octets = octets.saturating_sub(*size);
            beyond || old.at.0.saturating_add(millis) <= now.0
        });
        outdated.copied().collect()
    }
}

impl State {
    /// What came of a proposal when it was made before.
    pub(super) fn recall(
        &mut self,
        context: Context<'_>,
        remember: Option<Remember>,
    ) -> Result<Option<Outcome>, Rejection> {
        let Some(remember) = remember else {
            return Ok(None);
        };
        let first = self.remembered.by_request.get(&context.request);
        let first = first.map(|(first, _)| first);
        match (remember, first) {
            (Remember::Key { asked }, Some(first)) if first.asked != Some(asked) => {
                Err(Rejection::KeyReused)
            }
            (_, Some(first)) => Ok(Some(Outcome {
                revision: first.revision,
                result: Ok(first.effect.clone()),
            })),
            (Remember::Retry { since }, None) if since < self.meta.retries_forgotten => {
                Err(Rejection::Forgotten)
            }
            (Remember::Key { .. }, None) => self.make_room(context.at).map(|()| None),
            (Remember::Retry { .. }, None) => Ok(None),
        }
    }

    /// Remembers what came of a proposal.
    pub(super) fn keep(
        &mut self,
        context: Context<'_>,
        remember: Option<Remember>,
        effect: &Effect,
    ) {
        let asked = match remember {
            None => return,
            Some(Remember::Retry { .. }) => None,
            Some(Remember::Key { asked }) => Some(asked),
        };
        let remembered = Remembered {
            request: context.request,
            revision: context.revision,
            at: context.at,
            asked,
            effect: effect.clone(),
        };
        self.put(
            RowKey::Remembered(context.request),
            Some(Row::Remembered(Box::new(remembered))),
        );
    }

    /// Forgets what is outdated; the newest revision of what its node might have repeated.
    pub(super) fn forget(&mut self, now: Timestamp) -> Option<Revision> {
        let memory = &self.remembered;
        let retries = memory.outdated(&memory.retries, RETRIES_MAX, RETRY_MILLIS, now);
        let keys = memory.outdated(&memory.keys, KEYS_MAX, KEY_MILLIS, now);
        let newest = retries.last().map(|(revision, _)| *revision);
        for (_, request) in retries.into_iter().chain(keys) {
            self.put(RowKey::Remembered(request), None);
        }
        newest
    }

    /// Makes room for one more key, unless all are young.
    fn make_room(&mut self, now: Timestamp) -> Result<(), Rejection> {
        let Memory {
            by_request, keys, ..
        } = &self.remembered;
        if keys.requests.len() < KEYS_MAX && keys.octets < OCTETS_MAX {
            return Ok(());
        }
        let oldest = keys.requests.first().map(|(_, request)| *request);
        let old_enough = oldest
            .and_then(|request| by_request.get(&request))
            .map(|(oldest, _)| oldest)
            .filter(|oldest| oldest.at.0.saturating_add(KEY_MILLIS_MIN) <= now.0)
            .map(|oldest| oldest.request)
            .ok_or(Rejection::KeysFull)?;
        self.put(RowKey::Remembered(old_enough), None);
        Ok(())
    }
}
