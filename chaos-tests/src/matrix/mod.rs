//! A node dies while real firmware boots from it: every firmware, at every moment, killed and cut
//! off. Nobody helps the machine.

pub mod mode;
pub mod traffic;

use std::fmt::{self, Display};
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use dhcproto::v4::MessageType;
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::cluster::Cluster;
use crate::dhcp::{Client, Port};
use crate::fault::{self, Fault};
use crate::lab::wait_until;
use crate::machine::Machine;
use crate::wire;
use crate::{content, invariant};
pub use mode::Mode;
use traffic::{Ear, Traffic};

/// How long a cluster may take to be whole.
const PATIENCE: Duration = Duration::from_secs(60);

/// The machine's MAC.
const MAC: &str = "52:54:00:00:00:50";

/// So slow a link that there is a middle of a loader, and of a kernel.
const SLOW_LOADER: u32 = 1;
const SLOW_SYSTEM: u32 = 20;

/// Octets of a file after which its transfer is in the middle.
const MIDDLE_OF_LOADER: usize = 30_000;
const MIDDLE_OF_INITRD: usize = 300_000;
const MIDDLE_OF_KERNEL: usize = 4_000_000;

/// When the node dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// Not at all
    Never,
    /// When the firmware has its OFFER and has not been heard again
    Offer,
    /// When the firmware has its ACK and nothing else
    Ack,
    /// In the middle of the loader
    Loader,
    /// When the loader is loaded
    Loaded,
    /// When the loader has its OFFER and has not been heard again
    LoaderOffer,
    /// When the loader has its ACK and nothing else
    LoaderAck,
    /// When the machine has its script
    Script,
    /// In the middle of the initrd
    Initrd,
    /// In the middle of the kernel
    Kernel,
}

/// How it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blow {
    /// SIGKILL; its host is there and refuses
    Kill,
    /// Its link is dead: not a word
    Cut,
    /// SIGSTOP; its host takes connections that nobody answers
    Hang,
    /// SIGKILL of it and of all its peers, which are started again at once
    All,
}

/// One boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Case {
    /// By what firmware.
    pub mode: Mode,
    /// When the node dies.
    pub moment: Moment,
    /// How.
    pub blow: Blow,
}

/// What came of it, in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct Ended {
    /// Which boot.
    pub case: Case,
    /// From power-on until the report was committed; None: the machine did not come up.
    pub up: Option<f64>,
    /// The same, from the death of the node.
    pub since_death: Option<f64>,
    /// DISCOVERs and REQUESTs that the machine sent.
    pub asked: usize,
    /// What went wrong.
    pub error: Option<String>,
}

impl Moment {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Never => "none dies",
            Self::Offer => "after the firmware's OFFER",
            Self::Ack => "after the firmware's ACK",
            Self::Loader => "in the loader's transfer",
            Self::Loaded => "with the loader loaded",
            Self::LoaderOffer => "after the loader's OFFER",
            Self::LoaderAck => "after the loader's ACK",
            Self::Script => "after the script",
            Self::Initrd => "in the initrd",
            Self::Kernel => "in the kernel",
        }
    }

    fn link(self) -> u32 {
        match self {
            Self::Initrd | Self::Kernel => SLOW_SYSTEM,
            Self::Loader => SLOW_LOADER,
            _ => 1000,
        }
    }

    /// The node that is to die now, if the moment has come.
    fn victim(self, mode: Mode, traffic: &Traffic, offers: usize, acks: usize) -> Option<Ipv4Addr> {
        let beyond = |part, octets| {
            let fetch = traffic.fetch(part).filter(|fetch| fetch.octets > octets)?;
            Some(fetch.server)
        };
        match self {
            Self::Never => None,
            Self::Offer | Self::LoaderOffer => traffic.offers.get(offers).copied(),
            Self::Ack | Self::LoaderAck => traffic.acks.get(acks).copied(),
            Self::Loader => beyond(mode.loader()?.name, MIDDLE_OF_LOADER),
            Self::Loaded => loaded(mode, traffic),
            Self::Script => beyond(mode.script(), 0),
            Self::Initrd => beyond("initrd.img", MIDDLE_OF_INITRD),
            Self::Kernel => beyond("vmlinuz", MIDDLE_OF_KERNEL),
        }
    }
}

/// Who sent the loader, when all of it has come.
fn loaded(mode: Mode, traffic: &Traffic) -> Option<Ipv4Addr> {
    let loader = mode.loader()?;
    let size = std::fs::metadata(loader.file).ok()?.len();
    let fetch = traffic.fetch(loader.name)?;
    (fetch.octets as u64 >= size).then_some(fetch.server)
}

impl Blow {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "killed",
            Self::Cut => "cut off",
            Self::Hang => "stopped",
            Self::All => "all killed and started",
        }
    }
}

