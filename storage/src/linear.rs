//! Whether what clients saw of one object can have happened one after the other: what it means that
//! objects are linearizable, in the one place that the simulation and tests of real clusters share.
//!
//! The search of Wing and Gong with Lowe's memory of visited configurations: at each point any
//! operation may take effect that began before every open one ended. An operation of unknown
//! outcome may take effect at any time after its start, or never.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// What a client did to one object, whose value is a number or absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Read, and saw this.
    Read(Option<u64>),
    /// Wrote a value under a condition.
    Write(Condition, u64),
    /// Removed it under a condition.
    Delete(Condition),
}

/// When a write is made; else it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Always.
    Always,
    /// The object exists.
    Exists,
    /// It does not.
    Absent,
    /// It has this value.
    Is(u64),
}

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// Done.
    Done,
    /// The condition did not hold.
    Refused,
    /// Nothing.
    Unknown,
}

/// One operation, with the order of its start and end among all starts and ends.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// What was asked for.
    pub action: Action,
    /// What came of it.
    pub told: Told,
    /// When it was asked.
    pub start: u64,
    /// When the client was told; `u64::MAX` when the client was told nothing.
    pub end: u64,
}

impl Condition {
    fn holds(self, value: Option<u64>) -> bool {
        match self {
            Self::Always => true,
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::Is(wanted) => value == Some(wanted),
        }
    }
}

impl Operation {
    /// The value after this operation, if what the client was told fits.
    fn apply(&self, value: Option<u64>) -> Option<Option<u64>> {
        let (condition, after) = match self.action {
            Action::Read(seen) => return (seen == value).then_some(value),
            Action::Write(condition, written) => (condition, Some(written)),
            Action::Delete(condition) => (condition, None),
        };
        match (condition.holds(value), self.told) {
            (true, Told::Done | Told::Unknown) => Some(after),
            (false, Told::Refused | Told::Unknown) => Some(value),
            _ => None,
        }
    }
}

/// The operation with whose end the history can no longer be explained; nothing when it can be.
pub fn contradiction(history: &[Operation]) -> Option<Operation> {
    if is_linearizable(history) {
        return None;
    }
    let mut told: Vec<Operation> = history.to_vec();
    told.retain(|operation| operation.told != Told::Unknown);
    told.sort_by_key(|operation| operation.end);
    let first = told.partition_point(|last| is_linearizable(&until(history, last.end)));
    told.get(first).copied()
}

/// The history as it was known when `end` came.
fn until(history: &[Operation], end: u64) -> Vec<Operation> {
    let begun = history.iter().filter(|operation| operation.start <= end);
    let known = begun.filter_map(|operation| match (operation.action, operation.end <= end) {
        (_, true) => Some(*operation),
        (Action::Read(_), false) => None,
        (_, false) => Some(Operation {
            told: Told::Unknown,
            end: u64::MAX,
            ..*operation
        }),
    });
    known.collect()
}

/// Whether some order explains everything. The object is absent at first.
pub fn is_linearizable(history: &[Operation]) -> bool {
    let mut operations = history.to_vec();
    operations.sort_by_key(|operation| operation.start);
    let mut seen = BTreeSet::new();
    // Operations that took effect, as a prefix that all did and a set beyond it.
    let mut open = vec![(vec![false; operations.len()], None)];
    while let Some((done, value)) = open.pop() {
        let left = || (0..operations.len()).filter(|index| !done[*index]);
        if left().all(|index| operations[index].told == Told::Unknown) {
            return true;
        }
        let first_end = left().map(|index| operations[index].end).min();
        for index in left() {
            let operation = &operations[index];
            if first_end.is_some_and(|end| operation.start > end) {
                break;
            }
            let Some(after) = operation.apply(value) else {
                continue;
            };
            let mut next = done.clone();
            next[index] = true;
            if seen.insert((next.clone(), after)) {
                open.push((next, after));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Condition = Condition::Always;

    fn operation(action: Action, told: Told, start: u64, end: u64) -> Operation {
        Operation {
            action,
            told,
            start,
            end,
        }
    }

    fn write(value: u64, start: u64, end: u64) -> Operation {
        operation(Action::Write(ANY, value), Told::Done, start, end)
    }

    fn read(value: Option<u64>, start: u64, end: u64) -> Operation {
        operation(Action::Read(value), Told::Done, start, end)
    }

    fn unknown(value: u64, start: u64) -> Operation {
        operation(Action::Write(ANY, value), Told::Unknown, start, u64::MAX)
    }

    #[test]
    fn what_can_have_happened_is_accepted() {
        let table: [&[Operation]; 6] = [
            &[],
            &[read(None, 0, 1), write(1, 2, 3), read(Some(1), 4, 5)],
            // Overlapping writes take effect in either order.
            &[write(1, 0, 3), write(2, 1, 2), read(Some(1), 4, 5)],
            &[write(1, 0, 3), write(2, 1, 2), read(Some(2), 4, 5)],
            // A write of unknown outcome may take effect late, or never.
            &[unknown(1, 0), read(None, 1, 2), read(Some(1), 3, 4)],
            &[
                write(1, 0, 1),
                operation(Action::Write(Condition::Is(1), 2), Told::Done, 2, 3),
                operation(Action::Delete(Condition::Is(1)), Told::Refused, 4, 5),
            ],
        ];
        for history in table {
            assert!(is_linearizable(history), "{history:?}");
        }
    }

    #[test]
    fn what_cannot_have_happened_is_refused() {
        let compare = |from, to, start, end| {
            operation(
                Action::Write(Condition::Is(from), to),
                Told::Done,
                start,
                end,
            )
        };
        let table: [&[Operation]; 8] = [
            // A stale read, and a read of nothing after a write.
            &[write(1, 0, 1), write(2, 2, 3), read(Some(1), 4, 5)],
            &[write(1, 0, 1), read(None, 2, 3)],
            // A lost write, and one that nobody made.
            &[
                write(1, 0, 1),
                write(2, 2, 3),
                read(Some(2), 4, 5),
                read(Some(1), 6, 7),
            ],
            &[read(Some(9), 0, 1)],
            // A write of unknown outcome that takes effect before its start, and one that is
            // undone.
            &[read(Some(1), 0, 1), unknown(1, 2)],
            &[unknown(1, 0), read(Some(1), 1, 2), read(None, 3, 4)],
            // Two that both replaced the same value.
            &[write(1, 0, 1), compare(1, 2, 2, 5), compare(1, 3, 3, 4)],
            // What was refused took effect.
            &[
                operation(Action::Write(Condition::Absent, 1), Told::Refused, 0, 1),
                read(Some(1), 2, 3),
            ],
        ];
        for history in table {
            assert!(!is_linearizable(history), "{history:?}");
        }
    }

    #[test]
    fn a_long_history_with_many_at_once_is_decided() {
        let mut history: Vec<Operation> = Vec::new();
        for round in 0..40u64 {
            let at = round * 100;
            for client in 0..8 {
                history.push(write(round * 8 + client, at + client, at + 50 + client));
            }
            history.push(read(Some(round * 8 + 3), at + 60, at + 61));
        }
        assert!(is_linearizable(&history));
        history.push(read(Some(0), 9000, 9001));
        assert!(!is_linearizable(&history));
    }
}
