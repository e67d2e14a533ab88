//! A node that fails on order, so that people see what a failure costs before one comes unasked.

use std::process::Stdio;
use std::time::Duration;

use muster_api::node::Failure;
use muster_raft::{Cluster, Role};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid, getppid};

use crate::notify;

/// For the answer to whoever gave the order.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// How long a node is silent at most.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// Has this node fail in a moment, if the others can go on without it.
///
/// # Errors
/// Why it does not, and what to do.
pub async fn carry_out(cluster: &Cluster, failure: Failure) -> Result<(), String> {
    check(cluster).await?;
    match failure {
        Failure::Kill { force } => {
            if !force && !notify::supervised() {
                return Err(
                    "no service manager runs this node, so nobody may start it again; with --force \
                     it is killed all the same, and you start it"
                        .to_owned(),
                );
            }
            tracing::warn!("this node kills itself, by order of a drill");
            std::thread::spawn(|| {
                std::thread::sleep(LAST_WORDS);
                // It may not come back from this, and is not to.
                let _ = kill(getpid(), Signal::SIGKILL);
            });
            Ok(())
        }
        Failure::Pause { millis } => {
            let length = Duration::from_millis(millis).min(PAUSE_MAX);
            tracing::warn!("this node is silent for {length:?}, by order of a drill");
            pause(length).map_err(|error| format!("nobody could be found to wake it: {error}"))
        }
    }
}

async fn check(cluster: &Cluster) -> Result<(), String> {
    if !cluster.has_quorum() {
        return Err("there is no quorum: this is no time for a drill".to_owned());
    }
    if getpid().as_raw() == 1 {
        return Err(
            "this node is the first process of its container, which no signal stops; run it below an \
             init (`docker run --init`)"
                .to_owned(),
        );
    }
    let status = cluster.status();
    let voters = status.nodes.iter().filter(|it| it.role == Role::Voter);
    if voters.count() < 3 {
        return Err("with fewer than three voters nothing goes on without this node".to_owned());
    }
    let spare = cluster.check_spare().await;
    spare.map_err(|error| error.to_string())
}

/// Has a process of its own stop this one and wake it again: what sleeps wakes nobody.
fn pause(length: Duration) -> std::io::Result<()> {
    notify::stretch_watchdog(length);
    let mut waker = tokio::process::Command::new("/proc/self/exe")
        .arg("pause-parent")
        .arg((LAST_WORDS.as_millis()).to_string())
        .arg(length.as_millis().to_string())
        .stdin(Stdio::null())
        // An interrupt from a terminal must not end it while this process sleeps.
        .process_group(0)
        .spawn()?;
    tokio::spawn(async move {
        // It has done what it was there for when this goes on.
        let _ = waker.wait().await;
        notify::restore_watchdog();
        tracing::warn!("this node is back");
    });
    Ok(())
}

/// Stops the process that began this one after a moment, and has it go on after `length`.
///
/// # Errors
/// When it is not there any more.
pub fn pause_parent(after: Duration, length: Duration) -> std::io::Result<()> {
    let parent = getppid();
    let still = |parent: Pid| match getppid() == parent {
        true => Ok(()),
        false => Err(std::io::Error::other("the node has ended")),
    };
    std::thread::sleep(after);
    still(parent)?;
    kill(parent, Signal::SIGSTOP)?;
    std::thread::sleep(length.min(PAUSE_MAX));
    still(parent)?;
    Ok(kill(parent, Signal::SIGCONT)?)
}
