//! Starting a node: found, join or resume, then put the parts together.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use muster_storage::blobs::Blobs;
use muster_storage::command::Founding;
use muster_storage::engine::Engine;
use muster_storage::{Actor, Command, NodeId, Proposal, RequestId};
use tokio::net::TcpListener;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::artifacts::{self, Pulls};
use crate::board::Board;
use crate::cluster::{Cluster, Inner, Limits, Options, Start, Timing};
use crate::desk::{self, Desk};
use crate::identity::{Files, Identity};
use crate::join::{self, Admission};
use crate::peer::{self, Links, Network, Service, Target};
use crate::store::{LogStore, Machine, claim};
use crate::tls::{self, Authority, CertificateHolder, Names, NodeKey, Sealer};
use crate::types::{Address, Raft};
use crate::view::{self, View};
use crate::{Error, manage, pulse, reads, trim};

/// Gossip that a slow listener may fall behind by.
const GOSSIP_BACKLOG: usize = 4096;
/// Until a founder leads itself.
const FOUNDING: Duration = Duration::from_secs(30);

/// What is needed to put a node together.
struct Parts {
    options: Options,
    identity: Identity,
    engine: Open,
    snapshots: PathBuf,
    blobs: Blobs,
    key: NodeKey,
    certificate_pem: String,
    ca_pem: String,
    sealer: Option<Sealer>,
    /// Where peers listen, until the state says so.
    bootstrap: Vec<(u64, String)>,
    scratch: Option<tempfile::TempDir>,
}

/// A new cluster's secrets.
struct NewCluster {
    authority: Authority,
    sealer: Sealer,
    key: NodeKey,
    certificate_pem: String,
}

impl NewCluster {
    fn generate(cluster: Uuid, options: &Options) -> Result<Self, Error> {
        let authority = Authority::generate(cluster)?;
        let key = NodeKey::generate()?;
        let names = names(cluster, 1, options);
        Ok(Self {
            certificate_pem: authority.sign(&names, &key.0)?,
            sealer: Sealer::generate(),
            authority,
            key,
        })
    }
}

fn names(cluster: Uuid, node: u64, options: &Options) -> Names<'_> {
    Names {
        cluster,
        node,
        name: &options.node_name,
        address: options.advertise,
    }
}

