//! The cluster as a whole: status, joining, leadership.

use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use muster_storage::Command;
use serde::Deserialize;
use serde_json::{Value, json};

use super::extract::{Json, On};
use super::write::write;
use super::{DONE, backup, keyring, nodes};
use crate::problem::Problem;
use crate::{Shared, input, view};

/// Longest life of a join token, in seconds: a year.
const TTL_SECS_MAX: u64 = 365 * 24 * 3600;

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/", get(status))
        .route(
            "/join-tokens",
            post(new_join_token).delete(revoke_join_tokens),
        )
        .route("/transfer", post(transfer))
        .route("/drain", post(drain))
        .route("/upgrade", get(upgrade))
        .route("/finalize", post(finalize))
        .route("/replace", post(replace))
        .route("/renew-certificates", post(renew_certificates))
        .route("/rotate-keys", post(keyring::rotate))
        .route("/backup", get(backup::get))
}

/// As this node sees it, with or without a quorum.
async fn status(State(app): State<Shared>) -> axum::Json<Value> {
    let status = app.cluster.status();
    let nodes: Vec<Value> = status
        .nodes
        .iter()
        .map(|node| Value::Object(nodes::status(node, status.leader)))
        .collect();
    axum::Json(json!({
        "cluster_id": status.cluster_id,
        "leader": status.leader.map(|leader| leader.0),
        "revision": status.revision.0,
        "quorum": status.quorum,
        "schema": app.cluster.read(muster_storage::State::schema),
        "minority_since": app.node.minority_since().map(view::time),
        "nodes": nodes,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewJoinToken {
    ttl_secs: u64,
}

async fn new_join_token(
    State(app): State<Shared>,
    On(caller): On,
    Json(body): Json,
) -> Result<Response, Problem> {
    let NewJoinToken { ttl_secs } = input::parse(body)?;
    if ttl_secs == 0 || ttl_secs > TTL_SECS_MAX {
        return Err(Problem::invalid(
            "ttl_secs",
            format!("must be 1 to {TTL_SECS_MAX}"),
        ));
    }
    let token = app
        .cluster
        .join_token(Duration::from_secs(ttl_secs), caller.actor)
        .await?;
    Ok((StatusCode::CREATED, axum::Json(json!({"token": token}))).into_response())
}

async fn revoke_join_tokens(
    State(app): State<Shared>,
    On(caller): On,
) -> Result<StatusCode, Problem> {
    write(&app, caller, None, Command::RevokeJoinTokens).await?;
    Ok(DONE)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    #[serde(default)]
    node: Option<String>,
}

/// Hands leadership to a node, or to any other than the one that has it.
async fn transfer(
    State(app): State<Shared>,
    On(_): On,
    Json(body): Json,
) -> Result<StatusCode, Problem> {
    let Which { node } = input::parse(body)?;
    let node = node.map(|key| app.cluster.find(&key)).transpose()?;
    let handed_over = app.cluster.transfer(node).await;
    handed_over.map_err(|error| app.refusal(error))?;
    Ok(DONE)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Replacement {
    dead: String,
    new: String,
}

/// Puts a node that has joined in the place of one that does not answer any more.
async fn replace(
    State(app): State<Shared>,
    On(caller): On,
    Json(body): Json,
) -> Result<StatusCode, Problem> {
    let Replacement { dead, new } = input::parse(body)?;
    tracing::info!(
        node = new,
        replaced = dead,
        actor = caller.actor.0,
        "replacing a node"
    );
    let replaced = app.cluster.replace(&dead, &new).await;
    replaced.map_err(|error| app.refusal(error))?;
    Ok(DONE)
}

/// Has a node, or all of them, take a new key with a new certificate.
async fn renew_certificates(
    State(app): State<Shared>,
    On(caller): On,
    Json(body): Json,
) -> Result<StatusCode, Problem> {
    let Which { node } = input::parse(body)?;
    let node = node.map(|key| app.cluster.find(&key)).transpose()?;
    tracing::info!(
        node = node.map(tracing::field::display),
        actor = caller.actor.0,
        "renewing certificates"
    );
    let renewed = app.cluster.renew_certificates(node).await;
    renewed.map_err(|error| app.refusal(error))?;
    Ok(DONE)
}

/// Makes a node ready to be stopped, this one if none is named: it is ready no more, and leads no
/// more.
async fn drain(
    State(app): State<Shared>,
    On(caller): On,
    Json(body): Json,
) -> Result<StatusCode, Problem> {
    let Which { node } = input::parse(body)?;
    let node = match node {
        Some(key) => app.cluster.find(&key)?,
        None => app.cluster.node_id(),
    };
    tracing::info!(%node, actor = caller.actor.0, "draining a node");
    let drained = app.cluster.drain(node).await;
    drained.map_err(|error| app.refusal(error))?;
    Ok(DONE)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// The version that all nodes are to have; the newest that one of them has if absent.
    to: Option<String>,
}

/// How far an upgrade is, as this node sees it: which nodes are left, and why none may be taken down
/// now.
async fn upgrade(
    State(app): State<Shared>,
    Query(Wanted { to }): Query<Wanted>,
) -> axum::Json<Value> {
    let upgrade = app.cluster.upgrade(to);
    axum::Json(json!({
        "to": upgrade.to,
        "schema": upgrade.schema,
        "supported_schema": upgrade.supported,
        "raisable_since": upgrade.raisable_since.map(view::time),
        "raise_due": upgrade.raise_due.map(view::time),
        "left": upgrade.left,
        "under_way": upgrade.under_way,
        "not_now": upgrade.not_now,
    }))
}

/// Goes on to the newest schema that all nodes support; there is no way back.
async fn finalize(
    State(app): State<Shared>,
    On(caller): On,
    Json(body): Json,
) -> Result<axum::Json<Value>, Problem> {
    let Nothing {} = input::parse(body)?;
    tracing::info!(actor = caller.actor.0, "going on to the newest schema");
    let raised = app.cluster.finalize(caller.actor).await;
    let schema = raised.map_err(|error| app.refusal(error))?;
    Ok(axum::Json(json!({"schema": schema})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}
