//! Before a machine gets what can destroy its data, a quorum commits that an attempt is open
//! (invariant 10).

use std::time::Duration;

use muster_raft::{Cluster, Error};
use muster_storage::model::{Attempt, InstallPhase};
use muster_storage::{Actor, Command, Effect, Proposal, RequestId, Revision};
use tokio::time::timeout;
use uuid::Uuid;

/// How long a machine is kept waiting: iPXE turns to the next node after four seconds of silence.
const COMMIT: Duration = Duration::from_millis(2500);

/// Opens an attempt of this order, or goes on with the present one, and waits until this node knows.
/// Nothing when there is none to be had: the order has ended, by this very boot or before.
///
/// # Errors
/// When it is not known whether a quorum agrees: nothing may be served.
pub async fn open(
    cluster: &Cluster,
    machine: Uuid,
    order: Revision,
) -> Result<Option<Attempt>, Error> {
    let proposal = Proposal {
        request: RequestId(Uuid::new_v4()),
        actor: Actor(format!("machine:{machine}")),
        if_match: None,
        remember: None,
        command: Command::OpenAttempt {
            machine,
            order,
            node: cluster.node_id(),
        },
    };
    let committed = async {
        let outcome = cluster.propose(proposal).await?;
        cluster.applied(outcome.revision).await;
        Ok(outcome.result)
    };
    let result = timeout(COMMIT, committed)
        .await
        .unwrap_or(Err(Error::Timeout))?;
    Ok(match result {
        Ok(Effect::Install(install)) if install.phase == InstallPhase::Open => Some(Attempt {
            order,
            number: install.attempt,
        }),
        Ok(_) => None,
        Err(rejection) => {
            tracing::debug!(%machine, %rejection, "no attempt is opened");
            None
        }
    })
}