async fn listen(options: &mut Options) -> Result<TcpListener, Error> {
    let any = match options.advertise {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let address = SocketAddr::new(any, options.peer_port);
    let doing = || Error::io(format!("listening for peers on port {}", options.peer_port));
    let listener = TcpListener::bind(address).await.map_err(doing())?;
    options.peer_port = listener.local_addr().map_err(doing())?.port();
    Ok(listener)
}

/// See [`Cluster::start`].
pub async fn start(mut options: Options) -> Result<Cluster, Error> {
    let files = Files::open(&options.data_dir)?;
    let known = files.identity()?.filter(|identity| identity.complete);
    if let Some(identity) = known {
        let listener = listen(&mut options).await?;
        return resume(options, &files, identity, Vec::new(), listener).await;
    }
    match options.start.clone() {
        Start::Resume => Err(Error::NoCluster(options.data_dir)),
        Start::Found {
            admin_password_hash,
        } => {
            let listener = listen(&mut options).await?;
            found(options, &files, admin_password_hash, listener).await
        }
        Start::Join { peers, token } => {
            files.clear_unfinished()?;
            let listener = listen(&mut options).await?;
            let Admission { identity, members } =
                join::join(&files, &options, &peers, &token).await?;
            resume(options, &files, identity, members, listener).await
        }
    }
}

async fn found(
    options: Options,
    files: &Files,
    admin_password_hash: String,
    listener: TcpListener,
) -> Result<Cluster, Error> {
    files.clear_unfinished()?;
    let mut identity = Identity {
        cluster_id: Uuid::new_v4(),
        node_id: 1,
        complete: false,
        has_log: false,
    };
    let new = NewCluster::generate(identity.cluster_id, &options)?;
    files.set_identity(&identity)?;
    files.set_sealer(&new.sealer)?;
    files.set_node_key(&new.key.pem())?;
    files.set_node_certificate(&new.certificate_pem)?;
    files.set_ca_pem(new.authority.pem())?;
    let founding = founding(&new, identity.cluster_id, admin_password_hash, &options)?;
    let cluster = resume(options, files, identity, Vec::new(), listener).await?;
    let unless_founded = StopOnDrop(Some(cluster.clone()));
    let founded = match propose_founding(&cluster, founding).await {
        Ok(()) => {
            identity.complete = true;
            identity.has_log = true;
            files.set_identity(&identity)
        }
        Err(error) => Err(error),
    };
    unless_founded.disarm();
    match founded {
        Ok(()) => Ok(cluster),
        Err(error) => {
            cluster.stop().await;
            Err(error)
        }
    }
}

fn founding(
    new: &NewCluster,
    cluster_id: Uuid,
    admin_password_hash: String,
    options: &Options,
) -> Result<Founding, Error> {
    Ok(Founding {
        cluster_id,
        ca_pem: new.authority.pem().to_owned(),
        ca_key_sealed: new.authority.sealed_key(&new.sealer, cluster_id)?,
        admin_password_hash,
        member: muster_storage::model::Member {
            id: NodeId(1),
            name: options.node_name.clone(),
            address: options.advertise,
            peer_port: options.peer_port,
            api_port: options.api_port,
            boot_port: options.boot_port,
            version: options.version.clone(),
            max_schema: muster_storage::schema::CURRENT,
            key_hash: new.key.hash(),
            identifiers: Vec::new(),
        },
    })
}

async fn propose_founding(cluster: &Cluster, founding: Founding) -> Result<(), Error> {
    let inner = &cluster.inner;
    let address =
        Address(SocketAddr::new(inner.options.advertise, inner.options.peer_port).to_string());
    inner
        .raft
        .initialize(BTreeMap::from([(inner.id.0, address)]))
        .await
        .map_err(|error| Error::Stopped(error.to_string()))?;
    let mut view = inner.view.clone();
    let leading = view.wait_for(|view| view.leading);
    match tokio::time::timeout(FOUNDING, leading).await {
        Ok(Ok(_)) => {}
        _ => return Err(Error::Stopped("the founding node was not elected".into())),
    }
    let outcome = cluster
        .propose(Proposal {
            request: RequestId(Uuid::new_v4()),
            actor: Actor(format!("node:{}", inner.options.node_name)),
            if_match: None,
            command: Command::Found(Box::new(founding)),
        })
        .await?;
    outcome
        .result
        .map(drop)
        .map_err(|rejection| Error::Refused(rejection.to_string()))
}

/// Opens the stores. A node that once had a log is given no new one: it would have forgotten its
/// votes and what it acknowledged.
fn open(dir: &Path, identity: &Identity) -> Result<Open, Error> {
    let known = identity.complete && identity.has_log;
    let doing = || Error::io(format!("opening {}", dir.display()));
    let log = dir.join("log");
    let lost = |problem: String| {
        Error::Corrupt(format!(
            "{problem}; a node that forgot its votes and entries must not take part: remove this \
             node from the cluster, empty {} and join anew",
            dir.display()
        ))
    };
    if known && !log.join("CURRENT").exists() {
        return Err(lost(format!(
            "{} had a log and has none now",
            log.display()
        )));
    }
    let engine = match known {
        true => Engine::open_existing(dir),
        false => Engine::open(dir),
    };
    let open = Open(engine.map_err(doing())?);
    claim(&*open.0.log, &identity.mark(), known).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => lost(format!("{}: {error}", log.display())),
        _ => doing()(error),
    })?;
    Ok(open)
}

/// Stops a node whose start was given up.
struct StopOnDrop(Option<Cluster>);

impl StopOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(cluster) = &self.0 {
            cluster.inner.stop.cancel();
            cluster.inner.engine.0.close();
        }
    }
}

/// Opened stores, closed when this goes: a store that is left to whichever thread drops it last is
/// closed while the process is already being taken down.
pub struct Open(pub Engine);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close();
    }
}

