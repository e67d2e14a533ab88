//! Objects, by what clients of the API were told.

use std::collections::BTreeMap;

use muster_storage::linear::{self, Action, Operation, Told};

use super::{Parts, Rule, Violation};
use crate::chaos::history::{Call, Record};

/// So many operations on an object are shown before the one that cannot be explained.
const SHOWN: usize = 30;

/// Each object by itself: nothing that is done names two of them.
pub fn linearizable(calls: &[Call]) -> Vec<Violation> {
    let mut histories: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
    for call in calls {
        // A read without an answer says nothing.
        let silent = matches!(call.action, Action::Read(_)) && call.told == Told::Unknown;
        if !silent {
            histories.entry(&call.key).or_default().push(call);
        }
    }
    let wrong = histories.into_iter().filter_map(|(key, history)| {
        let operations: Vec<Operation> = history.iter().map(|call| operation(call)).collect();
        let last = linear::contradiction(&operations)?;
        let part: Vec<&&Call> = history
            .iter()
            .filter(|call| call.start <= last.end)
            .collect();
        let shown = part.get(part.len().saturating_sub(SHOWN)..);
        Some(Violation {
            rule: Rule::Linearizable,
            what: format!("no order explains what was seen of {key}, with {last:?} at the end"),
            part: record(shown.unwrap_or_default().iter().map(|call| **call)),
        })
    });
    wrong.collect()
}

fn operation(call: &Call) -> Operation {
    Operation {
        action: call.action,
        told: call.told,
        start: call.start,
        end: match call.told {
            Told::Unknown => u64::MAX,
            _ => call.end,
        },
    }
}

/// A read is answered by a node that has applied all that was acknowledged before the read began.
pub fn fresh(calls: &[Call]) -> Vec<Violation> {
    let known = |call: &&Call| call.told == Told::Done && call.revision.is_some();
    let mut ends: Vec<&Call> = calls.iter().filter(known).collect();
    ends.sort_by_key(|call| call.end);
    let mut ends = ends.into_iter().peekable();
    let mut floor: Option<&Call> = None;
    let mut found = Vec::new();
    // In the order of their starts.
    for call in calls.iter().filter(known) {
        while let Some(ended) = ends.next_if(|ended| ended.end < call.start) {
            if floor.is_none_or(|floor| floor.revision < ended.revision) {
                floor = Some(ended);
            }
        }
        let read = matches!(call.action, Action::Read(_));
        if let Some(floor) = floor.filter(|floor| read && call.revision < floor.revision) {
            found.push(Violation {
                rule: Rule::Fresh,
                what: format!(
                    "a read shows {:?}, though {:?} had been shown before it began",
                    call.revision, floor.revision
                ),
                part: record([floor, call].into_iter()),
            });
        }
    }
    found
}

/// A node that can reach no majority acknowledges no write, and no read that shows the latest.
pub fn minority(parts: &Parts) -> Vec<Violation> {
    let mut found = Vec::new();
    for fault in &parts.faults {
        let inside = |call: &&Call| {
            call.start >= fault.struck
                && call.end <= fault.healing
                && call.told != Told::Unknown
                && fault.alone_names.contains(&call.node)
        };
        found.extend(parts.calls.iter().filter(inside).map(|call| Violation {
            rule: Rule::Minority,
            what: format!("{} answers for a majority that it cannot reach", call.node),
            part: vec![Record::Fault(fault.clone()), Record::Call(call.clone())],
        }));
    }
    found
}

fn record<'a>(calls: impl Iterator<Item = &'a Call>) -> Vec<Record> {
    calls.map(|call| Record::Call(call.clone())).collect()
}
