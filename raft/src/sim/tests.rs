//! Many seeds, each in a process of its own: nothing that one leaves behind changes another.

use std::collections::BTreeMap;
use std::env;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::mutant::Mutant;
use super::run::{Report, run};

/// Tells the child which seed to run, and with what broken.
const SEED: &str = "MUSTER_SIM_SEED";
const MUTANT: &str = "MUSTER_SIM_MUTANT";
/// How many seeds the tests run, and which is the first.
const SEEDS: &str = "MUSTER_SIM_SEEDS";
const FIRST: &str = "MUSTER_SIM_FIRST";
/// Prints the trace as it comes.
const ECHO: &str = "MUSTER_SIM_ECHO";
/// Stands before the report in the child's output.
const REPORT: &str = "muster-sim-report ";

const SEEDS_IN_CI: u64 = 200;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// Runs one seed when it is told which; the other tests start it so.
#[test]
fn child() {
    let Some(seed) = number(SEED) else {
        return;
    };
    if env::var_os(ECHO).is_some() {
        // What the nodes and openraft log, with RUST_LOG, between the lines of the trace.
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .without_time()
            .init();
    }
    let mutant = env::var(MUTANT).ok().and_then(|name| Mutant::named(&name));
    let report = run(seed, mutant, env::var_os(ECHO).is_some());
    println!(
        "\n{REPORT}{}",
        serde_json::to_string(&report).expect("a report")
    );
    assert_eq!(report.violation, None, "seed {seed}");
}

/// The report of a seed; what the child said when it made none.
fn report(seed: u64, mutant: Option<Mutant>) -> Result<Report, String> {
    let mut child = Command::new(env::current_exe().expect("this binary"));
    child
        .args([
            "--exact",
            "sim::tests::child",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(SEED, seed.to_string())
        .env_remove(MUTANT)
        .env_remove(ECHO);
    if let Some(mutant) = mutant {
        child.env(MUTANT, format!("{mutant:?}"));
    }
    let output = child.output().expect("a process");
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().find_map(|line| line.strip_prefix(REPORT));
    line.and_then(|line| serde_json::from_str(line).ok())
        .ok_or_else(|| format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Runs seeds, as many at a time as there are processors, until `enough` says so.
fn many(
    seeds: std::ops::Range<u64>,
    mutant: Option<Mutant>,
    enough: impl Fn(u64, &Result<Report, String>) -> bool + Sync,
) {
    let next = AtomicU64::new(seeds.start);
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    if enough(seed, &report(seed, mutant)) {
                        next.store(seeds.end, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    acknowledged: u64,
    unknown: u64,
    faults: u64,
    counts: BTreeMap<String, u64>,
    virtual_ms: u64,
    failed: Vec<u64>,
}

#[test]
fn seeds_hold() {
    let start = Instant::now();
    let first = number(FIRST).unwrap_or(1);
    let seeds = first..first + number(SEEDS).unwrap_or(SEEDS_IN_CI);
    let sum = Mutex::new(Sum::default());
    many(seeds, None, |seed, report| {
        let mut sum = sum.lock().expect("a sum");
        sum.seeds += 1;
        match report {
            Ok(report) => {
                sum.acknowledged += report.acknowledged;
                sum.unknown += report.unknown;
                sum.faults += report.faults;
                for (what, count) in &report.counts {
                    *sum.counts.entry(what.clone()).or_default() += count;
                }
                sum.virtual_ms += report.virtual_ms;
                if let Some(violation) = &report.violation {
                    sum.failed.push(seed);
                    println!("seed {seed}: {violation}\n{}\n", report.last.join("\n"));
                }
            }
            Err(said) => {
                sum.failed.push(seed);
                println!("seed {seed} made no report:\n{said}");
            }
        }
        false
    });
    let mut sum = sum.into_inner().expect("a sum");
    sum.failed.sort_unstable();
    println!(
        "{} seeds, {} failed {:?}: {} operations acknowledged and {} of unknown outcome, {} faults, \
         {} virtual seconds in {:.1} s; {:?}",
        sum.seeds,
        sum.failed.len(),
        sum.failed,
        sum.acknowledged,
        sum.unknown,
        sum.faults,
        sum.virtual_ms / 1000,
        start.elapsed().as_secs_f64(),
        sum.counts,
    );
    assert!(
        sum.failed.is_empty(),
        "replay one with `make sim SEED={}`",
        sum.failed[0]
    );
}

#[test]
fn a_seed_runs_the_same_twice() {
    for seed in [1, 2, 3] {
        let traces = [(); 2].map(|()| report(seed, None).map(|report| report.trace));
        assert!(traces[0].is_ok(), "{traces:?}");
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
}

/// Within how many seeds a mutant must be caught.
const CAUGHT_WITHIN: u64 = 200;

fn is_caught(mutant: Mutant) {
    let caught = Mutex::new(None);
    many(1..CAUGHT_WITHIN + 1, Some(mutant), |seed, report| {
        // A run that made no report proves nothing.
        let violation = report
            .as_ref()
            .ok()
            .and_then(|report| report.violation.clone());
        let Some(what) = violation else {
            return false;
        };
        caught.lock().expect("a result").get_or_insert((seed, what));
        true
    });
    let caught = caught.into_inner().expect("a result");
    println!("{mutant:?}: {caught:?}");
    assert!(caught.is_some(), "{mutant:?} is not caught");
}

macro_rules! mutants {
    ($($name:ident: $mutant:ident,)*) => {
        mod is_caught {
            $(
                #[test]
                fn $name() {
                    super::is_caught(super::Mutant::$mutant);
                }
            )*
        }
    };
}

mutants! {
    skip_sync: SkipSync,
    sync_lies: SyncLies,
    leader_restore: LeaderRestore,
    apply_before_commit: ApplyBeforeCommit,
    forget_vote: ForgetVote,
    vote_not_synced: VoteNotSynced,
    ack_before_commit: AckBeforeCommit,
    forget_quarantine: ForgetQuarantine,
    forget_promises: ForgetPromises,
    forget_earlier_lives: ForgetEarlierLives,
    forget_margin: ForgetMargin,
    read_without_index: ReadWithoutIndex,
    read_before_applied: ReadBeforeApplied,
    repeat_unknown: RepeatUnknown,
    propose_twice: ProposeTwice,
    trust_wall_clock: TrustWallClock,
}
