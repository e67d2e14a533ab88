//! The cluster that is broken: nodes on disks and with wall clocks of their own, some of which come
//! and go.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::plan::Who;
use super::seats::Seats;
use crate::cluster::Cluster;
use crate::disk::Disk;
use crate::fleet;
use crate::lab::{Lab, wait_until};
use crate::node::{Node, binary};
use crate::wall_clock::WallClock;

/// How long a cluster that nothing hinders any more may take to be whole.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long a new node may take to vote.
const JOINING: Duration = Duration::from_secs(60);

/// One cluster in a lab of its own.
#[derive(Debug)]
pub struct Site {
    // Before the disks, so that the processes go first.
    /// The processes.
    pub cluster: Cluster,
    /// By node; none for nodes that were removed.
    disks: Vec<Option<Disk>>,
    /// By node.
    clocks: Vec<WallClock>,
    /// Nodes that belong to the cluster.
    members: Vec<usize>,
    /// The same, for clients.
    pub seats: Arc<Seats>,
    /// What nodes are upgraded to and back from, and whether a node runs it.
    other: Option<PathBuf>,
    on_other: Vec<bool>,
}

impl Site {
    /// Founds a cluster of `size` nodes.
    pub fn found(size: u8, other: Option<PathBuf>) -> Result<Self> {
        let mut site = Self {
            cluster: Cluster::empty(Lab::new()?),
            disks: Vec::new(),
            clocks: Vec::new(),
            members: Vec::new(),
            seats: Arc::default(),
            other,
            on_other: Vec::new(),
        };
        for number in 0..size {
            let index = match number {
                0 => site.cluster.prepare_founder()?,
                _ => site.cluster.prepare_joiner()?,
            };
            site.equip(index)?;
            site.cluster.node(index).start()?;
            if number == 0 {
                site.cluster.node(index).wait_serving(PATIENCE)?;
            }
            site.members.push(index);
        }
        site.settle()?;
        site.show();
        Ok(site)
    }

    /// Gives a node that has never run a disk and a clock, and a way to all clients.
    fn equip(&mut self, index: usize) -> Result<()> {
        let lab = self.cluster.lab().clone();
        let node = self.cluster.node(index);
        fleet::widen(node.host())?;
        let disk = Disk::for_node(&lab, node.name())?;
        let clock = WallClock::at(lab.dir().join(format!("{}.clock", node.name())))?;
        ensure!(self.disks.len() == index, "nodes are added in order");
        self.disks.push(Some(disk));
        self.on_other.push(false);
        self.cluster
            .node_mut(index)
            .set_program(&binary()?, &clock.environment());
        self.clocks.push(clock);
        Ok(())
    }

    /// Tells clients who the members are.
    fn show(&self) {
        self.seats.set(&self.cluster, &self.members);
    }

    /// A node of the cluster.
    pub fn node(&self, index: usize) -> &Node {
        self.cluster.node(index)
    }

    /// Nodes that belong to the cluster.
    pub fn members(&self) -> &[usize] {
        &self.members
    }

    /// The disk of a node.
    pub fn disk(&self, index: usize) -> Result<&Disk> {
        let disk = self.disks.get(index).and_then(Option::as_ref);
        disk.context("a node without a disk")
    }

    /// Does something to the disk of a node, which does not run.
    pub fn change_disk(
        &mut self,
        index: usize,
        change: impl FnOnce(Disk) -> Result<Disk>,
    ) -> Result<()> {
        let slot = self.disks.get_mut(index).context("a node without a disk")?;
        let disk = slot.take().context("a node without a disk")?;
        *slot = Some(change(disk)?);
        Ok(())
    }

    /// The wall clock of a node.
    pub fn clock(&self, index: usize) -> Result<&WallClock> {
        self.clocks.get(index).context("a node without a clock")
    }

    /// Who that is at this moment. While nobody leads, the first is taken for the leader.
    pub fn find(&self, who: &[Who]) -> Vec<usize> {
        let known = self.cluster.wait_leader(Duration::from_secs(5)).ok();
        let leader = known.filter(|index| self.members.contains(index));
        let leader = leader.or_else(|| self.members.first().copied());
        let mut followers = self.members.clone();
        followers.retain(|index| Some(*index) != leader);
        let found = who.iter().filter_map(|who| match who {
            Who::Leader => leader,
            Who::Follower(number) => followers.get(usize::from(*number)).copied(),
        });
        found.collect()
    }

