//! Real `muster` processes, one per namespace, driven by the command line as an operator drives it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::lab::{Lab, wait_until};
use crate::node::{Answer, Node, Status};

/// Where nodes look for each other.
const PEER_PORT: u16 = 8093;
/// Long enough for a busy two-core machine; a healthy cluster needs a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// Some nodes on one switch; node 0 founds, the others join.
#[derive(Debug)]
pub struct Cluster {
    // Before the lab, so that the processes go first.
    nodes: Vec<Node>,
    /// Also those that were refused.
    added: u8,
    /// What further nodes are started with, if not with the present binary.
    binary: Option<PathBuf>,
    lab: Lab,
}

impl Cluster {
    /// Founds a cluster of `size` nodes, 10.77.0.11 and up, and waits until all serve as voters.
    pub fn found(size: u8) -> Result<Self> {
        Self::found_in(Lab::new()?, size)
    }

    /// As [`Cluster::found`], of nodes that are started with this binary.
    pub fn found_with(size: u8, binary: &Path) -> Result<Self> {
        Self::found_by(Lab::new()?, size, Some(binary))
    }

    /// As [`Cluster::found`], in a lab that is there.
    pub fn found_in(lab: Lab, size: u8) -> Result<Self> {
        Self::found_by(lab, size, None)
    }

    fn found_by(lab: Lab, size: u8, binary: Option<&Path>) -> Result<Self> {
        let mut cluster = Self::empty(lab);
        cluster.binary = binary.map(Path::to_owned);
        cluster.add_founder()?;
        for _ in 1..size {
            cluster.add_joiner()?;
        }
        cluster.wait_settled(PATIENCE)?;
        Ok(cluster)
    }

    /// No node yet.
    pub fn empty(lab: Lab) -> Self {
        Self {
            nodes: Vec::new(),
            added: 0,
            binary: None,
            lab,
        }
    }

    /// The first node, which is to found the cluster when it is started.
    pub fn prepare_founder(&mut self) -> Result<usize> {
        self.add(&["--found"])
    }

    /// Starts the first node on an empty directory and waits until it serves.
    pub fn add_founder(&mut self) -> Result<usize> {
        let index = self.prepare_founder()?;
        self.nodes[index].start()?;
        self.nodes[index].wait_serving(PATIENCE)?;
        Ok(index)
    }

    /// Starts one more node, which joins by whichever nodes there are; does not wait for it.
    pub fn add_joiner(&mut self) -> Result<usize> {
        let index = self.prepare_joiner()?;
        self.nodes[index].start()?;
        Ok(index)
    }

    /// One more node, which is to join when it is started.
    pub fn prepare_joiner(&mut self) -> Result<usize> {
        let token = self.cli(&["cluster", "join-token"])?.ok()?.stdout;
        self.prepare_joiner_with(token.trim())
    }

