//! Debian's own DHCP clients on a host of the lab. They record what they were given and configure
//! nothing, so that one host can ask again and again.

use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::{Host, wait_until};
use crate::machine::Payload;

/// All that clients get of our environment: their scripts record what they find in it.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What a client was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its address.
    pub address: Ipv4Addr,
    /// The server identifier (option 54).
    pub server: Ipv4Addr,
    /// How long it was promised.
    pub seconds: u32,
    /// All that the client told its script, by the client's own names.
    pub variables: HashMap<String, String>,
}

/// Asks for a lease with busybox udhcpc, once, for at most `timeout`; `arguments` go to udhcpc.
pub fn udhcpc(host: &Host, arguments: &[&str], timeout: Duration) -> Result<Lease> {
    let client = Recorder::new(host, "bound|renew")?;
    let busybox = Payload::assemble()?.busybox();
    let child = host
        .command(busybox)
        .env_clear()
        .env("PATH", PATH)
        .args([
            "udhcpc", "-f", "-q", "-n", "-i", "eth0", "-t", "20", "-T", "1", "-s",
        ])
        .arg(&client.script)
        .args(arguments)
        .stdout(client.log()?)
        .stderr(client.log()?)
        .spawn()
        .context("starting udhcpc")?;
    client.lease(child, timeout, ["ip", "serverid", "lease"])
}

/// Asks for a lease with ISC dhclient, once, for at most `timeout`; `arguments` go to dhclient.
pub fn dhclient(host: &Host, arguments: &[&str], timeout: Duration) -> Result<Lease> {
    let client = Recorder::new(host, "BOUND|RENEW|REBIND|REBOOT")?;
    let child = host
        .command("dhclient")
        .env_clear()
        .env("PATH", PATH)
        .args(["-4", "-d", "-1", "-cf", "/dev/null", "-sf"])
        .arg(&client.script)
        .arg("-lf")
        .arg(client.base.with_extension("leases"))
        .arg("-pf")
        .arg(client.base.with_extension("pid"))
        .args(arguments)
        .arg("eth0")
        .stdout(client.log()?)
        .stderr(client.log()?)
        .spawn()
        .context("starting dhclient")?;
    client.lease(
        child,
        timeout,
        [
            "new_ip_address",
            "new_dhcp_server_identifier",
            "new_dhcp_lease_time",
        ],
    )
}

/// A client's script, which keeps its environment when there is a lease.
struct Recorder {
    base: PathBuf,
    script: PathBuf,
}

impl Recorder {
    fn new(host: &Host, reasons: &str) -> Result<Self> {
        let lab = host.lab();
        let base = lab.dir().join(lab.unique("client"));
        let script = base.with_extension("sh");
        // udhcpc passes the reason as an argument, dhclient as a variable.
        let body = format!(
            "#!/bin/sh\ncase \"${{1:-$reason}}\" in {reasons}) env >{0}.part && mv {0}.part {0}.lease ;; esac\n",
            base.display()
        );
        fs::write(&script, body).context("writing a client's script")?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
            .context("making it executable")?;
        fs::write(base.with_extension("leases"), "").context("making a lease file")?;
        Ok(Self { base, script })
    }

    fn log(&self) -> Result<fs::File> {
        let path = self.base.with_extension("log");
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .context("opening a client's log")
    }

    /// Waits for a lease and then ends the client, which would hold on to it otherwise.
    fn lease(&self, mut child: Child, timeout: Duration, names: [&str; 3]) -> Result<Lease> {
        let lease = self.base.with_extension("lease");
        let start = Instant::now();
        let found = wait_until("a lease", timeout, || {
            if lease.exists() {
                return Ok(Some(true));
            }
            Ok(child
                .try_wait()
                .context("asking after the client")?
                .map(|_| lease.exists()))
        });
        // SIGKILL, not SIGTERM: dhclient must not say good-bye to the server.
        let _ = child.kill();
        let _ = child.wait();
        let log = || fs::read_to_string(self.base.with_extension("log")).unwrap_or_default();
        let found = found.with_context(log)?;
        ensure!(
            found,
            "the client gave up after {:.1} s:\n{}",
            start.elapsed().as_secs_f64(),
            log()
        );

        let text = fs::read_to_string(&lease).context("reading the lease")?;
        let variables: HashMap<String, String> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        let get = |name: &str| {
            variables
                .get(name)
                .with_context(|| format!("the client has no {name}"))
        };
        Ok(Lease {
            address: get(names[0])?.parse().context("the leased address")?,
            server: get(names[1])?.parse().context("the server identifier")?,
            seconds: get(names[2])?.parse().context("the lease time")?,
            variables,
        })
    }
}
