//! What goes wrong during a run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::net::Weather;
use super::world::World;

/// What well-kept clocks are wrong by, in milliseconds.
const DRIFT: u64 = 3000;
/// For the first vote after the death of a leader.
const ELECTION: Duration = Duration::from_secs(5);
/// Nodes of a cluster at most.
const NODES_MAX: usize = 5;

/// Kinds of faults, more often those that are named more often.
const KINDS: [fn(Arc<World>) -> futures::future::BoxFuture<'static, ()>; 17] = [
    |world| Box::pin(async move { crash_one(&world).await }),
    |world| Box::pin(async move { crash_one(&world).await }),
    |world| Box::pin(async move { crash_leader(&world).await }),
    |world| Box::pin(async move { crash_all(&world).await }),
    |world| Box::pin(async move { crash_all(&world).await }),
    |world| Box::pin(async move { crash_election(&world).await }),
    |world| Box::pin(async move { split(&world).await }),
    |world| Box::pin(async move { split(&world).await }),
    |world| Box::pin(async move { cut_one_way(&world).await }),
    |world| Box::pin(async move { cut_leader(&world).await }),
    |world| Box::pin(async move { storm(&world).await }),
    |world| Box::pin(async move { storm(&world).await }),
    |world| Box::pin(async move { clock(&world).await }),
    |world| Box::pin(async move { transfer(&world).await }),
    |world| Box::pin(async move { restart(&world).await }),
    |world| Box::pin(async move { disk(&world).await }),
    |world| Box::pin(async move { replace(&world).await }),
];

/// Makes faults until `until`, then mends everything. Returns how many there were.
pub async fn run(world: &Arc<World>, until: Duration) -> u64 {
    let mut faults = 0;
    while world.oracle.now() < until && world.oracle.violation().is_none() {
        sleep(world.chance.millis(500..4000)).await;
        let Some(fault) = world.chance.pick(&KINDS) else {
            break;
        };
        fault(Arc::clone(world)).await;
        faults += 1;
    }
    world.oracle.note("everything is mended");
    world.net.heal();
    world.net.set_weather(Weather::fair());
    for node in world.all() {
        world.set_clock(node, 0);
    }
    start_all(world).await;
    faults
}

async fn start_all(world: &Arc<World>) {
    for node in world.dead() {
        if let Err(error) = world.start(node).await {
            world
                .oracle
                .violated(format!("node {node} does not start: {error}"));
        }
    }
}

async fn pause(world: &World) {
    sleep(world.chance.millis(50..6000)).await;
}

async fn crash(world: &Arc<World>, node: u64) {
    world.kill(node, true);
    pause(world).await;
    start_all(world).await;
}

async fn crash_one(world: &Arc<World>) {
    if let Some(node) = world.chance.pick(&world.alive()) {
        crash(world, node).await;
    }
}

async fn crash_leader(world: &Arc<World>) {
    if let Some(node) = world.leader() {
        crash(world, node).await;
    }
}

/// A power cut of the site; the nodes come back one after the other, sometimes at once.
async fn crash_all(world: &Arc<World>) {
    for node in world.alive() {
        world.kill(node, true);
    }
    if world.chance.once_in(2) {
        pause(world).await;
    }
    let mut nodes = world.dead();
    while let Some(node) = world.chance.pick(&nodes) {
        nodes.retain(|other| *other != node);
        if let Err(error) = world.start(node).await {
            world
                .oracle
                .violated(format!("node {node} does not start: {error}"));
        }
        sleep(world.chance.millis(0..300)).await;
    }
}

/// The power of the site goes when the first vote for the successor of a dead leader has been given:
/// nothing came after that vote, and it counts all the same.
async fn crash_election(world: &Arc<World>) {
    let Some(leader) = world.leader() else {
        return;
    };
    let voted = world.oracle.next_vote();
    world.kill(leader, true);
    let voted = tokio::time::timeout(ELECTION, voted).await;
    world.oracle.note(format!("voted: {}", voted.is_ok()));
    crash_all(world).await;
}

fn sides(world: &World) -> (Vec<u64>, Vec<u64>) {
    world
        .all()
        .into_iter()
        .partition(|_| world.chance.once_in(2))
}

