//! A backup of the cluster, written while it is sent.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use muster_storage::model::{Object, ObjectKind};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::extract::{On, Params, text};
use crate::auth::ADMIN;
use crate::problem::Problem;
use crate::{App, Shared};

/// The passphrase in Base64, so that it may have any characters.
pub const PASSPHRASE: HeaderName = HeaderName::from_static("muster-passphrase");

/// Octets that are sent at a time.
const PIECE: usize = 256 << 10;

/// Pieces that wait for the client.
const PIECES_MAX: usize = 8;

/// Backups at a time: each holds a copy of the rows while its client takes it.
pub const BACKUPS_MAX: usize = 2;

#[derive(Deserialize)]
pub struct Wanted {
    /// The bytes of all artifacts as well.
    #[serde(default)]
    artifacts: bool,
}

/// What this node has applied, as one file; what was answered before is in it. The file is whole
/// only with its end: check it.
pub async fn get(
    State(app): State<Shared>,
    On(caller): On,
    Params(Wanted { artifacts }): Params<Wanted>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if caller.actor.0 != ADMIN {
        return Err(Problem::new(
            "forbidden",
            format!("only user `{ADMIN}` makes backups: they hold all secrets"),
        ));
    }
    let passphrase = passphrase(&headers)?;
    if artifacts {
        check_artifacts(&app)?;
    }
    let permit = Arc::clone(&app.backups)
        .try_acquire_owned()
        .map_err(|_| Problem::new("unavailable", "too many backups at a time; try again"))?;
    tracing::info!(actor = caller.actor.0, artifacts, "making a backup");
    let cluster = app.cluster.clone();
    let (sender, mut pieces) = mpsc::channel(PIECES_MAX);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let out = BufWriter::with_capacity(PIECE, Pieces(sender.clone()));
        if let Err(error) = cluster.backup(&passphrase, artifacts, out) {
            tracing::warn!(%error, "a backup was not finished");
            // The client may be gone: that may be the error.
            let _ = sender.blocking_send(Err(error));
        }
    });
    // What fails before anything was sent is answered; what fails later breaks the answer off.
    let first = match pieces.recv().await {
        Some(Err(muster_raft::Error::Refused(detail))) => {
            return Err(Problem::invalid("passphrase", detail));
        }
        Some(first) => first?,
        None => return Err(Problem::new("internal", "a worker thread failed")),
    };
    let rest = ReceiverStream::new(pieces).map(|piece| piece.map_err(io::Error::other));
    let body = futures::stream::once(std::future::ready(Ok(first))).chain(rest);
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"muster-backup.tar\"",
        ),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

fn passphrase(headers: &HeaderMap) -> Result<String, Problem> {
    let encoded = text(headers, PASSPHRASE)?.ok_or_else(|| {
        Problem::invalid(
            "passphrase",
            format!("send {PASSPHRASE} in Base64: it seals the keys, and restoring asks for it"),
        )
    })?;
    let decoded = STANDARD.decode(encoded.trim()).ok();
    decoded
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| Problem::invalid("passphrase", "it is not text in Base64"))
}

/// Refuses when this node still lacks some bytes: another one has them.
fn check_artifacts(app: &App) -> Result<(), Problem> {
    let lacking = app.cluster.read(|state| {
        let mut artifacts = state
            .objects_after(ObjectKind::Artifact, None)
            .filter_map(|record| match &record.object {
                Object::Artifact(artifact) => Some(artifact),
                _ => None,
            });
        let lacking = |sha256| app.cluster.blobs().size(sha256).is_none();
        artifacts
            .find(|artifact| lacking(&artifact.sha256))
            .map(|artifact| artifact.path.clone())
    });
    match lacking {
        None => Ok(()),
        Some(path) => Err(Problem::new(
            "unavailable",
            format!("this node lacks artifact `{path}` yet; ask another node, or later"),
        )),
    }
}

/// Hands on what is written.
struct Pieces(mpsc::Sender<Result<Bytes, muster_raft::Error>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Ok(Bytes::copy_from_slice(bytes));
        match self.0.blocking_send(piece) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
