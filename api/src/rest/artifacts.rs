//! Artifacts: metadata like any object, bytes by streamed upload.

use std::io;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt as _;
use muster_raft::ArtifactWriter;
use muster_storage::model::{Artifact, Object, ObjectKind, Sha256};
use muster_storage::{Command, Effect};
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};

use super::extract::{Conditions, Key, On, Params, created, etag};
use super::objects;
use super::write::write;
use crate::problem::Problem;
use crate::template::Sources;
use crate::{Shared, view};

/// Largest artifact, in octets: an image of a disk, and a bound on what one mistake can fill.
pub const ARTIFACT_MAX: u64 = 64 << 30;

/// Uploads at a time; more are told to come back.
const UPLOADS_MAX: usize = 16;

/// Pieces of a body that wait for the disk.
const PIECES_MAX: usize = 8;

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
    let writer = app.cluster.artifact_writer(announced);
    let writer = writer.map_err(|error| disk(&error))?;
    let (sha256, size) = store(writer, body, expected.sha256).await?;
    let spread = app.cluster.spread(sha256, size).await;
    let holders = spread.map_err(|error| match error {
        // Too few nodes could take it now.
        muster_raft::Error::Refused(detail) => Problem::new("unavailable", detail),
        other => other.into(),
    })?;
    let object = Object::Artifact(Artifact {
        path: path.clone(),
        sha256,
        size,
    });
    let mode = conditions.mode();
    let outcome = write(
        &app,
        caller.without_key(),
        conditions.revision,
        Command::Put { object, mode },
    )
    .await?;
    tracing::info!(path, %sha256, size, nodes = holders.len(), "artifact uploaded");
    let new = matches!(outcome.result, Ok(Effect::Stored { created: true, .. }));
    let templates = Sources::default().compiled();
    let (body, revision) = app.cluster.read(|state| {
        let record = objects::find(state, ObjectKind::Artifact, &path)?;
        Ok::<_, Problem>((view::object(state, &templates, record), record.revision))
    })?;
    let headers = [("etag", etag(revision))];
    Ok((created(new), headers, axum::Json(body)).into_response())
}

/// Writes a body to the disk on a thread of its own, as fast as the disk takes it.
async fn store(
    mut writer: ArtifactWriter,
    body: Body,
    expected: Option<Sha256>,
) -> Result<(Sha256, u64), Problem> {
    // `None` says that the body is whole: a channel that just closes leaves nothing behind.
    let (pieces, mut arriving) = mpsc::channel::<Option<Bytes>>(PIECES_MAX);
    let disk_thread = tokio::task::spawn_blocking(move || {
        loop {
            match arriving.blocking_recv() {
                Some(Some(piece)) => writer.write(&piece)?,
                Some(None) => return writer.finish(expected),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    });
    let received = receive(body, pieces).await;
    let stored = disk_thread
        .await
        .map_err(|_| Problem::new("internal", "a worker thread failed"))?;
    match (received, stored) {
        (Err(problem), _) => Err(problem),
        (Ok(()), Ok(stored)) => Ok(stored),
        (Ok(()), Err(error)) => Err(disk(&error)),
    }
}

async fn receive(body: Body, pieces: mpsc::Sender<Option<Bytes>>) -> Result<(), Problem> {
    let mut stream = body.into_data_stream();
    let mut length = 0u64;
    while let Some(piece) = stream.next().await {
        let piece = piece
            .map_err(|error| Problem::new("malformed", format!("the body ended early: {error}")))?;
        length = length.saturating_add(piece.len() as u64);
        if length > ARTIFACT_MAX {
            let detail = format!("an artifact may have {ARTIFACT_MAX} octets");
            return Err(Problem::new("too_large", detail));
        }
        if pieces.send(Some(piece)).await.is_err() {
            // The disk failed; its thread says how.
            return Ok(());
        }
    }
    let _ = pieces.send(None).await;
    Ok(())
}

fn disk(error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::InvalidData => Problem::invalid("sha256", error.to_string()),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Problem::new(
            "no_space",
            format!("this node cannot take the file: {error}"),
        ),
        _ => {
            tracing::error!(%error, "an upload could not be written");
            Problem::new(
                "internal",
                format!("the upload could not be written: {error}"),
            )
        }
    }
}
