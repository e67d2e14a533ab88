//! For how long nothing can be written once the leader gets SIGKILL.
//!
//! From then on a new write goes to either survivor every few milliseconds; the first that succeeds
//! ends the gap.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::load::Caller as _;
use crate::{etcd, muster};

/// Between two writes.
const EVERY: Duration = Duration::from_millis(5);
/// A cluster that does not come back by then never does.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between a cluster that is whole again and the next kill.
const REST: Duration = Duration::from_secs(2);

/// Gaps of one cluster, kill by kill.
pub struct Gaps {
    pub name: String,
    pub gaps: Vec<Duration>,
}

/// Kills the leader of each in turn, `kills` times. Muster's come first.
pub fn measure(
    runtime: &Runtime,
    muster: &mut muster::Cluster,
    others: &mut [(String, etcd::Cluster)],
    kills: usize,
) -> Result<Vec<Gaps>> {
    let mut all = vec![Gaps {
        name: "Muster, after 400 to 800 ms".to_owned(),
        gaps: Vec::new(),
    }];
    all.extend(others.iter().map(|(name, _)| Gaps {
        name: name.clone(),
        gaps: Vec::new(),
    }));
    for _ in 0..kills {
        all[0].gaps.push(kill_muster(runtime, muster)?);
        for ((_, etcd), gaps) in others.iter_mut().zip(&mut all[1..]) {
            gaps.gaps.push(kill_etcd(runtime, etcd)?);
        }
    }
    Ok(all)
}

fn survivors(leader: usize) -> [usize; 2] {
    [(leader + 1) % 3, (leader + 2) % 3]
}

fn kill_muster(runtime: &Runtime, cluster: &mut muster::Cluster) -> Result<Duration> {
    std::thread::sleep(REST);
    let leader = cluster.leader()?;
    let mut sessions = Vec::new();
    for survivor in survivors(leader) {
        let mut session = runtime.block_on(cluster.session(survivor))?;
        runtime.block_on(session.write(0))?;
        sessions.push(session);
    }
    let killed = cluster.process(leader).kill()?;
    let gap = runtime.block_on(first_write(killed, |number| {
        let mut session = sessions[number % 2].clone();
        async move { session.write(0).await }
    }))?;
    cluster.process(leader).restart()?;
    cluster.wait_whole()?;
    Ok(gap)
}

fn kill_etcd(runtime: &Runtime, cluster: &mut etcd::Cluster) -> Result<Duration> {
    std::thread::sleep(REST);
    let leader = runtime.block_on(cluster.leader())?;
    let mut sessions = Vec::new();
    for survivor in survivors(leader) {
        let mut session = runtime.block_on(cluster.session(survivor))?;
        runtime.block_on(session.call())?;
        sessions.push(session);
    }
    let killed = cluster.process(leader).kill()?;
    let gap = runtime.block_on(first_write(killed, |number| {
        let mut session = sessions[number % 2].clone();
        async move { session.call().await }
    }))?;
    cluster.process(leader).restart()?;
    runtime.block_on(cluster.wait_member(leader))?;
    Ok(gap)
}

/// From `killed` until the first of the writes that begin after it succeeds.
async fn first_write<F>(killed: Instant, mut write: impl FnMut(usize) -> F) -> Result<Duration>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, mut written) = mpsc::channel(1);
    let mut probes = tokio::task::JoinSet::new();
    let mut ticks = tokio::time::interval(EVERY);
    let probing = async {
        for number in 0.. {
            ticks.tick().await;
            let (sender, probe) = (sender.clone(), write(number));
            probes.spawn(async move {
                if probe.await.is_ok() {
                    let _ = sender.try_send(killed.elapsed());
                }
            });
        }
    };
    tokio::select! {
        () = probing => None,
        gap = written.recv() => gap,
        () = tokio::time::sleep(PATIENCE) => None,
    }
    .context("no write succeeded after the leader was killed")
}
