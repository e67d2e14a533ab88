//! Those that are measured, and their clients: each on a host of its own in one lab.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use muster_chaos::cluster::Cluster;
use muster_chaos::lab::{Host, Lab, run, wait_until};
use serde_json::Value;

use crate::{Flags, Part, http, tftp};

/// Where Muster's boot service is.
pub const BOOT_PORT: u16 = 8091;

/// Of machines, as they are created.
const FILE: &str = "host.cfg";

const PATIENCE: Duration = Duration::from_secs(30);

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// One of three nodes of Muster
    Muster,
    /// nginx, `sendfile on`
    Nginx,
    /// tftpd-hpa
    TftpdHpa,
    /// dnsmasq
    Dnsmasq,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 4] = [Self::Muster, Self::Nginx, Self::TftpdHpa, Self::Dnsmasq];

    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Muster => "Muster",
            Self::Nginx => "nginx",
            Self::TftpdHpa => "tftpd-hpa",
            Self::Dnsmasq => "dnsmasq",
        }
    }
}

/// All of them, running.
pub struct Servers {
    /// What the large file and the small file hold.
    large: Vec<u8>,
    pub small: Vec<u8>,
    /// Paths of scripts and of rendered files, one for each machine.
    pub scripts: Vec<String>,
    pub files: Vec<String>,
    pub clients: Host,
    others: Vec<Other>,
    cluster: Cluster,
}

struct Other {
    kind: Kind,
    host: Host,
    process: Child,
}

/// The address of a client: firmware has one each.
pub fn client_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 100 + (number % 100) as u8)
}

impl Servers {
    /// Starts all that are wanted, with the same files in each.
    pub fn start(flags: &Flags) -> Result<Self> {
        let lab = Lab::new()?;
        let octets = flags.mebibytes << 20;
        let large = noise(octets);
        let small = large[..octets / 16].to_vec();
        let root = lab.dir().join("files");
        fs::create_dir_all(&root).context("making a directory of files")?;
        for (name, octets) in [("large", &large), ("small", &small)] {
            fs::write(root.join(name), octets).with_context(|| format!("writing {name}"))?;
        }
        let clients = lab.host("clients", Some(client_address(0)))?;
        for number in 1..100 {
            let address = format!("{}/24", client_address(number));
            clients.run("ip", &["address", "add", &address, "dev", "eth0"])?;
        }
        let mut others = Vec::new();
        for (number, &kind) in (21..).zip(&flags.servers) {
            if kind != Kind::Muster {
                let address = Ipv4Addr::new(10, 77, 0, number);
                let name = format!("s{number}");
                let host = lab.host(&name, Some(address))?;
                others.push(Other::start(kind, host, &root)?);
            }
        }
        let cluster = Cluster::found_in(lab, 3)?;
        let mut servers = Self {
            large,
            small,
            scripts: Vec::new(),
            files: Vec::new(),
            clients,
            others,
            cluster,
        };
        servers.provision(flags, &root)?;
        Ok(servers)
    }

    /// Uploads the files, and creates machines.
    fn provision(&mut self, flags: &Flags, root: &Path) -> Result<()> {
        for name in ["large", "small"] {
            let file = root.join(name).display().to_string();
            let path = format!("bench/{name}");
            let call = ["artifacts", "upload", &file, "--path", &path];
            self.cluster.cli(&call)?.ok()?;
        }
        let mut documents = String::from(OBJECTS);
        for number in 0..flags.machines {
            let mac = mac(number);
            documents += &format!(
                "---\nkind: machine\nname: m{number}\nmacs: [\"{mac}\"]\nbootenv: bench\n\
                 params: {{rack: r{}}}\n",
                number / 40
            );
        }
        self.cluster.apply(&documents)?;
        let machines: Vec<Value> = self.cluster.cli(&["machines", "list"])?.json()?;
        ensure!(
            machines.len() == flags.machines,
            "{} machines",
            machines.len()
        );
        for machine in &machines {
            let uuid = machine["uuid"].as_str().context("a machine has a UUID")?;
            self.files.push(format!("/machines/{uuid}/{FILE}"));
        }
        let numbers = 0..flags.machines;
        self.scripts = numbers
            .map(|number| format!("/boot.ipxe?mac={}", mac(number)))
            .collect();
        self.cluster.wait_settled(PATIENCE)
    }

    /// Where a server is. Of Muster a follower is asked, which is farther from the log than the leader.
    pub fn address(&self, kind: Kind) -> Ipv4Addr {
        let other = self.others.iter().find(|other| other.kind == kind);
        match other {
            Some(other) => other.host.address().unwrap_or(Ipv4Addr::UNSPECIFIED),
            None => self.cluster.node(2).address(),
        }
    }

    /// Port and path of the large file by HTTP.
    pub fn artifact_url(&self, kind: Kind) -> (u16, &'static str) {
        match kind {
            Kind::Muster => (BOOT_PORT, "/artifacts/bench/large"),
            _ => (80, "/large"),
        }
    }

