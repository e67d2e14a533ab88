//! Questions of a service to the same service of another node. What they say is none of raft's
//! business: it brings them there, to a member alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use muster_storage::NodeId;
use tonic::Code;

use crate::Error;
use crate::inner::Inner;
use crate::wire::proto::{AskReply, AskRequest};

/// For the answer: a node may have to look at its disk, and listen on its links.
const DEADLINE: Duration = Duration::from_secs(10);

/// Answers questions of peers; else says why not, in words for people.
pub type Answerer =
    Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, String>> + Send + Sync + 'static>;

/// Asks a node, this one or another.
pub async fn ask(inner: &Inner, node: NodeId, question: Bytes) -> Result<Bytes, Error> {
    if node == inner.id {
        return answer(inner, question).await.map_err(Error::Refused);
    }
    let name = inner
        .memory
        .read(|state| state.member(node).map(|member| member.name.clone()))
        .ok_or_else(|| Error::NoSuchNode(node.to_string()))?;
    let refused = |why: String| Err(Error::Refused(format!("node `{name}` {why}")));
    if !inner.board.is_live(node.0) {
        return refused("is not live, so it cannot be asked".to_owned());
    }
    let mut peer = inner.links.to(node.0)?.bulk;
    let asked = peer.ask(AskRequest { question });
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(Ok(reply)) => match reply.into_inner() {
            AskReply { answer, problem } if problem.is_empty() => Ok(answer),
            AskReply { problem, .. } => refused(format!("refuses: {problem}")),
        },
        Ok(Err(status)) if status.code() == Code::Unimplemented => {
            refused("is of a version that cannot be asked; upgrade it".to_owned())
        }
        Ok(Err(status)) => refused(format!(
            "could not be asked: {}",
            crate::peer::root_cause(&status)
        )),
        Err(_) => Err(Error::Timeout),
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