async fn resume(
    options: Options,
    files: &Files,
    mut identity: Identity,
    bootstrap: Vec<(u64, String)>,
    listener: TcpListener,
) -> Result<Cluster, Error> {
    let dir = files.dir().to_owned();
    let doing = || Error::io(format!("opening {}", dir.display()));
    let open_dir = dir.clone();
    let opened = tokio::task::spawn_blocking(move || open(&open_dir, &identity));
    let engine = opened
        .await
        .map_err(|error| Error::Stopped(error.to_string()))??;
    if identity.complete && !identity.has_log {
        identity.has_log = true;
        files.set_identity(&identity)?;
    }
    let key = files
        .node_key()?
        .ok_or_else(|| Error::BadIdentity {
            file: dir.join("node.key").display().to_string(),
            problem: "the file is missing".into(),
        })
        .and_then(|pem| NodeKey::from_pem(&pem))?;
    let parts = Parts {
        identity,
        engine,
        snapshots: dir.join("snapshots"),
        blobs: Blobs::open(&dir).map_err(doing())?,
        key,
        certificate_pem: files.node_certificate()?,
        ca_pem: files.ca_pem()?,
        sealer: Some(files.sealer()?),
        bootstrap,
        scratch: None,
        options,
    };
    assemble(parts, Some((files, listener))).await
}

/// See [`Cluster::solo`].
pub async fn solo(blobs_dir: Option<PathBuf>) -> Cluster {
    solo_on(Engine::memory(), blobs_dir).await
}

#[allow(clippy::expect_used)]
async fn solo_on(engine: Engine, blobs_dir: Option<PathBuf>) -> Cluster {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let options = Options {
        data_dir: scratch.path().to_owned(),
        node_name: "solo".into(),
        advertise: IpAddr::V4(Ipv4Addr::LOCALHOST),
        peer_port: 8093,
        api_port: 8092,
        boot_port: 8091,
        version: env!("CARGO_PKG_VERSION").into(),
        start: Start::Resume,
        timing: Timing::default(),
        limits: Limits::default(),
        unsafe_no_sync: false,
    };
    let identity = Identity {
        cluster_id: Uuid::new_v4(),
        node_id: 1,
        complete: true,
        has_log: true,
    };
    let new = NewCluster::generate(identity.cluster_id, &options).expect("certificates");
    let founding =
        founding(&new, identity.cluster_id, String::new(), &options).expect("a founding record");
    let blobs = Blobs::open(blobs_dir.as_deref().unwrap_or(scratch.path())).expect("blobs");
    let parts = Parts {
        identity,
        engine: Open(engine),
        snapshots: scratch.path().join("snapshots"),
        blobs,
        certificate_pem: new.certificate_pem,
        ca_pem: new.authority.pem().to_owned(),
        key: new.key,
        sealer: Some(new.sealer),
        bootstrap: Vec::new(),
        scratch: Some(scratch),
        options,
    };
    let cluster = assemble(parts, None).await.expect("a node in memory");
    propose_founding(&cluster, founding)
        .await
        .expect("a founding");
    cluster
        .applied(cluster.inner.progress.borrow().revision)
        .await;
    cluster
}

