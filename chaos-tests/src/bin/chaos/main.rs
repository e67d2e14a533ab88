//! `muster-chaos`: tools that load and break a site, to run against a staging network.

mod boot;
mod chaos;
mod failover;
mod load;
mod place;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

/// As in `muster`: what clients cost is taken from the servers when they share a machine.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Loads and breaks a staging network. Never point it at machines in service: it takes addresses.
#[derive(Parser)]
#[command(name = "muster-chaos", version)]
struct Flags {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Subcommand)]
enum Tool {
    /// DHCP clients by the thousand
    #[command(subcommand)]
    Dhcp(Dhcp),
    /// Machines that boot
    #[command(subcommand)]
    Boot(boot::Tool),
    /// Real nodes in a lab on this machine, under load of all kinds, while everything breaks that can;
    /// then what clients saw is checked
    Chaos(chaos::Flags),
}

#[derive(Subcommand)]
enum Dhcp {
    /// How many clients a second get an address, how long each takes, and whether any two get the same
    Load(load::Flags),
    /// Clients as patient as PXE ROMs set out while servers are killed: which of them notice
    Failover(failover::Flags),
}

/// How results are written.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> Result<ExitCode> {
    let good = match Flags::parse().tool {
        Tool::Dhcp(Dhcp::Load(flags)) => load::run(&flags)?,
        Tool::Dhcp(Dhcp::Failover(flags)) => failover::run(&flags)?,
        Tool::Boot(tool) => boot::run(&tool)?,
        Tool::Chaos(flags) => chaos::run(&flags)?,
    };
    Ok(match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
