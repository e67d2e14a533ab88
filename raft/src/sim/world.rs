//! The nodes, and what can be done to them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_storage::blobs::Blobs;
use muster_storage::model::Member;
use muster_storage::{Actor, Command, Effect, NodeId, Proposal, RequestId, Timestamp};
use openraft::async_runtime::watch::WatchReceiver;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::chance::Chance;
use super::disk::Disk;
use super::machine::Machine;
use super::mutant::Mutant;
use super::net::Net;
use super::oracle::Oracle;
use crate::cluster::Cluster;
use crate::host::Host;
use crate::identity::Identity;
use crate::options::{Limits, Options, Start, Timing};
use crate::peer::Service;
use crate::start::{NewCluster, Open, Parts};
use crate::store::note;
use crate::tls::{NodeKey, PeerCertificate};
use crate::{Error, manage, start};

/// A node, through all its lives.
struct Node {
    disk: Arc<Disk>,
    key_pem: String,
    certificate_pem: String,
    skew: Arc<AtomicI64>,
    snapshots: PathBuf,
    lives: u64,
    life: Option<Life>,
}

/// One life of a node.
#[derive(Clone)]
pub struct Life {
    pub cluster: Cluster,
    /// Ends with it.
    pub dead: CancellationToken,
}

/// Everything there is.
pub struct World {
    pub chance: Arc<Chance>,
    pub oracle: Arc<Oracle>,
    pub net: Arc<Net>,
    pub mutant: Option<Mutant>,
    scratch: TempDir,
    new: NewCluster,
    cluster_id: Uuid,
    nodes: Mutex<BTreeMap<u64, Node>>,
}

fn options(scratch: &Path, node: u64, mutant: Option<Mutant>) -> Options {
    Options {
        data_dir: scratch.to_owned(),
        node_name: format!("n{node}"),
        advertise: address(node),
        peer_port: 8093,
        api_port: 8092,
        boot_port: 8091,
        version: "simulated".into(),
        start: Start::Resume,
        timing: Timing::default(),
        limits: Limits {
            snapshot_every: 150,
            keep: 60,
            bytes: 64 << 10,
        },
        unsafe_no_sync: mutant == Some(Mutant::SkipSync),
    }
}

fn address(node: u64) -> IpAddr {
    // Ids are revisions; these stay apart for all that a run reaches.
    let [.., a, b, c] = node.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, a, b, c))
}

/// A memory file system if there is one: a run makes hundreds of snapshots.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    TempDir::with_prefix_in("muster-sim-", parent).expect("a temporary directory")
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