async fn assemble(parts: Parts, outside: Option<(&Files, TcpListener)>) -> Result<Cluster, Error> {
    let Parts {
        options,
        identity,
        engine,
        snapshots,
        blobs,
        key,
        certificate_pem,
        ca_pem,
        sealer,
        bootstrap,
        scratch,
    } = parts;
    std::fs::create_dir_all(&snapshots)
        .map_err(Error::io(format!("making {}", snapshots.display())))?;
    let opening = || Error::io("reading stored data");
    let (machine, log) = {
        let no_sync = options.unsafe_no_sync;
        let engine = engine.0.clone();
        tokio::task::spawn_blocking(move || {
            let machine = Machine::open(&engine, snapshots)?;
            Ok((machine, LogStore::open(&engine, no_sync)?))
        })
        .await
        .map_err(|error| Error::Stopped(error.to_string()))?
        .map_err(opening())?
    };
    let memory = machine.memory();
    let log_size = log.size();
    check_cluster(&memory, &identity)?;
    let certificate_pem =
        renew(&memory, &options, &identity, &key, sealer.as_ref())?.unwrap_or(certificate_pem);
    let holder = CertificateHolder::new(&certificate_pem, &key.pem(), &ca_pem)?;
    if let Some((files, _)) = &outside {
        files.set_node_certificate(&certificate_pem)?;
    }

    let (view_sender, view) = watch::channel(View::default());
    let lookup = {
        let (memory, view) = (Arc::clone(&memory), view.clone());
        let bootstrap: BTreeMap<u64, String> = bootstrap.into_iter().collect();
        move |peer: u64| {
            let recorded = memory.read(|state| {
                state.member(NodeId(peer)).map(|member| Target {
                    address: manage::address(member).0,
                    key_hash: Some(member.key_hash.0),
                })
            });
            let by_address = |address: &String| Target {
                address: address.clone(),
                key_hash: None,
            };
            recorded
                .or_else(|| view.borrow().nodes.get(&peer).map(by_address))
                .or_else(|| bootstrap.get(&peer).map(by_address))
        }
    };
    let client_tls = tls::peer_client(&holder, &ca_pem)?;
    let links = Arc::new(Links::new(
        identity.cluster_id,
        identity.node_id,
        client_tls,
        lookup,
    ));
    let raft = Raft::new(
        identity.node_id,
        Arc::new(options.raft_config()?),
        Network::new(Arc::clone(&links)),
        log,
        machine,
    )
    .await
    .map_err(|error| Error::Corrupt(error.to_string()))?;
    let (desk, queues) = Desk::new();
    let (reads_sender, reads_queue) = mpsc::channel(reads::WAITING_MAX);
    let inner = Arc::new(Inner {
        id: NodeId(identity.node_id),
        cluster_id: identity.cluster_id,
        api_tls: Arc::new(tls::api_server(&holder)?),
        ca_pem,
        sealer,
        raft,
        engine,
        stopped: tokio::sync::OnceCell::new(),
        progress: memory.progress(),
        memory,
        view,
        links,
        board: Board::new(),
        desk,
        reads: reads_sender,
        blobs,
        pulls: Pulls::default(),
        gossip_out: broadcast::Sender::new(GOSSIP_BACKLOG),
        gossip_in: broadcast::Sender::new(GOSSIP_BACKLOG),
        tend: Notify::new(),
        caught_up: AtomicBool::new(false),
        draining: AtomicBool::new(false),
        out: std::sync::OnceLock::new(),
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
        _scratch: scratch,
        options,
    });
    // Follows raft to its very end, so that a fault is seen also while the node stops.
    inner
        .tasks
        .spawn(view::follow(inner.raft.clone(), view_sender));
    desk::start(&inner, queues);
    inner.spawn(reads::run(Arc::clone(&inner), reads_queue));
    inner.spawn(catch_up(Arc::clone(&inner)));
    inner.spawn(trim::run(Arc::clone(&inner), log_size));
    if let Some((_, listener)) = outside {
        let server_tls = Arc::new(tls::peer_server(&holder, &inner.ca_pem)?);
        let service = Service::new(Arc::clone(&inner));
        let stop = inner.stop.clone();
        inner.spawn(peer::serve(listener, server_tls, service, stop));
        inner.spawn(pulse::run(Arc::clone(&inner)));
        inner.spawn(manage::run(Arc::clone(&inner)));
        inner.spawn(manage::announce(Arc::clone(&inner)));
        inner.spawn(artifacts::run(Arc::clone(&inner)));
    }
    Ok(Cluster { inner })
}

fn check_cluster(memory: &crate::store::Memory, identity: &Identity) -> Result<(), Error> {
    let stored = memory.read(|state| state.cluster().map(|cluster| cluster.id));
    match stored {
        Some(stored) if stored != identity.cluster_id => Err(Error::Corrupt(format!(
            "node.json names cluster {}, the data is of cluster {stored}",
            identity.cluster_id
        ))),
        _ => Ok(()),
    }
}

/// A fresh certificate for this node's present name and address; absent before it has the state.
fn renew(
    memory: &crate::store::Memory,
    options: &Options,
    identity: &Identity,
    key: &NodeKey,
    sealer: Option<&Sealer>,
) -> Result<Option<String>, Error> {
    let Some(sealer) = sealer else {
        return Ok(None);
    };
    let authority = memory.read(|state| {
        state.cluster().map(|cluster| {
            Authority::open(&cluster.ca_pem, &cluster.ca_key_sealed, sealer, cluster.id)
        })
    });
    let Some(authority) = authority else {
        return Ok(None);
    };
    authority?
        .sign(
            &names(identity.cluster_id, identity.node_id, options),
            &key.0,
        )
        .map(Some)
}

/// Notes when this node has come as far as a leader's commit.
async fn catch_up(inner: Arc<Inner>) {
    while reads::barrier(&inner).await.is_err() {
        if inner.check_running().is_err() {
            return;
        }
    }
    inner.memory.clock().caught_up();
    inner.caught_up.store(true, Ordering::Release);
    tracing::info!("caught up with the cluster");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
