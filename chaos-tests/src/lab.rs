//! A network of its own: one switch, hosts plugged into it by veth pairs, machines by taps.
//!
//! Every lab lives in network namespaces whose names start with `muster-PID-N-`, so that labs run
//! beside each other and nothing touches the host's network. A lab cleans up when it is dropped;
//! what a killed test left behind is swept away when the next lab is made.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::disk;

/// The lab's network; hosts have /24 addresses in it, and the switch is its router.
pub const NETWORK: &str = "10.77.0.0/24";
/// The switch's own address.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

const NAMESPACES: &str = "/run/netns";

/// A handle on one lab; the last one dropped takes the lab down.
#[derive(Clone, Debug)]
pub struct Lab(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What every namespace of this lab starts with.
    prefix: String,
    dir: PathBuf,
    serial: AtomicU32,
}

/// One plugged-in host: a namespace with `lo` and `eth0`.
#[derive(Clone, Debug)]
pub struct Host {
    lab: Lab,
    name: String,
    namespace: String,
    address: Option<Ipv4Addr>,
}

impl Lab {
    /// Makes a switch with nothing plugged in. Needs root.
    pub fn new() -> Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        ensure!(
            geteuid().is_root(),
            "a lab is made of network namespaces: run this as root"
        );
        sweep(|pid| !Path::new("/proc").join(pid.to_string()).exists());

        let prefix = format!(
            "muster-{}-{}-",
            std::process::id(),
            LABS.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(prefix.trim_end_matches('-'));
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let lab = Self(Arc::new(Inner {
            prefix,
            dir,
            serial: AtomicU32::new(0),
        }));

        let switch = lab.switch();
        run(Command::new("ip").args(["netns", "add", &switch]))?;
        lab.ip(&switch, "link set lo up")?;
        lab.ip(
            &switch,
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        )?;
        lab.ip(&switch, &format!("address add {ROUTER}/24 dev br0"))?;
        lab.ip(&switch, "link set br0 up")?;
        lab.leave_frames_alone();
        Ok(lab)
    }

    /// A switch does not hand frames to the rules of a router (`br_netfilter`). Where that module is not
    /// there, nothing does.
    fn leave_frames_alone(&self) {
        for what in ["iptables", "ip6tables", "arptables"] {
            let name = format!("net.bridge.bridge-nf-call-{what}=0");
            let _ = self
                .on_switch("sysctl")
                .args(["-q", "-e", "-w", &name])
                .stderr(Stdio::null())
                .status();
        }
    }

    /// Scratch directory; it goes when the lab goes, unless `MUSTER_KEEP` is set.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Plugs in a host, with an address or (a DHCP client) without one.
    pub fn host(&self, name: &str, address: Option<Ipv4Addr>) -> Result<Host> {
        let namespace = format!("{}{name}", self.0.prefix);
        let switch = self.switch();
        run(Command::new("ip").args(["netns", "add", &namespace]))?;
        self.ip(
            &switch,
            &format!("link add name {name} type veth peer name eth0 netns {namespace}"),
        )?;
        self.ip(&switch, &format!("link set dev {name} master br0 up"))?;
        self.ip(&namespace, "link set lo up")?;
        self.ip(&namespace, "link set eth0 up")?;
        if let Some(address) = address {
            self.ip(
                &namespace,
                &format!("address add {address}/24 broadcast + dev eth0"),
            )?;
            self.ip(&namespace, &format!("route add default via {ROUTER}"))?;
        }
        Ok(Host {
            lab: self.clone(),
            name: name.to_owned(),
            namespace,
            address,
        })
    }

    /// Takes a host away. Sockets on it are closed by whoever opened them.
    pub fn remove_host(&self, host: Host) -> Result<()> {
        self.ip(&self.switch(), &format!("link delete dev {}", host.name))?;
        run(Command::new("ip").args(["netns", "delete", &host.namespace])).map(drop)
    }

    /// A host without an address, for a DHCP client with this MAC.
    pub fn client(&self, mac: &str) -> Result<Host> {
        let host = self.host(&self.unique("c"), None)?;
        self.ip(&host.namespace, &format!("link set eth0 address {mac}"))?;
        Ok(host)
    }

    /// Plugs in a tap and returns its name; QEMU opens it from within [`Lab::on_switch`].
    pub(crate) fn tap(&self) -> Result<String> {
        let name = self.unique("t");
        let switch = self.switch();
        self.ip(&switch, &format!("tuntap add dev {name} mode tap"))?;
        self.ip(&switch, &format!("link set dev {name} master br0 up"))?;
        Ok(name)
    }

