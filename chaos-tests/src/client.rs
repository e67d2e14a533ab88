//! Debian's own DHCP clients on a host of the lab. They configure an address and nothing else, and
//! leave a note of everything that happens to them.

use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Host, run, wait_until};
use crate::payload::Payload;

/// All that clients get of our environment: their scripts record what they find in it.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Which client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// busybox udhcpc.
    Udhcpc,
    /// ISC dhclient.
    Dhclient,
}

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

/// A client that runs until it is dropped; then it ends without a word to the server.
#[derive(Debug)]
pub struct Running {
    kind: Kind,
    host: Host,
    child: Child,
    base: PathBuf,
}

impl Running {
    /// Starts a client, which asks every second or so; `arguments` go to it.
    pub fn start(kind: Kind, host: &Host, arguments: &[&str]) -> Result<Self> {
        let base = host.lab().dir().join(host.lab().unique("client"));
        write_script(&base)?;
        let mut command = client(kind, host, &base)?;
        match kind {
            Kind::Udhcpc => command.args(["-f", "-t", "20", "-T", "1"]),
            Kind::Dhclient => command.args(["-d", "-1", "eth0"]),
        };
        let log = fs::File::create(base.with_extension("log")).context("making a client's log")?;
        let child = command
            .args(arguments)
            .stdout(log.try_clone().context("sharing a client's log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {kind:?}"))?;
        Ok(Self {
            kind,
            host: host.clone(),
            child,
            base,
        })
    }

    /// Waits until it has been given or promised an address for the `count`th time.
    pub fn wait_given(&mut self, count: usize, timeout: Duration) -> Result<Lease> {
        let given = ["bound", "renew", "BOUND", "RENEW", "REBIND", "REBOOT"];
        let waited = wait_until(&format!("lease {count} of a client"), timeout, || {
            let events = self.events().into_iter();
            let mut found = events.filter(|event| given.contains(&event["event"].as_str()));
            if let Some(event) = found.nth(count - 1) {
                return Ok(Some(Some(event)));
            }
            let over = self.child.try_wait().context("asking after the client")?;
            Ok(over.map(|_| None))
        });
        match waited.with_context(|| self.log())? {
            Some(variables) => self.lease(variables),
            None => bail!("the client gave up:\n{}", self.log()),
        }
    }

    /// Has udhcpc ask for more time now; dhclient does when half of its time is over.
    pub fn renew(&self) -> Result<()> {
        self.signal(Signal::SIGUSR1)
    }

    /// Has it give its address back.
    pub fn release(&self) -> Result<()> {
        match self.kind {
            Kind::Udhcpc => self.signal(Signal::SIGUSR2),
            Kind::Dhclient => {
                let mut command = client(self.kind, &self.host, &self.base)?;
                run(command.args(["-r", "eth0"])).map(drop)
            }
        }
    }

    /// All that it said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.base.with_extension("log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("sending {signal} to a client"))
    }

    /// What its script was told, in order.
    fn events(&self) -> Vec<HashMap<String, String>> {
        let texts = (0..).map_while(|number| {
            fs::read_to_string(self.base.with_extension(format!("event{number}"))).ok()
        });
        texts
            .map(|text| {
                let lines = text.lines().filter_map(|line| line.split_once('='));
                lines.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
            })
            .collect()
    }

    fn lease(&self, variables: HashMap<String, String>) -> Result<Lease> {
        let [address, server, seconds] = match self.kind {
            Kind::Udhcpc => ["ip", "serverid", "lease"],
            Kind::Dhclient => [
                "new_ip_address",
                "new_dhcp_server_identifier",
                "new_dhcp_lease_time",
            ],
        }
        .map(|name| {
            variables
                .get(name)
                .with_context(|| format!("the client has no {name}"))
        });
        Ok(Lease {
            address: address?.parse().context("the leased address")?,
            server: server?.parse().context("the server identifier")?,
            seconds: seconds?.parse().context("the lease time")?,
            variables,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGKILL, not SIGTERM: dhclient must not say good-bye to the server.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The client's command, up to its own arguments.
fn client(kind: Kind, host: &Host, base: &std::path::Path) -> Result<Command> {
    let script = base.with_extension("sh");
    let mut command = match kind {
        Kind::Udhcpc => host.command(Payload::assemble()?.busybox()),
        Kind::Dhclient => host.command("dhclient"),
    };
    command.env_clear().env("PATH", PATH);
    match kind {
        Kind::Udhcpc => command.args(["udhcpc", "-i", "eth0", "-s"]).arg(script),
        Kind::Dhclient => command
            .args(["-4", "-cf", "/dev/null", "-sf"])
            .arg(script)
            .arg("-lf")
            .arg(base.with_extension("leases"))
            .arg("-pf")
            .arg(base.with_extension("pid")),
    };
    Ok(command)
}

/// A script for both clients: udhcpc passes what happened as an argument, dhclient as a variable.
fn write_script(base: &std::path::Path) -> Result<()> {
    let script = base.with_extension("sh");
    let text = format!(
        r#"#!/bin/sh
event=${{1:-$reason}}
case $event in
    bound|renew|BOUND|RENEW|REBIND|REBOOT) ip addr replace "${{ip:-$new_ip_address}}/24" dev eth0 ;;
    deconfig|RELEASE|EXPIRE|FAIL) ip addr flush dev eth0 ;;
esac
number=0
while [ -e {0}.event$number ]; do number=$((number + 1)); done
{{ echo "event=$event"; env; }} >{0}.part && mv {0}.part {0}.event$number
"#,
        base.display()
    );
    fs::write(&script, text).context("writing a client's script")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))
        .context("making it executable")?;
    fs::write(base.with_extension("leases"), "").context("making a lease file")
}
