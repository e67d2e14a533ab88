//! A cluster of one in memory, for tests.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use muster_storage::blobs::Blobs;
use muster_storage::engine::Engine;
use uuid::Uuid;

use super::Open;
use super::assemble::{Parts, assemble};
use super::found::{NewCluster, founding, propose_founding};
use crate::cluster::Cluster;
use crate::host::Host;
use crate::identity::Identity;
use crate::options::{Limits, Options, Start, Timing};

impl Cluster {
    /// A cluster of one in memory, without a network, for tests.
    ///
    /// # Panics
    /// When it cannot be made, which in a test is a failure.
    pub async fn solo() -> Self {
        solo(None).await
    }

    /// Like [`Cluster::solo`], with the bytes of artifacts kept in `dir`.
    ///
    /// # Panics
    /// When it cannot be made, which in a test is a failure.
    pub async fn solo_in(dir: &Path) -> Self {
        solo(Some(dir.to_owned())).await
    }

    /// Makes a write on this node alone, behind the cluster's back, for tests.
    pub fn diverge(&self, proposal: muster_storage::Proposal) {
        self.inner.memory.tamper(proposal);
    }
}

async fn solo(blobs_dir: Option<PathBuf>) -> Cluster {
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
        certificate_pem: Some(new.certificate_pem),
        ca_pem: new.authority.pem().to_owned(),
        key: new.key,
        sealer: Some(new.sealer),
        bootstrap: Vec::new(),
        scratch: Some(scratch),
        config: options.raft_config().expect("a valid configuration"),
        host: Host::Real,
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
