//! Real `muster` processes, one per namespace, driven by the command line as an operator drives it.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::Value;

use crate::lab::{Host, Lab, wait_until};

/// Where nodes look for each other.
const PEER_PORT: u16 = 8093;
/// Long enough for a busy two-core machine; a healthy cluster needs a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// Some nodes on one switch; node 0 founds, the others join.
#[derive(Debug)]
pub struct Cluster {
    // Before the lab, so that the processes go first.
    nodes: Vec<Node>,
    lab: Lab,
}

/// One node: a host, a data directory, and, while it runs, a process.
#[derive(Debug)]
pub struct Node {
    host: Host,
    data_dir: PathBuf,
    log: PathBuf,
    binary: PathBuf,
    flags: Vec<String>,
    process: Mutex<Option<Child>>,
}

/// What one call of the command line came to.
#[derive(Debug)]
pub struct Answer {
    /// 0 done, 1 refused or failed, 2 usage, 3 not found, 4 conflict, 5 unavailable.
    pub code: i32,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
    call: String,
}

/// `cluster status`.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// Who leads, as its id or name; null while nobody does.
    pub leader: Value,
    /// What the answering node has applied.
    pub revision: u64,
    /// Every member.
    pub nodes: Vec<Member>,
    /// The rest, as it came.
    #[serde(flatten)]
    pub rest: HashMap<String, Value>,
}

/// One member in [`Status`].
#[derive(Clone, Debug, Deserialize)]
pub struct Member {
    /// Given by the cluster.
    pub id: Value,
    /// Given by the operator.
    pub name: String,
    /// What peers dial.
    pub address: Value,
    /// Leader, voter, learner …
    pub role: String,
    /// Applied there, as far as known.
    pub revision: Option<u64>,
    /// Whether the leader hears from it.
    pub live: bool,
    /// The rest, as it came.
    #[serde(flatten)]
    pub rest: HashMap<String, Value>,
}

impl Cluster {
    /// Founds a cluster of `size` nodes, 10.77.0.11 and up, and waits until all serve as voters.
    pub fn found(size: u8) -> Result<Self> {
        Self::found_in(Lab::new()?, size)
    }

    /// As [`Cluster::found`], in a lab that is there.
    pub fn found_in(lab: Lab, size: u8) -> Result<Self> {
        let mut cluster = Self {
            nodes: Vec::new(),
            lab,
        };
        cluster.add_founder()?;
        for _ in 1..size {
            cluster.add_joiner()?;
        }
        cluster.wait_settled(PATIENCE)?;
        Ok(cluster)
    }

    /// Starts the first node on an empty directory and waits until it serves.
    pub fn add_founder(&mut self) -> Result<usize> {
        let index = self.add(&["--found"])?;
        self.nodes[index].start()?;
        self.nodes[index].wait_serving(PATIENCE)?;
        Ok(index)
    }

