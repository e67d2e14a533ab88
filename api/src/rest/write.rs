//! Proposing a write and waiting until this node has it.

use std::time::Duration;

use muster_storage::{Actor, Command, Outcome, Proposal, RequestId, Revision};
use uuid::Uuid;

use crate::App;
use crate::problem::Problem;

/// How long a write may take: two elections and some.
const WRITE_WAIT: Duration = Duration::from_secs(10);

/// Writes; returns when the write is committed and this node shows it.
pub async fn write(
    app: &App,
    actor: Actor,
    if_match: Option<Revision>,
    command: Command,
) -> Result<Outcome, Problem> {
    let proposal = Proposal {
        request: RequestId(Uuid::new_v4()),
        actor,
        if_match,
        command,
    };
    let done = async {
        let outcome = app.cluster.propose(proposal).await?;
        app.cluster.applied(outcome.revision).await;
        Ok::<_, Problem>(outcome)
    };
    let outcome = tokio::time::timeout(WRITE_WAIT, done).await.map_err(|_| {
        Problem::new(
            "timeout",
            "it is not known whether the write was made; read, then try again",
        )
    })??;
    match &outcome.result {
        Ok(_) => Ok(outcome),
        Err(rejection) => Err(rejection.clone().into()),
    }
}
