//! A cluster of one with a boot service, and objects to serve.

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

pub mod http;
pub mod pcap;
pub mod tftp;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use muster_node::boot;
use muster_node::spans::Spans;
use muster_raft::Cluster;
use muster_storage::command::{Bind, Client, PutMode};
use muster_storage::model::{Artifact, NodeId, Object, Sha256};
use muster_storage::{Actor, Command, Outcome, Proposal, RequestId};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use http::Answer;

pub const MAC: &str = "52:54:00:00:00:50";
pub const UUID: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

/// Ends with the test.
pub struct Site {
    pub cluster: Cluster,
    pub address: SocketAddr,
    /// Base URL as scripts have it.
    pub url: String,
    pub stop: CancellationToken,
    pub dir: tempfile::TempDir,
    pub recorder: boot::Recorder,
    service: tokio::task::JoinHandle<()>,
}

impl Site {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let loaders = dir.path().join("loaders");
        std::fs::create_dir_all(loaders.join("subdir")).unwrap();
        std::fs::write(loaders.join("undionly.kpxe"), "loader").unwrap();
        std::fs::create_dir(dir.path().join("secret")).unwrap();
        std::fs::write(dir.path().join("secret/key"), "secret").unwrap();
        let cluster = Cluster::solo_in(dir.path()).await;
        let url = cluster.read(|state| {
            let member = state.members().next().unwrap();
            format!(
                "http://{}",
                SocketAddr::new(member.address, member.boot_port)
            )
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let recorder = boot::Recorder::start(cluster.clone(), Spans::default(), stop.clone());
        let options = boot::Options {
            boot_port: address.port(),
            advertise: IpAddr::V4(Ipv4Addr::LOCALHOST),
            loader_dir: loaders,
            recorder: recorder.clone(),
        };
        let service = boot::serve_on(listener, cluster.clone(), options, stop.clone());
        let service = tokio::spawn(service);
        Self {
            cluster,
            address,
            url,
            stop,
            dir,
            recorder,
            service,
        }
    }

    pub fn loaders(&self) -> std::path::PathBuf {
        self.dir.path().join("loaders")
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").await
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut connection = http::Connection::open(self.address).await;
        connection.send(method, path, headers, body).await
    }

    /// Waits for the service to have stopped.
    pub async fn ended(self) {
        tokio::time::timeout(Duration::from_secs(5), self.service)
            .await
            .expect("it stops")
            .unwrap();
    }

    pub async fn propose(&self, command: Command) -> Outcome {
        let proposal = Proposal {
            request: RequestId(Uuid::new_v4()),
            actor: Actor("test".to_owned()),
            if_match: None,
            remember: None,
            command,
        };
        let outcome = self.cluster.propose(proposal).await.unwrap();
        assert!(outcome.result.is_ok(), "{outcome:?}");
        outcome
    }

    /// Writes an object given as `{"KIND": {…}}`.
    pub async fn apply(&self, json: &str) {
        let object: Object = serde_json::from_str(json).unwrap();
        let mode = PutMode::Apply;
        self.propose(Command::Put { object, mode }).await;
    }

    /// Stores bytes as an artifact.
    pub async fn artifact(&self, path: &str, bytes: &[u8]) -> Sha256 {
        let mut writer = self.cluster.blobs().writer().unwrap();
        writer.write(bytes).unwrap();
        let (sha256, size) = writer.finish(None).unwrap();
        let path = path.to_owned();
        let object = Object::Artifact(Artifact { path, sha256, size });
        let mode = PutMode::Apply;
        self.propose(Command::Put { object, mode }).await;
        sha256
    }

    /// Machine `m1` with bootenv `lab`; its artifacts are not made.
    pub async fn lab_machine(&self) {
        for object in [
            r#"{"template": {"name": "hello.cfg", "contents": "hello {{ machine.name }} color {{ params.color }}\n"}}"#.to_owned(),
            r#"{"bootenv": {"name": "lab", "kernel": "lab/vmlinuz", "initrds": ["lab/initrd.img"],
                "kernel_args": "console=ttyS0 report={{ machine.url }}/report",
                "files": [{"path": "hello.cfg", "template": "hello.cfg"}]}}"#.to_owned(),
            format!(r#"{{"machine": {{"name": "m1", "macs": ["{MAC}"], "uuid": "{UUID}", "bootenv": "lab", "params": {{"color": "blue"}}}}}}"#),
        ] {
            self.apply(&object).await;
        }
    }

    /// Leases an address of 127.0.0.0/8.
    pub async fn lease(&self, address: &str, mac: &str) {
        self.apply(r#"{"subnet": {"name": "loopback", "cidr": "127.0.0.0/8", "pools": ["127.0.0.1-127.0.0.9"]}}"#).await;
        self.lease_in(address, mac).await;
    }

    /// Leases an address of a subnet that is there.
    pub async fn lease_in(&self, address: &str, mac: &str) {
        let address: Ipv4Addr = address.parse().unwrap();
        let client = Client {
            mac: Some(mac.parse().unwrap()),
            client_id: None,
            boots: true,
            link: vec![address],
            requested: Some(address),
            lease_secs: None,
            hostname: None,
            relay: None,
            traits: Default::default(),
        };
        let bind = Bind {
            client,
            address,
            node: NodeId(1),
        };
        self.propose(Command::Bind(Box::new(bind))).await;
    }

    /// What machine `m1` reported last.
    pub async fn report(&self) -> Option<String> {
        let machine = UUID.parse().unwrap();
        self.cluster
            .read(|state| state.report(machine).map(|report| report.body.clone()))
    }
}

/// A file in a directory, made with its parents.
pub fn write(dir: &Path, name: &str, contents: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, contents).unwrap();
}
