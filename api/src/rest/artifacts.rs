//! Artifacts: metadata like any object, bytes by streamed upload.

use std::io;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use muster_raft::ArtifactWriter;
use muster_storage::command::PutMode;
use muster_storage::model::{Artifact, Object, ObjectKind, Sha256};
use muster_storage::{Command, Effect, Revision};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::extract::{Conditions, Key, On, Params, created};
use super::incoming::{Sink, disk, pour, thread_failed};
use super::objects;
use super::write::{Caller, write};
use crate::problem::Problem;
use crate::{App, Shared};

/// Uploads at a time; more are told to come back.
const UPLOADS_MAX: usize = 16;

static UPLOADS: Semaphore = Semaphore::const_new(UPLOADS_MAX);

pub fn router() -> Router<Shared> {
    Router::new().route("/", get(objects::list)).route(
        "/{*key}",
        get(objects::get_one).put(upload).delete(objects::delete),
    )
}

#[derive(Deserialize)]
struct Expected {
    sha256: Option<Sha256>,
}

/// Takes a file. Answers when a quorum of nodes holds verified bytes and the record is committed.
async fn upload(
    State(app): State<Shared>,
    On(caller): On,
    Key(path): Key,
    Params(expected): Params<Expected>,
    conditions: Conditions,
    body: Body,
) -> Result<Response, Problem> {
    let _permit = UPLOADS
        .try_acquire()
        .map_err(|_| Problem::new("unavailable", "too many uploads at a time; try again"))?;
    // What the client says that it will send, if it does.
    let announced = body.size_hint().lower();
    let room = app.cluster.read(|state| {
        state.check_artifact(&path, announced)?;
        Ok::<_, Problem>(state.artifact_room(&path))
    })?;
    let writer = app.cluster.artifact_writer(announced);
    let writer = writer.map_err(|error| disk(&error))?;
    let (writer, ended) = pour(body, room, writer).await?;
    if ended
        .as_ref()
        .is_err_and(|problem| problem.code == "too_large")
    {
        // Which limit that was.
        let more = room.saturating_add(1);
        app.cluster
            .read(|state| state.check_artifact(&path, more))?;
    }
    ended?;
    let cluster = app.cluster.clone();
    let finishing = tokio::task::spawn_blocking(move || {
        let (sha256, size) = writer.finish(expected.sha256)?;
        Ok::<_, io::Error>((cluster.keep_blob(sha256), sha256, size))
    });
    let finished = finishing.await.map_err(|_| thread_failed())?;
    let (_kept, sha256, size) = finished.map_err(|error| disk(&error))?;
    let new = publish(
        &app,
        caller,
        conditions.revision,
        conditions.mode(),
        &path,
        sha256,
        size,
    )
    .await?;
    objects::show(&app, ObjectKind::Artifact, &path, created(new), None).await
}

/// Has the other nodes take a file that is whole here, and writes the record; whether that is new.
pub async fn publish(
    app: &App,
    caller: Caller,
    if_match: Option<Revision>,
    mode: PutMode,
    path: &str,
    sha256: Sha256,
    size: u64,
) -> Result<bool, Problem> {
    let spread = app.cluster.spread(sha256, size).await;
    let holders = spread.map_err(|error| match error {
        // Too few nodes could take it now.
        muster_raft::Error::Refused(detail) => Problem::new("unavailable", detail),
        other => other.into(),
    })?;
    let object = Object::Artifact(Artifact {
        path: path.to_owned(),
        sha256,
        size,
    });
    let command = Command::Put { object, mode };
    let outcome = write(app, caller.without_key(), if_match, command).await?;
    tracing::info!(path, %sha256, bytes = size, nodes = holders.len(), "artifact uploaded");
    Ok(matches!(
        outcome.result,
        Ok(Effect::Stored { created: true, .. })
    ))
}

impl Sink for ArtifactWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        ArtifactWriter::write(self, bytes)
    }
}
