//! One node: a real `muster` process in a namespace, and the command line that talks to it.

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

use crate::lab::{Host, wait_until};
use crate::socket::Call;

/// How long the kernel may take to stop a process.
const FREEZE: Duration = Duration::from_secs(10);
/// How long a node may take for an answer on its socket.
const ANSWER: Duration = Duration::from_secs(10);

/// One node: a host, a data directory, and, while it runs, a process.
#[derive(Debug)]
pub struct Node {
    host: Host,
    data_dir: PathBuf,
    log: PathBuf,
    binary: Mutex<PathBuf>,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
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

impl Node {
    /// A node that has never run, with the flags that it is always started with.
    pub(crate) fn new(host: Host, flags: &[&str]) -> Result<Self> {
        let (name, dir) = (host.name(), host.lab().dir());
        let address = host.address().context("a node has an address")?;
        let mut all = ["--node-name", name, "--advertise"]
            .map(str::to_owned)
            .to_vec();
        all.push(address.to_string());
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        Ok(Self {
            data_dir: dir.join(name),
            log: dir.join(format!("{name}.log")),
            binary: Mutex::new(binary()?),
            flags: all,
            environment: Vec::new(),
            process: Mutex::new(None),
            host,
        })
    }

    /// From its next start on it is this program, and has this in its environment besides.
    pub fn set_program(&mut self, binary: &Path, environment: &[(String, String)]) {
        self.set_binary(binary);
        self.environment = environment.to_vec();
    }

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
        let binary = self.binary();
        let child = clean(&mut self.host.command(&binary))
            .envs(self.environment.iter().cloned())
            .arg("serve")
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(&self.flags)
            .args(flags)
            .stdout(log.try_clone().context("sharing the node's log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        *self.process() = Some(child);
        Ok(())
    }

    /// What it is started with from now on, and what its command line is called by.
    pub fn set_binary(&self, binary: &Path) {
        let mut own = self.binary.lock().unwrap_or_else(PoisonError::into_inner);
        binary.clone_into(&mut own);
    }

    fn binary(&self) -> PathBuf {
        let own = self.binary.lock().unwrap_or_else(PoisonError::into_inner);
        own.clone()
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
        // It may have been told to stop before, and be gone.
        if self.is_running() {
            self.signal(Signal::SIGTERM)?;
        }
        self.wait_status(timeout)
    }

    /// Waits for the process to end by itself; its exit code.
    pub fn wait_end(&self, timeout: Duration) -> Result<Option<i32>> {
        let status = self.wait_status(timeout);
        Ok(status.with_context(|| self.log_tail(40))?.code())
    }

    fn wait_status(&self, timeout: Duration) -> Result<ExitStatus> {
        let status = wait_until(&format!("{} to end", self.name()), timeout, || {
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

    /// Stops the process where it stands (SIGSTOP), until SIGCONT; waits until each of its threads has
    /// stopped.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let tasks = format!("/proc/{}/task", self.pid().context("it does not run")?);
        wait_until("all threads to stop", FREEZE, || {
            for task in fs::read_dir(&tasks).context("listing threads")? {
                let stat = fs::read_to_string(task?.path().join("stat"))?;
                // The name before the state may have any characters in it.
                let state = stat.rsplit(')').next().map(str::trim_start);
                if !state.is_some_and(|state| state.starts_with('T')) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }

    /// Calls the command line over this node's socket: `-o json` for all but `serve`.
    pub fn cli(&self, arguments: &[&str]) -> Result<Answer> {
        self.cli_with(arguments, "")
    }

    /// As [`Node::cli`], with something on stdin.
    pub fn cli_with(&self, arguments: &[&str], stdin: &str) -> Result<Answer> {
        let call = format!("muster {} (on {})", arguments.join(" "), self.name());
        let mut child = clean(&mut Command::new(self.binary()))
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

    /// The same, with or without a quorum, and without a process for the question.
    pub fn quick_status(&self) -> Result<Status> {
        let (code, body) = self.get("/api/v1/cluster")?;
        ensure!(code == 200, "the status is {code}: {body}");
        serde_json::from_str(&body).context("reading a status")
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

    /// Asks its socket for a path, as root may; returns the status and the body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        let call = Call {
            method: "GET",
            path,
            ..Call::default()
        };
        let answer = call.ask(&self.socket(), ANSWER);
        let answer = answer.map_err(|failed| failed.error)?;
        Ok((answer.status, answer.body))
    }

    /// Where root may ask it without credentials.
    pub fn socket(&self) -> PathBuf {
        self.data_dir.join("muster.sock")
    }

    /// The sum of all its metrics whose name, with labels, begins so.
    pub fn metric(&self, prefix: &str) -> Result<f64> {
        let (status, text) = self.get("/metrics")?;
        ensure!(status == 200, "/metrics answers {status}");
        let samples = text.lines().filter(|line| line.starts_with(prefix));
        Ok(samples
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .fold(0.0, |sum, sample| sum + sample))
    }

    /// Processor time that the process has used.
    pub fn processor_time(&self) -> Result<Duration> {
        processor_time(self.pid().context("it does not run")?)
    }

    /// How many TCP connections its host has tried to open.
    pub fn connects(&self) -> Result<u64> {
        let table = self.host.run("cat", &["/proc/net/snmp"])?;
        let mut lines = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next(), lines.next());
        let (names, values) = names.zip(values).context("no TCP in /proc/net/snmp")?;
        let mut columns = names.split(' ').zip(values.split(' '));
        let (_, value) = columns
            .find(|(name, _)| *name == "ActiveOpens")
            .context("no ActiveOpens")?;
        value.parse().context("ActiveOpens")
    }

    /// All that it has logged since it was made.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of its log.
    pub fn log_tail(&self, count: usize) -> String {
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
pub fn clean(command: &mut Command) -> &mut Command {
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

/// Processor time that a process has used.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("reading its stat")?;
    // The name, in parentheses, may have spaces in it; what follows has none.
    let (_, fields) = stat.rsplit_once(')').context("no name in a stat")?;
    let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let mut next = || fields.next().context("a short stat")?.context("a stat");
    // User and system time in hundredths of a second, which Linux promises.
    Ok(Duration::from_millis((next()? + next()?) * 10))
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
