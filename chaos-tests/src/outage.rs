//! What befalls a cluster in a lab while clients ask: one node or the links between them.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;

use crate::cluster::Cluster;
use crate::crowd::Outcome;
use crate::dhcp::{Client, Port};
use crate::failover::{Phase, Report, Stream};
use crate::fault::{self, Fault};
use crate::invariant;
use crate::wire::mac_text;

/// How long a cluster may take to be whole again.
const PATIENCE: Duration = Duration::from_secs(60);

/// What befalls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Outage {
    /// SIGKILL of the node that answered last
    KillAnswering,
    /// SIGKILL of the leader
    KillLeader,
    /// SIGKILL of a follower
    KillFollower,
    /// The network of the leader is gone
    CutLeader,
    /// The network of a follower is gone
    CutFollower,
    /// The leader and the others do not reach each other; clients reach all
    Split,
}

/// An outage that goes on.
#[derive(Debug)]
#[must_use = "the links are whole again when it is dropped"]
pub struct Ongoing {
    killed: Option<usize>,
    faults: Vec<Fault>,
}

impl Outage {
    /// For reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillAnswering => "answering node killed",
            Self::KillLeader => "leader killed",
            Self::KillFollower => "follower killed",
            Self::CutLeader => "leader cut off",
            Self::CutFollower => "follower cut off",
            Self::Split => "leader split from the others",
        }
    }

    /// Begins it. `answering` is the server identifier of the last ACK.
    pub fn begin(self, cluster: &Cluster, answering: Option<Ipv4Addr>) -> Result<Ongoing> {
        let leader = cluster.wait_leader(PATIENCE)?;
        let followers = || (0..cluster.nodes().len()).filter(|index| *index != leader);
        let follower = || followers().next().context("the leader is alone");
        let host = |index: usize| cluster.node(index).host();
        let kill = |index: usize| -> Result<Ongoing> {
            cluster.node(index).kill()?;
            Ok(Ongoing {
                killed: Some(index),
                faults: Vec::new(),
            })
        };
        let lose = |faults: Result<Vec<Fault>>| -> Result<Ongoing> {
            Ok(Ongoing {
                killed: None,
                faults: faults?,
            })
        };
        match self {
            Self::KillAnswering => {
                let answering = answering.and_then(|address| cluster.node_at(address));
                kill(answering.context("nobody has answered yet")?)
            }
            Self::KillLeader => kill(leader),
            Self::KillFollower => kill(follower()?),
            Self::CutLeader => lose(fault::cut(host(leader)).map(|cut| vec![cut])),
            Self::CutFollower => lose(fault::cut(host(follower()?)).map(|cut| vec![cut])),
            Self::Split => lose(
                followers()
                    .map(|other| fault::cut_between(host(leader), host(other)))
                    .collect(),
            ),
        }
    }
}

/// Sends clients out all the time while one outage after the other befalls the cluster, each for
/// `each`, with as long before and after. An error when a lease that was acknowledged is lost.
pub fn rehearse(
    cluster: &Cluster,
    port: &Port,
    stream: &Stream,
    clients: impl Iterator<Item = Client> + Send,
    outages: &[Outage],
    each: Duration,
    watch: &mut (dyn FnMut(&Outcome) + Send),
) -> Result<Report> {
    let over = AtomicBool::new(false);
    let answering: Mutex<Option<Ipv4Addr>> = Mutex::default();
    let (outcome, phases) = std::thread::scope(|scope| {
        let crowd = scope.spawn(|| {
            stream.run(port, clients, |outcome| {
                watch(outcome);
                let server = outcome.given.last().and_then(|given| given.server);
                *answering.lock().unwrap_or_else(PoisonError::into_inner) = server;
                over.load(Ordering::Relaxed)
            })
        });
        let phases = break_in_turn(cluster, outages, each, &answering);
        over.store(true, Ordering::Relaxed);
        let outcome = crowd.join().map_err(|_| anyhow!("the clients broke"))??;
        anyhow::Ok((outcome, phases?))
    })?;
    let report = stream.report(&outcome, &phases)?;
    invariant::one_owner_everywhere(cluster)?;
    let bound = invariant::bound(cluster.running().next().context("no node runs")?)?;
    let lost = outcome.given.iter().find(|given| {
        let owner = bound.get(&given.address).map(|(mac, _)| mac);
        !owner.is_some_and(|owner| *owner == mac_text(given.mac))
    });
    ensure!(
        lost.is_none(),
        "{lost:?} was acknowledged and is lost\n{report}"
    );
    Ok(report)
}

fn break_in_turn(
    cluster: &Cluster,
    outages: &[Outage],
    each: Duration,
    answering: &Mutex<Option<Ipv4Addr>>,
) -> Result<Vec<Phase>> {
    let mut phases = Vec::new();
    let mut enter = |name: &str| {
        phases.push(Phase {
            name: name.to_owned(),
            from: Instant::now(),
        });
    };
    enter("steady");
    thread::sleep(each);
    for outage in outages {
        let last = *answering.lock().unwrap_or_else(PoisonError::into_inner);
        enter(outage.name());
        let ongoing = outage.begin(cluster, last)?;
        thread::sleep(each);
        enter("and back");
        ongoing.end(cluster)?;
        thread::sleep(each);
    }
    Ok(phases)
}

impl Ongoing {
    /// Ends it, and waits until the cluster is whole.
    pub fn end(self, cluster: &Cluster) -> Result<()> {
        self.faults.into_iter().for_each(Fault::heal);
        if let Some(index) = self.killed {
            cluster.node(index).start()?;
        }
        cluster.wait_settled(PATIENCE)
    }
}