impl Case {
    /// Whether the moment comes at all.
    pub fn exists(self) -> bool {
        match self.moment {
            // Of a node that does not die there are not two kinds.
            Moment::Never => self.blow == Blow::Kill,
            Moment::Loader | Moment::Loaded => self.mode.loader().is_some(),
            Moment::LoaderOffer | Moment::LoaderAck => self.mode.loads_ipxe(),
            _ => true,
        }
    }
}

impl Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mode, moment) = (self.mode.name(), self.moment.name());
        match self.moment {
            Moment::Never => write!(f, "{mode}, {moment}"),
            _ => write!(f, "{mode}, {} {moment}", self.blow.name()),
        }
    }
}

impl Ended {
    fn spoilt(case: Case, error: &anyhow::Error) -> Self {
        Self {
            case,
            up: None,
            since_death: None,
            asked: 0,
            error: Some(format!("the cluster: {error:#}")),
        }
    }
}

impl Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (case, asked) = (self.case, self.asked);
        match (self.up, self.since_death, &self.error) {
            (Some(up), Some(since), _) => write!(
                f,
                "{case}: up after {up:.0} s, {since:.0} s after the death; {asked} DHCP messages"
            ),
            (Some(up), None, _) => write!(f, "{case}: up after {up:.0} s"),
            (None, _, error) => write!(f, "{case}: LOST: {}", error.as_deref().unwrap_or("?")),
        }
    }
}

