//! Three etcd members on loopback, and gRPC clients of the one that leads.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tonic::transport::Channel;

use crate::load::Caller;
use crate::process::{Process, free_ports};
use crate::tls::{Credentials, Target};
use crate::{CHANNELS, VALUE_BYTES};

mod proto {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("etcdserverpb");
}
use proto::kv_client::KvClient;
use proto::maintenance_client::MaintenanceClient;

const PATIENCE: Duration = Duration::from_secs(60);

/// How fast a lost leader is noticed.
#[derive(Clone, Copy)]
pub enum Pace {
    /// As etcd comes: 100 ms between heartbeats, election after one to two seconds. Under load it
    /// loses its leader with less.
    Etcds,
    /// 60 ms between heartbeats, as Muster, and the election time-out in milliseconds: a member
    /// stands after once to twice that.
    Election(u16),
}

/// Three members.
pub struct Cluster {
    members: Vec<Member>,
    credentials: Credentials,
}

struct Member {
    client: SocketAddr,
    process: Process,
}

impl Cluster {
    /// Starts three members on empty directories; does not wait.
    pub fn start(dir: &Path, pace: Pace) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let credentials = certify(dir)?;
        let ports: [u16; 6] = free_ports()?;
        let (clients, peers) = ports.split_at(3);
        let url = |port: u16| format!("https://127.0.0.1:{port}");
        let initial: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(number, port)| format!("e{number}={}", url(*port)))
            .collect();
        let mut members = Vec::new();
        for (number, (client, peer)) in clients.iter().zip(peers).enumerate() {
            let name = format!("e{number}");
            let mut command = Command::new("etcd");
            command
                .arg("--data-dir")
                .arg(dir.join(&name))
                .args(["--name", &name])
                .args(["--listen-client-urls", &url(*client)])
                .args(["--advertise-client-urls", &url(*client)])
                .args(["--listen-peer-urls", &url(*peer)])
                .args(["--initial-advertise-peer-urls", &url(*peer)])
                .args(["--initial-cluster", &initial.join(",")])
                .args(["--logger", "zap", "--client-cert-auth"])
                .arg("--peer-client-cert-auth");
            if let Pace::Election(millis) = pace {
                command.args(["--heartbeat-interval", "60"]);
                command.args(["--election-timeout", &millis.to_string()]);
            }
            for (flag, file) in [
                ("--cert-file", "own.pem"),
                ("--key-file", "own.key"),
                ("--trusted-ca-file", "ca.pem"),
                ("--peer-cert-file", "own.pem"),
                ("--peer-key-file", "own.key"),
                ("--peer-trusted-ca-file", "ca.pem"),
            ] {
                command.arg(flag).arg(dir.join(file));
            }
            let log = dir.join(format!("{name}.log"));
            members.push(Member {
                client: SocketAddr::from((Ipv4Addr::LOCALHOST, *client)),
                process: Process::start(&name, command, &log)
                    .context("is etcd-server installed? `deploy/setup.sh bench` does")?,
            });
        }
        Ok(Self {
            members,
            credentials,
        })
    }

    /// Waits until a write through each member succeeds.
    pub async fn wait_serving(&self) -> Result<()> {
        for member in 0..self.members.len() {
            self.wait_member(member).await?;
        }
        Ok(())
    }

    /// Waits until a write through this member succeeds: then it has applied it, and all before.
    pub async fn wait_member(&self, member: usize) -> Result<()> {
        let start = Instant::now();
        loop {
            let attempt = async {
                let mut put = Client::new(self.channel(member).await?, 0, true);
                put.call().await
            };
            let failed = match tokio::time::timeout(Duration::from_secs(5), attempt).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(late) => late.into(),
            };
            if start.elapsed() > PATIENCE {
                return Err(failed.context("waiting for etcd"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn channel(&self, member: usize) -> Result<Channel> {
        let address = self.members[member].client;
        let target = Target::new(address, "localhost", &self.credentials, b"h2")?;
        target.channel().await
    }

    /// Who leads.
    pub async fn leader(&self) -> Result<usize> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            for member in 0..self.members.len() {
                let Ok(channel) = self.channel(member).await else {
                    continue;
                };
                let mut maintenance = MaintenanceClient::new(channel);
                let Ok(status) = maintenance.status(proto::StatusRequest {}).await else {
                    continue;
                };
                let status = status.into_inner();
                let own = status.header.map(|header| header.member_id);
                if status.leader != 0 && own == Some(status.leader) {
                    return Ok(member);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("waited for etcd to have a leader");
    }

    /// The process of a member.
    pub fn process(&mut self, member: usize) -> &mut Process {
        &mut self.members[member].process
    }

    /// Clients of the leader that write, or read linearizably.
    pub async fn callers(&self, count: usize, write: bool) -> Result<Vec<Client>> {
        let leader = self.leader().await?;
        let mut channels = Vec::new();
        for _ in 0..CHANNELS.min(count) {
            channels.push(self.channel(leader).await?);
        }
        Ok((0..count)
            .zip(channels.into_iter().cycle())
            .map(|(number, channel)| Client::new(channel, number, write))
            .collect())
    }

    /// A client of this member.
    pub async fn session(&self, member: usize) -> Result<Client> {
        Ok(Client::new(self.channel(member).await?, 0, true))
    }
}

/// A client that puts or gets one key.
#[derive(Clone)]
pub struct Client {
    kv: KvClient<Channel>,
    key: Bytes,
    write: bool,
}

impl Client {
    fn new(channel: Channel, number: usize, write: bool) -> Self {
        // All read the same key.
        let key = format!("c{}", if write { number } else { 0 });
        Self {
            kv: KvClient::new(channel),
            key: key.into(),
            write,
        }
    }
}

impl Caller for Client {
    async fn call(&mut self) -> Result<()> {
        let key = self.key.clone();
        if self.write {
            let value = "v".repeat(VALUE_BYTES).into();
            self.kv.put(proto::PutRequest { key, value }).await?;
            return Ok(());
        }
        let request = proto::RangeRequest {
            key,
            serializable: false,
        };
        let found = self.kv.range(request).await?.into_inner();
        ensure!(found.count == 1, "{} keys were found", found.count);
        Ok(())
    }
}

/// One authority, and one certificate for members and clients alike.
fn certify(dir: &Path) -> Result<Credentials> {
    let ca_key = KeyPair::generate().context("making a key")?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca
        .self_signed(&ca_key)
        .context("making an authority")?
        .pem();
    let issuer = Issuer::new(ca, ca_key);

    let key = KeyPair::generate().context("making a key")?;
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).context("naming a certificate")?;
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let own = params
        .signed_by(&key, &issuer)
        .context("making a certificate")?
        .pem();
    let key = key.serialize_pem();
    for (file, pem) in [("ca.pem", &ca_pem), ("own.pem", &own), ("own.key", &key)] {
        fs::write(dir.join(file), pem).with_context(|| format!("writing {file}"))?;
    }
    Ok(Credentials {
        ca: ca_pem,
        own: Some((own, key)),
    })
}
