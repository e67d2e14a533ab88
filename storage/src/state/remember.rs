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
    by_request: BTreeMap<RequestId, Remembered>,
    retries: BTreeSet<(Revision, RequestId)>,
    keys: BTreeSet<(Revision, RequestId)>,
}

impl Memory {
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        let all = self.by_request.values().cloned();
        all.map(|remembered| Row::Remembered(Box::new(remembered)))
    }

    /// Puts in or takes out; returns what stood there.
    pub fn index(&mut self, request: RequestId, new: Option<Remembered>) -> Option<Remembered> {
        let place = new.as_ref().map(|new| (new.asked, new.revision));
        let old = match new {
            Some(new) => self.by_request.insert(request, new),
            None => self.by_request.remove(&request),
        };
        if let Some(old) = &old {
            self.by_age(old.asked).remove(&(old.revision, request));
        }
        if let Some((asked, revision)) = place {
            self.by_age(asked).insert((revision, request));
        }
        old
    }

    fn by_age(&mut self, asked: Option<Sha256>) -> &mut BTreeSet<(Revision, RequestId)> {
        match asked {
            Some(_) => &mut self.keys,
            None => &mut self.retries,
        }
    }

    /// The oldest of a kind that are beyond its number or its age.
    fn outdated(
        &self,
        kind: &BTreeSet<(Revision, RequestId)>,
        most: usize,
        millis: u64,
        now: Timestamp,
    ) -> Vec<(Revision, RequestId)> {
        let excess = kind.len().saturating_sub(most);
        let oldest = kind.iter().take(FORGET_MAX).enumerate();
        let outdated = oldest.take_while(|(position, (_, request))| {
            let old = self.by_request.get(request);
            *position < excess || old.is_none_or(|old| old.at.0.saturating_add(millis) <= now.0)
        });
        outdated.map(|(_, named)| *named).collect()
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
        if self.remembered.keys.len() < KEYS_MAX {
            return Ok(());
        }
        let by_request = &self.remembered.by_request;
        let oldest = self.remembered.keys.first().map(|(_, request)| *request);
        let old_enough = oldest
            .and_then(|request| by_request.get(&request))
            .filter(|oldest| oldest.at.0.saturating_add(KEY_MILLIS_MIN) <= now.0)
            .map(|oldest| oldest.request)
            .ok_or(Rejection::KeysFull)?;
        self.put(RowKey::Remembered(old_enough), None);
        Ok(())
    }
}
