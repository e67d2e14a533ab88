//! Minority mode (invariant 7): for how long this node has had no quorum behind it, told in its log,
//! in its metrics and its status, and as an event when it is over.

use std::time::Duration;

use metrics::{describe_gauge, gauge};
use muster_raft::Cluster;
use muster_storage::Timestamp;
use muster_storage::model::Trouble;
use tokio::sync::watch;

use crate::alert;

const MINORITY: &str = "muster_minority";

/// How often it is looked whether there is a quorum.
const LOOK: Duration = Duration::from_millis(250);

/// Says what the metric means.
pub fn describe() {
    describe_gauge!(
        MINORITY,
        "1 on a node that has had no quorum for longer than an election takes: it promises nothing new and confirms what is committed"
    );
}

/// Whether this node is in minority mode.
#[derive(Clone, Debug)]
pub struct Minority(watch::Sender<Option<Timestamp>>);

impl Default for Minority {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Minority {
    /// Since when it has had no quorum; none while it has one, or an election may be all that it is.
    pub fn since(&self) -> Option<Timestamp> {
        *self.0.borrow()
    }

    /// Watches for ever.
    pub async fn watch(self, cluster: Cluster) {
        loop {
            gauge!(MINORITY).set(0.0);
            until(&cluster, false).await;
            let since = cluster.now();
            if cluster.outlast_election().await {
                continue;
            }
            tracing::warn!(
                %since,
                "minority mode begins: without a quorum nothing new is promised or written; committed leases are confirmed to their end"
            );
            self.0.send_replace(Some(since));
            gauge!(MINORITY).set(1.0);
            until(&cluster, true).await;
            let until = cluster.now();
            tracing::warn!(%since, %until, "minority mode ends: there is a quorum again");
            self.0.send_replace(None);
            tokio::spawn(alert::raise(
                cluster.clone(),
                Trouble::Minority { since, until },
            ));
        }
    }
}

/// Waits until there is a quorum, or none.
async fn until(cluster: &Cluster, quorum: bool) {
    while cluster.has_quorum() != quorum {
        tokio::time::sleep(LOOK).await;
    }
}
