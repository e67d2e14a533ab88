//! What the services of one node ask of those of another.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use muster_api::node::Question;
use muster_raft::{Answerer, Cluster, Error};
use muster_storage::model::NodeId;
use serde_json::Value;

/// Asks a node, this one or another.
///
/// # Errors
/// As [`Cluster::ask`]; refused when the answer cannot be read.
pub async fn ask(cluster: &Cluster, node: NodeId, question: &Question) -> Result<Value, Error> {
    let unreadable = |error: serde_json::Error| Error::Refused(error.to_string());
    let question = serde_json::to_vec(question).map_err(unreadable)?;
    let answer = cluster.ask(node, Bytes::from(question)).await?;
    serde_json::from_slice(&answer).map_err(unreadable)
}

/// Answers questions in the form in which they travel.
pub fn answerer<F>(answer: F) -> Answerer
where
    F: Fn(Question) -> BoxFuture<'static, Result<Value, String>> + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    Arc::new(move |question: Bytes| {
        let answer = Arc::clone(&answer);
        Box::pin(async move {
            let question: Question = serde_json::from_slice(&question)
                .map_err(|_| "it is of a version that does not know the question".to_owned())?;
            let answer = answer(question).await?;
            let answer = serde_json::to_vec(&answer).map_err(|error| error.to_string())?;
            Ok(Bytes::from(answer))
        })
    })
}
