//! `muster-chaos chaos`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum as _};
use muster_chaos::chaos::plan::{self, Kind, Wanted};
use muster_chaos::chaos::report::Report;
use muster_chaos::chaos::{self, Options};

/// What to do.
#[derive(Args)]
pub struct Flags {
    /// Minutes of faults; what it takes to become whole after each comes on top
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    minutes: f64,
    /// Nodes of the cluster: three or five
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=5))]
    nodes: u8,
    /// What the plan is made from: the same seed makes the same plan
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the report goes; and plan, history and logs of the nodes if anything is violated
    #[arg(long, value_name = "DIR", default_value = "target/chaos")]
    report: PathBuf,
    /// Kinds of faults; all by default
    #[arg(long, value_name = "KIND", value_delimiter = ',', num_args = 1..)]
    nemesis: Vec<Kind>,
    /// Another muster, which nodes are upgraded to and back from; without it there are no upgrades
    #[arg(long, value_name = "PATH")]
    other_binary: Option<PathBuf>,
    /// Instead: check once more what clients saw, by the history that a run left (history.jsonl)
    #[arg(long, value_name = "FILE", exclusive = true)]
    check: Option<PathBuf>,
}

/// Does it; whether nothing was violated.
pub fn run(flags: &Flags) -> Result<bool> {
    if let Some(history) = &flags.check {
        return tell(&chaos::check_again(history)?);
    }
    ensure!(flags.nodes != 4, "three or five nodes make a cluster here");
    let all = match flags.nemesis.is_empty() {
        true => Kind::value_variants(),
        false => &flags.nemesis,
    };
    let mut kinds: std::collections::BTreeSet<Kind> = all.iter().copied().collect();
    if flags.other_binary.is_none() {
        kinds.remove(&Kind::Upgrade);
    }
    let steps = plan::plan(&Wanted {
        seed: flags.seed,
        time: Duration::from_secs_f64(flags.minutes * 60.0),
        nodes: flags.nodes,
        kinds,
    });
    let report = chaos::run(&Options {
        seed: flags.seed,
        nodes: flags.nodes,
        steps,
        other: flags.other_binary.clone(),
        report: flags.report.clone(),
    })?;
    tell(&report)
}

fn tell(report: &Report) -> Result<bool> {
    println!("{report}");
    Ok(report.good())
}
