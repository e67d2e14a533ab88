//! Nodes of the cluster: what is recorded of them, and how they are now.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use muster_raft::NodeStatus;
use muster_storage::NodeId;
use serde_json::{Map, Value};

use super::DONE;
use super::extract::{Key, On, Params};
use super::objects::{Page, page};
use crate::problem::Problem;
use crate::{App, Shared, view};

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/", get(list))
        .route("/{key}", get(get_one).delete(remove))
}

/// How a node is now, as members of its JSON form.
pub fn status(node: &NodeStatus) -> Map<String, Value> {
    [
        ("id", Value::from(node.id.0)),
        ("name", node.name.clone().into()),
        ("address", node.address.to_string().into()),
        ("role", node.role.to_string().into()),
        ("revision", node.revision.map(|revision| revision.0).into()),
        ("lag", node.lag.into()),
        ("last_contact_ms", node.last_contact_ms.into()),
        ("version", node.version.clone().into()),
        ("live", node.live.into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect()
}

/// All nodes by name. `revision` is that of the record; what the node has applied is
/// `applied_revision`.
fn all(app: &App) -> BTreeMap<String, Value> {
    let mut now: BTreeMap<NodeId, NodeStatus> = app
        .cluster
        .status()
        .nodes
        .into_iter()
        .map(|node| (node.id, node))
        .collect();
    app.cluster.read(|state| {
        state
            .member_records()
            .map(|record| {
                let mut fields = view::member(record);
                if let Some(node) = now.remove(&record.object.id) {
                    let mut node = status(&node);
                    if let Some(applied) = node.remove("revision") {
                        fields.insert("applied_revision".to_owned(), applied);
                    }
                    fields.extend(node);
                }
                (record.object.name.clone(), Value::Object(fields))
            })
            .collect()
    })
}

async fn list(State(app): State<Shared>, Params(asked): Params<Page>) -> axum::Json<Value> {
    let after = asked.after().unwrap_or_default().to_owned();
    let nodes = all(&app).into_iter().filter(|(name, _)| *name > after);
    let limit = asked.limit();
    let nodes = nodes.take(limit + 1).collect();
    let revision = app.cluster.read(|state| state.revision());
    axum::Json(page(nodes, limit, revision))
}

async fn get_one(State(app): State<Shared>, Key(key): Key) -> Result<axum::Json<Value>, Problem> {
    let id = find(&app, &key)?;
    let found = all(&app).into_values().find(|node| node["id"] == id.0);
    found
        .map(axum::Json)
        .ok_or_else(|| Problem::not_found("node", &key))
}

async fn remove(
    State(app): State<Shared>,
    On(actor): On,
    Key(key): Key,
) -> Result<StatusCode, Problem> {
    let node = find(&app, &key)?;
    tracing::info!(%node, name = key, actor = actor.0, "removing a node");
    app.cluster.remove(node).await?;
    Ok(DONE)
}

/// A node by name or id.
pub fn find(app: &App, key: &str) -> Result<NodeId, Problem> {
    let by_id = || key.parse().ok().map(NodeId);
    app.cluster.read(|state| {
        let by_name = state.member_named(key).map(|member| member.id);
        by_name
            .or_else(|| by_id().filter(|id| state.member(*id).is_some()))
            .ok_or_else(|| Problem::not_found("node", key))
    })
}
