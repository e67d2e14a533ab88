//! The only map from errors to HTTP: RFC 9457 problem details.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_storage::Rejection;
use muster_storage::state::Gone;
use serde_json::{Map, Value, json};

use crate::template;

/// Seconds after which a client is told to try again: a new leader is there by then.
const RETRY_AFTER_SECS: u32 = 1;

/// An answer that is not the one hoped for: what went wrong and what to do about it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable code, for programs.
    pub code: &'static str,
    /// For people: what happened, and what to do next.
    pub detail: String,
    /// Further members: `field`, `line`, `column`.
    pub more: Map<String, Value>,
}

/// Stands beside an answer that is a problem: its code.
#[derive(Clone, Copy, Debug)]
pub struct Code(pub &'static str);

/// Every code with its status and title; the reference is generated from it.
pub const CODES: &[(&str, StatusCode, &str)] = &[
    (
        "malformed",
        StatusCode::BAD_REQUEST,
        "The request cannot be read",
    ),
    (
        "unauthorized",
        StatusCode::UNAUTHORIZED,
        "Credentials are needed",
    ),
    (
        "forbidden",
        StatusCode::FORBIDDEN,
        "This user may not do this",
    ),
    ("not_found", StatusCode::NOT_FOUND, "It does not exist"),
    (
        "method_not_allowed",
        StatusCode::METHOD_NOT_ALLOWED,
        "This cannot be done here",
    ),
    ("exists", StatusCode::CONFLICT, "It exists already"),
    (
        "conflict",
        StatusCode::CONFLICT,
        "Another object stands against it",
    ),
    (
        "in_use",
        StatusCode::CONFLICT,
        "It is used by another object",
    ),
    ("locked", StatusCode::LOCKED, "The machine is locked"),
    (
        "address_taken",
        StatusCode::CONFLICT,
        "The address is taken",
    ),
    (
        "not_for_client",
        StatusCode::CONFLICT,
        "The address is not for this client",
    ),
    (
        "unrenderable",
        StatusCode::UNPROCESSABLE_ENTITY,
        "A machine could not be given its texts any more",
    ),
    (
        "token_refused",
        StatusCode::CONFLICT,
        "The token is not valid",
    ),
    (
        "gone",
        StatusCode::GONE,
        "The history does not reach back that far",
    ),
    (
        "stale",
        StatusCode::PRECONDITION_FAILED,
        "It has changed in the meantime",
    ),
    (
        "key_reused",
        StatusCode::UNPROCESSABLE_ENTITY,
        "The idempotency key is another request's",
    ),
    (
        "keys_full",
        StatusCode::SERVICE_UNAVAILABLE,
        "No more idempotency keys can be remembered",
    ),
    (
        "forgotten",
        StatusCode::GATEWAY_TIMEOUT,
        "The outcome is not known any more",
    ),
    (
        "too_slow",
        StatusCode::REQUEST_TIMEOUT,
        "The request did not come in time",
    ),
    (
        "too_large",
        StatusCode::PAYLOAD_TOO_LARGE,
        "The request is too large",
    ),
    (
        "invalid",
        StatusCode::UNPROCESSABLE_ENTITY,
        "A value breaks a rule",
    ),
    (
        "unknown_field",
        StatusCode::UNPROCESSABLE_ENTITY,
        "There is no such field",
    ),
    (
        "template",
        StatusCode::UNPROCESSABLE_ENTITY,
        "The template does not work",
    ),
    (
        "internal",
        StatusCode::INTERNAL_SERVER_ERROR,
        "This node failed",
    ),
    (
        "unavailable",
        StatusCode::SERVICE_UNAVAILABLE,
        "The cluster cannot answer now",
    ),
    (
        "no_space",
        StatusCode::INSUFFICIENT_STORAGE,
        "The disk is full",
    ),
    (
        "quota",
        StatusCode::INSUFFICIENT_STORAGE,
        "The quota is used up",
    ),
    (
        "not_ready",
        StatusCode::SERVICE_UNAVAILABLE,
        "This node does not serve yet",
    ),
    (
        "timeout",
        StatusCode::GATEWAY_TIMEOUT,
        "The outcome is not known",
    ),
];

impl Problem {
    /// A problem by its code, which is one of [`CODES`].
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        let status = CODES
            .iter()
            .find(|(known, _, _)| *known == code)
            .map_or(StatusCode::INTERNAL_SERVER_ERROR, |(_, status, _)| *status);
        Self {
            status,
            code,
            detail: detail.into(),
            more: Map::new(),
        }
    }

    /// A value that breaks a rule, by the path of its field.
    pub fn invalid(field: &str, problem: impl Into<String>) -> Self {
        Self::new("invalid", format!("{field}: {}", problem.into())).with("field", field)
    }

    /// No object of this kind has this key.
    pub fn not_found(kind: &str, key: &str) -> Self {
        Self::new("not_found", format!("{kind} `{key}` does not exist"))
    }

    /// Adds a member.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    /// Puts `context` before the detail.
    #[must_use]
    pub fn inside(mut self, context: &str) -> Self {
        self.detail = format!("{context}: {}", self.detail);
        self
    }

    fn title(&self) -> &'static str {
        let known = CODES.iter().find(|(code, _, _)| *code == self.code);
        known.map_or("Something else", |(_, _, title)| title)
    }

    /// The body of the answer.
    pub fn to_value(&self) -> Value {
        let mut body = self.more.clone();
        let common = json!({
            "type": format!("urn:muster:problem:{}", self.code),
            "title": self.title(),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
        });
        if let Value::Object(common) = common {
            body.extend(common);
        }
        Value::Object(body)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.to_value())).into_response();
        response.extensions_mut().insert(Code(self.code));
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.append(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Basic realm=\"muster\", charset=\"UTF-8\""),
                );
                headers.append(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer realm=\"muster\""),
                );
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECS));
            }
            _ => {}
        }
        response
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        let problem = Self::new(rejection.code(), rejection.to_string());
        match rejection {
            Rejection::Invalid { field, .. } => problem.with("field", field),
            Rejection::Stale { current } => problem.with("current", current.0),
            Rejection::NotFound { .. }
            | Rejection::Exists { .. }
            | Rejection::Conflict(_)
            | Rejection::InUse { .. }
            | Rejection::Locked { .. }
            | Rejection::AddressTaken { .. }
            | Rejection::NotForClient { .. }
            | Rejection::TokenRefused
            | Rejection::Forgotten
            | Rejection::KeyReused
            | Rejection::KeysFull
            | Rejection::TooLarge { .. }
            | Rejection::Quota { .. } => problem,
        }
    }
}

