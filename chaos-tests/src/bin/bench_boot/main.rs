//! `make bench-boot`: what machines fetch when they boot, from one of three Muster nodes and, in turns,
//! from nginx by HTTP and from tftpd-hpa and dnsmasq by TFTP, by the same clients.
//!
//! Prints Markdown; `docs/performance.md` holds what it printed.

mod crowd;
mod http;
mod servers;
mod table;
mod tftp;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use muster_chaos::summary::Latency;

use crate::crowd::Crowd;
use crate::servers::{Kind, Servers};

/// As in `muster`: what the clients cost is taken from all.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Muster's boot services beside others.
#[derive(Parser)]
#[command(name = "muster-bench-boot")]
struct Flags {
    /// Some seconds in all, Muster alone: shows that the benchmark works, measures nothing.
    #[arg(long)]
    quick: bool,
    /// Only these.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    parts: Vec<Part>,
    /// Only these servers.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    servers: Vec<Kind>,
    /// Times that everything is measured, in turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds that one figure is measured for.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Clients of HTTP artifacts and of TFTP, at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,32")]
    clients: Vec<usize>,
    /// Blocks that a TFTP client lets come before it acknowledges.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64")]
    windows: Vec<u16>,
    /// Octets of a TFTP block.
    #[arg(long, default_value_t = 1468)]
    block: u16,
    /// Mebibytes of the file that is fetched by HTTP; TFTP clients fetch one of a sixteenth.
    #[arg(long, default_value_t = 64)]
    mebibytes: usize,
    /// Machines that there are.
    #[arg(long, default_value_t = 1000)]
    machines: usize,
    /// Machines that fetch scripts and rendered files at a time.
    #[arg(long, default_value_t = 64)]
    booting: usize,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A large artifact by HTTP
    Http,
    /// A small artifact by TFTP
    Tftp,
    /// Boot scripts and rendered files by HTTP
    Rendered,
}

impl Part {
    const ALL: [Self; 3] = [Self::Http, Self::Tftp, Self::Rendered];
}

impl Flags {
    fn settle(mut self) -> Self {
        if self.quick {
            self.servers = vec![Kind::Muster];
            self.rounds = 1;
            self.seconds = 0.2;
            self.clients = vec![1, 4];
            self.windows = vec![1, 4];
            self.mebibytes = 16;
            self.machines = 8;
            self.booting = 8;
        }
        self
    }

    /// What is measured in a round, in order.
    fn works(&self) -> Vec<Work> {
        let mut works = Vec::new();
        for part in &self.parts {
            match part {
                Part::Http => {
                    works.extend(self.clients.iter().map(|&clients| Work::Http { clients }))
                }
                Part::Tftp => {
                    for &window in &self.windows {
                        let clients = self.clients.iter();
                        works.extend(clients.map(|&clients| Work::Tftp { clients, window }));
                    }
                }
                Part::Rendered => {
                    let clients = self.booting;
                    works.extend([Work::Scripts { clients }, Work::Files { clients }]);
                }
            }
        }
        works
    }
}

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Each fetches the large file again and again, on one connection.
    Http { clients: usize },
    /// Each fetches the small file again and again, each time from a port of its own.
    Tftp { clients: usize, window: u16 },
    /// Each fetches the script of one machine after the other, each on a connection of its own.
    Scripts { clients: usize },
    /// The same with a rendered file.
    Files { clients: usize },
}

impl Work {
    /// Whether this server can do it.
    fn suits(self, kind: Kind) -> bool {
        match self {
            Self::Http { .. } => matches!(kind, Kind::Muster | Kind::Nginx),
            Self::Tftp { window: 1, .. } => kind != Kind::Nginx,
            // Neither tftpd-hpa 5.2 nor dnsmasq knows RFC 7440.
            Self::Tftp { .. } | Self::Scripts { .. } | Self::Files { .. } => kind == Kind::Muster,
        }
    }
}

/// One figure.
struct Cell {
    kind: Kind,
    work: Work,
    /// Octets a second, or answers a second.
    rate: f64,
    latency: Latency,
    /// Packets or requests that had to be sent again.
    repeats: u64,
    /// Processors that the clients used.
    clients_busy: f64,
}

fn main() -> Result<()> {
    let flags = Flags::parse().settle();
    let servers = Servers::start(&flags)?;
    servers.verify(&flags)?;
    let works = flags.works();
    let mut cells = Vec::new();
    for round in 0..flags.rounds {
        for &work in &works {
            for kind in turn(&flags.servers, round) {
                if !work.suits(kind) {
                    continue;
                }
                let cell = measure(&flags, &servers, kind, work)
                    .with_context(|| format!("{}, {work:?}", kind.name()))?;
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
    println!("{}", table::all(&flags, &cells)?);
    Ok(())
}

/// Who is first in one round is last in the next.
fn turn(kinds: &[Kind], round: usize) -> impl Iterator<Item = Kind> {
    let count = kinds.len();
    let from = if count == 0 { 0 } else { round % count };
    kinds.iter().copied().cycle().skip(from).take(count)
}

fn measure(flags: &Flags, servers: &Servers, kind: Kind, work: Work) -> Result<Cell> {
    let crowd = Crowd {
        host: &servers.clients,
        warm: Duration::from_secs_f64(flags.seconds / 4.0),
        measured: Duration::from_secs_f64(flags.seconds),
    };
    let server = servers.address(kind);
    let outcome = match work {
        Work::Http { clients } => {
            let (port, path) = servers.artifact_url(kind);
            let expected = flags.mebibytes << 20;
            crowd.run(clients, |client| {
                http::fetch_again_and_again(client, (server, port), path, expected)
            })
        }
        Work::Tftp { clients, window } => {
            let request = tftp::Request {
                path: servers.tftp_path(kind),
                block: flags.block,
                window,
            };
            crowd.run(clients, |client| {
                tftp::fetch_again_and_again(client, server, &request, servers.small.len())
            })
        }
        Work::Scripts { clients } => crowd.run(clients, |client| {
            http::ask_again_and_again(client, server, &servers.scripts)
        }),
        Work::Files { clients } => crowd.run(clients, |client| {
            http::ask_again_and_again(client, server, &servers.files)
        }),
    }?;
    let counted = match work {
        Work::Http { .. } | Work::Tftp { .. } => outcome.octets as f64,
        Work::Scripts { .. } | Work::Files { .. } => outcome.answered.len() as f64,
    };
    ensure!(counted > 0.0, "nothing came");
    Ok(Cell {
        kind,
        work,
        rate: counted / crowd.measured.as_secs_f64(),
        latency: Latency::of(outcome.answered.into_iter())?,
        repeats: outcome.repeats,
        clients_busy: outcome.busy,
    })
}
