//! A dead node is replaced, and whoever leads dies in the midst of it: the same command at another
//! node goes on from there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::lab::wait_until;
use muster_chaos::node::{Answer, Node, Status};
use muster_chaos::{content, invariant, load};

use crate::{PATIENCE, tell};

/// One may be dead and another die, and the rest is a majority, also beside a sixth.
const VOTERS: usize = 5;
/// Acknowledged before the leader dies, and once more after.
const LEASES: usize = 50;
const OBJECTS: usize = 1;

/// When the leader dies, by what it has just written to its log: it has the order, and may have to
/// wait until the new node votes; it has begun to take the dead node out.
const MOMENTS: [&str; 2] = [
    "muster_api::rest::cluster: replacing a node",
    "muster_raft::manage::replace: replacing a node",
];

#[test]
fn another_node_completes_what_a_dead_leader_began() -> Result<()> {
    let mut cluster = Cluster::found(u8::try_from(VOTERS)?)?;
    cluster.apply(content::WIDE_SUBNET)?;
    for (round, moment) in (0..).zip(MOMENTS) {
        let leader = cluster.wait_leader(PATIENCE)?;
        let mut others = (0..cluster.nodes().len())
            .filter(|index| *index != leader && cluster.node(*index).is_running());
        let dead = others.next().context("nobody to die")?;
        let asked = others.next().context("nobody to ask")?;
        let new = cluster.prepare_joiner()?;
        tell(&cluster, || {
            let roles = Roles {
                leader,
                dead,
                asked,
                new,
            };
            replace(&cluster, &roles, round, moment).context(moment)
        })?;
    }
    Ok(())
}

/// Positions of nodes by what becomes of them.
struct Roles {
    leader: usize,
    dead: usize,
    asked: usize,
    new: usize,
}

fn replace(cluster: &Cluster, roles: &Roles, round: u8, moment: &str) -> Result<()> {
    let [leader, dead, asked, new] =
        [roles.leader, roles.dead, roles.asked, roles.new].map(|index| cluster.node(index));
    let order = |node: &Node| -> Result<Answer> {
        node.cli(&[
            "--timeout",
            "1m",
            "cluster",
            "replace",
            dead.name(),
            new.name(),
        ])
    };
    dead.kill()?;
    let (acknowledged, ()) = load::during(cluster, round, |load| {
        load.wait(LEASES, OBJECTS, PATIENCE)?;
        let most = while_watching(cluster, || {
            new.start()?;
            thread::scope(|scope| {
                wait_until("the new node to be known", PATIENCE, || {
                    let status = leader.quick_status()?;
                    ensure!(!is_live(&status, dead), "the dead node is held for live");
                    Ok(status
                        .nodes
                        .iter()
                        .any(|node| node.name == new.name())
                        .then_some(()))
                })?;
                let log = leader.log().len();
                let first = scope.spawn(|| order(leader));
                wait_until(moment, PATIENCE, || {
                    let log = leader.log().split_off(log);
                    Ok(log.contains(moment).then_some(()))
                })?;
                leader.kill()?;
                let first = first.join().map_err(|_| anyhow!("the call broke"))??;
                println!("{moment}: exit {}: {}", first.code, first.stderr.trim());
                order(asked)?.ok().map(drop)
            })
        })?;
        ensure!(most <= VOTERS + 1, "{most} nodes voted at a time");
        load.wait(2 * LEASES, 2 * OBJECTS, PATIENCE)
    })?;
    // Without the leader that was killed, which is down still.
    let status = asked.status()?;
    ensure!(role(&status, dead).is_none(), "the dead node is a member");
    let learns = role(&status, new).is_none_or(|role| role == "learner");
    ensure!(!learns, "the new node does not vote");
    ensure!(
        status.nodes.len() == VOTERS,
        "{} members",
        status.nodes.len()
    );
    leader.start()?;
    cluster.wait_settled(PATIENCE)?;
    // Done is done, wherever it is asked.
    order(leader)?.ok()?;
    for node in cluster.running() {
        let voters = voters(&node.status()?);
        ensure!(voters == VOTERS, "{} sees {voters} voters", node.name());
    }
    acknowledged.find_everywhere(cluster)?;
    invariant::same_everywhere(cluster)?;
    println!("{moment}: {acknowledged}, all found");
    Ok(())
}

/// The most voters that any node saw at a time while something happened.
fn while_watching(cluster: &Cluster, happens: impl FnOnce() -> Result<()>) -> Result<usize> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                // One that does not answer sees nothing.
                let seen = cluster
                    .nodes()
                    .iter()
                    .filter_map(|node| node.quick_status().ok());
                most = seen.map(|status| voters(&status)).fold(most, usize::max);
            }
            most
        });
        let happened = happens();
        over.store(true, Ordering::Relaxed);
        let most = watching.join().map_err(|_| anyhow!("the watch broke"))?;
        happened.map(|()| most)
    })
}

fn voters(status: &Status) -> usize {
    status
        .nodes
        .iter()
        .filter(|node| node.role != "learner")
        .count()
}

fn role(status: &Status, node: &Node) -> Option<String> {
    let mut nodes = status.nodes.iter();
    nodes
        .find(|member| member.name == node.name())
        .map(|member| member.role.clone())
}

fn is_live(status: &Status, node: &Node) -> bool {
    status
        .nodes
        .iter()
        .any(|member| member.name == node.name() && member.live)
}
