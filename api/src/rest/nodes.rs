//! Nodes of the cluster: what is recorded of them, and how they are now.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use muster_raft::{NodeStatus, Role};
use muster_storage::NodeId;
use serde_json::{Map, Value};

use super::extract::{Key, On, Params};
use super::objects::{Page, page};
use super::{DONE, diagnosis};
use crate::problem::Problem;
use crate::{App, Shared, view};

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/", get(list))
        .route("/{key}", get(get_one).delete(remove))
        .route("/{key}/facts", get(diagnosis::facts))
        .route("/{key}/metrics", get(diagnosis::metrics))
        .route("/{key}/log", get(diagnosis::log))
        .route("/{key}/fail", post(diagnosis::fail))
}

fn role(node: &NodeStatus, leader: Option<NodeId>) -> Value {
    let role = match node.role {
        _ if leader == Some(node.id) => "leader",
        Role::Voter => "voter",
        Role::Learner => "learner",
    };
    role.into()
}

/// How a node is now, as members of its JSON form.
pub fn status(node: &NodeStatus, leader: Option<NodeId>) -> Map<String, Value> {
    [
        ("id", Value::from(node.id.0)),
        ("name", node.name.clone().into()),
        ("address", node.address.to_string().into()),
        ("role", role(node, leader)),
        ("revision", node.revision.map(|revision| revision.0).into()),
        ("lag", node.lag.into()),
        ("last_contact_ms", node.last_contact_ms.into()),
        ("version", node.version.clone().into()),
        ("live", node.live.into()),
        ("fault", node.fault.clone().into()),
        ("draining", node.draining.into()),
        ("transfers", node.transfers.into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect()
}

/// All nodes by name. `revision` is that of the record; what the node has applied is
/// `applied_revision`.
fn all(app: &App) -> BTreeMap<String, Value> {
    let status_now = app.cluster.status();
    let leader = status_now.leader;
    let mut now: BTreeMap<NodeId, NodeStatus> = status_now
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
                    let mut node = status(&node, leader);
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
    let id = app.cluster.find(&key)?;
    let found = all(&app).into_values().find(|node| node["id"] == id.0);
    found
        .map(axum::Json)
        .ok_or_else(|| Problem::not_found("node", &key))
}

async fn remove(
    State(app): State<Shared>,
    On(caller): On,
    Key(key): Key,
) -> Result<StatusCode, Problem> {
    tracing::info!(node = key, actor = caller.actor.0, "removing a node");
    let removed = app.cluster.remove(&key).await;
    removed.map_err(|error| app.refusal(error))?;
    Ok(DONE)
}
