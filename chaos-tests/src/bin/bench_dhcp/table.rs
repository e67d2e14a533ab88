//! What was measured, as Markdown.

use std::fmt::Write as _;

use anyhow::Result;
use muster_chaos::summary::{Ratios, median};

use crate::site::{Kind, LEASE_SECS, Site};
use crate::{Cell, DROP_AFTER, Flags, RENEWING, Work};

/// What all tables have in common.
pub fn header(flags: &Flags, sites: &[Site]) -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let names: Vec<&str> = sites.iter().map(|site| site.kind.name()).collect();
    Ok(format!(
        "{}, in turns; {cores} cores for all servers and clients, one disk; clients behind one relay \
         that sends to all servers of a site, each of them in a namespace of its own; a pool of two \
         million addresses, leases of {LEASE_SECS} s; {} rounds, {} s a figure; a message without an \
         answer for {DROP_AFTER:?} is a drop; up to {RENEWING} clients renew. Medians; ratios are of \
         rates, Muster's by the other's, round by round.\n",
        names.join(", "),
        flags.rounds,
        flags.seconds
    ))
}

/// One figure in one line, as it is measured.
pub fn line(cell: &Cell) -> String {
    let work = match cell.work {
        Work::Seek => "new clients",
        Work::Renew => "renewals",
    };
    format!(
        "{}, {work}, {} in flight: {:.0}/s, {} drops, {:.0} % busy; {}",
        cell.kind.name(),
        cell.in_flight,
        cell.summary.per_second,
        cell.summary.gave_up,
        cell.busy * 100.0,
        cell.summary.latency
    )
}

/// One kind of work, by how many clients are on their way.
pub fn section(title: &str, work: Work, flags: &Flags, cells: &[Cell]) -> String {
    let mut text = format!(
        "### {title}\n\n\
         | in flight | who | ACKs/s | p50 / p99 ms | drops | processors | Muster's ratio | rounds |\n\
         |---|---|---|---|---|---|---|---|\n"
    );
    for &in_flight in &flags.in_flight {
        let of = |kind: Kind| -> Vec<&Cell> {
            let same = |cell: &&Cell| {
                cell.kind == kind && cell.work == work && cell.in_flight == in_flight
            };
            cells.iter().filter(same).collect()
        };
        let ours = of(Kind::Muster);
        for &kind in &flags.sites {
            let theirs = of(kind);
            let rates = |cells: &[&Cell]| -> Vec<f64> {
                cells.iter().map(|cell| cell.summary.per_second).collect()
            };
            let ratios = match kind {
                Kind::Muster => Ratios::default(),
                _ => Ratios::of(&rates(&ours), &rates(&theirs)),
            };
            let (ratio, rounds) = (ratios.median(), ratios.rounds());
            let middle = |figure: &dyn Fn(&Cell) -> f64| {
                let figures: Vec<f64> = theirs.iter().map(|cell| figure(cell)).collect();
                median(&figures).unwrap_or(f64::NAN)
            };
            let drops: usize = theirs.iter().map(|cell| cell.summary.gave_up).sum();
            let _ = writeln!(
                text,
                "| {in_flight} | {} | {:.0} | {:.1} / {:.1} | {drops} | {:.2} | {ratio} | {rounds} |",
                kind.name(),
                middle(&|cell| cell.summary.per_second),
                middle(&|cell| cell.summary.latency.p50_ms),
                middle(&|cell| cell.summary.latency.p99_ms),
                middle(&|cell| cell.busy),
            );
        }
    }
    text
}
