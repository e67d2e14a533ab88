//! Uploads that go on where they broke off, by the protocol of tus.io (1.0.0, with its extensions
//! creation, termination and expiration). An upload stays on the node where it was begun; when its
//! last octet is there it becomes an artifact like one that was PUT.

use std::time::SystemTime;

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{head, options};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_raft::{UPLOAD_KEPT, Upload, UploadNote};
use muster_storage::command::PutMode;
use muster_storage::model::Sha256;
use uuid::Uuid;

use super::DONE;
use super::artifacts::publish;
use super::extract::{Key, On, text};
use super::incoming::{Sink, disk, pour, thread_failed};
use super::write::Caller;
use crate::problem::Problem;
use crate::{App, Shared};

/// The one version.
const VERSION: &str = "1.0.0";
const RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_METADATA: HeaderName = HeaderName::from_static("upload-metadata");
const UPLOAD_EXPIRES: HeaderName = HeaderName::from_static("upload-expires");

/// What octets of an upload are sent as.
const MEDIA_TYPE: &str = "application/offset+octet-stream";

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/", options(capabilities).post(begin))
        .route("/{id}", head(look).patch(append).delete(give_up))
}

/// What of the protocol is spoken here.
async fn capabilities(State(app): State<Shared>) -> Response {
    let most = app
        .cluster
        .read(|state| state.settings().artifacts.max_bytes);
    let headers = [
        ("tus-resumable", VERSION.to_owned()),
        ("tus-version", VERSION.to_owned()),
        (
            "tus-extension",
            "creation,termination,expiration".to_owned(),
        ),
        ("tus-max-size", most.to_string()),
    ];
    (DONE, headers).into_response()
}

/// Refuses another version of the protocol.
fn check_version(headers: &HeaderMap) -> Result<(), Problem> {
    match text(headers, RESUMABLE)? {
        Some(VERSION) => Ok(()),
        _ => Err(Problem::new(
            "malformed",
            format!("uploads need the header Tus-Resumable: {VERSION}"),
        )),
    }
}

/// A header that is a number.
fn number(headers: &HeaderMap, name: HeaderName) -> Result<u64, Problem> {
    let number = text(headers, name.clone())?.and_then(|text| text.parse().ok());
    number.ok_or_else(|| Problem::new("malformed", format!("the header {name} is to be a number")))
}

/// A value of `Upload-Metadata`: pairs by commas, a name and a value in Base64.
fn metadata(headers: &HeaderMap, name: &str) -> Result<String, Problem> {
    let bad = || {
        let detail = format!(
            "Upload-Metadata is to be `path BASE64,sha256 BASE64`, and `{name}` is not to be read \
             from it"
        );
        Problem::new("malformed", detail)
    };
    let pairs = text(headers, UPLOAD_METADATA)?.ok_or_else(bad)?;
    // A value may be empty, and then what separates it left out.
    let mut pairs = pairs
        .split(',')
        .map(|pair| pair.trim().split_once(' ').unwrap_or((pair.trim(), "")));
    let (_, value) = pairs.find(|(found, _)| *found == name).ok_or_else(bad)?;
    let value = STANDARD.decode(value.trim()).map_err(|_| bad())?;
    String::from_utf8(value).map_err(|_| bad())
}

/// Begins an upload.
async fn begin(
    State(app): State<Shared>,
    On(caller): On,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    check_version(&headers)?;
    let sha256 = metadata(&headers, "sha256")?;
    let sha256: Sha256 = sha256
        .parse()
        .map_err(|_| Problem::invalid("sha256", "write a SHA-256 as 64 hexadecimal digits"))?;
    let note = UploadNote {
        path: metadata(&headers, "path")?,
        sha256,
        size: number(&headers, UPLOAD_LENGTH)?,
        actor: caller.actor.0,
    };
    app.cluster
        .read(|state| state.check_artifact(&note.path, note.size))?;
    let cluster = app.cluster.clone();
    let begun = tokio::task::spawn_blocking(move || cluster.begin_upload(note)).await;
    let begun = begun.map_err(|_| thread_failed())?;
    let id = begun.map_err(|error| disk(&error))?;
    let location = format!("/api/v1/uploads/{id}");
    let mut response = (StatusCode::CREATED, [(header::LOCATION, location)]).into_response();
    describe(response.headers_mut(), 0, None);
    Ok(response)
}

