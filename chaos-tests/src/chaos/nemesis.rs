//! Does to a site what a plan says, and undoes it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;

use super::history::{self, History, Record};
use super::plan::{Blow, Kind, Step};
use super::site::Site;
use crate::disk::{Disk, Filled, Hanging};
use crate::fault::{self, Fault};
use crate::lab::wait_until;

/// A slow disk stands still for so long at a time, and then writes for so long.
const STALL: Duration = Duration::from_millis(400);
const FLOW: Duration = Duration::from_millis(150);
/// How long the next node of a storm is waited for: not at all until it serves.
const STORM: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(700),
    Duration::from_millis(1800),
];

/// What is in force.
struct Struck {
    what: String,
    /// Who can reach no majority.
    alone: Vec<usize>,
    mending: Mending,
}

/// What undoes it.
enum Mending {
    Done,
    Start(Vec<usize>),
    Continue(Vec<usize>),
    Links(Vec<Fault>),
    Room(Filled),
    Thaw(Hanging),
    Flow(Slow),
    NewDisk(usize),
    Clock(usize),
}

/// Does one step and waits until all is whole again; what happened is written down.
pub fn carry_out(site: &mut Site, step: &Step, history: &History) -> Result<()> {
    thread::sleep(step.rest);
    let start = history.now();
    let struck = strike(site, &step.blow).with_context(|| format!("{step}"))?;
    let in_force = history.now();
    eprintln!("{:7.1} s: {}", start as f64 / 1e6, struck.what);
    thread::sleep(step.lasts);
    let healing = history.now();
    let mut troubles = Vec::new();
    let fallen = fallen(site, &struck.mending);
    if !fallen.is_empty() {
        troubles.push(format!("ended by themselves: {}", fallen.join("; ")));
    }
    mend(site, struck.mending)?;
    let whole = site.settle();
    // Those that ended meanwhile or could not start at first; what is whole has none.
    let ended = site.ended()?;
    if !ended.is_empty() {
        troubles.push(format!("ended by themselves: {}", ended.join("; ")));
    }
    if let Err(error) = whole {
        troubles.push(format!("{error:#}"));
        // Give it one more chance, so that what follows is judged by itself.
        if let Err(error) = site.settle() {
            troubles.push(format!("and still not: {error:#}"));
        }
    }
    let alone = struck.alone.iter().map(|index| site.node(*index));
    let (alone, alone_names): (Vec<Ipv4Addr>, Vec<String>) = alone
        .map(|node| (node.address(), node.name().to_owned()))
        .unzip();
    history.add(Record::Fault(history::Fault {
        start,
        struck: in_force,
        healing,
        end: history.now(),
        kind: step.blow.kind.name().to_owned(),
        what: struck.what,
        alone,
        alone_names,
        trouble: (!troubles.is_empty()).then(|| troubles.join("; ")),
    }));
    Ok(())
}

/// Members that do not run though nobody killed them.
fn fallen(site: &Site, mending: &Mending) -> Vec<String> {
    let killed: &[usize] = match mending {
        Mending::Start(killed) => killed,
        _ => &[],
    };
    let members = site
        .members()
        .iter()
        .filter(|index| !killed.contains(index));
    let nodes = members.map(|index| site.node(*index));
    let ended = nodes.filter(|node| !node.is_running());
    ended
        .map(|node| format!("{}: {}", node.name(), node.log_tail(5)))
        .collect()
}

