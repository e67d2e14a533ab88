//! Leases: read, explained, and ended by an operator.

mod why;

use std::net::Ipv4Addr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use muster_storage::Command;
use serde_json::Value;

use super::DONE;
use super::extract::{Conditions, Key, On, Params, etag};
use super::objects::{Page, page};
use super::write::write;
use crate::problem::Problem;
use crate::{Shared, view};

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/", get(list))
        .route("/{key}", get(get_one).delete(end))
        .route("/{key}/why", get(why::get))
}

fn address(key: &str) -> Result<Ipv4Addr, Problem> {
    key.parse().map_err(|_| Problem::not_found("lease", key))
}

async fn list(
    State(app): State<Shared>,
    Params(asked): Params<Page>,
) -> Result<axum::Json<Value>, Problem> {
    let after = asked.after().map(str::parse).transpose();
    let after = after.map_err(|_| Problem::new("malformed", "`after` is an address"))?;
    let limit = asked.limit();
    Ok(axum::Json(app.cluster.read(|state| {
        let items = state
            .leases_after(after)
            .take(limit + 1)
            .map(|record| {
                (
                    record.object.address.to_string(),
                    view::lease(state, record),
                )
            })
            .collect();
        page(items, limit, state.revision())
    })))
}

async fn get_one(State(app): State<Shared>, Key(key): Key) -> Result<Response, Problem> {
    let address = address(&key)?;
    let found = app.cluster.read(|state| {
        let record = state.lease(address)?;
        Some((view::lease(state, record), record.revision))
    });
    let (body, revision) = found.ok_or_else(|| Problem::not_found("lease", &key))?;
    Ok(([(header::ETAG, etag(revision))], axum::Json(body)).into_response())
}

async fn end(
    State(app): State<Shared>,
    On(caller): On,
    Key(key): Key,
    conditions: Conditions,
) -> Result<StatusCode, Problem> {
    let address = address(&key)?;
    write(
        &app,
        caller,
        conditions.revision,
        Command::EndLease { address },
    )
    .await?;
    Ok(DONE)
}