    fn prepare_joiner_with(&mut self, token: &str) -> Result<usize> {
        let file = self.lab.dir().join(self.lab.unique("join-token"));
        fs::write(&file, token).context("writing the join token")?;
        let peers: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("{}:{PEER_PORT}", node.address()))
            .collect();
        self.add(&[
            "--join",
            &peers.join(","),
            "--join-token-file",
            &file.display().to_string(),
        ])
    }

    /// Starts a node that is to be refused with this token; its exit code once it has ended.
    pub fn try_joiner(&mut self, token: &str, timeout: Duration) -> Result<Option<i32>> {
        let index = self.prepare_joiner_with(token)?;
        let node = self.nodes.remove(index);
        node.start()?;
        node.wait_end(timeout)
    }

    /// Starts a node that is to end by itself; its exit code.
    pub fn try_start(&mut self, flags: &[&str], timeout: Duration) -> Result<Option<i32>> {
        let index = self.add(flags)?;
        let node = self.nodes.remove(index);
        node.start()?;
        node.wait_end(timeout)
    }

    fn add(&mut self, flags: &[&str]) -> Result<usize> {
        let index = self.nodes.len();
        self.added += 1;
        let last = self.added.checked_add(10).context("too many nodes")?;
        let name = format!("n{}", self.added);
        let host = self.lab.host(&name, Some(Ipv4Addr::new(10, 77, 0, last)))?;
        let node = Node::new(host, flags)?;
        if let Some(binary) = &self.binary {
            node.set_binary(binary);
        }
        self.nodes.push(node);
        Ok(index)
    }

    /// The lab that it runs in, to plug in clients and machines.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// All nodes, running or not, in the order in which they were added.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node at `index`; the founder is 0.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The same, to change what it is started as.
    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// The node with this address.
    pub fn node_at(&self, address: Ipv4Addr) -> Option<usize> {
        self.nodes.iter().position(|node| node.address() == address)
    }

    /// The nodes whose process runs.
    pub fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_running())
    }

    /// Calls the command line on the first running node that is to be had.
    pub fn cli(&self, arguments: &[&str]) -> Result<Answer> {
        self.running()
            .next()
            .context("no node runs")?
            .cli(arguments)
    }

    /// Creates or changes objects from YAML documents with `kind:`.
    pub fn apply(&self, documents: &str) -> Result<()> {
        self.running()
            .next()
            .context("no node runs")?
            .cli_with(&["apply", "-f", "-"], documents)?
            .ok()
            .map(drop)
    }

    /// Who leads, by what running nodes say; an error while none of them knows a running leader.
    pub fn leader(&self) -> Result<usize> {
        let mut last = anyhow!("no node runs");
        for node in self.running() {
            match node.status().and_then(|status| self.leader_in(&status)) {
                Ok(index) => return Ok(index),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn leader_in(&self, status: &Status) -> Result<usize> {
        let name = status.leader_name().context("nobody leads")?;
        let index = self.nodes.iter().position(|node| node.name() == name);
        let index = index.with_context(|| format!("the leader {name} is not ours"))?;
        ensure!(
            self.nodes[index].is_running(),
            "{name} is said to lead but does not run"
        );
        Ok(index)
    }

    /// Waits until a running node leads and returns it.
    pub fn wait_leader(&self, timeout: Duration) -> Result<usize> {
        wait_until("a leader", timeout, || self.leader().map(Some))
    }

    /// Moves leadership to a node and waits until it leads.
    pub fn transfer(&self, to: usize) -> Result<()> {
        let name = self.nodes[to].name();
        if self.leader().ok() != Some(to) {
            self.cli(&["cluster", "transfer", name])?.ok()?;
        }
        wait_until(&format!("{name} to lead"), PATIENCE, || {
            Ok((self.leader()? == to).then_some(()))
        })
    }

    /// Waits until every running node serves, all of them are live voters in the eyes of each, and
    /// all have applied the same.
    pub fn wait_settled(&self, timeout: Duration) -> Result<()> {
        wait_until("the cluster to settle", timeout, || {
            let running: Vec<&Node> = self.running().collect();
            let mut revisions = Vec::new();
            for node in &running {
                let status = node.status()?;
                self.leader_in(&status)?;
                for expected in &running {
                    let name = expected.name();
                    let member = status.nodes.iter().find(|member| member.name == name);
                    let member =
                        member.with_context(|| format!("{} does not know {name}", node.name()))?;
                    ensure!(member.live, "{} holds {name} for dead", node.name());
                    ensure!(member.role != "learner", "{name} is a learner");
                }
                revisions.push((node.name(), status.revision));
            }
            ensure!(
                revisions.windows(2).all(|pair| pair[0].1 == pair[1].1),
                "revisions differ: {revisions:?}"
            );
            Ok(Some(()))
        })
        .with_context(|| self.logs())
    }

    /// The end of every node's log, for an error's sake.
    pub fn logs(&self) -> String {
        self.nodes
            .iter()
            .map(|node| format!("--- {}\n{}", node.name(), node.log_tail(25)))
            .collect::<Vec<_>>()
            .join("\n")
    }
}
