//! Starting a node: found, join or resume, then put the parts together.

mod assemble;
mod found;
#[cfg(any(test, feature = "test-support"))]
mod solo;
mod stores;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use muster_storage::blobs::Blobs;
use muster_storage::engine::{Engine, RocksLog, RocksRows};
use tokio::net::TcpListener;

use crate::Error;
use crate::cluster::Cluster;
use crate::disk;
use crate::host::Host;
use crate::identity::{Files, Identity};
use crate::join::{self, Admission};
use crate::options::{Options, Start};
use crate::store::claim;
use crate::tls::NodeKey;
pub use assemble::names;
#[cfg(not(test))]
use assemble::{Parts, assemble};
use found::found;

// The simulation puts nodes together of parts of its own.
#[cfg(test)]
pub use assemble::{Parts, assemble, meet_peers};
#[cfg(test)]
pub use found::{NewCluster, founding, propose_founding};
pub use stores::{lost, of_log};

/// See [`Cluster::start`].
pub async fn start(mut options: Options) -> Result<Cluster, Error> {
    let files = Files::open(&options.data_dir)?;
    let known = files.identity()?.filter(|identity| identity.complete);
    if let Some(identity) = known {
        if let Some(why) = files.diverged()? {
            return Err(Error::Diverged(why));
        }
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
        config: options.raft_config()?,
        host: Host::Real,
        options,
    };
    assemble(parts, Some((files, listener))).await
}

/// Opens the stores. A node that once had a log is given no new one: it would have forgotten its
/// votes and what it acknowledged.
fn open(dir: &Path, identity: &Identity) -> Result<Open, Error> {
    disk::check_for_start(dir)?;
    let known = identity.complete && identity.has_log;
    let doing = || Error::io(format!("opening {}", dir.display()));
    let log = dir.join("log");
    if known && !log.join("CURRENT").exists() {
        let problem = format!("{} had a log and has none now", log.display());
        return Err(stores::lost(dir, &problem));
    }
    let log = match known {
        true => RocksLog::open_existing(&log),
        false => RocksLog::open(&log),
    };
    let log = log.map_err(|error| stores::of_log(dir, error))?;
    let rows = RocksRows::open(&dir.join("state")).map_err(doing())?;
    let open = Open(Engine {
        log: Arc::new(log),
        rows: Arc::new(rows),
    });
    claim(&*open.0.log, &identity.mark(), known).map_err(|error| stores::of_log(dir, error))?;
    Ok(open)
}

/// What to do with a directory that cannot be used.
pub fn join_anew(dir: &Path) -> String {
    format!(
        "remove this node with `muster cluster remove NODE` on another, empty {} and join anew",
        dir.display()
    )
}

/// Opened stores, closed when this goes: a store that is left to whichever thread drops it last is
/// closed while the process is already being taken down.
pub struct Open(pub Engine);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close();
    }
}
