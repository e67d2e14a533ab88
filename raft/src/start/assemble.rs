//! Putting a node together of what was founded, joined or resumed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_storage::NodeId;
use muster_storage::blobs::Blobs;
use tokio::net::TcpListener;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{Open, stores};
use crate::artifacts::{self, Holdings, Keep, Pulls, Uploads};
use crate::board::Board;
use crate::clock;
use crate::cluster::Cluster;
use crate::desk::{self, Desk};
use crate::disk::{self, Disk};
use crate::drain::Transfers;
use crate::host::Host;
use crate::identity::{Files, Identity};
use crate::inner::Inner;
use crate::options::Options;
use crate::peer::{self, Links, Network, Service, Target};
use crate::promises::Promises;
use crate::renew::{self, Credentials};
use crate::store::Memory;
use crate::tls::{self, Certificate, Credential, Names, NodeKey, Sealer};
use crate::types::Raft;
use crate::view::{self, View};
use crate::{Error, manage, pulse, reads, succession, trim};

/// Gossip that a slow listener may fall behind by.
const GOSSIP_BACKLOG: usize = 4096;

/// What is needed to put a node together.
pub struct Parts {
    pub options: Options,
    pub host: Host,
    pub config: openraft::Config,
    pub identity: Identity,
    pub engine: Open,
    pub snapshots: PathBuf,
    pub blobs: Blobs,
    pub key: NodeKey,
    /// The last one; a node that has the state makes another.
    pub certificate_pem: Option<String>,
    pub ca_pem: String,
    pub sealer: Option<Sealer>,
    /// Where peers listen, until the state says so.
    pub bootstrap: Vec<(u64, String)>,
    pub scratch: Option<tempfile::TempDir>,
}

