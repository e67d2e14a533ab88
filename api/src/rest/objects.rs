//! The same verbs for every kind of object.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use muster_raft::Placement;
use muster_storage::command::PutMode;
use muster_storage::model::{Object, ObjectKind, Record};
use muster_storage::{Command, Revision};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

use super::DONE;
use super::extract::{Conditions, Json, Key, On, Params, created, etag, text};
use super::write::{Caller, write};
use crate::input::{self, Draft};
use crate::problem::Problem;
use crate::template::{Compiled, Sources};
use crate::{App, Shared, view};

/// Objects on a page when the client does not say.
pub const PAGE_DEFAULT: usize = 1000;

/// Objects on a page at most: what is made under the state's lock.
pub const PAGE_MAX: usize = 5000;

/// Attempts to write an object that others change too, when the write rests on what was read.
pub const ATTEMPTS: usize = 8;

/// List, create, get, put, patch, delete; keys may hold slashes.
pub fn router() -> Router<Shared> {
    router_by("/{*key}")
}

/// As [`router`], for kinds whose keys hold no slash, so that more may follow them in the path.
pub fn plain_router() -> Router<Shared> {
    router_by("/{key}")
}

fn router_by(path: &str) -> Router<Shared> {
    Router::new()
        .route("/", get(list).post(create))
        .route(path, get(get_one).put(put).patch(patch).delete(delete))
}

/// Which part of a list.
#[derive(Debug, Default, Deserialize)]
pub struct Page {
    limit: Option<usize>,
    after: Option<String>,
}

impl Page {
    /// Objects wanted.
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX)
    }

    /// Key after which the page begins.
    pub fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }
}

/// A page of a list: `items`, the key to go on `after`, the revision as of which it was read.
pub fn page(mut items: Vec<(String, Value)>, limit: usize, revision: Revision) -> Value {
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|(key, _)| key.clone());
    whole_page(items, next, revision)
}

/// As [`page`], of items that are all on it.
pub fn whole_page(items: Vec<(String, Value)>, next: Option<String>, revision: Revision) -> Value {
    let items: Vec<Value> = items.into_iter().map(|(_, item)| item).collect();
    json!({"items": items, "next": next, "revision": revision.0})
}

/// Compiled templates, for telling which objects work.
fn templates(app: &App, kind: ObjectKind) -> Arc<Compiled> {
    let sources = match kind {
        ObjectKind::Template | ObjectKind::Bootenv | ObjectKind::Machine => {
            app.cluster.read(Sources::of)
        }
        _ => Sources::default(),
    };
    sources.compiled()
}

/// Answers GET of the list.
pub async fn list(
    State(app): State<Shared>,
    Extension(kind): Extension<ObjectKind>,
    Params(asked): Params<Page>,
) -> axum::Json<Value> {
    let templates = templates(&app, kind);
    let placement = placement(&app, kind);
    let limit = asked.limit();
    axum::Json(app.cluster.read(|state| {
        let items = state
            .objects_after(kind, asked.after())
            .take(limit + 1)
            .map(|record| {
                let view = view::object(state, &templates, record);
                let view = view::placed(view, &record.object, &placement);
                (record.object.key(), view)
            })
            .collect();
        page(items, limit, state.revision())
    }))
}

/// An object by key; a machine also by UUID or MAC.
pub fn find<'a>(
    state: &'a muster_storage::State,
    kind: ObjectKind,
    key: &str,
) -> Result<&'a Arc<Record<Object>>, Problem> {
    let record = match kind {
        ObjectKind::Machine => state.machine_record(key),
        _ => state.object(kind, key),
    };
    record.ok_or_else(|| Problem::not_found(kind.singular(), key))
}

/// Which node holds what, for those that are held.
fn placement(app: &App, kind: ObjectKind) -> Placement {
    match kind {
        ObjectKind::Artifact => app.cluster.placement(),
        _ => Placement::default(),
    }
}

/// The object as an answer.
pub fn show(
    app: &App,
    kind: ObjectKind,
    key: &str,
    status: StatusCode,
) -> Result<Response, Problem> {
    let templates = templates(app, kind);
    let placement = placement(app, kind);
    let (body, revision) = app.cluster.read(|state| {
        let record = find(state, kind, key)?;
        let view = view::object(state, &templates, record);
        let view = view::placed(view, &record.object, &placement);
        Ok::<_, Problem>((view, record.revision))
    })?;
    let headers = [(header::ETAG, etag(revision))];
    Ok((status, headers, axum::Json(body)).into_response())
}

/// Answers GET of one object.
pub async fn get_one(
    State(app): State<Shared>,
    Extension(kind): Extension<ObjectKind>,
    Key(key): Key,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if let Some(tag) = text(&headers, header::IF_NONE_MATCH)? {
        let revision = app
            .cluster
            .read(|state| find(state, kind, &key).map(|r| r.revision))?;
        if tag == etag(revision) {
            return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag(revision))]).into_response());
        }
    }
    show(&app, kind, &key, StatusCode::OK)
}

