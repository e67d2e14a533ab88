//! Debian's Prometheus on a host of a lab, with what is in `deploy/monitoring`.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::lab::Host;

/// Where it listens.
const PORT: u16 = 9090;

/// The name of the cluster in what is scraped.
pub const CLUSTER: &str = "lab";

/// Files that a site would copy.
pub fn files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring")
}

/// A Prometheus that runs until it is dropped.
#[derive(Debug)]
pub struct Prometheus {
    host: Host,
    address: Ipv4Addr,
    config: PathBuf,
    log: PathBuf,
    child: Child,
}

impl Prometheus {
    /// Starts it with the example of a configuration, in which only the addresses of the nodes, the
    /// paths of files and the pace are others.
    pub fn start(cluster: &Cluster, address: Ipv4Addr) -> Result<Self> {
        let host = cluster.lab().host("prometheus", Some(address))?;
        let dir = cluster.lab().dir().join("prometheus");
        fs::create_dir_all(&dir).context("making a directory for Prometheus")?;
        let config = dir.join("prometheus.yml");
        let log = dir.join("log");
        configure(cluster, &dir, &config)?;
        let out = fs::File::create(&log).context("making the log of Prometheus")?;
        let child = host
            .command("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}:{PORT}"))
            .stdout(Stdio::from(out.try_clone().context("sharing its log")?))
            .stderr(Stdio::from(out))
            .spawn()
            .context("starting prometheus")?;
        Ok(Self {
            host,
            address,
            config,
            log,
            child,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// What an expression yields now.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let data = self.ask(&["query", "--data-urlencode", &format!("query={expression}")])?;
        let result = data.pointer("/result").and_then(Value::as_array);
        result
            .cloned()
            .with_context(|| format!("no result in {data}"))
    }

    /// Asks its API: the last part of the path, and arguments for curl.
    pub fn ask(&self, call: &[&str]) -> Result<Value> {
        let (path, arguments) = call.split_first().context("a path")?;
        let url = format!("http://{}:{PORT}/api/v1/{path}", self.address);
        let quiet = ["--silent", "--show-error", "--max-time", "30", &url];
        let text = self.host.run("curl", &[&quiet[..], arguments].concat())?;
        let answer: Value =
            serde_json::from_str(&text).with_context(|| format!("Prometheus says {text}"))?;
        ensure!(answer["status"] == "success", "{call:?}: {answer}");
        Ok(answer["data"].clone())
    }

    /// All that it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configure(cluster: &Cluster, dir: &Path, config: &Path) -> Result<()> {
    let token = cluster.cli(&["users", "token", "admin", "--ttl", "1h"])?;
    fs::write(dir.join("muster.token"), token.ok()?.stdout).context("writing a token")?;
    let authority = cluster.node(0).data_dir().join("ca.pem");
    fs::copy(&authority, dir.join("muster-ca.pem")).context("copying the authority")?;
    for name in ["muster-alerts.yml", "muster-alerts-test.yml"] {
        fs::copy(files().join(name), dir.join(name)).context("copying alerts")?;
    }
    let nodes = cluster.nodes().iter();
    let targets: Vec<String> = nodes
        .map(|node| format!("\"{}:8092\"", node.address()))
        .collect();
    let example = fs::read_to_string(files().join("prometheus.yml")).context("the example")?;
    let replaced = [
        ("/etc/prometheus", dir.display().to_string()),
        (
            r#""192.0.2.11:8092", "192.0.2.12:8092", "192.0.2.13:8092""#,
            targets.join(", "),
        ),
        ("site1", CLUSTER.to_owned()),
        ("15s", "1s".to_owned()),
    ];
    let mut text = example;
    for (from, to) in replaced {
        ensure!(text.contains(from), "no {from} in the example");
        text = text.replace(from, &to);
    }
    fs::write(config, text).context("writing the configuration")
}
