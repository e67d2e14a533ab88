//! What is to befall a cluster, and when: a pure function of a seed.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// SIGKILL of one node or more, which are started again afterwards
    Kill,
    /// SIGSTOP for longer than a lease of leadership, then SIGCONT
    Pause,
    /// Two parts of the cluster do not reach each other; clients reach all nodes
    Split,
    /// One link between two nodes is gone, or all but those of a ring
    Partial,
    /// A node is heard by others that it does not hear, or the other way round
    OneWay,
    /// A node reaches nobody, and is reached by nobody
    Cut,
    /// A disk has no room
    DiskFull,
    /// Nothing can be written to a disk
    DiskHang,
    /// A disk stops writing for moments, again and again
    DiskSlow,
    /// A disk answers with I/O errors, and is mended while its node is down
    DiskFail,
    /// Nodes lose power: what they had not synced is gone
    Power,
    /// A wall clock jumps, and jumps back
    Clock,
    /// Nodes are killed and started in turn without waiting for any
    Storm,
    /// A node is replaced by a new one: killed and replaced, or removed before or after it
    Member,
    /// A node is stopped in good order and started with the other binary
    Upgrade,
}

/// Whom a fault befalls, as the cluster is when it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The node that leads.
    Leader,
    /// The first, second … of the others.
    Follower(u8),
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blow {
    /// The kind of it.
    pub kind: Kind,
    /// Whom it befalls; the others are the rest.
    pub who: Vec<Who>,
    /// Which of the ways that the kind has, counted from 0.
    pub way: u8,
    /// By how many milliseconds a clock jumps.
    pub jump: i64,
}

/// One fault in its turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Quiet before it, the cluster being whole.
    pub rest: Duration,
    /// What is done.
    pub blow: Blow,
    /// How long it lasts.
    pub lasts: Duration,
}

/// What a plan is made for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The same seed makes the same plan.
    pub seed: u64,
    /// How long it is to take, healing not counted.
    pub time: Duration,
    /// Nodes of the cluster.
    pub nodes: u8,
    /// What is allowed.
    pub kinds: BTreeSet<Kind>,
}

/// No majority is taken away for longer: firmware that began to ask a moment before gives up after a
/// minute, and an election has to fit in as well.
pub const MAJORITY_LOST: Duration = Duration::from_secs(15);
/// No single fault lasts longer.
pub const FAULT: Duration = Duration::from_secs(20);

/// In every round each kind has its turn, in an order of its own.
pub fn plan(wanted: &Wanted) -> Vec<Step> {
    let mut chance = StdRng::seed_from_u64(wanted.seed);
    let mut steps = Vec::new();
    let mut kinds: Vec<Kind> = Vec::new();
    let mut left = wanted.time;
    while !wanted.kinds.is_empty() {
        if kinds.is_empty() {
            kinds.extend(&wanted.kinds);
            kinds.shuffle(&mut chance);
        }
        let Some(kind) = kinds.pop() else { break };
        let step = step(kind, wanted.nodes, &mut chance);
        match left.checked_sub(step.rest + step.lasts) {
            Some(rest) => left = rest,
            None => break,
        }
        steps.push(step);
    }
    steps
}

fn step(kind: Kind, nodes: u8, chance: &mut StdRng) -> Step {
    let followers = (0..nodes.saturating_sub(1)).map(Who::Follower);
    let mut all: Vec<Who> = followers.chain([Who::Leader]).collect();
    all.shuffle(chance);
    // The leader is what matters most of the time.
    if chance.random_bool(0.4) {
        all.retain(|who| *who != Who::Leader);
        all.insert(0, Who::Leader);
    }
    let spared = usize::from(nodes / 2 + 1);
    let minority = all.len() - spared;
    let count = match kind {
        Kind::Kill | Kind::Pause => match chance.random_range(0..4) {
            0 => chance.random_range(minority + 1..=all.len()),
            _ => chance.random_range(1..=minority),
        },
        Kind::Split => chance.random_range(1..=minority),
        Kind::Power | Kind::Storm => match chance.random_bool(0.5) {
            true => all.len(),
            false => 1,
        },
        Kind::Partial => 2,
        _ => 1,
    };
    all.truncate(count);
    let most = if count > minority && kind != Kind::Partial {
        MAJORITY_LOST
    } else {
        FAULT
    };
    let lasts = match kind {
        // It takes what it takes.
        Kind::Storm | Kind::Member | Kind::Upgrade => Duration::ZERO,
        Kind::Power => Duration::from_millis(chance.random_range(0..3000)),
        // Never shorter than a lease of leadership and the longest election.
        _ => millis(chance, 2000, most),
    };
    Step {
        rest: millis(chance, 2000, Duration::from_secs(5)),
        blow: Blow {
            kind,
            who: all,
            way: chance.random_range(0..12),
            jump: jump(chance),
        },
        lasts,
    }
}

