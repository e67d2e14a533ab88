//! Reading requests: bodies, queries and headers, with problems for answers.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use muster_storage::command::PutMode;
use muster_storage::model::ObjectKind;
use muster_storage::{Actor, Revision};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::objects::find;
use super::write::{Caller, IdempotencyKey};
use crate::Shared;
use crate::problem::Problem;

/// Longest body of a request that is not an upload, in octets: a bundle of some ten thousand
/// machines.
pub const BODY_MAX: usize = 16 << 20;

/// A body of JSON.
pub struct Json(pub Value);

impl<S: Send + Sync> FromRequest<S> for Json {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        read_json(&whole(request.into_body()).await?).map(Self)
    }
}

/// All of a body that is not an upload.
pub async fn whole(body: Body) -> Result<Bytes, Problem> {
    let body = http_body_util::Limited::new(body, BODY_MAX);
    let collected = http_body_util::BodyExt::collect(body).await;
    let collected = collected.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            Problem::new("too_large", format!("a body may have {BODY_MAX} octets"))
        } else {
            Problem::new("malformed", format!("the body cannot be read: {error}"))
        }
    })?;
    Ok(collected.to_bytes())
}

fn read_json(bytes: &Bytes) -> Result<Value, Problem> {
    serde_json::from_slice(bytes)
        .map_err(|error| Problem::new("malformed", format!("the body is no JSON: {error}")))
}

/// The query.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(query)| Self(query))
            .map_err(|error| Problem::new("malformed", error.body_text()))
    }
}

/// The rest of the path: a key.
pub struct Key(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        <Path<String> as FromRequestParts<S>>::from_request_parts(parts, state)
            .await
            .map(|Path(key)| Self(key))
            .map_err(|error| Problem::new("malformed", error.body_text()))
    }
}

/// On whose behalf the request is made, as [`crate::auth`] found out, and by which key.
pub struct On(pub Caller);

impl<S: Send + Sync> FromRequestParts<S> for On {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let actor = parts.extensions.get::<Actor>().cloned();
        let actor = actor.ok_or_else(|| Problem::new("unauthorized", "nobody asks"))?;
        let key = parts.extensions.get::<IdempotencyKey>().cloned();
        Ok(Self(Caller { actor, key }))
    }
}

/// `If-Match` and `If-None-Match` (RFC 9110 §13.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Only if the object is at this revision.
    pub revision: Option<Revision>,
    /// Only if the object exists.
    pub exists: bool,
    /// Only if it does not exist.
    pub absent: bool,
}

impl Conditions {
    /// Whether a PUT under these conditions may make or replace.
    pub fn mode(&self) -> PutMode {
        match self {
            Self { absent: true, .. } => PutMode::Create,
            Self { exists: true, .. }
            | Self {
                revision: Some(_), ..
            } => PutMode::Replace,
            Self { .. } => PutMode::Apply,
        }
    }
}

impl FromRequestParts<Shared> for Conditions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Problem> {
        let mut conditions = Self::default();
        let tags = text(&parts.headers, header::IF_MATCH)?.map(str::to_owned);
        match tags.as_deref() {
            None => {}
            Some("*") => conditions.exists = true,
            Some(tags) => {
                // A tag that is not one of ours stands for something that never was here.
                let ours = tags.split(',').filter_map(revision_of);
                let ours: Vec<Revision> = ours.collect();
                let refused = || Problem::new("stale", format!("If-Match: it is not at {tags}"));
                let first = *ours.first().ok_or_else(refused)?;
                let now = match ours.len() {
                    1 => None,
                    _ => current(parts, app).await,
                };
                conditions.revision = now.filter(|now| ours.contains(now)).or(Some(first));
            }
        }
        conditions.absent = text(&parts.headers, header::IF_NONE_MATCH)?
            .is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == "*"));
        Ok(conditions)
    }
}

/// The revision that a tag names; weak tags and those of others name none.
fn revision_of(tag: &str) -> Option<Revision> {
    let tag = tag.trim();
    let bare = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
    bare.unwrap_or(tag).parse().ok().map(Revision)
}

/// The revision of the object that the path names.
async fn current(parts: &mut Parts, app: &Shared) -> Option<Revision> {
    let kind = *parts.extensions.get::<ObjectKind>()?;
    let Key(key) = Key::from_request_parts(parts, app).await.ok()?;
    app.cluster.read(|state| {
        let record = find(state, kind, &key).ok()?;
        Some(record.revision)
    })
}

/// A header as text.
pub fn text(headers: &HeaderMap, name: header::HeaderName) -> Result<Option<&str>, Problem> {
    headers
        .get(&name)
        .map(|value| value.to_str().map(str::trim))
        .transpose()
        .map_err(|_| Problem::new("malformed", format!("the header {name} cannot be read")))
}

/// The ETag of a revision.
pub fn etag(revision: Revision) -> String {
    format!("\"{revision}\"")
}

/// 201 for what is new.
pub fn created(new: bool) -> StatusCode {
    if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    }
}
