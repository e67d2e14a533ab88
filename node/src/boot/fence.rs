//! Before a machine gets what can destroy its data, a quorum commits that an attempt is open
//! (invariant 10).

use std::time::Duration;

use muster_raft::{Cluster, Error};
use muster_storage::model::{Attempt, Install, InstallPhase};
use muster_storage::{Actor, Command, Effect, Proposal, RequestId};
use tokio::time::timeout;
use uuid::Uuid;

/// How long a machine is kept waiting: iPXE turns to the next node after four seconds of silence.
const COMMIT: Duration = Duration::from_millis(2500);

/// Opens an attempt of this order, or goes on with the present one, and waits until this node knows.
/// Nothing when it has to be read anew: it has gone on meanwhile, or has ended by this very boot.
///
/// # Errors
/// When it is not known whether a quorum agrees: nothing may be served.
pub async fn open(cluster: &Cluster, install: &Install) -> Result<Option<Attempt>, Error> {
    let machine = install.machine;
    let proposal = Proposal {
        request: RequestId(Uuid::new_v4()),
        actor: Actor(format!("machine:{machine}")),
        if_match: None,
        remember: None,
        command: Command::OpenAttempt {
            machine,
            read: install.present(),
            started: install.started,
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
        Ok(Effect::Install(install)) if install.phase == InstallPhase::Open => {
            Some(install.present())
        }
        Ok(_) => None,
        Err(rejection) => {
            tracing::debug!(%machine, error = %rejection, "no attempt is opened");
            None
        }
    })
}
