//! What is wrong with the site, and what each node can tell for whoever is to mend it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::DONE;
use super::extract::{Json as Body, Key, On, Params};
use super::health::exposition;
use crate::node::{Failure, Question};
use crate::problem::Problem;
use crate::{Shared, input};

#[derive(Deserialize)]
pub struct Looking {
    #[serde(default)]
    probe: bool,
}

/// Findings about the site, with the facts that they follow from.
pub async fn diagnose(State(app): State<Shared>, Params(asked): Params<Looking>) -> Json<Value> {
    Json(app.node.diagnose(asked.probe).await)
}

/// What a node says of itself.
pub async fn facts(
    State(app): State<Shared>,
    Key(key): Key,
    Params(asked): Params<Looking>,
) -> Result<Json<Value>, Problem> {
    let probe = asked.probe;
    Ok(Json(ask(&app, &key, Question::Facts { probe }).await?))
}

/// The metrics of a node, in the text format of Prometheus.
pub async fn metrics(State(app): State<Shared>, Key(key): Key) -> Result<Response, Problem> {
    let text = ask(&app, &key, Question::Metrics).await?;
    Ok(exposition(text.as_str().unwrap_or_default().to_owned()))
}

/// The last lines that a node logged.
pub async fn log(State(app): State<Shared>, Key(key): Key) -> Result<Json<Value>, Problem> {
    let lines = ask(&app, &key, Question::Log).await?;
    Ok(Json(json!({"lines": lines})))
}

/// Has a node fail, for a drill. What it costs is for whoever ordered it to measure.
pub async fn fail(
    State(app): State<Shared>,
    On(caller): On,
    Key(key): Key,
    Body(body): Body,
) -> Result<StatusCode, Problem> {
    let how: Failure = input::parse(body)?;
    let actor = &caller.actor.0;
    tracing::warn!(node = key, actor, "a node is to fail: {how:?}");
    ask(&app, &key, Question::Fail { how }).await?;
    Ok(DONE)
}

async fn ask(app: &Shared, key: &str, question: Question) -> Result<Value, Problem> {
    let node = app.cluster.find(key)?;
    Ok(app.node.ask(node, question).await?)
}