    /// Starts one more node, which joins by whichever nodes there are; does not wait for it.
    pub fn add_joiner(&mut self) -> Result<usize> {
        let token = self.cli(&["cluster", "join-token"])?.ok()?.stdout;
        let file = self.lab.dir().join("join-token");
        fs::write(&file, token.trim()).context("writing the join token")?;
        let peers: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("{}:{PEER_PORT}", node.address()))
            .collect();
        let index = self.add(&[
            "--join",
            &peers.join(","),
            "--join-token-file",
            &file.display().to_string(),
        ])?;
        self.nodes[index].start()?;
        Ok(index)
    }

    fn add(&mut self, flags: &[&str]) -> Result<usize> {
        let index = self.nodes.len();
        let last = u8::try_from(index)
            .ok()
            .and_then(|index| index.checked_add(11))
            .context("too many nodes")?;
        let name = format!("n{}", index + 1);
        let host = self.lab.host(&name, Some(Ipv4Addr::new(10, 77, 0, last)))?;
        let data_dir = self.lab.dir().join(&name);
        let mut all = vec![
            "--node-name".to_owned(),
            name.clone(),
            "--advertise".to_owned(),
            format!("10.77.0.{last}"),
        ];
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self.nodes.push(Node {
            host,
            data_dir,
            log: self.lab.dir().join(format!("{name}.log")),
            binary: binary()?,
            flags: all,
            process: Mutex::new(None),
        });
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

impl Node {
    /// `n1`, `n2` …
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// Where it advertises itself.
    pub fn address(&self) -> Ipv4Addr {
        // Nodes are always plugged in with an address.
        self.host.address().unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// Its host, to run programs on or to break the network of.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Where machines and browsers of its boot tree begin.
    pub fn boot_url(&self) -> String {
        format!("http://{}:8091", self.address())
    }

    /// Starts the process with the flags of its first start; does not wait until it serves.
    pub fn start(&self) -> Result<()> {
        self.start_with(&[])
    }

    /// As [`Node::start`], with further flags.
    pub fn start_with(&self, flags: &[&str]) -> Result<()> {
        ensure!(!self.is_running(), "{} runs already", self.name());
        fs::create_dir_all(&self.data_dir)
            .with_context(|| format!("making {}", self.data_dir.display()))?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .context("opening the node's log")?;
        let child = clean(&mut self.host.command(&self.binary))
            .arg("serve")
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(&self.flags)
            .args(flags)
            .stdout(log.try_clone().context("sharing the node's log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.binary.display()))?;
        *self.process() = Some(child);
        Ok(())
    }

    /// Whether its process runs.
    pub fn is_running(&self) -> bool {
        self.process()
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Child::id)
    }

    /// Sends SIGKILL and returns once the process is no more; when the signal went out.
    pub fn kill(&self) -> Result<Instant> {
        let mut child = self
            .process()
            .take()
            .with_context(|| format!("{} does not run", self.name()))?;
        let at = Instant::now();
        child
            .kill()
            .with_context(|| format!("killing {}", self.name()))?;
        child
            .wait()
            .with_context(|| format!("waiting for {}", self.name()))?;
        Ok(at)
    }

    /// Sends SIGTERM and waits for the process to end by itself.
    pub fn stop(&self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let status = wait_until(&format!("{} to stop", self.name()), timeout, || {
            self.process()
                .as_mut()
                .context("it does not run")?
                .try_wait()
                .context("asking after it")
        })?;
        *self.process() = None;
        Ok(status)
    }

    /// Sends a signal: SIGSTOP for a node that hangs, SIGCONT for one that comes to.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self
            .pid()
            .with_context(|| format!("{} does not run", self.name()))?;
        let pid = Pid::from_raw(i32::try_from(pid).context("a process id")?);
        kill(pid, signal).with_context(|| format!("sending {signal} to {}", self.name()))
    }

    /// Calls the command line over this node's socket: `-o json` for all but `serve`.
    pub fn cli(&self, arguments: &[&str]) -> Result<Answer> {
        self.cli_with(arguments, "")
    }

    /// As [`Node::cli`], with something on stdin.
    pub fn cli_with(&self, arguments: &[&str], stdin: &str) -> Result<Answer> {
        let call = format!("muster {} (on {})", arguments.join(" "), self.name());
        let mut child = clean(&mut Command::new(&self.binary))
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["-o", "json"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {call}"))?;
        if let Some(mut pipe) = child.stdin.take() {
            // A call that does not read its stdin may end before all is written.
            let _ = pipe.write_all(stdin.as_bytes());
        }
        let output = child
            .wait_with_output()
            .with_context(|| format!("waiting for {call}"))?;
        Ok(Answer {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            call,
        })
    }

    /// `cluster status` as this node sees it.
    pub fn status(&self) -> Result<Status> {
        self.cli(&["--timeout", "2s", "cluster", "status"])?.json()
    }

    /// Waits until this node answers with a quorum behind it; an early end of the process is an error at once.
    pub fn wait_serving(&self, timeout: Duration) -> Result<()> {
        wait_until(&format!("{} to serve", self.name()), timeout, || {
            if !self.is_running() {
                return Ok(Some(Err(anyhow!("{} ended", self.name()))));
            }
            self.status().map(|_| Some(Ok(())))
        })
        .and_then(|served| served)
        .with_context(|| format!("log of {}:\n{}", self.name(), self.log_tail(40)))
    }

    /// Waits until this node has applied `revision`.
    pub fn wait_applied(&self, revision: u64, timeout: Duration) -> Result<()> {
        wait_until(
            &format!("{} to apply revision {revision}", self.name()),
            timeout,
            || {
                let applied = self.status()?.revision;
                ensure!(applied >= revision, "it has applied {applied}");
                Ok(Some(()))
            },
        )
    }

    /// All that it has logged since it was made.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_tail(&self, count: usize) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.kill();
        }
    }
}

impl Answer {
    /// The answer, or an error that says what was called and what it said.
    pub fn ok(self) -> Result<Self> {
        match self.code {
            0 => Ok(self),
            code => bail!("{}: exit {code}: {}", self.call, self.stderr.trim()),
        }
    }

    /// What a call that went well printed, parsed.
    pub fn json<T: for<'a> Deserialize<'a>>(self) -> Result<T> {
        let answer = self.ok()?;
        serde_json::from_str(&answer.stdout)
            .with_context(|| format!("{}: reading {}", answer.call, answer.stdout))
    }
}

impl Status {
    /// The leader's name.
    pub fn leader_name(&self) -> Option<&str> {
        let is_leader = |member: &&Member| {
            !self.leader.is_null() && (member.id == self.leader || self.leader == *member.name)
        };
        self.nodes
            .iter()
            .find(is_leader)
            .map(|member| member.name.as_str())
    }
}

/// The environment of whoever runs the tests must not configure the nodes.
fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("MUSTER_"))
        {
            command.env_remove(name);
        }
    }
    command
}

/// `MUSTER_BIN`, else the one that cargo built beside this program, else `target/bin/muster`.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MUSTER_BIN") {
        return Ok(PathBuf::from(path));
    }
    let program = std::env::current_exe().context("finding this program")?;
    let beside = program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("muster"));
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bin/muster");
    beside
        .chain([built])
        .find(|path| path.is_file())
        .context("no muster binary: run `make build`, or set MUSTER_BIN")
}
