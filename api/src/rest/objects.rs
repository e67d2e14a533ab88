//! The same verbs for every kind of object.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use muster_raft::Placement;
use muster_storage::command::PutMode;
use muster_storage::model::{Object, ObjectKind, Record};
use muster_storage::{Command, Effect, Revision};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

use super::DONE;
use super::extract::{Conditions, Json, Key, On, Params, created, etag, text};
use super::trial::{self, Force, Report};
use super::write::{Caller, write};
use crate::input::{self, Draft};
use crate::problem::Problem;
use crate::view::Checks;
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
    /// Of machines: only those that have this label, `NAME` or `NAME=VALUE`.
    label: Option<String>,
}

impl Page {
    /// Objects wanted.
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX)
    }

    /// Whether an object is wanted.
    fn wants(&self, object: &Object) -> bool {
        let Some(label) = &self.label else {
            return true;
        };
        let (name, value) = match label.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (label.as_str(), None),
        };
        match object {
            Object::Machine(machine) => machine
                .labels
                .get(name)
                .is_some_and(|own| value.is_none_or(|value| own == value)),
            _ => false,
        }
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

/// Answers GET of the list.
pub async fn list(
    State(app): State<Shared>,
    Extension(kind): Extension<ObjectKind>,
    Params(asked): Params<Page>,
) -> axum::Json<Value> {
    let checks = Checks::of(&app.cluster, kind);
    let placement = placement(&app, kind);
    let limit = asked.limit();
    axum::Json(app.cluster.read(|state| {
        let items = state
            .objects_after(kind, asked.after())
            .filter(|record| asked.wants(&record.object))
            .take(limit + 1)
            .map(|record| {
                let view = view::object(state, &checks, record);
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
pub async fn show(
    app: &App,
    kind: ObjectKind,
    key: &str,
    status: StatusCode,
    report: Option<&Report>,
) -> Result<Response, Problem> {
    let checks = Checks::of(&app.cluster, kind);
    let placement = placement(app, kind);
    let (mut body, revision, name) = app.cluster.read(|state| {
        let record = find(state, kind, key)?;
        let body = view::object(state, &checks, record);
        let body = view::placed(body, &record.object, &placement);
        Ok::<_, Problem>((body, record.revision, record.object.key()))
    })?;
    if kind == ObjectKind::Machine {
        let problems = match report {
            Some(report) => report.problems_of(&name),
            None => trial::problems_of(app, &name).await,
        };
        view::add_problems(&mut body, problems);
    }
    if let Some(report) = report {
        body[view::TRIAL] = report.to_value();
    }
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
    show(&app, kind, &key, StatusCode::OK, None).await
}

async fn create(
    State(app): State<Shared>,
    On(caller): On,
    Extension(kind): Extension<ObjectKind>,
    Params(force): Params<Force>,
    Json(body): Json,
) -> Result<Response, Problem> {
    let draft = Draft::new(Some(kind), body)?;
    let settled = settle(&app, draft.with_password_hashed().await?, force)?;
    let report = trial::before_write(&app, settled.objects(), &[], force).await?;
    let written = put_object(&app, caller, None, settled, PutMode::Create).await?;
    written.show(&app, StatusCode::CREATED, report).await
}

async fn put(
    State(app): State<Shared>,
    On(caller): On,
    Extension(kind): Extension<ObjectKind>,
    Key(key): Key,
    Params(force): Params<Force>,
    conditions: Conditions,
    Json(body): Json,
) -> Result<Response, Problem> {
    let key = name(&app, kind, &key);
    // Hashing takes long: once, not once for each attempt.
    let draft = Draft::new(Some(kind), body)?.with_password_hashed().await?;
    let draft = draft.with_key(&key)?;
    // A secret that was put back is that of this revision and of no other.
    let prepare = || settle(&app, draft.clone(), force);
    let (meant, mode) = (conditions.revision, conditions.mode());
    let (written, report) = put_over(&app, caller, meant, mode, force, prepare).await?;
    let status = created(written.new);
    written.show(&app, status, report).await
}

/// Writes what `prepare` makes of what there is, with the revision on which that rests; anew while
/// others change it meanwhile, unless the client said which revision it means. With what it does to
/// machines.
async fn put_over(
    app: &App,
    caller: Caller,
    meant: Option<Revision>,
    mode: PutMode,
    force: Force,
    prepare: impl Fn() -> Result<Settled, Problem>,
) -> Result<(Written, Option<Report>), Problem> {
    for _ in 0..ATTEMPTS {
        let settled = prepare()?;
        let read = settled.read;
        let report = trial::before_write(app, settled.objects(), &[], force).await?;
        match put_object(app, caller.clone(), meant.or(read), settled, mode).await {
            Err(problem) if problem.code == "stale" && meant.is_none() => {}
            result => return Ok((result?, report)),
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
    Params(force): Params<Force>,
    conditions: Conditions,
    Json(body): Json,
) -> Result<Response, Problem> {
    let key = name(&app, kind, &key);
    let changes = Draft::new(Some(kind), body)?.with_password_hashed().await?;
    let changes = Value::Object(changes.fields);
    let prepare = || {
        let (mut fields, revision) = app.cluster.read(|state| {
            let record = find(state, kind, &key)?;
            let fields = view::public_fields(state, &record.object);
            Ok::<_, Problem>((Value::Object(fields), record.revision))
        })?;
        input::merge(&mut fields, changes.clone());
        let Value::Object(fields) = fields else {
            return Err(Problem::new("invalid", "a patch is an object"));
        };
        let draft = Draft::of_fields(kind, fields)?.with_key(&key)?;
        let settled = settle(&app, draft, force)?;
        Ok(Settled {
            read: Some(revision),
            ..settled
        })
    };
    let (meant, mode) = (conditions.revision, PutMode::Replace);
    let (written, report) = put_over(&app, caller, meant, mode, force, prepare).await?;
    written.show(&app, StatusCode::OK, report).await
}

/// Answers DELETE of one object.
pub async fn delete(
    State(app): State<Shared>,
    On(caller): On,
    Extension(kind): Extension<ObjectKind>,
    Key(key): Key,
    Params(force): Params<Force>,
    conditions: Conditions,
) -> Result<StatusCode, Problem> {
    let key = name(&app, kind, &key);
    if kind != ObjectKind::Template {
        let deleted = [(kind, key.clone())];
        trial::before_write(&app, &[], &deleted, force).await?;
    }
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

/// An object that was sent, ready to be proposed.
struct Settled {
    object: Object,
    /// On which revision of it that rests.
    read: Option<Revision>,
    /// What is to be written before it.
    before: Vec<Command>,
}

impl Settled {
    fn objects(&self) -> &[Object] {
        std::slice::from_ref(&self.object)
    }
}

/// An object that was written.
struct Written {
    object: Object,
    /// By what.
    revision: Revision,
    /// Whether it was not there before.
    new: bool,
}

impl Written {
    /// It as an answer: as it is now, or as it was written when others have removed it since.
    async fn show(
        &self,
        app: &App,
        status: StatusCode,
        report: Option<Report>,
    ) -> Result<Response, Problem> {
        let (kind, key) = (self.object.kind(), self.object.key());
        match show(app, kind, &key, status, report.as_ref()).await {
            Err(problem) if problem.code == "not_found" => {
                let mut body = app
                    .cluster
                    .read(|state| view::written(state, &self.object, self.revision));
                if let Some(report) = report {
                    body[view::TRIAL] = report.to_value();
                }
                let headers = [(header::ETAG, etag(self.revision))];
                Ok((status, headers, axum::Json(body)).into_response())
            }
            shown => shown,
        }
    }
}

/// The object that was sent, checked as far as that can be done before it is applied, and sealed;
/// it rests on the revision from which secrets were put back.
fn settle(app: &App, mut draft: Draft, force: Force) -> Result<Settled, Problem> {
    let read = app.cluster.read(|state| {
        let read = draft.keep_secrets(state);
        draft.settle_machine(|key| state.machine(key).map(|machine| machine.uuid))?;
        Ok::<_, Problem>(read)
    })?;
    let mut object = draft.parse()?;
    let objects = std::slice::from_mut(&mut object);
    let before = settle_together(app, objects, force)?;
    Ok(Settled {
        object,
        read,
        before,
    })
}

/// Checks objects that are to be written together as far as that can be done before they are
/// applied, and seals their secrets; returns what is to be written before them.
pub fn settle_together(
    app: &App,
    objects: &mut [Object],
    Force { force }: Force,
) -> Result<Vec<Command>, Problem> {
    let (check, affected, sealing) = app.cluster.read(|state| {
        let sealing = input::sealing(state, objects);
        let affected = input::affected(state, objects);
        (input::check(state, objects), affected, sealing)
    });
    check(objects)?;
    if !force {
        affected.check(app.cluster.keyring().ok().as_ref())?;
    }
    let sealing = sealing?;
    if !sealing.is_needed() {
        return Ok(Vec::new());
    }
    sealing.seal(&app.cluster.keyring()?, objects)
}

/// Writes one object; whether it is new.
async fn put_object(
    app: &App,
    caller: Caller,
    if_match: Option<Revision>,
    settled: Settled,
    mode: PutMode,
) -> Result<Written, Problem> {
    let Settled { object, before, .. } = settled;
    let written = object.clone();
    let outcome = if before.is_empty() {
        write(app, caller, if_match, Command::Put { object, mode }).await?
    } else {
        let expect = if_match.map(|revision| Command::Expect {
            kind: object.kind(),
            key: object.key(),
            revision,
        });
        let put = Command::Put { object, mode };
        let all = expect.into_iter().chain(before).chain([put]).collect();
        write(app, caller, None, Command::Many(all)).await?
    };
    let created = |effect: &Effect| matches!(effect, Effect::Stored { created: true, .. });
    let new = match &outcome.result {
        Ok(Effect::Many(effects)) => effects.last().is_some_and(created),
        Ok(effect) => created(effect),
        Err(_) => false,
    };
    Ok(Written {
        object: written,
        revision: outcome.revision,
        new,
    })
}
