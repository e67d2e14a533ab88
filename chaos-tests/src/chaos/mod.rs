//! Chaos: real nodes under mixed load, while a nemesis does to them what a seed says; afterwards the
//! history of all clients is checked.
//!
//! [`plan`] says what is done, [`nemesis`] does it to a [`site`]; [`objects`], [`leases`] and [`boots`]
//! are the clients, who find nodes by [`seats`] and write down in a [`history`] what they saw; [`check`]
//! looks for what must not be, and [`report`] tells.

pub mod boots;
pub mod check;
pub mod history;
pub mod leases;
pub mod nemesis;
pub mod objects;
pub mod plan;
pub mod report;
pub mod seats;
pub mod site;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::invariant;
use crate::lab::run as run_command;
use crate::node::binary;
use boots::Boots;
use check::{Last, Parts, Rule, Violation};
use history::{History, Record};
use leases::Leases;
use objects::Objects;
use plan::Step;
use report::Report;
use site::Site;

/// Clients of the API.
const API_CLIENTS: u64 = 6;
/// Ports with DHCP clients on the segment, and behind a relay each.
const SEGMENTS: u8 = 4;
const RELAYS: u8 = 2;
/// How long all goes on after the last fault was healed.
const CALM: Duration = Duration::from_secs(3);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// What clients draw their chance from, as the plan did.
    pub seed: u64,
    /// Nodes of the cluster.
    pub nodes: u8,
    /// What is done to it.
    pub steps: Vec<Step>,
    /// What nodes are upgraded to and back from.
    pub other: Option<PathBuf>,
    /// Where the report goes; and plan, history and logs if anything is violated.
    pub report: PathBuf,
}

/// Does it, and checks what came of it.
pub fn run(options: &Options) -> Result<Report> {
    ensure!(!options.steps.is_empty(), "there is nothing to be done");
    fs::create_dir_all(&options.report).context("making the report's directory")?;
    let mut versions = vec![version(&binary()?)?];
    if let Some(other) = &options.other {
        versions.push(version(other)?);
    }
    let mut site = Site::found(options.nodes, options.other.clone())?;
    let history = History::default();
    let worked = work(&mut site, &options.steps, options.seed, &history);
    let checked = worked.and_then(|last| {
        let mut violations = Vec::new();
        let digests = same_state(&site, &mut violations)?;
        let parts = Parts::of(history.all());
        violations.extend(check::violations(&parts, Some(&last)));
        let key = (options.seed, options.nodes);
        Report::new(key, versions, &parts, digests, violations)
    });
    // What went wrong is to be understood afterwards.
    if !checked.as_ref().is_ok_and(Report::good) {
        report::lines(&options.report.join("plan.jsonl"), &options.steps)?;
        report::lines(&options.report.join("history.jsonl"), &history.all())?;
        site.keep_logs(&options.report)?;
    }
    let report = checked?;
    report.write(&options.report)?;
    Ok(report)
}

/// Checks again what clients saw in a run that left its history; what its cluster said at the end is not
/// in that.
pub fn check_again(history: &Path) -> Result<Report> {
    let what = || format!("reading {}", history.display());
    let text = fs::read_to_string(history).with_context(what)?;
    let records = text.lines().map(serde_json::from_str);
    let records: Vec<Record> = records.collect::<Result<_, _>>().with_context(what)?;
    let parts = Parts::of(records);
    let violations = check::violations(&parts, None);
    Report::new((0, 0), Vec::new(), &parts, 0, violations)
}

/// Clients work until all steps are done and healed; what the cluster says then.
fn work(site: &mut Site, steps: &[Step], seed: u64, history: &History) -> Result<Last> {
    let seats = site.seats.clone();
    let lab = site.cluster.lab().clone();
    let boots = Boots::install(&site.cluster, history, leases::SUBNET)?;
    let objects = Objects::new(&seats, history);
    let leases = (0..SEGMENTS + RELAYS)
        .map(|number| Leases::new(&lab, &seats, history, number, number >= SEGMENTS))
        .collect::<Result<Vec<_>>>()?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (over, objects, boots) = (&over, &objects, &boots);
        let boots = scope.spawn(move || boots.run(over));
        let mut clients: Vec<_> = (0..API_CLIENTS)
            .map(|number| scope.spawn(move || objects.run(number, seed ^ number, over)))
            .collect();
        for (number, leases) in (1000..).zip(&leases) {
            clients.push(scope.spawn(move || leases.run(seed ^ number, over)));
        }
        let done = steps
            .iter()
            .try_for_each(|step| nemesis::carry_out(site, step, history));
        if done.is_ok() {
            thread::sleep(CALM);
        }
        over.store(true, Ordering::Relaxed);
        let ended = clients.into_iter().chain([boots]).map(|client| {
            let ended = client.join();
            ended.map_err(|_| anyhow!("a client broke"))?
        });
        // What the nemesis could not do tells more than what clients made of it.
        let ended: Vec<Result<()>> = ended.collect();
        done?;
        ended.into_iter().collect::<Result<()>>()
    })?;
    objects.read_all()?;
    let at = history.now();
    let first = site.members().first().context("no node")?;
    let bound = invariant::bound(site.node(*first))?.into_iter();
    let bound = bound.map(|(address, (mac, _))| {
        let mac = mac.as_str().map(str::to_owned);
        (address, mac.unwrap_or_default())
    });
    Ok(Last {
        at,
        bound: bound.collect(),
    })
}

/// Every node has the same objects; and the same digest, of those that have come equally far when all
/// are stopped. How many could be compared.
fn same_state(site: &Site, violations: &mut Vec<Violation>) -> Result<usize> {
    let mut differ = |what: String| {
        violations.push(Violation {
            rule: Rule::SameState,
            what,
            part: Vec::new(),
        });
    };
    if let Err(error) = invariant::same_everywhere(&site.cluster) {
        differ(format!("{error:#}"));
    }
    let members = || site.members().iter().map(|index| site.node(*index));
    for node in members() {
        node.freeze()?;
    }
    for node in members() {
        node.kill()?;
    }
    let mut by_revision: BTreeMap<u64, Vec<(String, Value)>> = BTreeMap::new();
    for node in members() {
        let dir = node.data_dir().display().to_string();
        let answer = node.cli(&["node", "check", "--data-dir", &dir])?;
        let found: Value = match answer.json() {
            Ok(found) => found,
            Err(error) => {
                differ(format!("{}: {error:#}", node.name()));
                continue;
            }
        };
        let number = |pointer| found.pointer(pointer).and_then(Value::as_u64);
        let revision = number("/applied/revision").context("a check without a revision")?;
        let digest = found.pointer("/applied/digest").cloned();
        let same = by_revision.entry(revision).or_default();
        same.push((node.name().to_owned(), digest.unwrap_or_default()));
    }
    let mut compared = 0;
    for (revision, digests) in by_revision {
        if digests.len() > 1 {
            compared += digests.len();
        }
        if digests.windows(2).any(|pair| pair[0].1 != pair[1].1) {
            differ(format!("digests at revision {revision}: {digests:?}"));
        }
    }
    Ok(compared)
}

fn version(binary: &Path) -> Result<String> {
    run_command(Command::new(binary).arg("--version")).map(|text| text.trim().to_owned())
}