/// Seconds to minutes, forwards and backwards.
fn jump(chance: &mut StdRng) -> i64 {
    let far = [5_000, 30_000, 90_000, 600_000, 7_200_000][chance.random_range(0..5)];
    if chance.random_bool(0.5) { far } else { -far }
}

fn millis(chance: &mut StdRng, least: u64, most: Duration) -> Duration {
    let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(chance.random_range(least..=most))
}

impl Blow {
    /// Whether it leaves a cluster of so many nodes without a majority while it lasts.
    pub fn takes_majority(&self, nodes: u8) -> bool {
        match self.kind {
            Kind::Kill | Kind::Pause | Kind::Power | Kind::Storm => {
                self.who.len() > usize::from(nodes - nodes / 2 - 1)
            }
            _ => false,
        }
    }
}

impl Kind {
    /// For reports, and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Split => "split",
            Self::Partial => "partial",
            Self::OneWay => "one-way",
            Self::Cut => "cut",
            Self::DiskFull => "disk-full",
            Self::DiskHang => "disk-hang",
            Self::DiskSlow => "disk-slow",
            Self::DiskFail => "disk-fail",
            Self::Power => "power",
            Self::Clock => "clock",
            Self::Storm => "storm",
            Self::Member => "member",
            Self::Upgrade => "upgrade",
        }
    }
}

impl Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leader => f.write_str("leader"),
            Self::Follower(number) => write!(f, "follower {number}"),
        }
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who: Vec<String> = self.blow.who.iter().map(ToString::to_string).collect();
        write!(f, "{} of {}", self.blow.kind.name(), who.join(", "))?;
        if self.blow.kind == Kind::Clock {
            write!(f, " by {} s", self.blow.jump / 1000)?;
        }
        if !self.lasts.is_zero() {
            write!(f, " for {:.1} s", self.lasts.as_secs_f64())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(seed: u64, minutes: u64, nodes: u8, kinds: &[Kind]) -> Wanted {
        Wanted {
            seed,
            time: Duration::from_secs(minutes * 60),
            nodes,
            kinds: kinds.iter().copied().collect(),
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_plan_and_another_another() {
        for (nodes, minutes) in [(3, 1), (3, 30), (5, 10)] {
            let make = |seed| plan(&wanted(seed, minutes, nodes, Kind::value_variants()));
            assert_eq!(make(7), make(7));
            assert_ne!(make(7), make(8));
        }
    }

    #[test]
    fn every_plan_keeps_to_its_bounds() {
        for seed in 0..300 {
            for nodes in [3, 5] {
                let wanted = wanted(seed, 20, nodes, Kind::value_variants());
                let steps = plan(&wanted);
                let time: Duration = steps.iter().map(|step| step.rest + step.lasts).sum();
                assert!(time <= wanted.time && time + FAULT * 2 > wanted.time);
                for step in &steps {
                    let who: BTreeSet<Who> = step.blow.who.iter().copied().collect();
                    assert_eq!(who.len(), step.blow.who.len(), "{step}");
                    assert!((1..=usize::from(nodes)).contains(&who.len()), "{step}");
                    let known = |who: &Who| matches!(who, Who::Leader | Who::Follower(0..4));
                    assert!(who.iter().all(known), "{step}");
                    let most = match step.blow.takes_majority(nodes) {
                        true => MAJORITY_LOST,
                        false => FAULT,
                    };
                    assert!(step.lasts <= most, "{step}");
                    assert!(step.rest >= Duration::from_secs(2), "{step}");
                }
            }
        }
    }

    #[test]
    fn all_allowed_kinds_have_their_turn_and_no_others() {
        let table: [(&[Kind], u64); 4] = [
            (&[], 5),
            (&[Kind::Kill], 2),
            (&[Kind::Split, Kind::OneWay, Kind::Clock], 3),
            (Kind::value_variants(), 10),
        ];
        for (kinds, minutes) in table {
            for seed in 0..20 {
                let steps = plan(&wanted(seed, minutes, 3, kinds));
                let seen: BTreeSet<Kind> = steps.iter().map(|step| step.blow.kind).collect();
                assert_eq!(seen, kinds.iter().copied().collect(), "seed {seed}");
            }
        }
    }

    #[test]
    fn a_majority_is_taken_away_sometimes_and_the_leader_is_struck_often() {
        let steps: Vec<Step> = (0..50)
            .flat_map(|seed| plan(&wanted(seed, 10, 5, Kind::value_variants())))
            .collect();
        let share = |of: fn(&&Step) -> bool| steps.iter().filter(of).count() * 100 / steps.len();
        assert!((3..30).contains(&share(|step| step.blow.takes_majority(5))));
        assert!((40..90).contains(&share(|step| step.blow.who.contains(&Who::Leader))));
    }
}