fn strike(site: &mut Site, blow: &Blow) -> Result<Struck> {
    let who = site.find(&blow.who);
    let rest = site.others(&who);
    let first = *who.first().context("nobody to strike")?;
    let names = |of: &[usize]| {
        let names: Vec<&str> = of.iter().map(|index| site.node(*index).name()).collect();
        names.join(", ")
    };
    let led = site.cluster.leader().ok();
    let of: Vec<String> = who
        .iter()
        .map(|index| match Some(*index) == led {
            true => format!("{} (leads)", site.node(*index).name()),
            false => site.node(*index).name().to_owned(),
        })
        .collect();
    let of = of.join(", ");
    // Those that are left when so many are gone, or are apart.
    let majority = rest.len() > site.members().len() / 2;
    let left = if majority { Vec::new() } else { rest.clone() };
    let (what, alone, mending) = match blow.kind {
        Kind::Kill => {
            for index in &who {
                site.node(*index).kill()?;
            }
            (format!("SIGKILL of {of}"), left, Mending::Start(who))
        }
        Kind::Pause => {
            for index in &who {
                site.node(*index).freeze()?;
            }
            (format!("SIGSTOP of {of}"), left, Mending::Continue(who))
        }
        Kind::Split => {
            let links = links(&who, &rest);
            let cuts = cut_all(site, &links, fault::cut_between)?;
            let what = format!("{of} split from {}", names(&rest));
            (what, who, Mending::Links(cuts))
        }
        Kind::Partial => {
            let links = partial(site, &who, &rest, blow.way);
            let cuts = cut_all(site, &links, fault::cut_between)?;
            let texts = links.iter().map(|(a, b)| names(&[*a, *b]));
            let what = format!("no link between {}", texts.collect::<Vec<_>>().join("; "));
            (what, Vec::new(), Mending::Links(cuts))
        }
        Kind::OneWay => {
            let heard = blow.way.is_multiple_of(2);
            let mut links = links(&who, &rest);
            if !heard {
                links = links.into_iter().map(|(a, b)| (b, a)).collect();
            }
            let cuts = cut_all(site, &links, fault::cut_one_way)?;
            let how = if heard {
                "is not heard"
            } else {
                "does not hear"
            };
            let what = format!("{of} {how}");
            (what, Vec::new(), Mending::Links(cuts))
        }
        Kind::Cut => {
            let cut = fault::cut(site.node(first).host())?;
            (format!("{of} cut off"), who, Mending::Links(vec![cut]))
        }
        Kind::DiskFull => {
            let filled = site.disk(first)?.fill()?;
            (
                format!("disk of {of} full"),
                Vec::new(),
                Mending::Room(filled),
            )
        }
        Kind::DiskHang => {
            let hanging = site.disk(first)?.hang()?;
            (
                format!("disk of {of} hangs"),
                Vec::new(),
                Mending::Thaw(hanging),
            )
        }
        Kind::DiskSlow => {
            let slow = Slow::begin(site.disk(first)?)?;
            (
                format!("disk of {of} slow"),
                Vec::new(),
                Mending::Flow(slow),
            )
        }
        Kind::DiskFail => {
            match blow.way.is_multiple_of(2) {
                true => site.disk(first)?.fail()?,
                false => site.disk(first)?.become_read_only()?,
            }
            let what = format!("disk of {of} fails");
            (what, Vec::new(), Mending::NewDisk(first))
        }
        Kind::Power => {
            cut_power(site, &who)?;
            (format!("power cut of {of}"), left, Mending::Start(who))
        }
        Kind::Clock => {
            site.clock(first)?.set(blow.jump)?;
            let what = format!("clock of {of} jumps by {} s", blow.jump / 1000);
            (what, Vec::new(), Mending::Clock(first))
        }
        Kind::Storm => {
            storm(site, &who, blow.way)?;
            (format!("restart storm of {of}"), Vec::new(), Mending::Done)
        }
        Kind::Member => {
            let what = change_members(site, first, blow.way)?;
            (what, Vec::new(), Mending::Done)
        }
        Kind::Upgrade => {
            let to = site.upgrade(first)?;
            (
                format!("{of} restarted with {to}"),
                Vec::new(),
                Mending::Done,
            )
        }
    };
    Ok(Struck {
        what,
        alone,
        mending,
    })
}

fn mend(site: &mut Site, mending: Mending) -> Result<()> {
    match mending {
        Mending::Done => Ok(()),
        Mending::Start(killed) => site.start(&killed),
        Mending::Continue(stopped) => stopped
            .iter()
            .try_for_each(|index| site.node(*index).signal(Signal::SIGCONT)),
        Mending::Links(cuts) => {
            cuts.into_iter().for_each(Fault::heal);
            Ok(())
        }
        Mending::Room(filled) => {
            drop(filled);
            Ok(())
        }
        Mending::Thaw(hanging) => {
            drop(hanging);
            Ok(())
        }
        Mending::Flow(slow) => slow.end(),
        Mending::NewDisk(index) => {
            if site.node(index).is_running() {
                site.node(index).kill()?;
            }
            site.change_disk(index, Disk::mend)?;
            site.start(&[index])
        }
        Mending::Clock(index) => site.clock(index)?.set(0),
    }
}

/// All pairs of one of these and one of those.
fn links(these: &[usize], those: &[usize]) -> Vec<(usize, usize)> {
    let pairs = |one: &usize| {
        let one = *one;
        those.iter().map(move |other| (one, *other))
    };
    these.iter().flat_map(pairs).collect()
}

