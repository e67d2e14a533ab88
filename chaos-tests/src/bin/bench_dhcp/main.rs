//! `make bench-dhcp`: three Muster nodes, Kea hot-standby and Kea alone, in turns, asked by the same
//! clients behind the same relay, each in a lab of namespaces of its own.
//!
//! Prints Markdown; `docs/performance.md` holds what it printed.

mod kea;
mod scale;
mod site;
mod table;

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use muster_chaos::crowd::{self, Arrivals, Errand, Given, Outcome, Patience};
use muster_chaos::dhcp::Client;
use muster_chaos::summary::Summary;

use crate::site::{Kind, Site};

/// As in `muster`: what the clients cost is taken from all.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is not answered by then is a drop.
const DROP_AFTER: Duration = Duration::from_secs(1);

/// Clients that renew, at most; each does so many times.
const RENEWING: usize = 4096;

/// Measures Muster's DHCP beside Kea's.
#[derive(Parser)]
#[command(name = "muster-bench-dhcp")]
struct Flags {
    /// Some seconds in all, Muster alone: shows that the benchmark works, measures nothing.
    #[arg(long)]
    quick: bool,
    /// Only these.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Sites, Part::Scale])]
    parts: Vec<Part>,
    /// Only these sites.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    sites: Vec<Kind>,
    /// Leases that are there already when it is measured whether they matter.
    #[arg(long, default_value_t = 1_000_000)]
    leases: u32,
    /// Times that everything is measured, in turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that one figure is measured for.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Clients that are on their way at any time.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    in_flight: Vec<usize>,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Muster beside others
    Sites,
    /// Muster with large pools and many leases beside Muster with small ones and none
    Scale,
}

impl Flags {
    fn settle(mut self) -> Self {
        if self.quick {
            self.sites = vec![Kind::Muster];
            self.rounds = 1;
            self.seconds = 0.3;
            self.in_flight = vec![8];
            self.leases = 2000;
        }
        self
    }

    fn scale(&self) -> scale::Plan {
        scale::Plan {
            rounds: u32::try_from(self.rounds).unwrap_or(u32::MAX),
            pools: if self.quick { 1 } else { 10 },
            leases: self.leases,
        }
    }
}

/// What clients are out for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// DISCOVER, OFFER, REQUEST, ACK of a client that was never seen.
    Seek,
    /// REQUEST, ACK of a client that got its lease a moment ago.
    Renew,
}

/// One figure.
struct Cell {
    kind: Kind,
    work: Work,
    in_flight: usize,
    summary: Summary,
    /// Of the processors, as a share of one.
    busy: f64,
}

fn main() -> Result<()> {
    let flags = Flags::parse().settle();
    if flags.parts.contains(&Part::Sites) {
        sites(&flags)?;
    }
    if flags.parts.contains(&Part::Scale) {
        println!("{}", scale::run(&flags.scale())?);
    }
    Ok(())
}

fn sites(flags: &Flags) -> Result<()> {
    let mut sites = Vec::new();
    for kind in &flags.sites {
        sites.push(Site::start(*kind)?);
    }
    let mut cells = Vec::new();
    for round in 0..flags.rounds {
        for in_flight in &flags.in_flight {
            for work in [Work::Seek, Work::Renew] {
                for site in &mut sites {
                    let cell = measure(flags, site, work, *in_flight)?;
                    eprintln!(
                        "round {} of {}: {}",
                        round + 1,
                        flags.rounds,
                        table::line(&cell)
                    );
                    cells.push(cell);
                }
            }
        }
    }
    println!("{}", table::header(flags, &sites)?);
    for (work, title) in [
        (Work::Seek, "New clients, DISCOVER to ACK"),
        (Work::Renew, "Renewals"),
    ] {
        println!("{}", table::section(title, work, flags, &cells));
    }
    Ok(())
}

fn measure(flags: &Flags, site: &mut Site, work: Work, in_flight: usize) -> Result<Cell> {
    let begin = Instant::now();
    let start = begin + Duration::from_secs_f64(flags.seconds / 4.0);
    let end = start + Duration::from_secs_f64(flags.seconds);
    let busy = site.processor_time()?;
    let outcome = match work {
        Work::Seek => {
            let numbers = site.next..;
            let errands = numbers.map(|number| Errand::seek(Client::numbered(1, number)));
            let outcome = run(site, errands, in_flight, end)?;
            site.next += u32::try_from(outcome.started)?;
            remember(site, &outcome);
            outcome
        }
        Work::Renew => {
            let holders = site.given.clone();
            let errands = holders
                .iter()
                .cycle()
                .map(|given| Errand::renew(Client::new(given.mac), given.address));
            run(site, errands, in_flight.min(holders.len()), end)?
        }
    };
    let busy = (site.processor_time()? - busy).as_secs_f64() / begin.elapsed().as_secs_f64();
    let summary = Summary::of(&outcome, &(start..end))?;
    anyhow::ensure!(
        summary.given_twice.is_empty(),
        "{}: {:?} were given twice",
        site.kind.name(),
        summary.given_twice
    );
    Ok(Cell {
        kind: site.kind,
        work,
        in_flight,
        summary,
        busy,
    })
}

/// Those that got an address last renew it.
fn remember(site: &mut Site, outcome: &Outcome) {
    let mut given: Vec<Given> = outcome.given.iter().rev().take(RENEWING).cloned().collect();
    if !given.is_empty() {
        std::mem::swap(&mut site.given, &mut given);
    }
}

fn run(
    site: &Site,
    errands: impl Iterator<Item = Errand>,
    in_flight: usize,
    end: Instant,
) -> Result<Outcome> {
    let patience = Patience {
        waits: vec![DROP_AFTER],
        anew_after: None,
    };
    let errands = errands.take_while(|_| Instant::now() < end);
    let arrivals = Arrivals::InFlight(in_flight);
    crowd::run(&site.port, errands, arrivals, &patience, |_| false)
}
