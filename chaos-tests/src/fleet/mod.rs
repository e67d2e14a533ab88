//! Many machines at once, each as its firmware would: DORA, loader, DORA of iPXE, script, initrd and
//! kernel, DORA of the system, callback. They are made of bytes, two hundred on one host: DHCP goes
//! out in their own names, and the host has the addresses that they were given.
//!
//! [`machine`] is one of them, [`line`], [`tftp`], [`http`] and [`ipxe`] what it speaks, [`progress`]
//! how far it has come.

pub mod http;
pub mod ipxe;
pub mod line;
pub mod machine;
pub mod progress;
pub mod report;
pub mod tftp;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::cluster::Cluster;
use crate::content::{self, BOOTENV, INITRD, KERNEL, TEMPLATE};
use crate::dhcp::{Client, Port};
use crate::lab::{Host, Lab, wait_until};
use crate::node::Node;
use crate::wire::{Wire, mac_text};
use line::Line;
use machine::{Content, Machine, Model};
use progress::{Journal, Progress, Stage};
use report::{Came, Report};

/// More would be a thread each too many.
pub const MACHINES_MAX: u32 = 1000;

/// The network of the machines, wider than that of the nodes; and most of it is free, as where
/// machines are provisioned.
const NETWORK: &str = "10.77.0.0/16";
const SUBNET: &str = "\
kind: subnet
name: lab
cidr: 10.77.0.0/16
pools: [10.77.4.0-10.77.11.255]
routers: [10.77.0.1]
lease_secs: 3600
";

/// Octets of the kernel and of the initrd: enough that most machines are in the middle of one at
/// any time, and little enough for so many.
const KERNEL_SIZE: usize = 768 * 1024;
const INITRD_SIZE: usize = 512 * 1024;

/// Hardware address of the host that all machines are on.
const HALL: &str = "02:6d:ff:00:00:05";

/// How long a cluster may take to be whole again.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many machines are switched on.
    pub machines: u32,
    /// Within which time.
    pub spread: Duration,
    /// The share of machines that have a script when the leader is killed; None: it lives.
    pub kill_at: Option<f64>,
    /// When those are given up that are not up by then.
    pub patience: Duration,
}

/// Switches machines on, and kills the leader in the middle. The cluster is whole again at the end.
pub fn boot(cluster: &Cluster, plan: &Plan) -> Result<Report> {
    let kill = |begun: &Begun<'_>| {
        let Some(share) = plan.kill_at else {
            return Ok(None);
        };
        let enough = (f64::from(plan.machines) * share).ceil() as usize;
        wait_until("machines to have scripts", plan.patience, || {
            let over = (begun.over)() || begun.progress.reached(Stage::Script) >= enough;
            Ok(over.then_some(()))
        })?;
        kill_leader(cluster, begun.at, begun.progress).map(Some)
    };
    let (mut report, killed) = boot_while(cluster, plan, kill)?;
    report.killed = killed;
    Ok(report)
}

/// Machines that boot.
pub struct Begun<'a> {
    /// Since when.
    pub at: Instant,
    /// How far they are.
    pub progress: &'a Progress,
    /// Whether all of them have ended.
    pub over: &'a dyn Fn() -> bool,
}

/// Switches machines on while something happens. All nodes run again at the end.
pub fn boot_while<T>(
    cluster: &Cluster,
    plan: &Plan,
    happens: impl FnOnce(&Begun<'_>) -> Result<T>,
) -> Result<(Report, T)> {
    ensure!(
        (1..=MACHINES_MAX).contains(&plan.machines),
        "one to {MACHINES_MAX} machines can be played"
    );
    let clients: Vec<Client> = (0..plan.machines)
        .map(|number| Client::numbered(7, number))
        .collect();
    let content = install(cluster, &clients, SUBNET)?;
    let lab = cluster.lab();
    let hall = hall(lab)?;
    for host in cluster.nodes().iter().map(Node::host) {
        widen(host)?;
    }
    let progress = Arc::<Progress>::default();
    let began = Instant::now();
    let (came, happened) = std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&hall, plan, &clients, &content, &progress));
        let happened = happens(&Begun {
            at: began,
            progress: &progress,
            over: &|| running.is_finished(),
        });
        let came = running.join().map_err(|_| anyhow!("the machines broke"))?;
        anyhow::Ok((came?, happened?))
    })?;
    let (came, repeats) = came;
    let report = Report::new(&came, repeats, None, began.elapsed())?;
    for node in cluster.nodes().iter().filter(|node| !node.is_running()) {
        node.start()?;
    }
    cluster.wait_settled(PATIENCE)?;
    lab.remove_host(hall)?;
    Ok((report, happened))
}

