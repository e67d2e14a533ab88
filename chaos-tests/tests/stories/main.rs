//! What must hold when things break, one story per file, each with nodes of its own.
//!
//! Nothing here is retried: what a client, a ROM or a script would not try again is not tried again.
//! `MUSTER_LONG=1` tells every variant of the stories that have many.

mod artifacts;
mod boot_through_each;
mod chaos;
mod clients;
mod conflict;
mod disk_faults;
mod diverged;
mod drills;
mod failover;
mod firmware;
mod fleet;
mod foreign;
mod garbage;
mod hand_over;
mod herd;
mod idle;
mod install_debian;
mod install_disk;
mod installs;
mod interfaces;
mod join;
mod leader_dies;
mod load;
mod loaders;
mod local_disk;
mod minority;
mod monitoring;
mod narrow;
mod power_cut;
mod protocol;
mod race;
mod replace;
mod restart;
mod router;
mod secrets;
mod sharing;
mod trace;
mod unknown;
mod upgrade;
mod why;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use muster_chaos::cluster::Cluster;
use muster_chaos::lab::{Host, wait_until};

/// Long enough for whatever a busy host delays; never what is to be proved.
const PATIENCE: Duration = Duration::from_secs(60);
/// An emulated machine beside three nodes on two cores takes half a minute; UEFI, minutes.
const BOOT: Duration = Duration::from_secs(300);

/// A machine that the stories boot.
const MAC: &str = "52:54:00:00:00:50";

/// Emulated machines take a processor each: only one story at a time has them.
fn machines() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether every variant is to be told.
fn long() -> bool {
    std::env::var_os("MUSTER_LONG").is_some_and(|value| value != "0")
}

/// Tells a story; if it goes wrong the nodes' logs are shown with the reason.
fn tell<T>(cluster: &Cluster, story: impl FnOnce() -> Result<T>) -> Result<T> {
    story().with_context(|| cluster.logs())
}

/// Has curl on a host fetch a URL, as text; an error says what the server said.
fn curl(host: &Host, arguments: &[&str]) -> Result<String> {
    let quiet = ["--silent", "--show-error", "--fail", "--max-time", "30"];
    host.run("curl", &[&quiet[..], arguments].concat())
}

/// Waits until a node knows that no quorum is behind it.
fn wait_alone(cluster: &Cluster, node: usize) -> Result<()> {
    wait_until("a node to know that it is alone", PATIENCE, || {
        let call = ["--timeout", "1s", "cluster", "status"];
        Ok((cluster.node(node).cli(&call)?.code == 5).then_some(()))
    })
}
