//! What this node's services tell its API.

use futures::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use muster_api::node::{About, Node};
use muster_raft::Cluster;
use muster_storage::Timestamp;
use muster_storage::command::Client;
use serde_json::Value;

use crate::dhcp;
use crate::minority::Minority;
use crate::{scrape, telemetry};

/// The services of this node.
pub struct Own {
    /// The cluster.
    pub cluster: Cluster,
    /// What was recorded.
    pub metrics: PrometheusHandle,
    /// Whether there is a quorum.
    pub minority: Minority,
    /// DHCP.
    pub dhcp: dhcp::Server,
}

impl Node for Own {
    fn metrics(&self) -> String {
        telemetry::read_process();
        self.metrics.render() + &scrape::read(&self.cluster)
    }

    fn minority_since(&self) -> Option<Timestamp> {
        self.minority.since()
    }

    fn explain<'a>(&'a self, about: About, clients: Vec<Client>) -> BoxFuture<'a, Value> {
        Box::pin(async move { self.dhcp.explain(about, &clients).await })
    }
}