/// Boots all cases, `at_once` of them at a time, each series on a cluster of its own.
pub fn run(
    cases: &[Case],
    at_once: usize,
    patience: Duration,
    tell: &(dyn Fn(&Ended) + Sync),
) -> Result<Vec<Ended>> {
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let series: Vec<_> = (0..at_once.min(cases.len()))
            .map(|_| {
                scope.spawn(|| {
                    let mut cluster = prepare()?;
                    while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let ended = match boot(&cluster, *case, patience) {
                            Ok(ended) => ended,
                            // What was not made whole is no place for the next.
                            Err(error) => {
                                cluster = prepare()?;
                                Ended::spoilt(*case, &error)
                            }
                        };
                        tell(&ended);
                        all.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(ended);
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for one in series {
            one.join().map_err(|_| anyhow!("a series broke"))??;
        }
        anyhow::Ok(())
    })?;
    let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    all.sort_by_key(|ended| cases.iter().position(|case| *case == ended.case));
    Ok(all)
}

/// Three nodes and what the machine boots.
pub fn prepare() -> Result<Cluster> {
    let cluster = Cluster::found(3)?;
    content::install(&cluster, &[("m1", MAC, "blue")])?;
    for (file, path) in mode::ARTIFACTS {
        let call = ["artifacts", "upload", file, "--path", path];
        cluster.cli(&call)?.ok()?;
    }
    Ok(cluster)
}

/// The machine, with its loaders.
fn machine(mode: Mode) -> String {
    let machine = content::machine("m1", MAC, "blue");
    format!("{machine}loaders: {}\n", mode.loaders())
}

/// Boots one case; the cluster is whole again at the end.
pub fn boot(cluster: &Cluster, case: Case, patience: Duration) -> Result<Ended> {
    cluster.apply(&machine(case.mode))?;
    lead_by_answering(cluster)?;
    let mut machine = Machine::start(
        cluster.lab(),
        case.mode.firmware(),
        MAC,
        case.mode.arguments(),
    )?;
    let ear = Ear::new(machine.listen()?);
    machine.slow_link(case.moment.link())?;
    let mut dead = None;
    let ended = live_through(cluster, case, &mut machine, &ear, patience, &mut dead);
    let since_death = dead.as_ref().map(|dead: &Dead| dead.at.elapsed());
    let up = ended.as_ref().ok().map(|up| up.as_secs_f64());
    let ended = Ended {
        case,
        up,
        since_death: since_death
            .filter(|_| up.is_some())
            .map(|it| it.as_secs_f64()),
        asked: ear.heard().asked,
        error: ended.err().map(|error| format!("{error:#}")),
    };
    drop((ear, machine));
    if let Some(dead) = dead {
        dead.revive(cluster)?;
    }
    invariant::same_everywhere(cluster)?;
    Ok(ended)
}

/// The node that answers the machine first leads: its death is an election as well.
fn lead_by_answering(cluster: &Cluster) -> Result<()> {
    let lab = cluster.lab();
    let host = lab.host(&lab.unique("p"), None)?;
    let port = Port::direct(&host)?;
    let client = Client::new(wire::mac(MAC)?).pxe();
    let offer = port.insist(&client.discover(), MessageType::Offer)?;
    drop(port);
    lab.remove_host(host)?;
    let first = offer.server().and_then(|server| cluster.node_at(server));
    let first = first.context("an OFFER of no node")?;
    // On a busy host another may be elected right after: then a follower dies.
    if let Err(error) = cluster.transfer(first) {
        eprintln!("{}: {error:#}", cluster.node(first).name());
    }
    cluster.wait_settled(PATIENCE)
}

/// The dead, to be revived.
struct Dead {
    at: Instant,
    cure: Cure,
}

/// What makes a cluster whole again.
enum Cure {
    Start(usize),
    Heal(Fault),
    Continue(usize),
    Wait,
}

impl Dead {
    fn strike(cluster: &Cluster, node: usize, blow: Blow) -> Result<Self> {
        let at = Instant::now();
        let cure = match blow {
            Blow::Kill => {
                cluster.node(node).kill()?;
                Cure::Start(node)
            }
            Blow::Cut => Cure::Heal(fault::cut(cluster.node(node).host())?),
            Blow::Hang => {
                cluster.node(node).freeze()?;
                Cure::Continue(node)
            }
            Blow::All => {
                for node in cluster.nodes() {
                    node.kill()?;
                }
                for node in cluster.nodes() {
                    node.start()?;
                }
                Cure::Wait
            }
        };
        Ok(Self { at, cure })
    }

    fn revive(self, cluster: &Cluster) -> Result<()> {
        match self.cure {
            Cure::Start(node) => cluster.node(node).start()?,
            Cure::Heal(cut) => cut.heal(),
            Cure::Continue(node) => cluster.node(node).signal(Signal::SIGCONT)?,
            Cure::Wait => {}
        }
        cluster.wait_settled(PATIENCE)
    }
}

/// From power-on until the report is committed.
fn live_through(
    cluster: &Cluster,
    case: Case,
    machine: &mut Machine,
    ear: &Ear,
    patience: Duration,
    dead: &mut Option<Dead>,
) -> Result<Duration> {
    if case.moment != Moment::Never {
        *dead = Some(strike(cluster, case, machine, ear, patience)?);
        machine.slow_link(1000)?;
    }
    machine.wait_for("MUSTER-PAYLOAD hello m1 from", patience)?;
    machine.wait_for("MUSTER-REPORTED", patience)
}

/// Waits for the moment, and has the node die that the machine has to do with.
fn strike(
    cluster: &Cluster,
    case: Case,
    machine: &mut Machine,
    ear: &Ear,
    patience: Duration,
) -> Result<Dead> {
    let (lab, port) = (cluster.lab(), machine.port().to_owned());
    let moment = case.moment;
    if matches!(moment, Moment::LoaderOffer | Moment::LoaderAck) {
        wait_until("the loader to be loaded", patience, || {
            Ok(loaded(case.mode, &ear.heard()))
        })
        .with_context(|| machine.serial())?;
    }
    // What the machine would do next is held back until the node is dead.
    let hold = match moment {
        Moment::Offer | Moment::LoaderOffer => Some(fault::hold_requests(lab, &port)?),
        Moment::Ack | Moment::LoaderAck => Some(fault::hold_fetches(lab, &port)?),
        _ => None,
    };
    let before = ear.heard();
    let (offers, acks) = (before.offers.len(), before.acks.len());
    let victim = wait_until("the moment to come", patience, || {
        ensure!(machine.is_on(), "the machine is off");
        Ok(moment.victim(case.mode, &ear.heard(), offers, acks))
    })
    .with_context(|| machine.serial())?;
    let node = cluster
        .node_at(victim)
        .with_context(|| format!("{victim} is no node"))?;
    let dead = Dead::strike(cluster, node, case.blow)?;
    drop(hold);
    Ok(dead)
}

/// The table of all that was booted, for people.
pub fn table(ended: &[Ended]) -> String {
    let mut modes: Vec<Mode> = ended.iter().map(|ended| ended.case.mode).collect();
    modes.sort_unstable();
    modes.dedup();
    let mut rows: Vec<(Moment, Blow)> = ended
        .iter()
        .map(|ended| (ended.case.moment, ended.case.blow))
        .collect();
    rows.sort_unstable();
    rows.dedup();
    let heads: Vec<&str> = modes.iter().map(|mode| mode.name()).collect();
    let mut text = format!("| the node dies | how | {} |\n", heads.join(" | "));
    text += &format!("|---|---|{}\n", "---:|".repeat(modes.len()));
    for (moment, blow) in rows {
        let how = match moment {
            Moment::Never => "",
            _ => blow.name(),
        };
        let cells: Vec<String> = modes
            .iter()
            .map(|mode| {
                let case = Case {
                    mode: *mode,
                    moment,
                    blow,
                };
                cell(ended.iter().find(|ended| ended.case == case))
            })
            .collect();
        text += &format!("| {} | {how} | {} |\n", moment.name(), cells.join(" | "));
    }
    text
}

fn cell(ended: Option<&Ended>) -> String {
    match ended.map(|ended| (ended.up, ended.since_death)) {
        None => "–".to_owned(),
        Some((None, _)) => "**lost**".to_owned(),
        Some((Some(up), None)) => format!("{up:.0}"),
        Some((Some(up), Some(since))) => format!("{up:.0} ({since:.0})"),
    }
}
