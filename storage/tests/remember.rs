//! A second copy of a proposal has no second effect.

#![allow(clippy::expect_used)]

use muster_storage::command::PutMode;
use muster_storage::model::{Object, ObjectKind, Sha256, Template};
use muster_storage::state::{KEY_MILLIS, KEY_MILLIS_MIN, KEYS_MAX, RETRIES_MAX, RETRY_MILLIS};
use muster_storage::{
    Actor, Command, Effect, Entry, Outcome, Proposal, Remember, RequestId, Revision, State,
    Timestamp,
};
use uuid::Uuid;

#[derive(Default)]
struct Log {
    state: State,
    index: u64,
    at: u64,
}

impl Log {
    fn propose(&mut self, proposals: Vec<Proposal>) -> Vec<Outcome> {
        self.index += 1;
        let entry = Entry {
            at: Timestamp(self.at),
            proposals,
        };
        let outcomes = self.state.apply(Revision::new(self.index, 0), &entry);
        self.state.take_rows().expect("rows");
        outcomes.into_iter().map(|(outcome, _)| outcome).collect()
    }

    fn one(&mut self, proposal: &Proposal) -> Outcome {
        self.propose(vec![proposal.clone()]).remove(0)
    }

    fn contents(&self) -> String {
        match self
            .state
            .object(ObjectKind::Template, "t")
            .map(|r| &r.object)
        {
            Some(Object::Template(template)) => template.contents.clone(),
            _ => String::new(),
        }
    }

    /// As after a restart.
    fn restarted(&self) -> State {
        let rows = self.state.rows().expect("rows").into_iter();
        let rows = rows.filter_map(|row| Some((row.key, row.value?)));
        State::load(rows).expect("load")
    }
}

fn put(number: u128, remember: Option<Remember>, contents: &str) -> Proposal {
    Proposal {
        request: RequestId(Uuid::from_u128(number)),
        actor: Actor("tester".into()),
        if_match: None,
        remember,
        command: Command::Put {
            object: Object::Template(Template {
                name: "t".into(),
                contents: contents.into(),
            }),
            mode: PutMode::Apply,
        },
    }
}

/// A write that leaves no object.
fn light(number: u128, remember: Remember) -> Proposal {
    Proposal {
        command: Command::RevokeJoinTokens,
        ..put(number, Some(remember), "")
    }
}

fn retry(since: Revision) -> Option<Remember> {
    Some(Remember::Retry { since })
}

fn key(asked: u8) -> Remember {
    Remember::Key {
        asked: Sha256([asked; 32]),
    }
}

fn code(outcome: &Outcome) -> &'static str {
    outcome
        .result
        .as_ref()
        .map_or_else(|rejection| rejection.code(), |_| "ok")
}

#[test]
fn a_repeated_write_is_made_once_and_told_as_it_was() {
    for remember in [retry(Revision(0)), Some(key(1))] {
        let mut log = Log::default();
        let first = put(1, remember, "one");
        let told = log.one(&first);
        assert!(matches!(
            told.result,
            Ok(Effect::Stored { created: true, .. })
        ));
        log.one(&put(2, None, "two"));
        assert_eq!(log.one(&first), told);
        assert_eq!(log.contents(), "two");
        log.state = log.restarted();
        assert_eq!(log.one(&first), told);
        assert_eq!(log.contents(), "two");
        // Also twice in one entry.
        let again = put(3, remember, "three");
        let outcomes = log.propose(vec![again.clone(), put(4, None, "four"), again]);
        assert_eq!(outcomes.first(), outcomes.last());
        assert_eq!(log.contents(), "four");
    }
}

#[test]
fn what_was_refused_may_be_tried_again() {
    let mut log = Log::default();
    let create = Proposal {
        if_match: Some(Revision(7)),
        ..put(1, Some(key(1)), "one")
    };
    assert_eq!(code(&log.one(&create)), "stale");
    let create = Proposal {
        if_match: None,
        ..create
    };
    assert_eq!(code(&log.one(&create)), "ok");
}

#[test]
fn a_key_is_for_one_request_and_for_a_day() {
    let mut log = Log::default();
    assert_eq!(code(&log.one(&put(1, Some(key(1)), "one"))), "ok");
    assert_eq!(code(&log.one(&put(1, Some(key(2)), "two"))), "key_reused");
    log.at += KEY_MILLIS - 1;
    assert_eq!(code(&log.one(&put(1, Some(key(2)), "two"))), "key_reused");
    log.at += 1;
    assert_eq!(code(&log.one(&put(1, Some(key(2)), "two"))), "ok");
    assert_eq!(log.contents(), "two");
}

#[test]
fn what_is_forgotten_is_not_made_a_second_time() {
    let mut log = Log::default();
    let since = log.state.revision();
    let first = put(1, retry(since), "one");
    assert_eq!(code(&log.one(&first)), "ok");
    log.one(&put(2, None, "two"));
    log.at += RETRY_MILLIS;
    assert_eq!(code(&log.one(&first)), "forgotten");
    assert_eq!(log.contents(), "two");
    let now = log.state.revision();
    assert_eq!(code(&log.one(&put(3, retry(now), "three"))), "ok");
}

#[test]
fn memory_is_bounded_and_young_keys_stay() {
    let mut log = Log::default();
    let fill = |log: &mut Log, count: usize, from: u128, remember: Remember| {
        let numbers: Vec<u128> = (from..).take(count).collect();
        let batches = numbers.chunks(Entry::PROPOSALS_MAX);
        let outcomes = batches.flat_map(|batch| {
            log.propose(
                batch
                    .iter()
                    .map(|number| light(*number, remember))
                    .collect(),
            )
        });
        let codes: std::collections::BTreeSet<_> = outcomes.map(|o| code(&o)).collect();
        codes
    };
    let ok = std::collections::BTreeSet::from(["ok"]);
    assert_eq!(fill(&mut log, KEYS_MAX, 0, key(1)), ok);
    let late = 1 << 64;
    assert_eq!(code(&log.one(&light(late, key(1)))), "keys_full");
    // Writing goes on without keys, whatever is full.
    let since = Revision(u64::MAX);
    let retries = RETRIES_MAX + 4 * Entry::PROPOSALS_MAX;
    assert_eq!(fill(&mut log, retries, late, Remember::Retry { since }), ok);
    let rows = log.state.rows().expect("rows").len();
    assert!(
        rows < KEYS_MAX + RETRIES_MAX + 2 * Entry::PROPOSALS_MAX,
        "{rows}"
    );
    log.at += KEY_MILLIS_MIN;
    assert_eq!(code(&log.one(&light(1 << 80, key(1)))), "ok");
    assert_eq!(log.restarted().digest(), log.state.digest());
}
