//! What this node holds of each peer: two channels, so that bulk never delays a heartbeat.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tonic::codegen::InterceptedService;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};
use uuid::Uuid;

use super::dial::{Gate, Target, peer_channel};
use super::{MESSAGE_BYTES, header};
use crate::Error;
use crate::host::Host;
use crate::tls::{Dialler, peer_name};
use crate::wire::proto::peer_client::PeerClient as GeneratedClient;

/// A client whose calls carry the ids that the peer checks.
pub type PeerClient = GeneratedClient<InterceptedService<Wire, Route>>;

/// What carries the calls.
#[cfg(not(test))]
pub type Wire = tonic::transport::Channel;
#[cfg(test)]
pub type Wire = crate::sim::Wire;

/// From which node to which, in which cluster.
#[derive(Clone)]
pub struct Route {
    cluster: MetadataValue<Ascii>,
    from: MetadataValue<Ascii>,
    to: MetadataValue<Ascii>,
}

impl Route {
    fn new(cluster: Uuid, from: u64, to: u64) -> Result<Self, Error> {
        let value = |text: String| {
            MetadataValue::try_from(text).map_err(|error| Error::Config(error.to_string()))
        };
        Ok(Self {
            cluster: value(cluster.to_string())?,
            from: value(from.to_string())?,
            to: value(to.to_string())?,
        })
    }
}

impl Interceptor for Route {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert(header::CLUSTER, self.cluster.clone());
        metadata.insert(header::FROM, self.from.clone());
        metadata.insert(header::TO, self.to.clone());
        Ok(request)
    }
}

/// The link to one peer.
#[derive(Clone)]
pub struct Link {
    /// Replication, snapshots, artifacts.
    pub bulk: PeerClient,
    /// Heartbeats, votes, proposals, reads, pulse.
    pub fast: PeerClient,
    /// How dialling goes.
    pub gate: Arc<Gate>,
}

type Lookup = dyn Fn(u64) -> Option<Target> + Send + Sync;

/// The links to all peers, made when they are first needed.
pub struct Links {
    cluster: Uuid,
    me: u64,
    tls: Dialler,
    host: Host,
    lookup: Arc<Lookup>,
    links: Mutex<BTreeMap<u64, Link>>,
}

impl Links {
    /// Links of node `me`; `lookup` tells where a peer listens, and is asked at every dial.
    pub fn new(
        cluster: Uuid,
        me: u64,
        tls: Dialler,
        host: Host,
        lookup: impl Fn(u64) -> Option<Target> + Send + Sync + 'static,
    ) -> Self {
        Self {
            cluster,
            me,
            tls,
            host,
            lookup: Arc::new(lookup),
            links: Mutex::new(BTreeMap::new()),
        }
    }

    /// The link to a peer.
    pub fn to(&self, peer: u64) -> Result<Link, Error> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&peer) {
            return Ok(link.clone());
        }
        let gate = Arc::new(Gate::default());
        let route = Route::new(self.cluster, self.me, peer)?;
        let client = || -> Result<PeerClient, Error> {
            let wire = self.wire(peer, &gate)?;
            Ok(GeneratedClient::with_interceptor(wire, route.clone())
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES))
        };
        let link = Link {
            bulk: client()?,
            fast: client()?,
            gate: Arc::clone(&gate),
        };
        links.insert(peer, link.clone());
        Ok(link)
    }

    fn wire(&self, peer: u64, gate: &Arc<Gate>) -> Result<Wire, Error> {
        match &self.host {
            Host::Real => {
                let lookup = Arc::clone(&self.lookup);
                let channel = peer_channel(
                    &peer_name(self.cluster, peer),
                    move || lookup(peer),
                    self.tls.clone(),
                    Arc::clone(gate),
                )?;
                // Only in tests there is anything to convert.
                #[allow(clippy::useless_conversion)]
                Ok(channel.into())
            }
            #[cfg(test)]
            Host::Simulated(machine) => Ok(machine.wire(peer, gate)),
        }
    }

    /// The machine that this node runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Forgets the link to a peer that left.
    pub fn forget(&self, peer: u64) {
        self.links
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&peer);
    }
}
