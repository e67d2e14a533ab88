//! `muster-chaos boot`.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use muster_chaos::cluster::Cluster;
use muster_chaos::fleet::{self, Plan};
use muster_chaos::matrix::{self, Blow, Case, Ended, Mode, Moment};

use crate::Output;

/// What to boot.
#[derive(Subcommand)]
pub enum Tool {
    /// Simulated machines by the hundred, from DISCOVER to callback, while the leader is killed, in a
    /// lab of three nodes on this machine
    Fleet(Fleet),
    /// Real firmware in QEMU, while the node that a machine has to do with dies at every moment of its
    /// boot, in a lab of three nodes on this machine
    Matrix(Matrix),
}

/// How many, and how.
#[derive(Args)]
pub struct Fleet {
    /// How many machines are switched on
    #[arg(long, value_name = "N", default_value_t = 200)]
    machines: u32,
    /// Seconds within which they are
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    spread: f64,
    /// The share of machines that have their script when the leader is killed
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    kill_at: f64,
    /// Lets the leader live
    #[arg(long, conflicts_with = "kill_at")]
    spare: bool,
    /// Seconds after which machines that are not up are given up
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    patience: f64,
    /// How to write the result
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Which firmware, and when and how the node dies.
#[derive(Args)]
pub struct Matrix {
    /// Firmware. GRUB and pxelinux do not come up from every moment, and are left out
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Mode::WITH_IPXE)]
    modes: Vec<Mode>,
    /// When the node dies
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Moment::value_variants().to_vec())]
    moments: Vec<Moment>,
    /// How it dies
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Blow::Kill, Blow::Cut])]
    blows: Vec<Blow>,
    /// How many machines boot at a time, each from a cluster of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    at_once: usize,
    /// Seconds after which a machine that is not up is lost
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    patience: f64,
    /// How to write the result
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Boots; whether all came up.
pub fn run(tool: &Tool) -> Result<bool> {
    match tool {
        Tool::Fleet(flags) => fleet(flags),
        Tool::Matrix(flags) => matrix(flags),
    }
}

fn fleet(flags: &Fleet) -> Result<bool> {
    let plan = Plan {
        machines: flags.machines,
        spread: Duration::from_secs_f64(flags.spread),
        kill_at: (!flags.spare).then_some(flags.kill_at),
        patience: Duration::from_secs_f64(flags.patience),
    };
    let report = fleet::boot(&Cluster::found(3)?, &plan)?;
    match flags.output {
        Output::Text => println!("{report}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(report.good())
}

fn matrix(flags: &Matrix) -> Result<bool> {
    let mut cases = Vec::new();
    for mode in &flags.modes {
        for moment in &flags.moments {
            cases.extend(flags.blows.iter().map(|blow| Case {
                mode: *mode,
                moment: *moment,
                blow: *blow,
            }));
        }
    }
    cases.retain(|case| case.exists());
    let patience = Duration::from_secs_f64(flags.patience);
    let tell = |ended: &Ended| eprintln!("{ended}");
    let ended = matrix::run(&cases, flags.at_once, patience, &tell)?;
    match flags.output {
        Output::Text => println!("{}", matrix::table(&ended)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&ended)?),
    }
    Ok(ended.iter().all(|ended| ended.up.is_some()))
}
