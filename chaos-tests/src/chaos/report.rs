//! What came of it, to read and to keep.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use muster_storage::linear::{Action, Told};
use serde::Serialize;

use super::check::{Parts, Violation};
use super::history::{Call, Exchange, Record, Said, Want};
use crate::summary::Latency;

/// So many violations are shown with the records that show them.
const SHOWN: usize = 20;

/// All figures of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What the plan was made from.
    pub seed: u64,
    /// Nodes of the cluster.
    pub nodes: u8,
    /// What ran, by its own words.
    pub versions: Vec<String>,
    /// Seconds from the first fault's rest to the last node's being whole.
    pub seconds: f64,
    /// Operations of clients, by what was wanted and what came of it.
    pub operations: BTreeMap<String, BTreeMap<String, usize>>,
    /// Faults by kind.
    pub faults: BTreeMap<String, usize>,
    /// What was done, in order.
    pub done: Vec<String>,
    /// What clients waited for answers.
    pub waits: Vec<(String, Latency)>,
    /// The longest time in which nobody was given what, in seconds.
    pub gaps: Vec<(String, f64)>,
    /// The longest time from the end of a fault until all was whole, in seconds.
    pub slowest_healing: f64,
    /// Nodes whose digests were compared at the end, at equal revision.
    pub digests: usize,
    /// What must not be.
    pub violations: Vec<Violation>,
}

impl Report {
    /// Sums up.
    pub fn new(
        (seed, nodes): (u64, u8),
        versions: Vec<String>,
        parts: &Parts,
        digests: usize,
        violations: Vec<Violation>,
    ) -> Result<Self> {
        let mut operations: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
        let mut count = |what: &str, came: &str| {
            let came = operations
                .entry(what.to_owned())
                .or_default()
                .entry(came.to_owned());
            *came.or_default() += 1;
        };
        for call in &parts.calls {
            count(name(call), &told(call));
        }
        for exchange in &parts.exchanges {
            count(want(exchange), said(exchange));
        }
        for boot in &parts.boots {
            let came = match (boot.up, boot.next_entries) {
                (true, 0) => "up",
                (true, _) => "up by another entry of its boot order",
                (false, _) => "gave up",
            };
            count(&format!("boot, {}", boot.model), came);
        }
        let mut faults: BTreeMap<String, usize> = BTreeMap::new();
        for fault in &parts.faults {
            *faults.entry(fault.kind.clone()).or_default() += 1;
        }
        let done = parts.faults.iter().map(|fault| {
            format!(
                "{:.1} s: {}, for {:.1} s; whole {:.1} s later",
                seconds(fault.start),
                fault.what,
                seconds(fault.healing.saturating_sub(fault.struck)),
                seconds(fault.end.saturating_sub(fault.healing)),
            )
        });
        let healing = parts.faults.iter();
        let healing = healing.map(|fault| fault.end.saturating_sub(fault.healing));
        let end = parts.faults.iter().map(|fault| fault.end).max();
        Ok(Self {
            seed,
            nodes,
            versions,
            seconds: seconds(end.unwrap_or_default()),
            operations,
            faults,
            done: done.collect(),
            waits: waits(parts)?,
            gaps: gaps(parts),
            slowest_healing: seconds(healing.max().unwrap_or_default()),
            digests,
            violations,
        })
    }

    /// Whether nothing is wrong.
    pub fn good(&self) -> bool {
        self.violations.is_empty()
    }

    /// Writes it to a directory, for readers and for programs.
    pub fn write(&self, to: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).context("writing the report")?;
        for (name, text) in [("report.md", self.to_string()), ("report.json", json)] {
            let file = to.join(name);
            fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }
}

/// Writes values to a file, one a line.
pub fn lines<T: Serialize>(file: &Path, values: &[T]) -> Result<()> {
    let what = || format!("writing {}", file.display());
    let mut out = BufWriter::new(fs::File::create(file).with_context(what)?);
    for value in values {
        serde_json::to_writer(&mut out, value).with_context(what)?;
        writeln!(out).with_context(what)?;
    }
    out.flush().with_context(what)
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn name(call: &Call) -> &'static str {
    use muster_storage::linear::Condition;
    match call.action {
        Action::Read(_) => "API: get",
        Action::Write(Condition::Absent, _) => "API: create",
        Action::Write(Condition::Is(_), _) => "API: change if unchanged",
        Action::Write(_, _) => "API: change",
        Action::Delete(_) => "API: delete",
    }
}

fn told(call: &Call) -> String {
    match (call.told, call.status) {
        (Told::Done, _) => "done".to_owned(),
        (Told::Refused, _) => "refused".to_owned(),
        (Told::Unknown, Some(200 | 404)) if is_read(call) => "marked stale".to_owned(),
        (Told::Unknown, Some(status)) => format!("unknown: {status}"),
        (Told::Unknown, None) => "unknown: no answer".to_owned(),
    }
}

