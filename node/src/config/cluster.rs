//! `muster cluster`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::duration;

/// `muster cluster`.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Nodes, leader, quorum. Ends with 5 when there is no quorum.
    Status,
    /// Print a token by which nodes join, any number of times until it expires.
    JoinToken {
        /// How long it is valid.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
        ttl: Duration,
        /// Instead: let no node join by any token made so far.
        #[arg(long)]
        revoke: bool,
    },
    /// Remove a node for good, dead or alive.
    Remove {
        /// Name or id.
        node: String,
    },
    /// Put a node that has joined in the place of one that does not answer any more.
    ///
    /// Waits until the new one votes, then removes the dead one for good. Can be given again at any time.
    Replace {
        /// Name or id.
        dead: String,
        /// Name or id.
        new: String,
    },
    /// Hand leadership to a node, or to any other.
    Transfer {
        /// Name or id.
        node: Option<String>,
    },
    /// Give a node, or all of them one after the other, a new key and certificate.
    RenewCertificates {
        /// Name or id.
        node: Option<String>,
    },
    /// Seal all secrets with a new key, and forget the older ones.
    ///
    /// Tokens of machines that are being installed end.
    RotateKeys,
    /// Make a node ready to be stopped: it leads no more, and begins nothing new that others can do.
    Drain {
        /// Name or id.
        node: String,
        /// How long transfers that run may take to end.
        #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
        wait: Duration,
    },
    /// Go from version to version, one node at a time.
    #[command(subcommand)]
    Upgrade(UpgradeCommand),
    /// Write from now on what older versions do not know. None of them can be started again.
    ///
    /// Refused while a node does not run a version that knows it, or is not live.
    Finalize,
    /// Have a node fail, and measure what clients see of it.
    #[command(subcommand)]
    Drill(DrillCommand),
}

/// `muster cluster upgrade`.
#[derive(Debug, Subcommand)]
pub enum UpgradeCommand {
    /// How far the upgrade is.
    Status(Wanted),
    /// Whether a node may be taken down now, and which; ends with 1 and says why when none may.
    Check(Wanted),
    /// Drain the next node, the leader last, and print its name; nothing when all have the version.
    ///
    /// Can be given again at any time: a node that is draining already is the next one.
    Next {
        /// Where to.
        #[command(flatten)]
        wanted: Wanted,
        /// How long transfers that run on it may take to end.
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
        wait: Duration,
    },
}

/// Where to.
#[derive(Debug, Args)]
pub struct Wanted {
    /// The version that all nodes are to have; the newest that one of them has if absent.
    #[arg(long, value_name = "VERSION")]
    pub to: Option<String>,
}

/// `muster cluster drill`.
#[derive(Debug, Subcommand)]
pub enum DrillCommand {
    /// Kill the process of the leader; its service manager starts it again.
    LeaderKill {
        /// How it is done.
        #[command(flatten)]
        options: DrillOptions,
        /// Also when no service manager is known to start it again.
        #[arg(long)]
        force: bool,
    },
    /// Have a node fall silent for a while, as if it hung or its cable were cut; it goes on by itself.
    NodeLoss {
        /// Name or id [default: a node that does not lead].
        #[arg(long)]
        node: Option<String>,
        /// How it is done.
        #[command(flatten)]
        options: DrillOptions,
    },
    /// The reports of drills.
    List,
    /// The report of a drill.
    Get {
        /// Its name.
        name: String,
    },
}

/// How a drill is done.
#[derive(Clone, Debug, Args)]
pub struct DrillOptions {
    /// How long the failure lasts, or is watched: 0.1 to 10.
    #[arg(long, default_value_t = 1.0, value_parser = drill_minutes)]
    pub minutes: f64,
    /// Subnet of whose pool the synthetic client takes an address [default: the first that serves
    /// everyone].
    #[arg(long)]
    pub subnet: Option<String>,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

fn drill_minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "write a number".to_owned())?;
    match (0.1..=10.0).contains(&minutes) {
        true => Ok(minutes),
        false => Err("0.1 to 10 minutes".to_owned()),
    }
}
