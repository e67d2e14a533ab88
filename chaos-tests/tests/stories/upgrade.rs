//! A cluster of the last released version becomes one of the present version, one node at a time, half
//! way back and forward again, while machines boot and an operator writes: no boot fails, nothing that
//! was acknowledged is lost, and nobody has to try more than once again. Backups and snapshots of one are
//! read by the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::fleet::{self, Plan};
use muster_chaos::invariant;
use muster_chaos::lab::Lab;
use muster_chaos::load::Acknowledged;
use muster_chaos::node::{self, Node};

use crate::{PATIENCE, long, tell};

/// How a node is taken down.
#[derive(Clone, Copy, Debug)]
enum Swap {
    /// As the documents say.
    Drained,
    /// As a power cut does.
    Killed,
}

/// What is mixed, in which order.
#[derive(Clone, Copy, Debug)]
struct Course {
    /// Places of the nodes, in the order in which they are upgraded.
    order: [usize; 3],
    /// Whether the first of them leads, or the last.
    leader_first: bool,
    /// How the first and every other one is taken down, and how those in between.
    swaps: [Swap; 2],
}

/// Both binaries.
struct Binaries {
    old: PathBuf,
    new: PathBuf,
}

impl Binaries {
    fn both() -> Result<Self> {
        Ok(Self {
            old: previous()?,
            new: node::binary()?,
        })
    }
}

#[test]
fn a_cluster_is_upgraded_while_it_serves() -> Result<()> {
    use Swap::{Drained, Killed};
    let (all, one) = (
        [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ],
        [[1, 0, 2]],
    );
    let orders = if long() { &all[..] } else { &one[..] };
    for order in orders {
        for (leader_first, swaps) in [(false, [Drained, Drained]), (true, [Killed, Drained])] {
            // One of each kind is in the one order that is always told.
            if !long() && !leader_first {
                continue;
            }
            let course = Course {
                order: *order,
                leader_first,
                swaps,
            };
            upgrade(course).with_context(|| format!("{course:?}"))?;
        }
    }
    Ok(())
}

/// The log of a restored cluster begins after what was restored: who joins is sent a snapshot first.
#[test]
fn backups_and_snapshots_go_from_version_to_version() -> Result<()> {
    let Binaries { old, new } = Binaries::both()?;
    let dir = tempfile::tempdir().context("making a directory")?;
    let place = |name: &str| dir.path().join(name).display().to_string();
    let passphrase = place("passphrase");
    fs::write(&passphrase, "correct horse\n").context("writing the passphrase")?;
    let sealed =
        |verb: &str, file: &str| [verb, file, "--passphrase-file", &passphrase].map(str::to_owned);

    let first = Cluster::found_with(1, &old)?;
    first.apply("kind: profile\nname: kept\n")?;
    let backup = place("backup");
    call(first.node(0), &sealed("backup", &backup))?;
    drop(first);

    for (giver, taker) in [(&old, &new), (&new, &old)] {
        let mut cluster = restored(giver, &sealed("restore", &backup))?;
        let joiner = cluster.prepare_joiner()?;
        tell(&cluster, || {
            let node = cluster.node(joiner);
            node.set_binary(taker);
            node.start()?;
            cluster.wait_settled(PATIENCE)?;
            call(node, &["profiles", "get", "kept"])?;
            let log = node.log();
            ensure!(log.contains("installed a snapshot"), "{log}");
            invariant::same_everywhere(&cluster)
        })
        .with_context(|| format!("from {} to {}", giver.display(), taker.display()))?;
        let again = place(&format!("of {}", taker.display()).replace('/', "-"));
        call(cluster.node(0), &sealed("backup", &again))?;
        drop(cluster);
        let back = restored(taker, &sealed("restore", &again))?;
        call(back.node(0), &["profiles", "get", "kept"])?;
    }
    Ok(())
}

/// A cluster of one, of what a call of this binary restores.
fn restored(binary: &Path, restore: &[String]) -> Result<Cluster> {
    let mut cluster = Cluster::empty(Lab::new()?);
    let founder = cluster.prepare_founder()?;
    let node = cluster.node(founder);
    node.set_binary(binary);
    call(node, restore)?;
    node.start()?;
    node.wait_serving(PATIENCE)?;
    Ok(cluster)
}

fn call(node: &Node, arguments: &[impl AsRef<str>]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    node.cli(&arguments)?.ok().map(drop)
}

