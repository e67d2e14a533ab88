//! Whether the process lives, and whether it is of use.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::Shared;
use crate::problem::Problem;

/// The process lives and answers.
pub async fn alive() -> Response {
    axum::Json(json!({"status": "alive"})).into_response()
}

/// The process lives and answers; a quorum is not needed for that. Says what is wrong, if anything.
pub async fn healthz(State(app): State<Shared>) -> Response {
    match app.cluster.fault() {
        None => alive().await,
        Some(fault) => axum::Json(json!({"status": "alive", "fault": fault})).into_response(),
    }
}

/// The node serves and has a quorum behind it.
pub async fn readyz(State(app): State<Shared>) -> Result<Response, Problem> {
    if app.cluster.is_draining() {
        Err(Problem::new("not_ready", "this node is about to stop"))
    } else if let Some(fault) = app.cluster.fault() {
        Err(Problem::new(
            "not_ready",
            format!("this node takes part no more: {fault}"),
        ))
    } else if !app.cluster.has_quorum() {
        Err(Problem::new(
            "not_ready",
            "this node has no quorum behind it",
        ))
    } else {
        Ok(axum::Json(json!({"status": "ready"})).into_response())
    }
}

/// Metrics of this node.
pub async fn metrics(State(app): State<Shared>) -> Response {
    exposition(app.node.metrics())
}

/// An answer in the text format of Prometheus.
pub fn exposition(text: String) -> Response {
    let headers = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (headers, text).into_response()
}
