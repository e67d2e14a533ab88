//! What a full site costs: 100,000 machines and 1,000,000 leases, the leases as so many writes.
//! `make bench` prints how far the disk grew, how long the node takes to serve after a start with
//! that state, its memory, what a backup costs and a cluster that is made of it, and how long a second
//! node takes to have it all. `MACHINES` and `LEASES` take other numbers.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../tests/program/process/mod.rs"]
mod process;

use std::fs::{self, File};
use std::io::BufWriter;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use muster_raft::{Cluster, Limits, Options, Start, Timing};
use muster_storage::command::{Bind, Client, PutMode};
use muster_storage::model::{Mac, Object};
use muster_storage::{Actor, Command, NodeId, Proposal, RequestId};
use serde_json::json;
use uuid::Uuid;

/// Writes at a time, as from the DHCP service of a busy leader.
const AT_ONCE: u32 = 2048;
/// Machines in one write.
const BUNDLE: u32 = 256;
const STARTS: u32 = 3;
const MIB: u64 = 1 << 20;
/// What a backup may take of memory, in MiB, however large the state is: the seal of the keys wants
/// 64 of them.
const EXTRA: u64 = 256;
const PASSPHRASE: &str = "correct horse";

#[tokio::main]
async fn main() {
    let (machines, leases) = (number("MACHINES", 100_000), number("LEASES", 1_000_000));
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), machines, leases).await;
    for _ in 0..STARTS {
        start(dir.path());
    }
    let kept = tempfile::tempdir().unwrap();
    backup(dir.path(), kept.path()).await;
    restore(kept.path());
    start(&kept.path().join(RESTORED));
    // From then on it is one of two, and cannot lead alone.
    reseed(dir.path()).await;
}

fn number(name: &str, otherwise: u32) -> u32 {
    let set = std::env::var(name).ok();
    set.and_then(|value| value.parse().ok())
        .unwrap_or(otherwise)
}

async fn make(dir: &Path, machines: u32, leases: u32) {
    let found = Start::Found {
        admin_password_hash: "none".into(),
    };
    let cluster = leading(dir, found).await;
    let subnet = json!({
        "name": "site",
        "cidr": "10.0.0.0/8",
        "pools": ["10.1.0.0-10.254.255.254"],
        "lease_secs": 86_400,
        "match": "mac",
    });
    let subnet = Object::Subnet(serde_json::from_value(subnet).unwrap());
    write(&cluster, put(subnet)).await;

    let start = Instant::now();
    for first in (0..machines).step_by(BUNDLE as usize) {
        let bundle = (first..machines.min(first + BUNDLE)).map(machine);
        write(&cluster, Command::Many(bundle.collect())).await;
    }
    println!(
        "{machines} machines written in {:.1} s",
        start.elapsed().as_secs_f64()
    );

    let start = Instant::now();
    let mut largest = 0;
    fill(&cluster, leases, || {
        largest = largest.max(octets_below(dir))
    })
    .await;
    let left = octets_below(dir);
    println!(
        "{leases} leases, a write each: {:.0} writes/s; the disk held {} MiB at most, {} MiB at \
         the end",
        f64::from(leases) / start.elapsed().as_secs_f64(),
        largest.max(left) / MIB,
        left / MIB,
    );
    cluster.stop().await;
}

/// The program on what was made.
fn start(dir: &Path) {
    let start = Instant::now();
    let node = process::started(&mut process::serve(dir), dir);
    let (took, pid) = (start.elapsed(), node.0.id());
    println!(
        "serves {:.2} s after its start, with {} MiB of memory, {} MiB at most",
        took.as_secs_f64(),
        memory(pid, "VmRSS").unwrap(),
        memory(pid, "VmHWM").unwrap(),
    );
    assert_eq!(node.stop(), 0);
}

/// A second node joins while writes go on.
async fn reseed(dir: &Path) {
    let cluster = leading(dir, Start::Resume).await;
    let minutes = Duration::from_secs(600);
    let token = cluster.join_token(minutes, Actor("bench".into())).await;
    let join = Start::Join {
        peers: vec![format!("127.0.0.1:{}", cluster.peer_port())],
        token: token.unwrap(),
    };
    let second = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let joiner = Cluster::start(options(second.path(), "n2", join)).await;
    let joiner = joiner.unwrap();
    let behind = || joiner.status().revision < cluster.status().revision;
    let writes = write_while(&cluster, behind).await;
    println!(
        "a node that joins has all of it after {:.1} s; {writes}",
        start.elapsed().as_secs_f64(),
    );
    joiner.stop().await;
    cluster.stop().await;
}

const BACKUP: &str = "backup.tar";
const RESTORED: &str = "restored";