    /// Unplugs a host or tap without a word, or plugs it in again.
    pub fn plug(&self, name: &str, plugged: bool) -> Result<()> {
        self.ip(
            &self.switch(),
            &format!(
                "link set dev {name} {}",
                if plugged { "up" } else { "down" }
            ),
        )
    }

    /// Bounds how fast frames reach what is plugged into a port, so that a transfer takes its time.
    pub fn slow(&self, name: &str, megabits: u32) -> Result<()> {
        let rate = format!("{megabits}mbit");
        let shape = [
            "qdisc", "replace", "dev", name, "root", "tbf", "rate", &rate, "burst", "64kb",
            "latency", "100ms",
        ];
        run(self.on_switch("tc").args(shape)).map(drop)
    }

    pub(crate) fn remove_tap(&self, name: &str) -> Result<()> {
        self.ip(&self.switch(), &format!("link delete dev {name}"))
    }

    /// A command that runs where the switch is.
    pub fn on_switch(&self, program: impl AsRef<OsStr>) -> Command {
        enter(&self.switch(), program)
    }

    /// Calls `f` on a thread that is where the switch is, as [`Host::inside`] does on a host.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        inside(&self.switch(), f)
    }

    /// Feeds rules to nft on the switch.
    pub(crate) fn nft(&self, rules: &str) -> Result<()> {
        let mut child = self
            .on_switch("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting nft")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(rules.as_bytes())
                .context("writing to nft")?;
        }
        let output = child.wait_with_output().context("waiting for nft")?;
        ensure!(
            output.status.success(),
            "nft: {}\n{rules}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// A short name that nothing else in this lab has.
    pub(crate) fn unique(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.0.serial.fetch_add(1, Ordering::Relaxed))
    }

    fn switch(&self) -> String {
        format!("{}switch", self.0.prefix)
    }

    fn ip(&self, namespace: &str, arguments: &str) -> Result<()> {
        run(Command::new("ip")
            .args(["-netns", namespace])
            .args(arguments.split(' ')))
        .map(drop)
    }
}

impl Host {
    /// The name it was plugged in by, also that of its port on the switch.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its fixed address; None for a DHCP client.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.address
    }

    /// The lab that it is part of.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A command that runs on this host; its process id is that of the program itself.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        enter(&self.namespace, program)
    }

    /// Runs a program on this host to its end and returns its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.command(program).args(arguments))
    }

    /// Calls `f` on a thread that is on this host's network: sockets opened there belong to it.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        inside(&self.namespace, f)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        remove_namespaces(|name| name.starts_with(&self.prefix));
        if std::env::var_os("MUSTER_KEEP").is_none() {
            disk::unmount_below(&self.dir);
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Removes the labs of processes that `gone` says are no more, with whatever still runs in them.
pub fn sweep(gone: impl Fn(u32) -> bool) {
    let stale = |name: &str| owner(name).is_some_and(&gone);
    remove_namespaces(stale);
    for entry in fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        if entry.file_name().to_str().is_some_and(stale) {
            disk::unmount_below(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The process that a lab's name, `muster-PID-N…`, speaks of.
fn owner(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix("muster-")?.split('-');
    let pid = parts.next()?.parse().ok()?;
    parts.next()?.parse::<u32>().ok()?;
    Some(pid)
}

fn remove_namespaces(chosen: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !chosen(&name) {
            continue;
        }
        // Only what a lab started can be in its namespaces.
        let pids = run(Command::new("ip").args(["netns", "pids", &name])).unwrap_or_default();
        for pid in pids.lines().filter_map(|line| line.trim().parse().ok()) {
            if Pid::from_raw(pid) != Pid::this() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let _ = run(Command::new("ip").args(["netns", "delete", &name]));
    }
}

fn inside<T: Send>(namespace: &str, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let path = Path::new(NAMESPACES).join(namespace);
    let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
            f()
        });
        thread
            .join()
            .map_err(|_| anyhow!("the thread in {namespace} panicked"))?
    })
}

fn enter(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace])
        .arg(program)
        .stdin(Stdio::null());
    command
}

/// Runs a command to its end; an error says what it wrote to stderr.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks `probe` until it yields something; the error names what was waited for and the last refusal.
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match probe() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() >= timeout {
            let waited = format!("waited {:.1} s for {what}", timeout.as_secs_f64());
            return Err(match last {
                Some(error) => error.context(waited),
                None => anyhow!(waited),
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