/// The link between the two; or with five, all but those between neighbours of a ring: everyone
/// reaches a majority, and no two the same one.
fn partial(site: &Site, who: &[usize], rest: &[usize], way: u8) -> Vec<(usize, usize)> {
    let members = site.members();
    if members.len() < 5 || way.is_multiple_of(2) {
        let other = who.get(1).or(rest.first());
        let pair = who.first().zip(other);
        return pair
            .map(|(one, other)| (*one, *other))
            .into_iter()
            .collect();
    }
    let count = members.len();
    let mut apart = Vec::new();
    for (at, one) in members.iter().enumerate() {
        for (beyond, other) in members.iter().enumerate().skip(at + 2) {
            if (at, beyond) != (0, count - 1) {
                apart.push((*one, *other));
            }
        }
    }
    apart
}

fn cut_all(
    site: &Site,
    links: &[(usize, usize)],
    cut: fn(&crate::lab::Host, &crate::lab::Host) -> Result<Fault>,
) -> Result<Vec<Fault>> {
    let cuts = links
        .iter()
        .map(|(one, other)| cut(site.node(*one).host(), site.node(*other).host()));
    cuts.collect()
}

/// Stops the nodes where they stand, and goes on from what their disks hold then.
fn cut_power(site: &mut Site, who: &[usize]) -> Result<()> {
    for index in who {
        site.node(*index).freeze()?;
    }
    for index in who {
        let left = site.disk(*index)?.snapshot("cut")?;
        site.node(*index).kill()?;
        site.change_disk(*index, |disk| disk.restore(&left))?;
    }
    Ok(())
}

/// Kills and starts nodes in turn, three rounds, without waiting until any serves.
fn storm(site: &Site, who: &[usize], way: u8) -> Result<()> {
    let pause = STORM
        .get(usize::from(way) % STORM.len())
        .copied()
        .unwrap_or_default();
    for _ in 0..3 {
        for index in who {
            // It may not have come up from the last time.
            if site.node(*index).is_running() {
                site.node(*index).kill()?;
            }
            site.start(&[*index])?;
            thread::sleep(pause);
        }
    }
    Ok(())
}

fn change_members(site: &mut Site, old: usize, way: u8) -> Result<String> {
    let old_name = site.node(old).name().to_owned();
    let patience = ["--timeout", "1m"];
    match way % 3 {
        0 => {
            site.node(old).kill()?;
            let new = site.begin_join()?;
            let new_name = site.node(new).name().to_owned();
            let known = wait_until("a new node to be known", Duration::from_secs(60), || {
                // The leader decides, and each has to see it by itself.
                for other in site.others(&[old]) {
                    let status = site.node(other).quick_status()?;
                    let is = |name: &str, live: bool| {
                        let mut nodes = status.nodes.iter();
                        nodes.any(|one| one.name == name && one.live == live)
                    };
                    if !is(&old_name, false) || !is(&new_name, true) {
                        return Ok(None);
                    }
                }
                Ok(Some(()))
            });
            known?;
            let order = ["cluster", "replace", &old_name, &new_name];
            site.order(&[old], &[&patience[..], &order].concat())?;
            site.exchange(old, Some(new))?;
            Ok(format!("{old_name} killed and replaced by {new_name}"))
        }
        1 => {
            let new = site.join()?;
            let new_name = site.node(new).name().to_owned();
            remove(site, old, &old_name)?;
            site.exchange(old, None)?;
            Ok(format!("{new_name} added and {old_name} removed"))
        }
        _ => {
            remove(site, old, &old_name)?;
            site.exchange(old, None)?;
            let new = site.join()?;
            let new_name = site.node(new).name().to_owned();
            Ok(format!("{old_name} removed and {new_name} added"))
        }
    }
}

fn remove(site: &Site, old: usize, name: &str) -> Result<()> {
    site.order(&[old], &["--timeout", "1m", "cluster", "remove", name])
}

/// A disk that stands still again and again.
struct Slow {
    over: Arc<AtomicBool>,
    pulse: JoinHandle<Result<()>>,
}

impl Slow {
    fn begin(disk: &Disk) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let stall = disk.staller();
        let ended = Arc::clone(&over);
        let pulse = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let hanging = stall()?;
                thread::sleep(STALL);
                drop(hanging);
                thread::sleep(FLOW);
            }
            Ok(())
        });
        Ok(Self { over, pulse })
    }

    fn end(self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.pulse.join();
        ended.map_err(|_| anyhow!("the slow disk broke"))?
    }
}
