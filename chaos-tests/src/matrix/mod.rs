//! A node dies while real firmware boots from it: every firmware, at every moment, killed and cut
//! off. Nobody helps the machine.

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
use serde::Serialize;

use crate::cluster::Cluster;
use crate::dhcp::{Client, Port};
use crate::fault::{self, Fault};
use crate::lab::wait_until;
use crate::machine::{Firmware, Machine};
use crate::wire;
use crate::{content, invariant};
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

/// Which firmware, and how it comes to its system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// SeaBIOS; the card's ROM is iPXE
    BiosIpxe,
    /// OVMF by PXE, then iPXE; HTTP Boot comes next in its boot order
    UefiPxe,
    /// OVMF by HTTP Boot, then iPXE; PXE comes next in its boot order
    UefiHttp,
}

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

impl Mode {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::BiosIpxe => "BIOS, iPXE ROM",
            Self::UefiPxe => "UEFI PXE",
            Self::UefiHttp => "UEFI HTTP",
        }
    }

    fn firmware(self) -> Firmware {
        match self {
            Self::BiosIpxe => Firmware::Bios,
            Self::UefiPxe => Firmware::Uefi,
            Self::UefiHttp => Firmware::UefiHttpThenPxe,
        }
    }

    /// BIOS begins its boot order anew when nothing has booted, as servers are set to.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::BiosIpxe => &["-action", "reboot=reset", "-boot", "reboot-timeout=5000"],
            Self::UefiPxe | Self::UefiHttp => &[],
        }
    }

    /// Whether it has a loader to load.
    fn loads(self) -> bool {
        self != Self::BiosIpxe
    }
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

    fn is_of_loader(self) -> bool {
        matches!(
            self,
            Self::Loader | Self::Loaded | Self::LoaderOffer | Self::LoaderAck
        )
    }

    fn link(self) -> u32 {
        match self {
            Self::Initrd | Self::Kernel => SLOW_SYSTEM,
            Self::Loader => SLOW_LOADER,
            _ => 1000,
        }
    }

    /// The node that is to die now, if the moment has come.
    fn victim(self, traffic: &Traffic, offers: usize, acks: usize) -> Option<Ipv4Addr> {
        let beyond = |part, octets| {
            let fetch = traffic.fetch(part).filter(|fetch| fetch.octets > octets)?;
            Some(fetch.server)
        };
        match self {
            Self::Never => None,
            Self::Offer | Self::LoaderOffer => traffic.offers.get(offers).copied(),
            Self::Ack | Self::LoaderAck => traffic.acks.get(acks).copied(),
            Self::Loader => beyond("snponly.efi", MIDDLE_OF_LOADER),
            Self::Loaded => loaded(traffic),
            Self::Script => beyond("boot.ipxe", 0),
            Self::Initrd => beyond("initrd.img", MIDDLE_OF_INITRD),
            Self::Kernel => beyond("vmlinuz", MIDDLE_OF_KERNEL),
        }
    }
}

/// Who sent the loader, when all of it has come.
fn loaded(traffic: &Traffic) -> Option<Ipv4Addr> {
    let size = std::fs::metadata("/usr/lib/ipxe/snponly.efi").ok()?.len();
    let fetch = traffic.fetch("snponly.efi")?;
    (fetch.octets as u64 >= size).then_some(fetch.server)
}

impl Blow {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "killed",
            Self::Cut => "cut off",
        }
    }
}

impl Case {
    /// Whether the moment comes at all.
    pub fn exists(self) -> bool {
        match self.moment {
            // Of a node that does not die there are not two kinds.
            Moment::Never => self.blow == Blow::Kill,
            moment => self.mode.loads() || !moment.is_of_loader(),
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
                    let cluster = prepare()?;
                    while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let ended = boot(&cluster, *case, patience)?;
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
    Ok(cluster)
}

/// Boots one case; the cluster is whole again at the end.
pub fn boot(cluster: &Cluster, case: Case, patience: Duration) -> Result<Ended> {
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
    cluster.transfer(first.context("an OFFER of no node")?)?;
    cluster.wait_settled(PATIENCE)
}

/// The dead, to be revived.
struct Dead {
    node: usize,
    at: Instant,
    cut: Option<Fault>,
}

impl Dead {
    fn revive(self, cluster: &Cluster) -> Result<()> {
        match self.cut {
            Some(cut) => cut.heal(),
            None => cluster.node(self.node).start()?,
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
            Ok(loaded(&ear.heard()))
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
        Ok(moment.victim(&ear.heard(), offers, acks))
    })
    .with_context(|| machine.serial())?;
    let node = cluster
        .node_at(victim)
        .with_context(|| format!("{victim} is no node"))?;
    let (at, cut) = match case.blow {
        Blow::Kill => (cluster.node(node).kill()?, None),
        Blow::Cut => {
            let cut = fault::cut(cluster.node(node).host())?;
            (Instant::now(), Some(cut))
        }
    };
    drop(hold);
    Ok(Dead { node, at, cut })
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