impl World {
    /// A world without nodes.
    pub fn new(chance: Arc<Chance>, oracle: Arc<Oracle>, mutant: Option<Mutant>) -> Arc<Self> {
        let scratch = scratch();
        let cluster_id = Uuid::new_v4();
        let new = NewCluster::generate(cluster_id, &options(scratch.path(), 1, None));
        Arc::new(Self {
            net: Net::new(Arc::clone(&chance), mutant),
            chance,
            oracle,
            mutant,
            new: new.expect("certificates"),
            cluster_id,
            nodes: Mutex::default(),
            scratch,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nodes that are alive.
    pub fn alive(&self) -> Vec<u64> {
        let nodes = self.lock();
        let alive = nodes.iter().filter(|(_, node)| node.life.is_some());
        alive.map(|(id, _)| *id).collect()
    }

    /// Nodes that are not.
    pub fn dead(&self) -> Vec<u64> {
        let nodes = self.lock();
        let dead = nodes.iter().filter(|(_, node)| node.life.is_none());
        dead.map(|(id, _)| *id).collect()
    }

    /// All nodes, dead or alive.
    pub fn all(&self) -> Vec<u64> {
        self.lock().keys().copied().collect()
    }

    /// The present life of a node.
    pub fn life(&self, node: u64) -> Option<Life> {
        self.lock().get(&node)?.life.clone()
    }

    /// The node that leads with a quorum, by its own word.
    pub fn leader(&self) -> Option<u64> {
        self.alive().into_iter().find(|id| {
            self.life(*id)
                .is_some_and(|life| life.cluster.is_leader() && life.cluster.has_quorum())
        })
    }

    fn identity(&self, node: u64) -> Identity {
        Identity {
            cluster_id: self.cluster_id,
            node_id: node,
            complete: true,
            has_log: true,
        }
    }

    fn add(&self, id: u64, key_pem: String, certificate_pem: String) {
        let disk = Disk::new(id, Arc::clone(&self.oracle), self.mutant);
        self.oracle.watch(id, &disk);
        let node = Node {
            disk,
            key_pem,
            certificate_pem,
            skew: Arc::default(),
            snapshots: self.scratch.path().join(format!("{id}-0")),
            lives: 0,
            life: None,
        };
        self.lock().insert(id, node);
    }

    /// Founds the cluster with node 1.
    pub async fn found(self: &Arc<Self>) -> Result<(), Error> {
        self.add(1, self.new.key.pem(), self.new.certificate_pem.clone());
        self.start(1).await?;
        let options = options(self.scratch.path(), 1, None);
        let founding = start::founding(&self.new, self.cluster_id, String::new(), &options)?;
        match self.life(1) {
            Some(life) => start::propose_founding(&life.cluster, founding).await,
            None => Err(Error::NoLeader),
        }
    }

    /// Adds a member and starts it. Membership follows by itself.
    pub async fn join(self: &Arc<Self>) -> Result<u64, Error> {
        let key = NodeKey::generate()?;
        let port = u16::try_from(self.all().len()).unwrap_or(0);
        let member = Member {
            id: NodeId(0),
            name: format!("joiner-{}", self.all().len()),
            address: IpAddr::V4(Ipv4Addr::new(10, 255, 255, 1)),
            peer_port: port.saturating_add(1),
            api_port: 8092,
            boot_port: 8091,
            version: "simulated".into(),
            min_schema: muster_storage::schema::OLDEST,
            max_schema: muster_storage::schema::CURRENT,
            key_hash: key.hash(),
            identifiers: Vec::new(),
        };
        let command = Command::AddMember {
            member: Box::new(member),
            token: None,
        };
        let outcome = self.propose_as_admin(command).await?;
        let id = match outcome {
            Ok(Effect::Member(id)) => id.0,
            other => return Err(Error::Refused(format!("{other:?}"))),
        };
        let named = options(self.scratch.path(), id, None);
        let names = start::names(self.cluster_id, id, &named);
        let certificate = self.new.authority.sign(&names, &key.0, Timestamp(0))?;
        self.add(id, key.pem(), certificate.pem);
        self.start(id).await?;
        self.oracle.note(format!("node {id} joins"));
        Ok(id)
    }

    /// Writes on the leader; the world's own work.
    pub async fn propose_as_admin(
        &self,
        command: Command,
    ) -> Result<Result<Effect, muster_storage::Rejection>, Error> {
        let leader = self.leader().or_else(|| self.alive().first().copied());
        let life = leader.and_then(|leader| self.life(leader));
        let life = life.ok_or(Error::NoLeader)?;
        let proposal = Proposal {
            request: RequestId(Uuid::new_v4()),
            actor: Actor("world".into()),
            if_match: None,
            remember: None,
            command,
        };
        tokio::select! {
            biased;
            () = life.dead.cancelled() => Err(Error::Timeout),
            outcome = life.cluster.propose(proposal) => outcome.map(|outcome| outcome.result),
        }
    }

    /// Starts a node on what its disk holds.
    pub async fn start(self: &Arc<Self>, id: u64) -> Result<(), Error> {
        let dead = CancellationToken::new();
        let parts = {
            let mut nodes = self.lock();
            let node = nodes.get_mut(&id).ok_or(Error::NoLeader)?;
            if node.life.is_some() {
                return Ok(());
            }
            self.parts(id, node, &dead)?
        };
        let cluster = start::assemble(parts, None).await?;
        start::meet_peers(&cluster.inner);
        let service = Service::new(Arc::clone(&cluster.inner));
        self.net.join(id, service, dead.clone());
        self.watch_terms(id, &cluster, &dead);
        super::work::keep_house(self, id, &cluster, &dead);
        if let Some(node) = self.lock().get_mut(&id) {
            node.life = Some(Life { cluster, dead });
        }
        self.oracle.note(format!("node {id} starts"));
        Ok(())
    }

    fn parts(
        self: &Arc<Self>,
        id: u64,
        node: &mut Node,
        dead: &CancellationToken,
    ) -> Result<Parts, Error> {
        let disk_failed = || Error::io("preparing a life");
        node.lives += 1;
        // Earlier lives may still tidy up in their own directory.
        let snapshots = self.scratch.path().join(format!("{id}-{}", node.lives));
        if node.snapshots.is_dir() {
            copy_dir(&node.snapshots, &snapshots).map_err(disk_failed())?;
        }
        node.snapshots.clone_from(&snapshots);
        let engine = node.disk.power_on();
        let applied = node.disk.row_note(note::APPLIED).unwrap_or_default();
        self.oracle.started(id, &applied);
        let certificate = CertificateDer::from_pem_slice(node.certificate_pem.as_bytes())
            .map_err(|error| Error::Corrupt(error.to_string()))?;
        let machine = Machine {
            node: id,
            net: Arc::clone(&self.net),
            chance: Arc::clone(&self.chance),
            oracle: Arc::clone(&self.oracle),
            dead: dead.clone(),
            skew: Arc::clone(&node.skew),
            certificate: PeerCertificate::new(&[certificate])
                .ok_or_else(|| Error::Corrupt("a node's certificate".into()))?,
            mutant: self.mutant,
        };
        let options = options(self.scratch.path(), id, self.mutant);
        let mut config = options.raft_config()?;
        if self.mutant == Some(Mutant::LeaderRestore) {
            config.enable_leader_restore = Some(true);
        }
        Ok(Parts {
            host: Host::Simulated(Arc::new(machine)),
            config,
            identity: self.identity(id),
            engine: Open(engine),
            snapshots,
            blobs: Blobs::open(&self.scratch.path().join(format!("{id}-blobs")))
                .map_err(disk_failed())?,
            key: NodeKey::from_pem(&node.key_pem)?,
            certificate_pem: Some(node.certificate_pem.clone()),
            ca_pem: self.new.authority.pem().to_owned(),
            sealer: Some(self.new.sealer.clone()),
            bootstrap: Vec::new(),
            scratch: None,
            options,
        })
    }

    fn watch_terms(&self, id: u64, cluster: &Cluster, dead: &CancellationToken) {
        let (raft, oracle, dead) = (
            cluster.inner.raft.clone(),
            Arc::clone(&self.oracle),
            dead.clone(),
        );
        tokio::spawn(async move {
            let mut changes = raft.server_metrics();
            loop {
                {
                    let metrics = changes.borrow_watched();
                    if metrics.current_leader == Some(id) && metrics.vote.is_committed() {
                        oracle.leads(id, metrics.vote.leader_id().term);
                    }
                }
                tokio::select! {
                    biased;
                    () = dead.cancelled() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
            }
        });
    }

    /// Ends a node's life at once: by a loss of power, or only of its process.
    pub fn kill(&self, id: u64, power: bool) {
        let life = {
            let mut nodes = self.lock();
            let Some(node) = nodes.get_mut(&id) else {
                return;
            };
            let Some(life) = node.life.take() else {
                return;
            };
            let lost = if power {
                node.disk.lose_power(&self.chance)
            } else {
                node.disk.end_process();
                0
            };
            self.oracle.count("writes lost", lost as u64);
            self.oracle
                .note(format!("node {id} dies, {lost} writes are lost"));
            life
        };
        life.dead.cancel();
        self.net.leave(id);
        // What is left of it has neither disk nor peers; it only has to be cleared away.
        tokio::spawn(async move { life.cluster.stop().await });
    }

    /// Stops a node as an operator would.
    pub async fn stop(&self, id: u64) {
        let Some(life) = self.life(id) else {
            return;
        };
        self.oracle.note(format!("node {id} is stopped"));
        let stopping = async {
            life.cluster.prepare_to_stop().await;
            life.cluster.stop().await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(10), stopping).await;
        self.kill(id, false);
    }

    /// Sets a node's wall clock wrong by so many milliseconds.
    pub fn set_clock(&self, id: u64, skew: i64) {
        self.oracle
            .note(format!("the clock of node {id} is wrong by {skew} ms"));
        if let Some(node) = self.lock().get(&id) {
            node.skew.store(skew, Ordering::Relaxed);
        }
    }

    /// The node's disk fails every sync from now on, until it is started anew.
    pub fn fail_disk(&self, id: u64) {
        self.oracle.note(format!("the disk of node {id} fails"));
        if let Some(node) = self.lock().get(&id) {
            node.disk.fail();
        }
    }

    /// Removes a member for good.
    pub async fn remove(&self, id: u64) -> Result<(), Error> {
        let leader = self.leader().ok_or(Error::NoLeader)?;
        let life = self.life(leader).ok_or(Error::NoLeader)?;
        self.oracle.note(format!("node {id} is to be removed"));
        let order = crate::wire::proto::manage_request::Order::Remove(id);
        tokio::select! {
            biased;
            () = life.dead.cancelled() => return Err(Error::Timeout),
            done = manage::order(&life.cluster.inner, order) => done?,
        }
        self.forget(id);
        Ok(())
    }

    /// A member that was removed is switched off.
    pub fn forget(&self, id: u64) {
        self.kill(id, false);
        self.lock().remove(&id);
        self.oracle.note(format!("node {id} is gone"));
    }

    /// Waits until a condition holds; false when it takes longer than `limit`.
    pub async fn wait(&self, limit: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        let end = self.oracle.now() + limit;
        while !holds(self) {
            if self.oracle.now() > end {
                return false;
            }
            sleep(Duration::from_millis(50)).await;
        }
        true
    }
}
