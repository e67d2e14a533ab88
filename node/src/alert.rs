//! What this node tells people to look into: in its log at once, and as an event of the cluster as
//! soon as that can be written.

use std::time::Duration;

use muster_raft::{Cluster, Error};
use muster_storage::model::{Alert, Trouble};
use muster_storage::{Actor, Command, Proposal, RequestId};

/// How often an event is tried to be written; after that the log has to do.
const ATTEMPTS: u32 = 10;

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(2);

/// Writes an event.
pub async fn raise(cluster: Cluster, trouble: Trouble) {
    let label = trouble.label();
    let command = Command::Alert(Box::new(Alert {
        node: cluster.node_id(),
        trouble,
    }));
    for _ in 0..ATTEMPTS {
        let proposal = Proposal {
            request: RequestId(uuid::Uuid::new_v4()),
            actor: Actor(format!("node:{}", cluster.node_name())),
            if_match: None,
            remember: None,
            command: command.clone(),
        };
        match cluster.propose(proposal).await {
            // Written, or perhaps: told twice would be worse than told in the log alone.
            Ok(_) | Err(Error::Timeout) => return,
            Err(problem) => {
                tracing::debug!(error = %problem, trouble = label, "an event is not written yet")
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    tracing::warn!(
        trouble = label,
        "an event could not be written; this log has it alone"
    );
}
