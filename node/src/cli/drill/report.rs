//! What clients saw of a failure, from what each attempt of the synthetic client came to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An attempt of the synthetic client, in milliseconds since the drill began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it began.
    pub from: u64,
    /// When it ended.
    pub until: u64,
    /// Whether it came to what a client wants.
    pub done: bool,
}

/// Part of a drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Before,
    During,
    After,
}

/// When the failure began and ended, in milliseconds since the drill began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Begin.
    pub from: u64,
    /// End.
    pub until: u64,
}

impl Span {
    fn phase(self, at: u64) -> Phase {
        match at {
            at if at < self.from => Phase::Before,
            at if at < self.until => Phase::During,
            _ => Phase::After,
        }
    }
}

/// The times that successful attempts took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Attempts.
    pub attempts: usize,
    /// Those that failed.
    pub failures: usize,
    /// Of half of the others not more than this.
    pub p50_ms: Option<u64>,
    /// Of 99 of a hundred not more than this.
    pub p99_ms: Option<u64>,
}

/// A service as a client saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Attempts.
    pub attempts: usize,
    /// Those that failed.
    pub failures: usize,
    /// The longest time from one success to the next; the pause between two attempts is in it. Absent
    /// when nothing succeeded.
    pub longest_gap_ms: Option<u64>,
    /// When that began.
    pub gap_from_ms: Option<u64>,
    /// Before the failure.
    pub before: Times,
    /// While it lasted.
    pub during: Times,
    /// After it.
    pub after: Times,
}

/// What a drill found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// By what it is known.
    pub name: String,
    /// What failed how.
    pub drill: String,
    /// On which node.
    pub node: String,
    /// Whether that led.
    pub led: bool,
    /// When, RFC 3339.
    pub at: String,
    /// Of what the drill took.
    pub failure_ms: Span,
    /// How long the drill took, in milliseconds.
    pub length_ms: u64,
    /// Who led at the end.
    pub leader: Option<String>,
    /// From the order until a node named another leader, if the leader failed.
    pub new_leader_ms: Option<u64>,
    /// By name.
    pub services: BTreeMap<String, Service>,
    /// What could not be measured, and why.
    pub not_measured: BTreeMap<String, String>,
}

/// Sums up the attempts at one service. Until `end` a client could have tried.
pub fn service(attempts: &[Attempt], failure: Span, end: u64) -> Service {
    let gap = longest_gap(attempts, end);
    let of = |phase: Phase| times(attempts.iter().filter(|it| failure.phase(it.from) == phase));
    Service {
        attempts: attempts.len(),
        failures: attempts.iter().filter(|it| !it.done).count(),
        longest_gap_ms: gap.map(|gap| gap.until.saturating_sub(gap.from)),
        gap_from_ms: gap.map(|gap| gap.from),
        before: of(Phase::Before),
        during: of(Phase::During),
        after: of(Phase::After),
    }
}

/// From one success to the next, or to the end.
fn longest_gap(attempts: &[Attempt], end: u64) -> Option<Span> {
    let done = attempts.iter().filter(|it| it.done).map(|it| it.until);
    let mut done: Vec<u64> = done.collect();
    done.sort_unstable();
    if done.is_empty() {
        return None;
    }
    done.push(end);
    let spans = done.windows(2).filter_map(|pair| match pair {
        [from, until] => Some(Span {
            from: *from,
            until: *until,
        }),
        _ => None,
    });
    spans.max_by_key(|span| span.until.saturating_sub(span.from))
}

fn times<'a>(attempts: impl Iterator<Item = &'a Attempt>) -> Times {
    let (done, failed): (Vec<&Attempt>, Vec<&Attempt>) = attempts.partition(|it| it.done);
    let mut took: Vec<u64> = done
        .iter()
        .map(|it| it.until.saturating_sub(it.from))
        .collect();
    took.sort_unstable();
    let rank = |percent: usize| {
        let rank = (took.len() * percent).div_ceil(100).saturating_sub(1);
        took.get(rank).copied()
    };
    Times {
        attempts: done.len() + failed.len(),
        failures: failed.len(),
        p50_ms: rank(50),
        p99_ms: rank(99),
    }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let led = if self.led { ", which led," } else { "" };
        let mut text = format!(
            "drill {} on {}{led} at {}\nfailure from {} to {} ms of {} ms",
            self.drill,
            self.node,
            self.at,
            self.failure_ms.from,
            self.failure_ms.until,
            self.length_ms
        );
        if let Some(took) = self.new_leader_ms {
            let leader = self.leader.as_deref().unwrap_or("nobody");
            text += &format!("\na new leader after {took} ms; {leader} leads at the end");
        }
        text += &format!(
            "\n\n{:8}  {:>8}  {:>8}  {:>11}  {:>17}  {:>17}  {:>17}\n",
            "SERVICE",
            "ATTEMPTS",
            "FAILURES",
            "LONGEST GAP",
            "BEFORE P50/P99",
            "DURING P50/P99",
            "AFTER P50/P99"
        );
        let ms = |it: Option<u64>| it.map_or("-".to_owned(), |it| it.to_string());
        for (name, service) in &self.services {
            let pair = |it: Times| format!("{} / {} ms", ms(it.p50_ms), ms(it.p99_ms));
            text += &format!(
                "{name:8}  {:>8}  {:>8}  {:>8} ms  {:>17}  {:>17}  {:>17}\n",
                service.attempts,
                service.failures,
                ms(service.longest_gap_ms),
                pair(service.before),
                pair(service.during),
                pair(service.after),
            );
        }
        for (name, why) in &self.not_measured {
            text += &format!("{name:8}  not measured: {why}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(from: u64, until: u64, done: bool) -> Attempt {
        Attempt { from, until, done }
    }

    #[test]
    fn gaps_are_from_success_to_success_and_to_the_end() {
        let failure = Span {
            from: 1000,
            until: 3000,
        };
        for (attempts, end, gap) in [
            (vec![], 5000, None),
            (vec![attempt(0, 500, false)], 5000, None),
            (vec![attempt(0, 10, true)], 5000, Some((10, 4990))),
            (
                vec![
                    attempt(0, 10, true),
                    attempt(900, 910, true),
                    attempt(1010, 1510, false),
                    attempt(1600, 1700, true),
                    attempt(2000, 2010, true),
                ],
                2500,
                Some((10, 900)),
            ),
        ] {
            let found = service(&attempts, failure, end);
            let seen = found.gap_from_ms.zip(found.longest_gap_ms);
            assert_eq!(seen, gap, "{attempts:?}");
        }
    }

    #[test]
    fn attempts_count_where_they_began() {
        let failure = Span {
            from: 1000,
            until: 2000,
        };
        let mut attempts: Vec<Attempt> = (0..100).map(|n| attempt(n, 2 * n + 1, true)).collect();
        attempts.extend([
            attempt(999, 1500, false),
            attempt(1000, 1007, true),
            attempt(2000, 2003, true),
        ]);
        let found = service(&attempts, failure, 2100);
        let times = |attempts, failures, p50, p99| Times {
            attempts,
            failures,
            p50_ms: Some(p50),
            p99_ms: Some(p99),
        };
        assert_eq!((found.attempts, found.failures), (103, 1));
        assert_eq!(found.before, times(101, 1, 50, 99));
        assert_eq!(found.during, times(1, 0, 7, 7));
        assert_eq!(found.after, times(1, 0, 3, 3));
    }
}