async fn split(world: &Arc<World>) {
    let (one, other) = sides(world);
    world
        .oracle
        .note(format!("{one:?} and {other:?} are cut from each other"));
    world.net.cut(&one, &other);
    world.net.cut(&other, &one);
    pause(world).await;
    if world.chance.once_in(3) {
        crash_one(world).await;
    }
    world.net.heal();
}

async fn cut_one_way(world: &Arc<World>) {
    let (one, other) = sides(world);
    world
        .oracle
        .note(format!("nothing gets from {one:?} to {other:?}"));
    world.net.cut(&one, &other);
    pause(world).await;
    world.net.heal();
}

/// The leader is alone; the others go on, and it comes back with what it could not commit.
async fn cut_leader(world: &Arc<World>) {
    let Some(leader) = world.leader() else {
        return;
    };
    let others: Vec<u64> = world
        .all()
        .into_iter()
        .filter(|node| *node != leader)
        .collect();
    world.oracle.note(format!("leader {leader} is cut off"));
    world.net.cut(&[leader], &others);
    if world.chance.once_in(2) {
        world.net.cut(&others, &[leader]);
    }
    pause(world).await;
    world.net.heal();
}

async fn storm(world: &Arc<World>) {
    world.oracle.note("the network is bad");
    world.net.set_weather(Weather {
        delay: 1..world.chance.range(5..120),
        lost: world.chance.range(5..100),
        breaks: world.chance.range(30..1000),
        twice: 10,
    });
    pause(world).await;
    world.net.set_weather(Weather::fair());
}

/// A wall clock is set wrong by little or much, or those of all nodes alike: they were wrong at
/// their start, and are set right.
async fn clock(world: &Arc<World>) {
    let range = match world.chance.range(0..3) {
        0 => 0..DRIFT,
        1 => DRIFT..70_000,
        _ => 70_000..7_200_000,
    };
    let skew = i64::try_from(world.chance.range(range)).unwrap_or(0);
    let skew = if world.chance.once_in(2) { skew } else { -skew };
    let all = world.chance.once_in(4);
    let nodes = match world.chance.pick(&world.all()) {
        Some(node) if !all => vec![node],
        _ => world.all(),
    };
    for node in &nodes {
        world.set_clock(*node, skew);
    }
    pause(world).await;
    if world.chance.once_in(2) {
        for node in nodes {
            world.set_clock(node, 0);
        }
    }
}

async fn transfer(world: &Arc<World>) {
    let Some(life) = world.leader().and_then(|leader| world.life(leader)) else {
        return;
    };
    world.oracle.note("leadership is handed over");
    tokio::select! {
        biased;
        () = life.dead.cancelled() => {}
        _ = life.cluster.transfer(None) => {}
    }
}

async fn restart(world: &Arc<World>) {
    if let Some(node) = world.chance.pick(&world.alive()) {
        if world.chance.once_in(2) {
            world.stop(node).await;
        } else {
            world.kill(node, false);
        }
        pause(world).await;
        start_all(world).await;
    }
}

async fn disk(world: &Arc<World>) {
    if let Some(node) = world.chance.pick(&world.alive()) {
        world.fail_disk(node);
        pause(world).await;
        crash(world, node).await;
    }
}

/// A member leaves for good, and another comes in its place; or only one of both.
async fn replace(world: &Arc<World>) {
    let nodes: BTreeSet<u64> = world.all().into_iter().collect();
    if nodes.len() >= NODES_MAX || (nodes.len() > 3 && world.chance.once_in(2)) {
        let Some(node) = world.chance.pick(&nodes.into_iter().collect::<Vec<_>>()) else {
            return;
        };
        match world.remove(node).await {
            Ok(()) => {}
            Err(error) => world.oracle.note(format!("node {node} stays: {error}")),
        }
        // The order may have been carried out although nobody said so.
        for node in world.all() {
            let members = world.oracle.members();
            if !members.iter().any(|member| member.0 == node) {
                world.forget(node);
            }
        }
    } else {
        match world.join().await {
            Ok(_) => {}
            Err(error) => world.oracle.note(format!("nobody joins: {error}")),
        }
    }
}