/// Adds what every answer about an upload says.
fn describe(headers: &mut HeaderMap, offset: u64, size: Option<u64>) {
    let expires = jiff::Timestamp::try_from(SystemTime::now() + UPLOAD_KEPT).unwrap_or_default();
    let expires = expires.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let mut set = |name: HeaderName, value: &str| {
        // Digits and dates.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(RESUMABLE, VERSION);
    set(UPLOAD_OFFSET, &offset.to_string());
    set(UPLOAD_EXPIRES, &expires);
    set(header::CACHE_CONTROL, "no-store");
    if let Some(size) = size {
        set(UPLOAD_LENGTH, &size.to_string());
    }
}

/// There is no such upload of this caller here, or no more.
fn unknown(id: &str) -> Problem {
    let detail = format!(
        "upload `{id}` is not known on this node: it came to its end, was given up, or is on \
         another node; begin anew"
    );
    Problem::new("not_found", detail)
}

/// An upload of this caller. Who writes to it is interrupted, so that it stays as it is.
async fn take(
    app: &App,
    caller: &Caller,
    id: &str,
    headers: &HeaderMap,
) -> Result<Upload, Problem> {
    check_version(headers)?;
    let parsed: Uuid = id.parse().map_err(|_| unknown(id))?;
    let upload = app.cluster.take_upload(parsed, &caller.actor.0).await;
    upload.ok_or_else(|| unknown(id))
}

/// How far an upload has got.
async fn look(
    State(app): State<Shared>,
    On(caller): On,
    Key(id): Key,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let upload = take(&app, &caller, &id, &headers).await?;
    let mut response = StatusCode::OK.into_response();
    let size = upload.note().size;
    describe(response.headers_mut(), upload.length(), Some(size));
    Ok(response)
}

/// Takes octets of an upload, from where it has got to; with the last one it becomes an artifact.
/// Where that fails for want of other nodes it is tried again with no octets.
async fn append(
    State(app): State<Shared>,
    On(caller): On,
    Key(id): Key,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if text(&headers, header::CONTENT_TYPE)? != Some(MEDIA_TYPE) {
        let detail = format!("octets of an upload are sent as {MEDIA_TYPE}");
        return Err(Problem::new("malformed", detail));
    }
    let offset = number(&headers, UPLOAD_OFFSET)?;
    let upload = take(&app, &caller, &id, &headers).await?;
    if offset != upload.length() {
        let detail = format!("the upload has got to {}, not to {offset}", upload.length());
        return Err(Problem::new("conflict", detail).with("offset", upload.length()));
    }
    let left = upload.left();
    if body.size_hint().lower() > left {
        let detail = format!("{left} octets are left of the upload");
        return Err(Problem::new("too_large", detail));
    }
    let taken_over = upload.taken_over();
    let poured = tokio::select! {
        poured = pour(body, left, upload) => poured?,
        () = taken_over.cancelled() => {
            return Err(Problem::new("conflict", "another request goes on with this upload"));
        }
    };
    let (mut upload, ended) = poured;
    ended?;
    if upload.left() == 0 {
        upload = complete(&app, caller, upload).await?;
    }
    let mut response = DONE.into_response();
    describe(response.headers_mut(), upload.length(), None);
    Ok(response)
}

/// Makes an artifact of an upload that is whole.
async fn complete(app: &App, caller: Caller, mut upload: Upload) -> Result<Upload, Problem> {
    let note = upload.note().clone();
    // From now on until something names it.
    let _kept = app.cluster.keep_blob(note.sha256);
    let finishing = tokio::task::spawn_blocking(move || {
        let finished = upload.finish();
        (upload, finished)
    });
    let (upload, finished) = finishing.await.map_err(|_| thread_failed())?;
    let id = upload.id();
    let published = match finished {
        Ok(()) => {
            let publishing = publish(
                app,
                caller,
                None,
                PutMode::Apply,
                &note.path,
                note.sha256,
                note.size,
            );
            publishing.await.map(drop)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(unknown(&id.to_string())),
        Err(error) => Err(disk(&error)),
    };
    // For want of other nodes it can be tried again; nothing else gets better by that.
    let again = |problem: &Problem| matches!(problem.code, "unavailable" | "timeout" | "no_space");
    if !published.as_ref().is_err_and(again) {
        forget(app, id).await;
    }
    published.map(|()| upload)
}

async fn forget(app: &App, id: Uuid) {
    let cluster = app.cluster.clone();
    let removed = tokio::task::spawn_blocking(move || cluster.remove_upload(id)).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(upload = %id, %error, "an upload that is over cannot be removed");
    }
}

/// Gives an upload up.
async fn give_up(
    State(app): State<Shared>,
    On(caller): On,
    Key(id): Key,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let upload = take(&app, &caller, &id, &headers).await?;
    forget(&app, upload.id()).await;
    Ok((DONE, [(RESUMABLE, VERSION)]).into_response())
}

impl Sink for Upload {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        Upload::write(self, bytes)
    }
}