impl From<muster_raft::Error> for Problem {
    fn from(error: muster_raft::Error) -> Self {
        use muster_raft::Error;
        let detail = error.to_string();
        match error {
            Error::NoLeader | Error::Overloaded | Error::Stopped(_) | Error::NotYet(_) => {
                Self::new("unavailable", detail)
            }
            Error::Timeout => Self::new("timeout", detail),
            Error::TokenRefused | Error::BadToken => Self::new("token_refused", detail),
            Error::NoSuchNode(_) | Error::NoSuchArtifact(_) => Self::new("not_found", detail),
            Error::NoRoom => Self::new("no_space", detail),
            Error::Refused(_) | Error::NotAdmitted(_) => Self::new("conflict", detail),
            other => {
                tracing::error!(error = %other, "request failed");
                Self::new("internal", detail)
            }
        }
    }
}

impl From<Gone> for Problem {
    fn from(gone: Gone) -> Self {
        Self::new("gone", gone.to_string())
    }
}

impl From<template::Problem> for Problem {
    fn from(problem: template::Problem) -> Self {
        let mut answer = Self::new("template", problem.to_string());
        let place = [("line", problem.line), ("column", problem.column)];
        for (name, value) in place.into_iter().filter_map(|(n, v)| Some((n, v?))) {
            answer = answer.with(name, value);
        }
        let named = [("template", problem.template), ("param", problem.param)];
        for (name, value) in named.into_iter().filter_map(|(n, v)| Some((n, v?))) {
            answer = answer.with(name, value);
        }
        answer
    }
}
