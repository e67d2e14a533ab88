//! What every answer has in common.

use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use muster_storage::Revision;
use muster_storage::model::Sha256;
use serde::Deserialize;
use sha2::Digest as _;

use super::extract::{Params, text, whole};
use super::write::IdempotencyKey;
use crate::auth::CATCH_UP;
use crate::problem::{Code, Problem};
use crate::{App, Shared};

/// How long a read waits for the leader's word, or for a revision to arrive here.
const READ_WAIT: Duration = Duration::from_secs(5);

/// Name of this node.
const NODE: &str = "muster-node";
/// Name of the leader, as far as this node knows one.
const LEADER: &str = "muster-leader";
/// What this node has applied.
const REVISION: &str = "muster-revision";
/// Set when a read may be out of date: this node has no quorum.
const STALE: &str = "muster-stale";

/// By which a request that is sent again is recognised.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest such key, in octets.
const KEY_OCTETS_MAX: usize = 255;

/// Counts requests.
const REQUESTS: &str = "muster_api_requests_total";
/// Times them.
const SECONDS: &str = "muster_api_request_seconds";

/// Adds who answered and how much of history it knows, and counts the request.
pub async fn describe(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let method = name(request.method());
    let begun = Instant::now();
    let mut response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics::counter!(REQUESTS, "method" => method, "status" => status).increment(1);
    metrics::histogram!(SECONDS, "method" => method).record(begun.elapsed().as_secs_f64());
    let leader = app.cluster.leader();
    let (revision, leader) = app.cluster.read(|state| {
        let leader = leader.and_then(|id| state.member(id));
        (state.revision(), leader.map(|member| member.name.clone()))
    });
    let headers = response.headers_mut();
    set(headers, NODE, app.cluster.node_name());
    if let Some(leader) = leader {
        set(headers, LEADER, &leader);
    }
    set(headers, REVISION, &revision.to_string());
    response
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// A label of few values, whatever a client sends.
fn name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        _ => "other",
    }
}

/// Query parameters that every read takes.
#[derive(Deserialize)]
pub struct Freshness {
    consistency: Option<Consistency>,
    min_revision: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Sees every write that was answered before (the default).
    Linear,
    /// What this node has.
    Local,
}

/// Lets a read see every write that was answered before, or at least `min_revision`. With
/// `consistency=local` it is what this node has; so it is without a quorum, unless
/// `consistency=linear` insists. What may be out of date is marked.
pub async fn consistency(
    State(app): State<Shared>,
    Params(asked): Params<Freshness>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if let Some(revision) = asked.min_revision {
        let applied = app.cluster.applied(Revision(revision));
        tokio::time::timeout(READ_WAIT, applied)
            .await
            .map_err(|_| {
                Problem::new(
                    "unavailable",
                    format!("revision {revision} has not arrived at this node"),
                )
            })?;
    }
    let reads = is_read(request.method());
    let leads = app.cluster.is_leader();
    // A write is checked against, and completed from, what this node has: a name that another node
    // made a moment ago, the value behind a hidden param.
    let caught_up = reads || leads || is_current(&app).await;
    // The state of the cluster itself is told as this node sees it, quorum or not.
    let path = request.uri().path().trim_end_matches('/');
    let about_cluster = path == "/cluster";
    let on_cluster = path.starts_with("/cluster/");
    let mut stale = false;
    match asked.consistency {
        _ if !reads => {}
        Some(Consistency::Linear) if !about_cluster => confirm(&app).await?,
        // Better an answer that says it may be old than none.
        None if !about_cluster => {
            stale = !app.cluster.outlast_election().await || confirm(&app).await.is_err();
        }
        _ => stale = !app.cluster.has_quorum(),
    }
    let mut response = next.run(request).await;
    // A refusal out of a state that may be old is none. A leader may have been succeeded meanwhile.
    let refused = !reads && !on_cluster && rests_on_state(&response);
    let led_on = async || is_current(&app).await && app.cluster.is_leader();
    if refused && !(caught_up && (!leads || led_on().await)) {
        return Err(Problem::new(
            "unavailable",
            "no quorum confirms what this node has, so it cannot tell whether this can be done; try \
             another node, or again",
        ));
    }
    if stale {
        set(response.headers_mut(), STALE, "true");
    }
    Ok(response)
}

/// Whether what this node has is, within a moment, every write that was answered before.
async fn is_current(app: &App) -> bool {
    let read = app.cluster.read_linear(|_| ());
    matches!(tokio::time::timeout(CATCH_UP, read).await, Ok(Ok(())))
}

/// Whether a request was refused because of what there is, and not because of what it is.
fn rests_on_state(response: &Response) -> bool {
    let code = response.extensions().get::<Code>();
    code.is_some_and(|code| {
        matches!(
            code.0,
            "not_found" | "exists" | "conflict" | "in_use" | "locked" | "stale" | "unrenderable"
        )
    })
}

/// Waits until this node has every write that was answered before.
async fn confirm(app: &App) -> Result<(), Problem> {
    let read = app.cluster.read_linear(|_| ());
    tokio::time::timeout(READ_WAIT, read).await.map_err(|_| {
        Problem::new(
            "unavailable",
            "the leader does not answer; add ?consistency=local to read what this node has",
        )
    })??;
    Ok(())
}

/// Notes the `Idempotency-Key` of a request that changes something, and what is asked under it
/// (draft-ietf-httpapi-idempotency-key-header).
pub async fn idempotency(mut request: Request, next: Next) -> Result<Response, Problem> {
    let key = text(request.headers(), IDEMPOTENCY_KEY)?.map(str::to_owned);
    let Some(key) = key.filter(|_| !is_read(request.method())) else {
        return Ok(next.run(request).await);
    };
    if key.is_empty() || key.len() > KEY_OCTETS_MAX {
        let detail = format!("an Idempotency-Key has 1 to {KEY_OCTETS_MAX} characters");
        return Err(Problem::new("malformed", detail));
    }
    // The key keeps the digest from being one of a password alone.
    let asked = sha2::Sha256::new()
        .chain_update(&key)
        .chain_update(" ")
        .chain_update(request.method().as_str())
        .chain_update(" ")
        .chain_update(request.uri().to_string())
        .chain_update(" ");
    // An upload is not gathered here, and makes no use of the key: sent again, it is stored again.
    let path = request.uri().path();
    let upload = match *request.method() {
        Method::PUT => path.starts_with("/artifacts/"),
        Method::PATCH => path.starts_with("/uploads/"),
        _ => false,
    };
    let asked = if upload {
        asked
    } else {
        let body = whole(std::mem::take(request.body_mut())).await?;
        let asked = asked.chain_update(&body);
        *request.body_mut() = body.into();
        asked
    };
    let asked = Sha256(asked.finalize().into());
    request
        .extensions_mut()
        .insert(IdempotencyKey { key, asked });
    Ok(next.run(request).await)
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Says what the metrics mean.
pub fn describe_metrics() {
    metrics::describe_counter!(REQUESTS, "Requests to the API, by method and status");
    metrics::describe_counter!(
        crate::server::REFUSED,
        "Connections turned away because their address had its share of all, by service"
    );
    metrics::describe_counter!(
        crate::server::MALFORMED,
        "Connections closed because what came was no TLS or no HTTP, by service"
    );
    metrics::describe_histogram!(
        SECONDS,
        metrics::Unit::Seconds,
        "Time that answers took to begin, by method"
    );
}