async fn create(
    State(app): State<Shared>,
    On(caller): On,
    Extension(kind): Extension<ObjectKind>,
    Json(body): Json,
) -> Result<Response, Problem> {
    let draft = Draft::new(Some(kind), body)?;
    let (object, _) = settle(&app, draft.with_password_hashed().await?)?;
    let key = object.key();
    put_object(&app, caller, None, object, PutMode::Create).await?;
    show(&app, kind, &key, StatusCode::CREATED)
}

async fn put(
    State(app): State<Shared>,
    On(caller): On,
    Extension(kind): Extension<ObjectKind>,
    Key(key): Key,
    conditions: Conditions,
    Json(body): Json,
) -> Result<Response, Problem> {
    let key = name(&app, kind, &key);
    // Hashing takes long: once, not once for each attempt.
    let draft = Draft::new(Some(kind), body)?.with_password_hashed().await?;
    let draft = draft.with_key(&key)?;
    // A secret that was put back is that of this revision and of no other.
    let prepare = || settle(&app, draft.clone());
    let new = put_over(
        &app,
        caller,
        conditions.revision,
        conditions.mode(),
        prepare,
    )
    .await?;
    show(&app, kind, &key, created(new))
}

/// Writes what `prepare` makes of what there is, with the revision on which that rests; anew while
/// others change it meanwhile, unless the client said which revision it means. Whether it is new.
async fn put_over(
    app: &App,
    caller: Caller,
    meant: Option<Revision>,
    mode: PutMode,
    prepare: impl Fn() -> Result<(Object, Option<Revision>), Problem>,
) -> Result<bool, Problem> {
    for _ in 0..ATTEMPTS {
        let (object, read) = prepare()?;
        match put_object(app, caller.clone(), meant.or(read), object, mode).await {
            Err(problem) if problem.code == "stale" && meant.is_none() => {}
            result => return result,
        }
    }
    Err(busy())
}

/// After [`ATTEMPTS`].
pub fn busy() -> Problem {
    Problem::new(
        "conflict",
        "others change this object all the time; try again",
    )
}

async fn patch(
    State(app): State<Shared>,
    On(caller): On,
    Extension(kind): Extension<ObjectKind>,
    Key(key): Key,
    conditions: Conditions,
    Json(body): Json,
) -> Result<Response, Problem> {
    let key = name(&app, kind, &key);
    let changes = Draft::new(Some(kind), body)?.with_password_hashed().await?;
    let changes = Value::Object(changes.fields);
    let prepare = || {
        let (mut fields, revision) = app.cluster.read(|state| {
            let record = find(state, kind, &key)?;
            Ok::<_, Problem>((Value::Object(view::fields(&record.object)), record.revision))
        })?;
        input::merge(&mut fields, changes.clone());
        let Value::Object(fields) = fields else {
            return Err(Problem::new("invalid", "a patch is an object"));
        };
        let draft = Draft { kind, fields }.with_key(&key)?;
        let (object, _) = settle(&app, draft)?;
        Ok((object, Some(revision)))
    };
    put_over(&app, caller, conditions.revision, PutMode::Replace, prepare).await?;
    show(&app, kind, &key, StatusCode::OK)
}

/// Answers DELETE of one object.
pub async fn delete(
    State(app): State<Shared>,
    On(caller): On,
    Extension(kind): Extension<ObjectKind>,
    Key(key): Key,
    conditions: Conditions,
) -> Result<StatusCode, Problem> {
    let key = name(&app, kind, &key);
    write(
        &app,
        caller,
        conditions.revision,
        Command::Delete { kind, key },
    )
    .await?;
    Ok(DONE)
}

/// The name behind another key of a machine; else the key as it is.
fn name(app: &App, kind: ObjectKind, key: &str) -> String {
    if kind != ObjectKind::Machine {
        return key.to_owned();
    }
    let name = app
        .cluster
        .read(|state| state.machine(key).map(|machine| machine.name.clone()));
    name.unwrap_or_else(|| key.to_owned())
}

/// The object that was sent, checked as far as that can be done before it is applied; with the
/// revision from which secrets were put back.
fn settle(app: &App, mut draft: Draft) -> Result<(Object, Option<Revision>), Problem> {
    let kept = app.cluster.read(|state| {
        let kept = draft.keep_secrets(state);
        draft.settle_machine(|key| state.machine(key).map(|machine| machine.uuid))?;
        Ok::<_, Problem>(kept)
    })?;
    let object = draft.parse()?;
    let objects = std::slice::from_ref(&object);
    let check = app.cluster.read(|state| input::check(state, objects));
    check(objects)?;
    Ok((object, kept))
}

/// Writes one object; whether it is new.
async fn put_object(
    app: &App,
    caller: Caller,
    if_match: Option<Revision>,
    object: Object,
    mode: PutMode,
) -> Result<bool, Problem> {
    let outcome = write(app, caller, if_match, Command::Put { object, mode }).await?;
    Ok(matches!(
        outcome.result,
        Ok(muster_storage::Effect::Stored { created: true, .. })
    ))
}