/// A backup is made while writes go on.
async fn backup(dir: &Path, kept: &Path) {
    let cluster = leading(dir, Start::Resume).await;
    let file = kept.join(BACKUP);
    let out = BufWriter::new(File::create(&file).unwrap());
    let own = std::process::id();
    let before = memory(own, "VmRSS").unwrap();
    let (start, mut most) = (Instant::now(), before);
    let writer = cluster.clone();
    let making = tokio::task::spawn_blocking(move || writer.backup(PASSPHRASE, false, out));
    let writes = write_while(&cluster, || {
        most = most.max(memory(own, "VmRSS").unwrap());
        !making.is_finished()
    })
    .await;
    making.await.unwrap().expect("a backup");
    println!(
        "a backup takes {:.1} s and has {} MiB, with {} MiB of memory beside the {before} before; \
         {writes}",
        start.elapsed().as_secs_f64(),
        fs::metadata(&file).unwrap().len() / MIB,
        most - before,
    );
    assert!(most - before < EXTRA, "it grows with the state");
    cluster.stop().await;
}

/// A cluster is made of the backup.
fn restore(kept: &Path) {
    let passphrase = kept.join("passphrase");
    fs::write(&passphrase, PASSPHRASE).unwrap();
    let start = Instant::now();
    let mut command = process::muster();
    command.arg("restore").arg(kept.join(BACKUP));
    command.arg("--passphrase-file").arg(passphrase);
    command.arg("--data-dir").arg(kept.join(RESTORED));
    let mut restoring = process::Node(command.spawn().unwrap());
    let mut most = 0;
    let status = loop {
        if let Some(status) = restoring.0.try_wait().unwrap() {
            break status;
        }
        // There is none in the moment of its end.
        most = most.max(memory(restoring.0.id(), "VmHWM").unwrap_or(0));
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success(), "{status}");
    println!(
        "a restore takes {:.1} s, with {most} MiB of memory at most",
        start.elapsed().as_secs_f64()
    );
}

/// Writes one after the other for as long as something goes on; how many there were.
async fn write_while(cluster: &Cluster, mut goes_on: impl FnMut() -> bool) -> String {
    let (mut slowest, mut writes) = (Duration::ZERO, 0u32);
    while goes_on() {
        let asked = Instant::now();
        write(cluster, lease(0)).await;
        slowest = slowest.max(asked.elapsed());
        writes += 1;
    }
    format!(
        "{writes} writes one after the other meanwhile, the slowest {} ms",
        slowest.as_millis()
    )
}

async fn leading(dir: &Path, start: Start) -> Cluster {
    let cluster = Cluster::start(options(dir, "n1", start)).await.unwrap();
    assert!(cluster.outlast_election().await, "it does not lead");
    cluster
}

fn options(dir: &Path, name: &str, start: Start) -> Options {
    Options {
        data_dir: dir.to_owned(),
        node_name: name.into(),
        advertise: IpAddr::V4(Ipv4Addr::LOCALHOST),
        peer_port: 0,
        api_port: 1,
        boot_port: 2,
        version: "bench".into(),
        start,
        timing: Timing::default(),
        limits: Limits::default(),
        unsafe_no_sync: false,
    }
}

async fn write(cluster: &Cluster, command: Command) {
    let proposal = Proposal {
        request: RequestId(Uuid::new_v4()),
        actor: Actor("bench".into()),
        if_match: None,
        remember: None,
        command,
    };
    let outcome = cluster.propose(proposal).await.expect("a write");
    outcome.result.expect("a write that is not refused");
}

fn put(object: Object) -> Command {
    Command::Put {
        object,
        mode: PutMode::Create,
    }
}

fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([0x52, 0x54, a, b, c, d])
}

fn machine(number: u32) -> Command {
    let machine = json!({
        "name": format!("r{:03}-u{:03}", number / 100, number % 100),
        "macs": [mac(number).to_string()],
        "params": { "rack": number / 100, "role": "compute", "console": "ttyS1,115200" },
    });
    put(Object::Machine(serde_json::from_value(machine).unwrap()))
}

fn lease(number: u32) -> Command {
    let first = u32::from(Ipv4Addr::new(10, 1, 0, 0));
    Command::Bind(Box::new(Bind {
        client: Client {
            mac: Some(mac(number)),
            client_id: None,
            boots: false,
            link: vec![Ipv4Addr::new(10, 0, 0, 1)],
            requested: None,
            lease_secs: None,
            hostname: Some(format!("host-{number}")),
            relay: None,
            traits: Default::default(),
        },
        address: (first + number).into(),
        node: NodeId(1),
    }))
}

/// Writes `count` leases, many at a time; calls `look` now and then.
async fn fill(cluster: &Cluster, count: u32, mut look: impl FnMut()) {
    let next = Arc::new(AtomicU32::new(0));
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let (cluster, next) = (cluster.clone(), Arc::clone(&next));
        writers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                write(&cluster, lease(number)).await;
            }
        });
    }
    let mut ticks = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            ended = writers.join_next() => match ended {
                Some(ended) => ended.unwrap(),
                None => return,
            },
            _ = ticks.tick() => look(),
        }
    }
}

fn octets_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => octets_below(&entry.path()),
        Ok(data) => data.len(),
        // It was just removed.
        Err(_) => 0,
    });
    sizes.sum()
}

/// A figure of `/proc/PID/status`, in MiB; absent when the process has ended.
fn memory(pid: u32, figure: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(figure))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024)
}
