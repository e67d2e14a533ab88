//! Kea's DHCPv4 server from Debian, alone or as a hot-standby pair.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result};
use muster_chaos::lab::{Host, Lab};
use muster_chaos::node;
use serde_json::{Value, json};

use crate::site::{CIDR, LEASE_SECS, POOL};

/// Where Debian puts them, below /usr/lib.
const HOOKS: &str = "kea/hooks";

/// Where the pair talks to each other.
const PAIR_PORT: u16 = 8000;

/// One server or two.
pub struct Kea {
    servers: Vec<Server>,
}

struct Server {
    host: Host,
    process: Child,
    log: PathBuf,
}

impl Kea {
    /// Starts `count` servers; does not wait until they serve.
    pub fn start(lab: &Lab, count: u8) -> Result<Self> {
        let mut hosts = Vec::new();
        for number in 1..=count {
            let address = Ipv4Addr::new(10, 77, 0, 10 + number);
            hosts.push(lab.host(&format!("k{number}"), Some(address))?);
        }
        let mut servers = Vec::new();
        for host in &hosts {
            servers.push(Server::start(host, &hosts)?);
        }
        Ok(Self { servers })
    }

    /// Of its servers.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.servers
            .iter()
            .filter_map(|server| server.host.address())
    }

    /// What all have logged.
    pub fn logs(&self) -> String {
        let logs = self.servers.iter();
        logs.map(|server| fs::read_to_string(&server.log).unwrap_or_default())
            .collect()
    }

    /// Processor time that all have used.
    pub fn processor_time(&self) -> Result<Duration> {
        let servers = self.servers.iter();
        servers
            .map(|server| node::processor_time(server.process.id()))
            .sum()
    }
}

impl Server {
    fn start(host: &Host, pair: &[Host]) -> Result<Self> {
        let dir = host.lab().dir().join(host.name());
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let file = dir.join("kea.json");
        let config = serde_json::to_string_pretty(&config(host, pair, &dir)?)?;
        fs::write(&file, config).with_context(|| format!("writing {}", file.display()))?;
        let log = dir.join("log");
        let output = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let process = host
            .command("kea-dhcp4")
            .arg("-c")
            .arg(&file)
            .env("KEA_PIDFILE_DIR", &dir)
            .env("KEA_LOCKFILE_DIR", &dir)
            .stdout(output.try_clone().context("sharing a log")?)
            .stderr(output)
            .spawn()
            .context("starting kea-dhcp4 (`deploy/setup.sh bench` installs it)")?;
        Ok(Self {
            host: host.clone(),
            process,
            log,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// As Kea comes, but for what is said here: several threads, and the pair's own HTTP listener, which
/// is the fastest that Kea 2.2 has. Leases are written to a file (memfile, `persist`), as by default.
fn config(host: &Host, pair: &[Host], dir: &Path) -> Result<Value> {
    let mut hooks = Vec::new();
    if pair.len() > 1 {
        let libraries = hooks_dir()?;
        hooks.push(json!({ "library": libraries.join("libdhcp_lease_cmds.so") }));
        hooks.push(json!({
            "library": libraries.join("libdhcp_ha.so"),
            "parameters": { "high-availability": [high_availability(host, pair)] },
        }));
    }
    Ok(json!({ "Dhcp4": {
        "interfaces-config": { "interfaces": ["eth0"] },
        "lease-database": { "type": "memfile", "persist": true, "name": dir.join("leases.csv") },
        "multi-threading": { "enable-multi-threading": true },
        "valid-lifetime": LEASE_SECS,
        "subnet4": [{
            "id": 1,
            "subnet": CIDR,
            "pools": [{ "pool": POOL }],
            "option-data": [{ "name": "routers", "data": "10.77.0.1" }],
        }],
        "hooks-libraries": hooks,
        "loggers": [{
            "name": "kea-dhcp4",
            "severity": "WARN",
            "output_options": [{ "output": "stderr" }],
        }],
    } }))
}

fn high_availability(host: &Host, pair: &[Host]) -> Value {
    let peers: Vec<Value> = pair
        .iter()
        .zip(["primary", "standby"])
        .map(|(peer, role)| {
            let address = peer.address().unwrap_or(Ipv4Addr::UNSPECIFIED);
            json!({
                "name": peer.name(),
                "url": format!("http://{address}:{PAIR_PORT}/"),
                "role": role,
            })
        })
        .collect();
    json!({
        "this-server-name": host.name(),
        "mode": "hot-standby",
        "multi-threading": {
            "enable-multi-threading": true,
            "http-dedicated-listener": true,
            "http-listener-threads": 0,
            "http-client-threads": 0,
        },
        "peers": peers,
    })
}

/// `/usr/lib/TRIPLET/kea/hooks`.
fn hooks_dir() -> Result<PathBuf> {
    let found = fs::read_dir("/usr/lib").context("reading /usr/lib")?;
    let mut candidates = found.flatten().map(|entry| entry.path().join(HOOKS));
    candidates
        .find(|path| path.is_dir())
        .context("no hooks of Kea below /usr/lib (`deploy/setup.sh bench` installs them)")
}