/// A host that machines are on, with all their addresses.
pub fn hall(lab: &Lab) -> Result<Host> {
    let hall = lab.host(&lab.unique("hall"), Some([10, 77, 0, 5].into()))?;
    widen(&hall)?;
    // The nodes remember whose addresses are behind it, also when they are switched on again.
    hall.run("ip", &["link", "set", "dev", "eth0", "address", HALL])?;
    Ok(hall)
}

/// Tells a host that all of the machines' network is on its segment.
pub fn widen(host: &Host) -> Result<()> {
    host.run("ip", &["route", "replace", NETWORK, "dev", "eth0"])
        .map(drop)
}

/// Uploads what is to be booted, and creates the machines, with whatever other objects.
pub fn install(cluster: &Cluster, clients: &[Client], objects: &str) -> Result<Content> {
    let content = Content {
        kernel: pattern(KERNEL_SIZE, 1),
        initrd: pattern(INITRD_SIZE, 2),
    };
    for (octets, path) in [(&content.kernel, KERNEL), (&content.initrd, INITRD)] {
        let file = cluster.lab().dir().join(path.replace('/', "-"));
        fs::write(&file, octets).with_context(|| format!("writing {}", file.display()))?;
        let file = file.display().to_string();
        cluster
            .cli(&["artifacts", "upload", &file, "--path", path])?
            .ok()?;
    }
    let mut documents = vec![objects.to_owned(), TEMPLATE.to_owned(), BOOTENV.to_owned()];
    documents.extend(clients.iter().enumerate().map(|(number, client)| {
        content::machine(&format!("m{number}"), &mac_text(client.mac), "blue")
    }));
    cluster.apply(&documents.join("---\n"))?;
    cluster.wait_settled(PATIENCE)?;
    Ok(content)
}

/// Octets that do not repeat at any length that files are cut at.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Runs all machines to their end; what became of each, and how many DHCP messages were repeated.
fn run(
    hall: &Host,
    plan: &Plan,
    clients: &[Client],
    content: &Content,
    progress: &Arc<Progress>,
) -> Result<(Vec<Came>, BTreeMap<&'static str, usize>)> {
    let port = Port::Direct(Wire::open(hall)?.only_datagrams()?);
    let line = Line::new(&port);
    let end = Instant::now() + plan.patience;
    // Threads that are started on the host are on it too.
    let came = hall.inside(|| {
        std::thread::scope(|scope| {
            let listening = scope.spawn(|| line.listen());
            let machines: Vec<_> = clients
                .iter()
                .zip(Model::ALL.into_iter().cycle())
                .enumerate()
                .map(|(number, (client, model))| {
                    let machine = Machine {
                        model,
                        client: client.clone(),
                        host: hall,
                        line: &line,
                        content,
                        end,
                    };
                    let number = u32::try_from(number).unwrap_or(u32::MAX);
                    let wait = plan.spread * number / plan.machines;
                    scope.spawn(move || {
                        std::thread::sleep(wait);
                        let mut journal = Journal::new(progress);
                        let began = Instant::now();
                        let ended = machine.run(&mut journal);
                        Came::new(&machine, journal, began.elapsed(), ended)
                    })
                })
                .collect();
            let came = machines
                .into_iter()
                .map(|machine| machine.join().map_err(|_| anyhow!("a machine broke")))
                .collect::<Result<Vec<_>>>();
            line.close();
            let listened = listening
                .join()
                .map_err(|_| anyhow!("the listener broke"))?;
            listened.and(came)
        })
    })?;
    Ok((came, line.repeats()))
}

fn kill_leader(cluster: &Cluster, began: Instant, progress: &Progress) -> Result<report::Killed> {
    let leader = cluster.wait_leader(PATIENCE)?;
    let stages = Stage::ALL.map(|stage| (stage, progress.reached(stage)));
    cluster.node(leader).kill()?;
    Ok(report::Killed {
        node: cluster.node(leader).name().to_owned(),
        after: began.elapsed().as_secs_f64(),
        reached: stages.to_vec(),
    })
}
