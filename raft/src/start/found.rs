//! Founding a cluster: its secrets, and the entry that makes it one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use muster_storage::command::Founding;
use muster_storage::{Actor, Command, NodeId, Proposal, RequestId, Timestamp};
use tokio::net::TcpListener;
use uuid::Uuid;

use super::assemble::names;
use super::resume;
use crate::Error;
use crate::cluster::Cluster;
use crate::host::Host;
use crate::identity::{Files, Identity};
use crate::keyring::Keyring;
use crate::options::Options;
use crate::tls::{Authority, NodeKey, Sealer};
use crate::types::Address;

/// Until a founder leads itself.
const FOUNDING: Duration = Duration::from_secs(30);

/// A new cluster's secrets.
pub struct NewCluster {
    pub authority: Authority,
    pub sealer: Sealer,
    pub keyring: Keyring,
    pub key: NodeKey,
    pub certificate_pem: String,
}

impl NewCluster {
    /// Secrets that no other cluster has.
    pub fn generate(cluster: Uuid, options: &Options) -> Result<Self, Error> {
        let authority = Authority::generate(cluster)?;
        let key = NodeKey::generate()?;
        let names = names(cluster, 1, options);
        let now = Timestamp(Host::Real.wall());
        Ok(Self {
            certificate_pem: authority.sign(&names, &key.0, now)?.pem,
            sealer: Sealer::generate(),
            keyring: Keyring::generate(cluster),
            authority,
            key,
        })
    }
}

/// See [`crate::Start::Found`].
pub async fn found(
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

/// What the first entry says.
pub fn founding(
    new: &NewCluster,
    cluster_id: Uuid,
    admin_password_hash: String,
    options: &Options,
) -> Result<Founding, Error> {
    Ok(Founding {
        cluster_id,
        ca_pem: new.authority.pem().to_owned(),
        ca_key_sealed: new.authority.sealed_key(&new.sealer, cluster_id)?,
        keyring: new.keyring.sealed(&new.sealer)?,
        admin_password_hash,
        member: muster_storage::model::Member {
            id: NodeId(1),
            name: options.node_name.clone(),
            address: options.advertise,
            peer_port: options.peer_port,
            api_port: options.api_port,
            boot_port: options.boot_port,
            version: options.version.clone(),
            min_schema: muster_storage::schema::OLDEST,
            max_schema: muster_storage::schema::CURRENT,
            key_hash: new.key.hash(),
            identifiers: Vec::new(),
        },
    })
}

/// Makes a node that has just been put together a cluster of one.
pub async fn propose_founding(cluster: &Cluster, founding: Founding) -> Result<(), Error> {
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
            remember: None,
            command: Command::Found(Box::new(founding)),
        })
        .await?;
    outcome
        .result
        .map(drop)
        .map_err(|rejection| Error::Refused(rejection.to_string()))
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