    /// The members that are not among these.
    pub fn others(&self, than: &[usize]) -> Vec<usize> {
        let members = self.members.iter().copied();
        members.filter(|index| !than.contains(index)).collect()
    }

    /// Starts nodes that were killed.
    pub fn start(&self, killed: &[usize]) -> Result<()> {
        for index in killed {
            self.node(*index).start()?;
        }
        Ok(())
    }

    /// Members whose process has ended though nobody ended it; they are started again.
    pub fn ended(&self) -> Result<Vec<String>> {
        let mut ended = Vec::new();
        for node in self.members.iter().map(|index| self.node(*index)) {
            if !node.is_running() {
                ended.push(format!("{}: {}", node.name(), node.log_tail(5)));
                node.start()?;
            }
        }
        Ok(ended)
    }

    /// Waits until all members serve, and are live voters in the eyes of each.
    pub fn settle(&self) -> Result<()> {
        let waited = wait_until("the cluster to be whole", PATIENCE, || {
            let mut first = None;
            for node in self.members.iter().map(|index| self.node(*index)) {
                let status = node.quick_status()?;
                let leader = status.leader_name().map(str::to_owned);
                let leader = leader.with_context(|| format!("{} knows no leader", node.name()))?;
                let first = first.get_or_insert_with(|| leader.clone());
                ensure!(
                    *first == leader,
                    "{first} leads, and {leader} by {}",
                    node.name()
                );
                for member in &status.nodes {
                    ensure!(
                        member.live,
                        "{} holds {} for dead",
                        node.name(),
                        member.name
                    );
                    ensure!(member.role != "learner", "{} is a learner", member.name);
                }
                let count = status.nodes.len();
                ensure!(
                    count == self.members.len(),
                    "{} counts {count}",
                    node.name()
                );
                let (ready, _) = node.get("/readyz")?;
                ensure!(ready == 200, "{} is not ready", node.name());
            }
            Ok(Some(()))
        });
        waited.context("the cluster is not whole in time")
    }

    /// A new node joins and votes.
    pub fn join(&mut self) -> Result<usize> {
        let index = self.begin_join()?;
        wait_until("a new node to vote", JOINING, || {
            let status = self.node(index).quick_status()?;
            let mut nodes = status.nodes.iter();
            let own = nodes.find(|member| member.name == self.node(index).name());
            let own = own.context("it does not know itself")?;
            Ok((own.role != "learner").then_some(()))
        })?;
        self.members.push(index);
        self.show();
        Ok(index)
    }

    /// A new node that begins to join; clients are not told of it yet.
    pub fn begin_join(&mut self) -> Result<usize> {
        let index = self.cluster.prepare_joiner()?;
        self.equip(index)?;
        self.node(index).start()?;
        Ok(index)
    }

    /// One member for another, as it was done already.
    pub fn exchange(&mut self, old: usize, new: Option<usize>) -> Result<()> {
        self.members.retain(|index| *index != old);
        self.members.extend(new);
        self.show();
        if self.node(old).is_running() {
            self.node(old).kill()?;
        }
        let disk = self.disks.get_mut(old).and_then(Option::take);
        disk.map_or(Ok(()), Disk::discard)
    }

    /// Calls the command line on one of the members other than these.
    pub fn order(&self, besides: &[usize], arguments: &[&str]) -> Result<()> {
        let asked = self.others(besides);
        let asked = asked.first().context("nobody to ask")?;
        self.node(*asked).cli(arguments)?.ok().map(drop)
    }

    /// Stops a node in good order and starts it with the other binary, or with the first again.
    pub fn upgrade(&mut self, index: usize) -> Result<String> {
        let other = self.other.clone().context("no other binary")?;
        let on_other = self.on_other.get_mut(index).context("an unknown node")?;
        *on_other = !*on_other;
        let (program, name) = match *on_other {
            true => (other, "the other binary"),
            false => (binary()?, "the first binary"),
        };
        let environment = self.clock(index)?.environment();
        self.node(index).stop(PATIENCE)?;
        let node = self.cluster.node_mut(index);
        node.set_program(&program, &environment);
        node.start()?;
        Ok(name.to_owned())
    }

    /// The logs of all nodes, copied to a directory.
    pub fn keep_logs(&self, to: &std::path::Path) -> Result<()> {
        for node in self.cluster.nodes() {
            let file = to.join(format!("{}.log", node.name()));
            fs::write(&file, node.log()).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }
}