    /// Path of the small file by TFTP.
    pub fn tftp_path(&self, kind: Kind) -> &'static str {
        match kind {
            Kind::Muster => "artifacts/bench/small",
            _ => "small",
        }
    }

    /// Waits until all serve, and checks that they give what they should: all octets, the machine's own
    /// script and file.
    pub fn verify(&self, flags: &Flags) -> Result<()> {
        let from = client_address(0);
        self.clients
            .inside(|| {
                for &kind in &flags.servers {
                    let server = self.address(kind);
                    let wanted = |part| flags.parts.contains(&part);
                    if wanted(Part::Http) && matches!(kind, Kind::Muster | Kind::Nginx) {
                        let (port, path) = self.artifact_url(kind);
                        let large = wait_until(kind.name(), PATIENCE, || {
                            http::get(from, server, port, path).map(Some)
                        })?;
                        ensure!(large == self.large, "{} gives other octets", kind.name());
                    }
                    if wanted(Part::Tftp) && kind != Kind::Nginx {
                        let request = tftp::Request {
                            path: self.tftp_path(kind),
                            block: flags.block,
                            window: 1,
                        };
                        let small = wait_until(kind.name(), PATIENCE, || {
                            tftp::get(from, server, &request).map(Some)
                        })?;
                        ensure!(small == self.small, "{} gives other octets", kind.name());
                    }
                    if wanted(Part::Rendered) && kind == Kind::Muster {
                        for (path, expected) in [
                            (self.scripts.first(), "console=ttyS0 rack=r0"),
                            (self.files.first(), "rack r0"),
                        ] {
                            let path = path.context("there is no machine")?;
                            let text = http::get(from, server, BOOT_PORT, path)?;
                            let text = String::from_utf8_lossy(&text);
                            ensure!(text.contains(expected), "no {expected} in {text}");
                        }
                    }
                }
                Ok(())
            })
            .with_context(|| self.cluster.logs())
    }
}

/// A bootenv whose script and file take a little rendering.
const OBJECTS: &str = r#"kind: subnet
name: bench
cidr: 10.77.0.0/24
pools: [10.77.0.200-10.77.0.250]
---
kind: template
name: host.cfg
contents: |
  # {{ machine.name }}
  {% for mac in machine.macs %}mac {{ mac }}
  {% endfor %}rack {{ params.rack }}
  report {{ machine.url }}/report
---
kind: bootenv
name: bench
kernel: bench/small
initrds: [bench/large]
kernel_args: 'console=ttyS0 rack={{ params.rack }} urls={{ machine.urls | join(sep=",") }}'
files: [{path: host.cfg, template: host.cfg}]
"#;

fn mac(number: usize) -> String {
    let [.., high, low] = number.to_be_bytes();
    format!("52:54:00:77:{high:02x}:{low:02x}")
}

/// Octets that nothing can compress, always the same (SplitMix64).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0_u64;
    let mut octets = Vec::with_capacity(length);
    while octets.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        octets.extend((mixed ^ (mixed >> 31)).to_le_bytes());
    }
    octets.truncate(length);
    octets
}

impl Other {
    fn start(kind: Kind, host: Host, root: &Path) -> Result<Self> {
        let dir = host.lab().dir().join(host.name());
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let address = host.address().context("a server has an address")?;
        let mut command = match kind {
            Kind::Nginx => nginx(&host, &dir, root)?,
            Kind::TftpdHpa => {
                let mut command = host.command("in.tftpd");
                command
                    .args(["--foreground", "--user", "root", "--secure"])
                    .args(["--address", &format!("{address}:69")])
                    .arg(root);
                command
            }
            Kind::Dnsmasq | Kind::Muster => {
                let mut command = host.command("dnsmasq");
                command
                    .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"])
                    .args([
                        "--user=root",
                        "--pid-file=",
                        "--enable-tftp",
                        "--tftp-max=1000",
                    ])
                    .arg(format!("--tftp-root={}", root.display()));
                command
            }
        };
        let log = File::create(dir.join("log")).context("making a log")?;
        let process = command
            .stdout(log.try_clone().context("sharing a log")?)
            .stderr(log)
            .spawn()
            .with_context(|| {
                let name = kind.name();
                format!("starting {name} (`deploy/setup.sh bench` installs it)")
            })?;
        Ok(Self {
            kind,
            host,
            process,
        })
    }
}

/// As Debian configures it, without logging requests.
fn nginx(host: &Host, dir: &Path, root: &Path) -> Result<Command> {
    let place = dir.display();
    let config = format!(
        "daemon off;\nuser root;\nworker_processes auto;\npid {place}/pid;\n\
         error_log {place}/error.log;\n\
         events {{ worker_connections 768; }}\n\
         http {{\n  sendfile on;\n  tcp_nopush on;\n  access_log off;\n\
         client_body_temp_path {place}/body;\n  proxy_temp_path {place}/proxy;\n\
         fastcgi_temp_path {place}/fastcgi;\n  uwsgi_temp_path {place}/uwsgi;\n\
         scgi_temp_path {place}/scgi;\n  keepalive_requests 100000;\n\
         server {{ listen 80; root {}; }}\n}}\n",
        root.display()
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config).context("configuring nginx")?;
    let mut command = host.command("nginx");
    command.arg("-p").arg(dir).arg("-c").arg(&file);
    command.arg("-e").arg(dir.join("error.log"));
    // Says what is wrong with it before it is started.
    run(host
        .command("nginx")
        .args(["-t", "-q", "-p"])
        .arg(dir)
        .arg("-c")
        .arg(&file)
        .arg("-e")
        .arg(dir.join("error.log")))
    .context("nginx (`deploy/setup.sh bench` installs it)")?;
    Ok(command)
}

impl Drop for Other {
    fn drop(&mut self) {
        // Its workers go with the lab's namespaces.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
