//! What this node's services tell its API.

use futures::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use muster_api::node::{About, Node, Question};
use muster_raft::{Answerer, Cluster, Error};
use muster_storage::command::Client;
use muster_storage::{NodeId, Timestamp};
use serde_json::{Value, json};

use crate::minority::Minority;
use crate::recent_log::RecentLog;
use crate::{doctor, failure, peers};
use crate::{scrape, telemetry};

/// The services of this node.
#[derive(Clone)]
pub struct Own {
    /// The cluster.
    pub cluster: Cluster,
    /// What was recorded.
    pub metrics: PrometheusHandle,
    /// Whether there is a quorum.
    pub minority: Minority,
    /// The last lines of the log.
    pub log: RecentLog,
    /// The site, as seen from here.
    pub site: doctor::site::Own,
}

impl Own {
    /// Answers what other nodes ask.
    pub fn answerer(&self) -> Answerer {
        let own = self.clone();
        peers::answerer(move |question| {
            let own = own.clone();
            Box::pin(async move { own.answer(question).await })
        })
    }

    async fn answer(&self, question: Question) -> Result<Value, String> {
        match question {
            Question::Facts { probe } => {
                let facts = self.site.look(probe).await;
                serde_json::to_value(facts).map_err(|error| error.to_string())
            }
            Question::Metrics => Ok(self.metrics().into()),
            Question::Log => Ok(self.log.lines().into()),
            Question::Fail { how } => {
                failure::carry_out(&self.cluster, how).await?;
                Ok(Value::Null)
            }
        }
    }
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
        Box::pin(async move { self.site.dhcp.explain(about, &clients).await })
    }
    fn diagnose(&self, probe: bool) -> BoxFuture<'_, Value> {
        Box::pin(async move {
            let site = self.site.site(probe).await;
            let findings = doctor::judge(&site);
            json!({
                "findings": findings,
                "cluster": site.cluster,
                "nodes": site.nodes,
                "unheard": site.unheard,
            })
        })
    }

    fn ask(&self, node: NodeId, question: Question) -> BoxFuture<'_, Result<Value, Error>> {
        Box::pin(async move { peers::ask(&self.cluster, node, &question).await })
    }
}
