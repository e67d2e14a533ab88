//! What machines report: kept as it is, and with the token of an install it ends that.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_api::machine_token::{self, Grant};
use muster_storage::command::TokenUse;
use muster_storage::model::{Status, Step, Verdict};
use muster_storage::{Actor, Command, Effect, Proposal, Rejection, RequestId};
use tokio::time::timeout;
use uuid::Uuid;

use super::http::{refusal, refused};
use super::target::{TOKEN, parameter};
use super::tree::{Client, Tree};

/// Longest body of a report.
const REPORT_MAX: usize = 64 * 1024;

/// How long a machine may take to send a report.
const REPORT_TIME: Duration = Duration::from_secs(15);

/// Takes a machine's callback: its body, or its query.
pub(super) async fn report(
    tree: &Tree,
    machine: Uuid,
    token: Option<&str>,
    client: Client,
    (head, body): (&Parts, Body),
) -> Response {
    match take(tree, machine, token, head, body).await {
        Ok(text) => {
            let recorder = tree.recorder();
            recorder.tell(machine, Step::Reported, client.visit);
            (StatusCode::OK, text).into_response()
        }
        Err(refusal) => refusal,
    }
}

async fn take(
    tree: &Tree,
    machine: Uuid,
    token: Option<&str>,
    head: &Parts,
    body: Body,
) -> Result<&'static str, Response> {
    let body = read(head, body).await?;
    match tree.knows_machine(machine).await {
        Ok(true) => {}
        Ok(false) => return Err(refusal(StatusCode::NOT_FOUND, "there is no such machine")),
        Err(problem) => return Err(refused(&problem)),
    }
    let verdict = verdict(tree, machine, token, head.uri.query());
    let verdict = verdict.map_err(|(status, why)| refusal(status, why))?;
    let proposal = Proposal {
        request: RequestId(Uuid::new_v4()),
        actor: Actor(format!("machine:{machine}")),
        if_match: None,
        remember: None,
        command: Command::Report {
            machine,
            body: text(&body),
            verdict,
            node: Some(tree.cluster().node_id()),
        },
    };
    let outcome = tree.cluster().propose(proposal).await.map_err(|error| {
        refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!("the report is not committed: {error}"),
        )
    })?;
    match outcome.result {
        Ok(Effect::Reported(TokenUse::Spent)) => Err(refusal(
            StatusCode::CONFLICT,
            "the report is kept, but it changes nothing: the attempt of its token is over",
        )),
        Ok(_) => Ok("committed\n"),
        Err(rejection @ Rejection::NotFound { .. }) => {
            Err(refusal(StatusCode::NOT_FOUND, &rejection.to_string()))
        }
        Err(rejection) => Err(refusal(StatusCode::CONFLICT, &rejection.to_string())),
    }
}

async fn read(head: &Parts, body: Body) -> Result<Bytes, Response> {
    let too_long = || {
        let problem = format!("a report has at most {REPORT_MAX} octets");
        refusal(StatusCode::PAYLOAD_TOO_LARGE, &problem)
    };
    let body = match head.method {
        Method::GET => {
            let query = head.uri.query().unwrap_or_default();
            Bytes::copy_from_slice(without_token(query).as_bytes())
        }
        Method::POST => {
            let read = axum::body::to_bytes(body, REPORT_MAX);
            match timeout(REPORT_TIME, read).await {
                Ok(Ok(body)) => body,
                Ok(Err(_)) => return Err(too_long()),
                Err(_) => {
                    return Err(refusal(
                        StatusCode::REQUEST_TIMEOUT,
                        "the report did not come in time",
                    ));
                }
            }
        }
        _ => {
            let refusal = refusal(
                StatusCode::METHOD_NOT_ALLOWED,
                "reports are sent by GET or POST",
            );
            return Err(([(header::ALLOW, "GET, POST")], refusal).into_response());
        }
    };
    if body.len() > REPORT_MAX {
        return Err(too_long());
    }
    Ok(body)
}

/// What the report says of an install, if it shows a token: `?status=done`, the default, or
/// `?status=failed`.
fn verdict(
    tree: &Tree,
    machine: Uuid,
    token: Option<&str>,
    query: Option<&str>,
) -> Result<Option<Verdict>, (StatusCode, &'static str)> {
    let Some(token) = token else {
        return Ok(None);
    };
    let refused = |why| Err((StatusCode::FORBIDDEN, why));
    let Ok(keyring) = tree.cluster().keyring() else {
        return Err((
            StatusCode::SERVICE_UNAVAILABLE,
            "this node cannot check tokens now",
        ));
    };
    let attempt = match machine_token::read(&keyring, machine, token) {
        Some(Grant::Install(attempt)) => attempt,
        Some(Grant::Boot(until)) if tree.cluster().now() < until => return Ok(None),
        Some(Grant::Boot(_)) => return refused("this token is over"),
        None => return refused("this token was not given to this machine"),
    };
    let status = match parameter(query, "status").as_deref() {
        None | Some("done") => Status::Done,
        Some("failed") => Status::Failed,
        Some(_) => {
            return Err((
                StatusCode::BAD_REQUEST,
                "with a token, `status` is `done` or `failed`",
            ));
        }
    };
    Ok(Some(Verdict { attempt, status }))
}

/// A query as it is kept: reports can be read by people whom the token is not for.
fn without_token(query: &str) -> Cow<'_, str> {
    let is_token = |pair: &&str| pair.split('=').next() == Some(TOKEN);
    match query.split('&').any(|pair| is_token(&pair)) {
        false => Cow::Borrowed(query),
        true => {
            let kept: Vec<&str> = query.split('&').filter(|pair| !is_token(pair)).collect();
            Cow::Owned(kept.join("&"))
        }
    }
}

/// What a machine sent, as text of at most [`REPORT_MAX`] octets.
fn text(body: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(body).into_owned();
    // A replaced octet takes three.
    let mut end = text.len().min(REPORT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
