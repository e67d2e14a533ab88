//! Installing a machine, locking it, labelling it, and how it boots.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, patch, post, put};
use muster_storage::{Command, Effect};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::DONE;
use super::extract::{Json, Key, On};
use super::write::write;
use crate::problem::Problem;
use crate::{App, Shared, input, view};

pub fn machine_router() -> Router<Shared> {
    Router::new()
        .route("/{key}/install", post(order).get(show).delete(cancel))
        .route("/{key}/lock", put(lock).delete(unlock))
        .route("/{key}/labels", patch(label))
        .route("/{key}/timeline", get(timeline))
}

/// The UUID of a machine by name, UUID or MAC.
fn uuid(app: &App, key: &str) -> Result<Uuid, Problem> {
    let found = app
        .cluster
        .read(|state| state.machine(key).map(|machine| machine.uuid));
    found.ok_or_else(|| Problem::not_found("machine", key))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    bootenv: String,
    attempts: Option<u32>,
}

async fn order(
    State(app): State<Shared>,
    On(caller): On,
    Key(key): Key,
    Json(body): Json,
) -> Result<(StatusCode, axum::Json<Value>), Problem> {
    let Order { bootenv, attempts } = input::parse(body)?;
    let command = Command::OrderInstall {
        machine: uuid(&app, &key)?,
        bootenv,
        attempts,
    };
    let outcome = write(&app, caller, None, command).await?;
    match outcome.result {
        Ok(Effect::Install(install)) => {
            let body = app.cluster.read(|state| view::install(state, &install));
            Ok((StatusCode::CREATED, axum::Json(body)))
        }
        _ => Err(Problem::new("internal", "an order had another effect")),
    }
}

async fn show(State(app): State<Shared>, Key(key): Key) -> Result<axum::Json<Value>, Problem> {
    let uuid = uuid(&app, &key)?;
    let found = app
        .cluster
        .read(|state| Some(view::install(state, state.install(uuid)?)));
    let found = found.ok_or_else(|| {
        Problem::new(
            "not_found",
            format!("machine `{key}` was never ordered to be installed"),
        )
    })?;
    Ok(axum::Json(found))
}

async fn cancel(
    State(app): State<Shared>,
    On(caller): On,
    Key(key): Key,
) -> Result<StatusCode, Problem> {
    let machine = uuid(&app, &key)?;
    write(&app, caller, None, Command::CancelInstall { machine }).await?;
    Ok(DONE)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Why {
    #[serde(default)]
    reason: String,
}

async fn lock(
    State(app): State<Shared>,
    On(caller): On,
    Key(key): Key,
    Json(body): Json,
) -> Result<axum::Json<Value>, Problem> {
    let Why { reason } = input::parse(body)?;
    let machine = uuid(&app, &key)?;
    write(&app, caller, None, Command::LockMachine { machine, reason }).await?;
    let lock = app
        .cluster
        .read(|state| Some(view::lock(state, state.lock(machine)?)));
    // Somebody may have unlocked it meanwhile.
    Ok(axum::Json(lock.unwrap_or_default()))
}

async fn unlock(
    State(app): State<Shared>,
    On(caller): On,
    Key(key): Key,
) -> Result<StatusCode, Problem> {
    let machine = uuid(&app, &key)?;
    write(&app, caller, None, Command::UnlockMachine { machine }).await?;
    Ok(DONE)
}

/// As a JSON merge patch (RFC 7396): null removes a label.
async fn label(
    State(app): State<Shared>,
    On(caller): On,
    Key(key): Key,
    Json(body): Json,
) -> Result<StatusCode, Problem> {
    let changes: BTreeMap<String, Option<String>> = input::parse(body)?;
    let removed = changes.iter().filter(|(_, value)| value.is_none());
    let command = Command::LabelMachine {
        machine: uuid(&app, &key)?,
        remove: removed.map(|(name, _)| name.clone()).collect(),
        set: changes
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect(),
    };
    write(&app, caller, None, command).await?;
    Ok(DONE)
}

/// Facts in the order of their times: each is that of the node that saw it.
async fn timeline(State(app): State<Shared>, Key(key): Key) -> Result<axum::Json<Value>, Problem> {
    let uuid = uuid(&app, &key)?;
    Ok(axum::Json(app.cluster.read(|state| {
        let mut facts = state
            .timeline(uuid)
            .map_or_else(Vec::new, |timeline| timeline.facts.iter().collect());
        facts.sort_by_key(|fact| fact.at);
        let items: Vec<Value> = facts.into_iter().map(|it| view::fact(state, it)).collect();
        json!({"items": items, "next": null, "revision": state.revision().0})
    })))
}