fn upgrade(course: Course) -> Result<()> {
    let binaries = Binaries::both()?;
    let cluster = Cluster::found_with(3, &binaries.old)?;
    tell(&cluster, || {
        let [first, second, third] = course.order;
        cluster.transfer(if course.leader_first { first } else { third })?;
        let plan = Plan {
            machines: 60,
            spread: Duration::from_secs(30),
            kill_at: None,
            patience: Duration::from_secs(300),
        };
        let (report, written) = fleet::boot_while(&cluster, &plan, |_| {
            writing(&cluster, || {
                let Binaries { old, new } = &binaries;
                let steps = [
                    (first, new),
                    (second, new),
                    (second, old),
                    (second, new),
                    (third, new),
                ];
                for ((node, binary), how) in steps.into_iter().zip(course.swaps.iter().cycle()) {
                    swap(&cluster, node, binary, *how)?;
                }
                Ok(())
            })
        })?;
        println!(
            "{course:?}: {} writes, none failed\n{report}",
            written.objects.len()
        );
        ensure!(report.good(), "{report}");
        written.find_everywhere(&cluster)?;
        raise(&cluster, third, &binaries)?;
        written.find_everywhere(&cluster)?;
        invariant::same_everywhere(&cluster)
    })
}

/// Takes a node down and starts it with another binary; the cluster is whole again at the end.
fn swap(cluster: &Cluster, node: usize, binary: &Path, how: Swap) -> Result<()> {
    let it = cluster.node(node);
    match how {
        Swap::Drained => {
            let other = cluster.node((node + 1) % 3);
            other
                .cli(&["cluster", "drain", it.name(), "--wait", "10s"])?
                .ok()?;
            it.stop(PATIENCE)?;
        }
        Swap::Killed => {
            it.kill()?;
        }
    }
    it.set_binary(binary);
    it.start()?;
    cluster.wait_settled(PATIENCE)
}

/// Writes without a pause while something happens. A write that fails is tried once more, on another
/// node, and has to succeed then.
fn writing(cluster: &Cluster, happens: impl FnOnce() -> Result<()>) -> Result<Acknowledged> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| {
            let mut objects = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let number = objects.len();
                let name = format!("upgrade-{number}");
                if let Err(error) = create(cluster, number, &name) {
                    create(cluster, number + 1, &name)
                        .with_context(|| format!("again, after: {error:#}"))?;
                }
                objects.push(name);
            }
            anyhow::Ok(objects)
        });
        let happened = happens();
        stop.store(true, Ordering::Relaxed);
        let objects = writes.join().map_err(|_| anyhow!("the writer broke"))?;
        // What went wrong meanwhile tells more than that the writer suffered from it.
        happened?;
        Ok(Acknowledged {
            objects: objects?,
            ..Acknowledged::default()
        })
    })
}

fn create(cluster: &Cluster, node: usize, name: &str) -> Result<()> {
    let node = cluster.node(node % 3);
    let call = ["--timeout", "5s", "profiles", "apply", "-f", "-"];
    node.cli_with(&call, &format!("name: {name}\n"))?.ok()?;
    Ok(())
}

/// What the present version alone knows is refused until all nodes have it and people say so; then the
/// old one cannot be started any more.
fn raise(cluster: &Cluster, back: usize, binaries: &Binaries) -> Result<()> {
    let label = ["machines", "label", "m0", "rack=r12"];
    let refused = cluster.cli(&label)?;
    ensure!(
        refused.code != 0 && refused.stderr.contains("finalize"),
        "{refused:?}"
    );
    cluster.cli(&["cluster", "upgrade", "check"])?.ok()?;
    cluster.cli(&["cluster", "finalize"])?.ok()?;
    cluster.cli(&label)?.ok()?;
    cluster.wait_settled(PATIENCE)?;

    let node = cluster.node(back);
    node.stop(PATIENCE)?;
    node.set_binary(&binaries.old);
    node.start()?;
    let code = node.wait_end(PATIENCE)?;
    ensure!(code.is_some_and(|code| code != 0), "it ended with {code:?}");
    let said = node.log_tail(20);
    ensure!(said.contains("start a newer muster"), "{said}");
    node.set_binary(&binaries.new);
    node.start()?;
    cluster.wait_settled(PATIENCE)
}

/// The last released version, which `make test` has built.
fn previous() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/previous.sh");
    let built = Command::new(&script).arg("--kept").output();
    let built = built.with_context(|| format!("starting {}", script.display()))?;
    let said = String::from_utf8_lossy(&built.stderr);
    ensure!(
        built.status.success(),
        "the last version is not built: {said}"
    );
    Ok(PathBuf::from(String::from_utf8(built.stdout)?.trim()))
}
