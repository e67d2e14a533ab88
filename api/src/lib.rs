//! How people and programs talk to the cluster: the REST API, its client, and the templates that
//! machines are given.
//!
//! Any node takes any request: what is written is proposed to the cluster and answered when this
//! node has applied it. Start reading at [`rest::router`]; [`server`] puts it on the wire.

pub mod auth;
pub mod client;
pub mod input;
pub mod machine_token;
pub mod node;
pub mod options;
pub mod problem;
pub mod rest;
pub mod server;
pub mod template;
pub mod view;

pub use problem::Problem;

use std::sync::Arc;

use muster_raft::Cluster;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// What every handler has at hand.
pub struct App {
    /// The cluster, through the node that serves this API.
    pub cluster: Cluster,
    /// Passwords that were verified lately.
    pub(crate) verified: auth::Verified,
    /// The services beside the API.
    pub(crate) node: Box<dyn node::Node>,
    /// Cancelled when the server stops: ends streams that would never end by themselves.
    pub(crate) stopping: CancellationToken,
    /// Room for backups.
    pub(crate) backups: Arc<Semaphore>,
}

/// [`App`], shared by all requests.
pub type Shared = Arc<App>;

impl App {
    /// The application on `cluster`, beside the services of `node`; `stopping` is cancelled when
    /// the node stops.
    pub fn new(cluster: Cluster, node: impl node::Node, stopping: CancellationToken) -> Shared {
        Arc::new(Self {
            cluster,
            verified: auth::Verified::default(),
            node: Box::new(node),
            stopping,
            backups: Arc::new(Semaphore::new(rest::BACKUPS_MAX)),
        })
    }

    /// Why an order was not carried out. Without a quorum that is for want of one, whatever the
    /// order stumbled over.
    pub(crate) fn refusal(&self, error: muster_raft::Error) -> Problem {
        use muster_raft::Error;
        match error {
            Error::Refused(detail) if !self.cluster.has_quorum() => {
                Problem::new("unavailable", detail)
            }
            error => error.into(),
        }
    }
}
