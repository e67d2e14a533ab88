//! `make bench`: three Muster nodes and three etcd members on loopback, in turns on the same disk.
//!
//! Both sync before they acknowledge, both speak TLS with each other and with the clients, both take
//! values of the same size over the same number of connections. Prints Markdown; `docs/performance.md`
//! holds what it printed.

mod etcd;
mod failover;
mod load;
mod muster;
mod process;
mod table;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::load::{Measured, Window};

/// As in `muster`: what the clients cost is taken from both.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Octets of every value that is written.
pub const VALUE_BYTES: usize = 300;
/// Connections of clients that share them: gRPC multiplexes.
pub const CHANNELS: usize = 8;

/// Election time-outs of etcd in milliseconds, when leaders are killed: the one that Muster has, and the
/// least that etcd takes, which is five heartbeats.
const ETCD_ELECTIONS: [u16; 2] = [400, 300];

/// Measures Muster beside etcd.
#[derive(Parser)]
#[command(name = "muster-bench")]
struct Flags {
    /// Some seconds in all, Muster alone: shows that the benchmark works, measures nothing.
    #[arg(long)]
    quick: bool,
    /// Muster alone.
    #[arg(long)]
    no_etcd: bool,
    /// Times that everything is measured, in turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds that one figure is measured for.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Clients at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,64,512,4096")]
    clients: Vec<usize>,
    /// Leaders killed, of each.
    #[arg(long, default_value_t = 7)]
    kills: usize,
    /// Only these: grpc, rest, reads, kills.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where both keep their data, which decides the disk; by default beside this program.
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Flags {
    fn settle(mut self) -> Self {
        if self.quick {
            self.rounds = 1;
            self.seconds = 0.3;
            self.clients = vec![1, 8];
            self.kills = 1;
            self.no_etcd = true;
        }
        self
    }

    fn wants(&self, what: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == what)
    }

    fn window(&self) -> Window {
        Window {
            warm: Duration::from_secs_f64(self.seconds / 6.0),
            measured: Duration::from_secs_f64(self.seconds),
        }
    }
}

/// What is being driven, in the order of each round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    PeerWrites,
    RestWrites,
    RestReads,
    EtcdWrites,
    EtcdReads,
}

fn main() -> Result<()> {
    // An error means that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let flags = Flags::parse().settle();
    process::raise_file_limit()?;
    let place = match &flags.dir {
        Some(dir) => dir.clone(),
        None => std::env::current_exe()
            .context("finding this program")?
            .parent()
            .context("this program is in no directory")?
            .to_owned(),
    };
    let dir = tempfile::Builder::new()
        .prefix("muster-bench-")
        .tempdir_in(&place)
        .with_context(|| format!("making a directory in {}", place.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;

    let mut muster = muster::Cluster::start(&dir.path().join("muster"))?;
    let start_etcd = |name: &str, pace: etcd::Pace| -> Result<Option<etcd::Cluster>> {
        if flags.no_etcd {
            return Ok(None);
        }
        let etcd = etcd::Cluster::start(&dir.path().join(name), pace)?;
        runtime.block_on(etcd.wait_serving())?;
        Ok(Some(etcd))
    };
    let etcd = start_etcd("etcd", etcd::Pace::Etcds)?;
    println!("{}", table::header(&flags));
    let cells = throughput(&flags, &runtime, &muster, etcd.as_ref())?;
    for (section, title, ours, theirs) in [
        (
            "grpc",
            "Writes over the peers' gRPC",
            Work::PeerWrites,
            Work::EtcdWrites,
        ),
        (
            "rest",
            "Writes over REST",
            Work::RestWrites,
            Work::EtcdWrites,
        ),
        (
            "reads",
            "Linearizable reads",
            Work::RestReads,
            Work::EtcdReads,
        ),
    ] {
        if flags.wants(section) {
            println!(
                "{}",
                table::throughput(title, &flags.clients, &cells, ours, theirs)
            );
        }
    }
    drop(etcd);
    if flags.wants("kills") {
        let mut others = Vec::new();
        for millis in ETCD_ELECTIONS {
            let name = format!("etcd-{millis}");
            if let Some(etcd) = start_etcd(&name, etcd::Pace::Election(millis))? {
                let name = format!("etcd, after {millis} to {} ms", 2 * millis);
                others.push((name, etcd));
            }
        }
        let gaps = failover::measure(&runtime, &mut muster, &mut others, flags.kills)?;
        println!("{}", table::failover(&gaps));
    }
    Ok(())
}

/// One figure: what was driven, by how many clients, in which round.
struct Cell {
    work: Work,
    clients: usize,
    measured: Measured,
}

fn throughput(
    flags: &Flags,
    runtime: &tokio::runtime::Runtime,
    muster: &muster::Cluster,
    etcd: Option<&etcd::Cluster>,
) -> Result<Vec<Cell>> {
    let mut works = Vec::new();
    if flags.wants("grpc") {
        works.push(Work::PeerWrites);
    }
    if flags.wants("grpc") || flags.wants("rest") {
        works.push(Work::EtcdWrites);
    }
    if flags.wants("rest") {
        works.push(Work::RestWrites);
    }
    if flags.wants("reads") {
        works.extend([Work::EtcdReads, Work::RestReads]);
    }
    let mut cells = Vec::new();
    for round in 0..flags.rounds {
        for &clients in &flags.clients {
            for &work in &works {
                let window = flags.window();
                let measured = match (work, etcd) {
                    (Work::PeerWrites, _) => {
                        let callers = runtime.block_on(muster.proposers(clients))?;
                        runtime.block_on(load::drive(callers, window))
                    }
                    (Work::RestWrites | Work::RestReads, _) => {
                        let write = work == Work::RestWrites;
                        let callers = runtime.block_on(muster.requesters(clients, write))?;
                        runtime.block_on(load::drive(callers, window))
                    }
                    (Work::EtcdWrites | Work::EtcdReads, Some(etcd)) => {
                        let write = work == Work::EtcdWrites;
                        let callers = runtime.block_on(etcd.callers(clients, write))?;
                        runtime.block_on(load::drive(callers, window))
                    }
                    (Work::EtcdWrites | Work::EtcdReads, None) => continue,
                };
                eprintln!(
                    "round {} of {}: {clients} clients, {}",
                    round + 1,
                    flags.rounds,
                    table::cell(work, &measured)
                );
                cells.push(Cell {
                    work,
                    clients,
                    measured,
                });
            }
        }
    }
    Ok(cells)
}
