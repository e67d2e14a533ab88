//! One run: a cluster is founded, clients work while things break, everything is mended, and the
//! cluster must be whole again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::chance::{Chance, seed_this_thread};
use super::faults;
use super::mutant::Mutant;
use super::oracle::Oracle;
use super::work::{self, Work};
use super::world::World;

/// Virtual time during which things break.
const CHAOS: Duration = Duration::from_secs(60);
/// After the mending the cluster must be whole within this.
const HEALING: Duration = Duration::from_secs(30);
/// A run with less has not tried enough.
const ACKNOWLEDGED_MIN: u64 = 300;
const FAULTS_MIN: u64 = 5;
const VIRTUAL_MIN: Duration = Duration::from_secs(60);

/// Real time after which a run that does not get on is given up.
const STANDSTILL: Duration = Duration::from_secs(30);

/// What a run came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub seed: u64,
    pub acknowledged: u64,
    pub unknown: u64,
    pub faults: u64,
    /// How often what else was tried.
    pub counts: BTreeMap<String, u64>,
    pub virtual_ms: u64,
    /// Of everything that happened; two runs of a seed must agree.
    pub trace: u64,
    /// The first rule that did not hold, and the end of the trace.
    pub violation: Option<String>,
    pub last: Vec<String>,
}

/// Runs a seed on a thread of its own, so that nothing of another run is left in it.
pub fn run(seed: u64, mutant: Option<Mutant>, echo: bool) -> Report {
    let steps = Arc::new(AtomicU64::new(0));
    watch_for_spins(seed, Arc::clone(&steps));
    let running = std::thread::spawn(move || {
        seed_this_thread(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let report = runtime.block_on(live(seed, mutant, echo, &steps));
        runtime.shutdown_background();
        report
    });
    running.join().expect("a run that ends")
}

/// Ends the process when virtual time stands still: something goes round without a pause.
fn watch_for_spins(seed: u64, steps: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let mut before = u64::MAX;
        loop {
            std::thread::sleep(STANDSTILL);
            let now = steps.load(Ordering::Relaxed);
            if now == before {
                eprintln!("seed {seed} spins: no virtual time passes after step {now}");
                std::process::exit(3);
            }
            before = now;
        }
    });
}

async fn live(seed: u64, mutant: Option<Mutant>, echo: bool, steps: &AtomicU64) -> Report {
    let chance = Arc::new(Chance::new(seed));
    let oracle = Oracle::new(echo);
    let world = World::new(chance, Arc::clone(&oracle), mutant);
    let mut faults = 0;
    let mut work = None;
    match settle(&world).await {
        Ok(()) => {
            let clients = Work::start(&world);
            work = Some(Arc::clone(&clients));
            let until = oracle.now() + CHAOS;
            tokio::select! {
                biased;
                () = broken(&oracle, steps) => {}
                made = faults::run(&world, until) => {
                    faults = made;
                    heal(&world, &clients).await;
                }
            }
        }
        Err(problem) => oracle.violated(problem),
    }
    let (acknowledged, unknown) = work.as_ref().map_or((0, 0), |work| work.counts());
    if oracle.violation().is_none() {
        for problem in work.iter().flat_map(|work| work.contradictions()) {
            oracle.violated(problem);
        }
        let least = [
            (acknowledged >= ACKNOWLEDGED_MIN, "operations"),
            (faults >= FAULTS_MIN, "faults"),
            (oracle.now() >= VIRTUAL_MIN, "time"),
        ];
        for (enough, what) in least {
            if !enough {
                oracle.violated(format!(
                    "not enough {what}: {acknowledged} operations, {faults} faults in {:?}",
                    oracle.now()
                ));
            }
        }
    }
    oracle.count("messages", world.net.messages());
    oracle.count("log entries", oracle.progress().1);
    let violation = oracle.violation();
    let (trace, last) = oracle.trace();
    Report {
        seed,
        acknowledged,
        unknown,
        faults,
        counts: oracle.counts(),
        virtual_ms: u64::try_from(oracle.now().as_millis()).unwrap_or(u64::MAX),
        trace,
        last: if violation.is_some() {
            last
        } else {
            Vec::new()
        },
        violation,
    }
}

/// Resolves when a rule does not hold.
async fn broken(oracle: &Oracle, steps: &AtomicU64) {
    while oracle.violation().is_none() {
        steps.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(100)).await;
    }
}

/// A cluster of three to five nodes that all vote.
async fn settle(world: &Arc<World>) -> Result<(), String> {
    let failed = |error: crate::Error| format!("the cluster cannot be founded: {error}");
    world.found().await.map_err(failed)?;
    let size = usize::try_from(world.chance.range(3..6)).unwrap_or(3);
    while world.all().len() < size {
        world.join().await.map_err(failed)?;
    }
    let vote = |world: &World| {
        let voters = world
            .leader()
            .and_then(|leader| world.life(leader))
            .map(|life| life.cluster.inner.view().all_voters().len());
        voters == Some(size)
    };
    if !world.wait(HEALING, vote).await {
        return Err("the joiners do not come to vote".into());
    }
    let mut first = vec![work::subnet()];
    if world.mutant == Some(Mutant::ForgetMargin) {
        first.push(work::no_margin());
    }
    for command in first {
        let written = world.propose_as_admin(command).await.map_err(failed)?;
        written.map_err(|rejection| rejection.to_string())?;
    }
    Ok(())
}

/// With everything mended there is one leader, writes go through, and all nodes come to the same.
async fn heal(world: &Arc<World>, work: &Work) {
    let oracle = &world.oracle;
    let leads = |world: &World| world.leader().is_some();
    if !world.wait(HEALING, leads).await {
        return oracle.violated("no leader although everything is mended");
    }
    let before = work.counts().0;
    if !world.wait(HEALING, |_| work.counts().0 > before + 20).await {
        return oracle.violated("no writes although everything is mended");
    }
    work.end();
    // Longer than any client waits.
    sleep(Duration::from_secs(11)).await;
    let same = |world: &World| {
        let (applied, last) = world.oracle.progress();
        let members = world.oracle.members();
        members
            .iter()
            .all(|member| applied.get(&member.0) == Some(&last))
    };
    // A house that is kept writes now and then; between two writes all are even.
    if !world.wait(HEALING, same).await {
        let (applied, last) = oracle.progress();
        oracle.violated(format!(
            "the nodes do not come to the same although everything is mended: {applied:?}, \
             the history ends at {last}"
        ));
    }
}
