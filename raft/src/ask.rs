//! Questions of a service to the same service of another node. What they say is none of raft's
//! business: it brings them there, to a member alone.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use muster_storage::NodeId;

use crate::Error;
use crate::answer::{Excuses, reach};
use crate::inner::Inner;
use crate::peer::Link;
use crate::wire::proto::{AskReply, AskRequest};

const EXCUSES: Excuses = Excuses {
    not_live: ", so it cannot be asked",
    old_version: "cannot be asked; upgrade it",
};

/// Answers questions of peers; else says why not, in words for people.
pub type Answerer =
    Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, String>> + Send + Sync + 'static>;

/// Asks a node, this one or another.
pub async fn ask(inner: &Inner, node: NodeId, question: Bytes) -> Result<Bytes, Error> {
    if node == inner.id {
        return answer(inner, question).await.map_err(Error::Refused);
    }
    let ask = |mut link: Link| async move { link.bulk.ask(AskRequest { question }).await };
    let (name, AskReply { answer, problem }) = reach(inner, node, &EXCUSES, ask).await?;
    match problem.is_empty() {
        true => Ok(answer),
        false => Err(Error::Refused(format!("node `{name}` refuses: {problem}"))),
    }
}

async fn answer(inner: &Inner, question: Bytes) -> Result<Bytes, String> {
    let answerer = inner.answerer().clone();
    match answerer {
        Some(answerer) => answerer(question).await,
        None => Err("it is still starting; ask again in a moment".to_owned()),
    }
}

/// Answers a peer.
pub async fn serve(inner: &Inner, request: AskRequest) -> AskReply {
    match answer(inner, request.question).await {
        Ok(answer) => AskReply {
            answer,
            problem: String::new(),
        },
        Err(problem) => AskReply {
            answer: Bytes::new(),
            problem,
        },
    }
}
