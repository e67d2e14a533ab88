//! Proposing a write and waiting until this node has it.

use std::time::Duration;

use muster_storage::model::Sha256;
use muster_storage::{Actor, Command, Outcome, Proposal, Remember, RequestId, Revision};
use sha2::Digest as _;
use uuid::{Builder, Uuid};

use crate::App;
use crate::problem::Problem;

/// How long a write may take: two elections and some.
const WRITE_WAIT: Duration = Duration::from_secs(10);

/// On whose behalf a request is made.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who.
    pub actor: Actor,
    /// Set when the client may send the request again and wants it done once.
    pub key: Option<IdempotencyKey>,
}

/// What a client sent as `Idempotency-Key`, and with what.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// The key.
    pub key: String,
    /// Digest of method, path and body.
    pub asked: Sha256,
}

impl Caller {
    /// The same, for what is not told a second time: because it holds a secret, or is known to be
    /// the same only when it is there.
    pub fn without_key(self) -> Self {
        Self { key: None, ..self }
    }

    /// The id of a proposal, and how it is to be remembered.
    fn identity(&self, app: &App) -> (RequestId, Remember) {
        match &self.key {
            None => {
                let since = app.cluster.read(muster_storage::State::revision);
                (RequestId(Uuid::new_v4()), Remember::Retry { since })
            }
            Some(IdempotencyKey { key, asked }) => {
                let name = format!("{}\0{key}", self.actor.0);
                let digest: [u8; 32] = sha2::Sha256::digest(name).into();
                let half = digest.first_chunk::<16>().copied().unwrap_or_default();
                let id = Builder::from_custom_bytes(half);
                (RequestId(id.into_uuid()), Remember::Key { asked: *asked })
            }
        }
    }
}

/// Writes; returns when the write is committed and this node shows it.
pub async fn write(
    app: &App,
    caller: Caller,
    if_match: Option<Revision>,
    command: Command,
) -> Result<Outcome, Problem> {
    let (request, remember) = caller.identity(app);
    let proposal = Proposal {
        request,
        actor: caller.actor,
        if_match,
        remember: Some(remember),
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
