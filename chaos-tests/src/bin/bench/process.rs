//! Processes that end with the benchmark, and ports for them.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A process of either cluster; it is killed when this is dropped.
pub struct Process {
    name: String,
    command: Command,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts a command that logs to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("making {}", log.display()))?;
        command.stdout(file.try_clone().context("sharing a log")?);
        command.stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        Ok(Self {
            name: name.to_owned(),
            command,
            log: log.to_owned(),
            child,
        })
    }

    /// SIGKILL; when it was sent.
    pub fn kill(&mut self) -> Result<Instant> {
        let at = Instant::now();
        let killing = || format!("killing {}", self.name);
        self.child.kill().with_context(killing)?;
        self.child
            .wait()
            .with_context(|| format!("waiting for {}", self.name))?;
        Ok(at)
    }

    /// Starts it as it was started first.
    pub fn restart(&mut self) -> Result<()> {
        self.child = self
            .command
            .spawn()
            .with_context(|| format!("starting {} again", self.name))?;
        Ok(())
    }

    /// An error with the end of its log when it has ended.
    pub fn check(&mut self) -> Result<()> {
        let ended = self.child.try_wait().context("asking after a process")?;
        ensure!(ended.is_none(), "{} ended:\n{}", self.name, tail(&self.log));
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Free TCP ports of loopback, all different.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut ports = [0; N];
    let mut held = Vec::new();
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").context("finding a free port")?;
        *port = listener.local_addr().context("a port")?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// A connection of its own for each of thousands of clients takes a file each, at both ends.
pub fn raise_file_limit() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("asking for the limit on files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit on files")
}