/// Opens what the parts name and starts the workers; with a directory and a listener also what deals
/// with peers.
pub async fn assemble(
    parts: Parts,
    outside: Option<(&Files, TcpListener)>,
) -> Result<Cluster, Error> {
    let Parts {
        options,
        host,
        config,
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
    let disk = Disk::default();
    let (machine, log) = {
        let (engine, on) = (engine.0.clone(), host.clone());
        let (dir, no_sync) = (options.data_dir.clone(), options.unsafe_no_sync);
        let disk = disk.clone();
        let opening = move || stores::take(&engine, &disk, &on, &dir, snapshots, no_sync);
        let opened = host.blocking(None, move || Ok(opening())).await;
        opened.map_err(Error::io("reading stored data"))??
    };
    let memory = machine.memory();
    let log_size = log.size();
    let resumes = log.last().is_some() || memory.reach() > 0;
    #[cfg(test)]
    let resumes = resumes && !crate::sim::broken(&host, crate::sim::Mutant::ForgetEarlierLives);
    check_cluster(&memory, &identity)?;
    let own_names = names(identity.cluster_id, identity.node_id, &options);
    let now = clock::present(&memory);
    let fresh = renew::certify(&memory, sealer.as_ref(), &own_names, &key, now)?;
    let files = outside.as_ref().map(|(files, _)| *files);
    if let (Some(files), Some(fresh)) = (files, &fresh) {
        files.set_node_certificate(&fresh.pem)?;
    }
    let stored = certificate_pem.map(|pem| Certificate { pem, until: None });
    let certificate = fresh
        .or(stored)
        .ok_or_else(|| Files::at(&options.data_dir).bad("node.crt", "the file is missing"))?;
    let credentials = Credentials::new(
        files,
        Credential {
            succession: files
                .map(|files| renew::stored_succession(files, &key))
                .unwrap_or_default(),
            certificate,
            key,
            ca_pem: ca_pem.clone(),
        },
    )?;
    let holder = Arc::clone(credentials.holder());

    let (view_sender, view) = watch::channel(Arc::<View>::default());
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
        host,
        lookup,
    ));
    let raft = Raft::new(
        identity.node_id,
        Arc::new(config),
        Network::new(Arc::clone(&links)),
        log,
        machine,
    )
    .await
    .map_err(|error| Error::Corrupt(error.to_string()))?;
    let uploads = Uploads::open(blobs.clone(), options.data_dir.clone())
        .map_err(Error::io("looking for uploads that broke off"))?;
    let (desk, queues) = Desk::new();
    let (reads_sender, reads_queue) = mpsc::channel(reads::WAITING_MAX);
    let inner = Arc::new(Inner {
        id: NodeId(identity.node_id),
        cluster_id: identity.cluster_id,
        api_tls: Arc::new(tls::api_server(&holder)?),
        ca_pem,
        credentials,
        sealer,
        raft,
        engine,
        stopped: tokio::sync::OnceCell::new(),
        progress: memory.progress(),
        promises: Promises::new(resumes, memory.host().boot()),
        memory,
        disk,
        view,
        links,
        board: Board::new(),
        desk,
        reads: reads_sender,
        blobs,
        pulls: Pulls::default(),
        holdings: Holdings::default(),
        keep: Keep::default(),
        uploads,
        gossip_out: broadcast::Sender::new(GOSSIP_BACKLOG),
        gossip_in: broadcast::Sender::new(GOSSIP_BACKLOG),
        tend: Notify::new(),
        caught_up: AtomicBool::new(false),
        handover: tokio::sync::Mutex::default(),
        claim: tokio::sync::Mutex::default(),
        draining: watch::Sender::new(false),
        transfers: Transfers::default(),
        answerer: Mutex::default(),
        out: std::sync::OnceLock::new(),
        diverged: watch::Sender::new(None),
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
    inner.spawn(disk::watch_faults(Arc::clone(&inner)));
    inner.spawn(trim::run(Arc::clone(&inner), log_size));
    if let Some((_, listener)) = outside {
        let server_tls = Arc::new(tls::peer_server(&holder, &inner.ca_pem)?);
        let service = Service::new(Arc::clone(&inner));
        let stop = inner.stop.clone();
        inner.spawn(peer::serve(listener, server_tls, service, stop));
        inner.spawn(disk::watch_room(Arc::clone(&inner)));
        inner.spawn(renew::run(Arc::clone(&inner)));
        meet_peers(&inner);
    }
    Ok(Cluster { inner })
}

/// Starts what a node does among peers.
pub fn meet_peers(inner: &Arc<Inner>) {
    inner.spawn(pulse::run(Arc::clone(inner)));
    inner.spawn(succession::run(Arc::clone(inner)));
    inner.spawn(manage::run(Arc::clone(inner)));
    inner.spawn(manage::announce(Arc::clone(inner)));
    inner.spawn(artifacts::run(Arc::clone(inner)));
}

fn check_cluster(memory: &Memory, identity: &Identity) -> Result<(), Error> {
    let stored = memory.read(|state| state.cluster().map(|cluster| cluster.id));
    match stored {
        Some(stored) if stored != identity.cluster_id => Err(Error::Corrupt(format!(
            "node.json names cluster {}, the data is of cluster {stored}",
            identity.cluster_id
        ))),
        _ => Ok(()),
    }
}

/// What a node's certificate says of it.
pub fn names(cluster: Uuid, node: u64, options: &Options) -> Names<'_> {
    Names {
        cluster,
        node,
        name: &options.node_name,
        address: options.advertise,
    }
}

/// Between two looks whether a peer has said what the time is.
const HEARING: Duration = Duration::from_millis(50);

/// Notes when this node has come as far as a leader's commit.
async fn catch_up(inner: Arc<Inner>) {
    while reads::barrier(&inner).await.is_err() {
        if inner.check_running().is_err() {
            return;
        }
    }
    let clock = inner.memory.clock();
    clock.caught_up();
    // The leader finds out what the time is, the others hear it from those who know.
    while clock.now().is_none() && inner.check_running().is_ok() {
        if inner.view().leads_quorum(inner.id.0) {
            clock::stamp(&inner).await;
        } else {
            tokio::time::sleep(HEARING).await;
        }
    }
    inner.caught_up.store(true, Ordering::Release);
    tracing::info!("caught up with the cluster");
}