fn want(exchange: &Exchange) -> &'static str {
    match (exchange.want, exchange.relayed) {
        (Want::Bind, false) => "DHCP: bind",
        (Want::Bind, true) => "DHCP, relayed: bind",
        (Want::Renew, _) => "DHCP: renew",
        (Want::Rebind, false) => "DHCP: rebind",
        (Want::Rebind, true) => "DHCP, relayed: rebind",
        (Want::Reboot, false) => "DHCP: reboot",
        (Want::Reboot, true) => "DHCP, relayed: reboot",
        (Want::Release, _) => "DHCP: release",
        (Want::Decline, _) => "DHCP: decline",
    }
}

fn said(exchange: &Exchange) -> &'static str {
    match (exchange.want, exchange.said) {
        (Want::Release | Want::Decline, _) => "sent",
        (_, Said::Ack) => "ACK",
        (_, Said::Nak) => "NAK",
        (_, Said::Nothing) => "no answer",
    }
}

fn is_read(call: &Call) -> bool {
    matches!(call.action, Action::Read(_))
}

fn waits(parts: &Parts) -> Result<Vec<(String, Latency)>> {
    let micros = |start: u64, end: u64| Duration::from_micros(end.saturating_sub(start));
    let calls = |read: bool| {
        let done = parts.calls.iter();
        let done = done.filter(move |call| call.told != Told::Unknown && is_read(call) == read);
        done.map(move |call| micros(call.start, call.end))
    };
    let acked = |want: fn(Want) -> bool| {
        let acks = parts.exchanges.iter();
        let acks = acks.filter(move |one| one.said == Said::Ack && want(one.want));
        acks.map(move |one| micros(one.start, one.end))
    };
    let up = parts.boots.iter().filter(|boot| boot.up);
    Ok(vec![
        ("API reads".to_owned(), Latency::of(calls(true))?),
        ("API writes".to_owned(), Latency::of(calls(false))?),
        (
            "DISCOVER to ACK".to_owned(),
            Latency::of(acked(|want| want == Want::Bind))?,
        ),
        (
            "more time".to_owned(),
            Latency::of(acked(|want| want != Want::Bind))?,
        ),
        (
            "power-on to callback".to_owned(),
            Latency::of(up.map(|boot| micros(boot.start, boot.end)))?,
        ),
    ])
}

fn gaps(parts: &Parts) -> Vec<(String, f64)> {
    let writes = parts.calls.iter().filter(|call| !is_read(call));
    let writes = writes
        .filter(|call| call.told == Told::Done)
        .map(|call| call.end);
    let acks = parts.exchanges.iter().filter(|one| one.said == Said::Ack);
    let binds = acks.clone().filter(|one| one.want == Want::Bind);
    let up = parts
        .boots
        .iter()
        .filter(|boot| boot.up)
        .map(|boot| boot.end);
    vec![
        ("a write was done".to_owned(), gap(writes.collect())),
        (
            "any ACK was given".to_owned(),
            gap(acks.map(|one| one.end).collect()),
        ),
        (
            "an address was given".to_owned(),
            gap(binds.map(|one| one.end).collect()),
        ),
        ("a machine came up".to_owned(), gap(up.collect())),
    ]
}

fn gap(mut times: Vec<u64>) -> f64 {
    times.sort_unstable();
    let gaps = times.windows(2).filter_map(|pair| match pair {
        [one, other] => Some(other - one),
        _ => None,
    });
    seconds(gaps.max().unwrap_or_default())
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: usize = self.faults.values().sum();
        writeln!(
            f,
            "# Chaos: {} nodes, seed {}, {:.0} s, {faults} faults, {} violations\n",
            self.nodes,
            self.seed,
            self.seconds,
            self.violations.len()
        )?;
        for version in &self.versions {
            writeln!(f, "- {version}")?;
        }
        writeln!(f, "\n| operation | came to | count |\n|---|---|---:|")?;
        for (what, came) in &self.operations {
            for (came, count) in came {
                writeln!(f, "| {what} | {came} | {count} |")?;
            }
        }
        writeln!(f, "\n| fault | count |\n|---|---:|")?;
        for (kind, count) in &self.faults {
            writeln!(f, "| {kind} | {count} |")?;
        }
        writeln!(f, "\n| ms | p50 | p99 | most |\n|---|---:|---:|---:|")?;
        for (what, took) in &self.waits {
            let (half, most, all) = (took.p50_ms, took.p99_ms, took.max_ms);
            writeln!(f, "| {what} | {half:.1} | {most:.1} | {all:.1} |")?;
        }
        writeln!(f, "\n| longest time until … again | s |\n|---|---:|")?;
        for (what, gap) in &self.gaps {
            writeln!(f, "| {what} | {gap:.1} |")?;
        }
        writeln!(
            f,
            "| all was whole after a fault | {:.1} |",
            self.slowest_healing
        )?;
        writeln!(
            f,
            "\nDigests of {} nodes were compared at the end, at equal revision.\n",
            self.digests
        )?;
        for violation in self.violations.iter().take(SHOWN) {
            writeln!(f, "## {:?}: {}\n\n```", violation.rule, violation.what)?;
            for record in &violation.part {
                writeln!(f, "{}", text(record))?;
            }
            writeln!(f, "```\n")?;
        }
        writeln!(f, "## What was done\n")?;
        for done in &self.done {
            writeln!(f, "- {done}")?;
        }
        Ok(())
    }
}

fn text(record: &Record) -> String {
    serde_json::to_string(record).unwrap_or_else(|error| error.to_string())
}
