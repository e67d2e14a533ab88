//! What became of many machines, in figures.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::machine::Machine;
use super::progress::{Journal, Stage};
use crate::summary::Latency;
use crate::wire::mac_text;

/// What became of one machine.
#[derive(Debug)]
pub struct Came {
    model: &'static str,
    mac: String,
    took: Duration,
    stages: Vec<(Stage, Duration)>,
    fall_backs: usize,
    next_entries: usize,
    anew: usize,
    setbacks: Vec<String>,
    up: bool,
}

impl Came {
    /// Of a machine that has come to an end.
    pub fn new(machine: &Machine<'_>, journal: Journal, took: Duration, ended: Result<()>) -> Self {
        let up = ended.is_ok();
        let mut setbacks = journal.setbacks;
        setbacks.extend(ended.err().map(|error| format!("{error:#}")));
        Self {
            model: machine.model.name(),
            mac: mac_text(machine.client.mac),
            took,
            stages: journal.stages,
            fall_backs: journal.fall_backs,
            next_entries: journal.next_entries,
            anew: journal.anew,
            setbacks,
            up,
        }
    }
}

/// How a node was killed.
#[derive(Clone, Debug, Serialize)]
pub struct Killed {
    /// Which.
    pub node: String,
    /// Seconds after the first machine was switched on.
    pub after: f64,
    /// How many machines had passed which stage by then.
    pub reached: Vec<(Stage, usize)>,
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Machines that were switched on.
    pub started: usize,
    /// Machines that have called back.
    pub up: usize,
    /// Seconds for all of it.
    pub seconds: f64,
    /// Who was killed.
    pub killed: Option<Killed>,
    /// By firmware.
    pub models: Vec<Figures>,
    /// By stage.
    pub stages: Vec<Figures>,
    /// DHCP messages that were sent again because no answer had come.
    pub dhcp_repeats: BTreeMap<&'static str, usize>,
    /// Fetches of a script or a system that failed, after which it turned to another node.
    pub fall_backs: usize,
    /// Machines whose firmware turned to another entry of its boot order, or to its first again.
    pub next_entries: usize,
    /// Those of them whose BIOS began its boot order anew.
    pub anew: usize,
    /// What went wrong, with how often.
    pub setbacks: BTreeMap<String, usize>,
    /// Machines that are not up, and what they went through.
    pub lost: Vec<String>,
}

/// Times of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Of what.
    pub name: &'static str,
    /// How many.
    pub count: usize,
    /// How long.
    pub took: Latency,
}

impl Report {
    /// Sums up.
    pub fn new(
        came: &[Came],
        dhcp_repeats: BTreeMap<&'static str, usize>,
        killed: Option<Killed>,
        took: Duration,
    ) -> Result<Self> {
        let mut by_model: BTreeMap<&'static str, Vec<Duration>> = BTreeMap::new();
        let mut by_stage: BTreeMap<Stage, Vec<Duration>> = BTreeMap::new();
        let mut setbacks = BTreeMap::new();
        for one in came {
            by_model.entry(one.model).or_default().push(one.took);
            for (stage, took) in &one.stages {
                by_stage.entry(*stage).or_default().push(*took);
            }
            for setback in &one.setbacks {
                *setbacks.entry(setback.clone()).or_default() += 1;
            }
        }
        let figures = |(name, times): (&'static str, Vec<Duration>)| {
            Ok(Figures {
                name,
                count: times.len(),
                took: Latency::of(times.into_iter())?,
            })
        };
        let stages = by_stage.into_iter();
        let lost = came.iter().filter(|one| !one.up).map(|one| {
            let stages: Vec<&str> = one.stages.iter().map(|(stage, _)| stage.name()).collect();
            let (model, mac, setbacks) = (one.model, &one.mac, one.setbacks.join("; "));
            format!("{mac} ({model}) after {stages:?}: {setbacks}")
        });
        let sum = |of: fn(&Came) -> usize| came.iter().map(of).sum();
        let count = |of: fn(&Came) -> bool| came.iter().filter(|one| of(one)).count();
        Ok(Self {
            started: came.len(),
            up: count(|one| one.up),
            seconds: took.as_secs_f64(),
            killed,
            models: by_model.into_iter().map(figures).collect::<Result<_>>()?,
            stages: stages
                .map(|(stage, times)| figures((stage.name(), times)))
                .collect::<Result<_>>()?,
            dhcp_repeats,
            fall_backs: sum(|one| one.fall_backs),
            next_entries: count(|one| one.next_entries > 0),
            anew: count(|one| one.anew > 0),
            setbacks,
            lost: lost.collect(),
        })
    }

    /// Whether every machine is up.
    pub fn good(&self) -> bool {
        self.up == self.started
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(killed) = &self.killed {
            write!(f, "{} was killed after {:.1} s;", killed.node, killed.after)?;
            for (stage, count) in &killed.reached {
                write!(f, " {} {count},", stage.name())?;
            }
            writeln!(f, " so often passed by then")?;
        }
        writeln!(
            f,
            "{:>16} {:>6} {:>9} {:>9} {:>9}  seconds",
            "", "count", "median", "p90", "most"
        )?;
        for figures in self.stages.iter().chain(&self.models) {
            let took = figures.took;
            writeln!(
                f,
                "{:>16} {:>6} {:>9.3} {:>9.3} {:>9.3}",
                figures.name,
                figures.count,
                took.p50_ms / 1000.0,
                took.p90_ms / 1000.0,
                took.max_ms / 1000.0
            )?;
        }
        for (message, count) in &self.dhcp_repeats {
            writeln!(f, "{count:>4} × {message} repeated")?;
        }
        for (setback, count) in &self.setbacks {
            writeln!(f, "{count:>4} × {setback}")?;
        }
        for lost in &self.lost {
            writeln!(f, "LOST: {lost}")?;
        }
        write!(
            f,
            "{} of {} up in {:.1} s; {} fetches by another node, {} machines by another entry of \
             their boot order, {} of these by beginning it anew",
            self.up, self.started, self.seconds, self.fall_backs, self.next_entries, self.anew
        )
    }
}
