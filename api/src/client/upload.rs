//! Uploading a file: over broken connections and restarts of the node that takes it, and to another
//! node, from the beginning, when that one is gone.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_storage::model::Sha256;
use reqwest::{Method, Response};

use super::{Call, Client, Error, Part, Payload};

/// For as long as this a node that took some of a file is waited for, as long as nothing else can be
/// done.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same when there are other nodes.
const PATIENCE_AMONG_OTHERS: Duration = Duration::from_secs(10);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);

const RESUMABLE: (&str, &str) = ("tus-resumable", "1.0.0");

/// A file that is to be an artifact.
pub struct Upload<'a> {
    /// Where it is.
    pub file: &'a Path,
    /// Path by which it is to be known.
    pub path: &'a str,
    /// Digest of its bytes.
    pub sha256: Sha256,
    /// Length in bytes.
    pub size: u64,
}

impl Client {
    /// Sends a file. `at` is told how many bytes of it the node has, or is about to have.
    ///
    /// # Errors
    /// When it is refused, when no node takes it in time, or it cannot be read.
    pub async fn upload(
        &self,
        upload: &Upload<'_>,
        at: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let at: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(at);
        let mut nodes = self.each();
        let (began, mut begun) = (Instant::now(), false);
        // A node that has forgotten an upload, or is left for another, has it from the beginning.
        loop {
            let patience = match nodes.len() {
                1 => PATIENCE.max(self.timeout),
                _ => PATIENCE_AMONG_OTHERS,
            };
            let Some(node) = nodes.first() else {
                return Err(Error::Setup("no endpoint is given".to_owned()));
            };
            let done = match node.begin_upload(upload).await {
                Ok(id) => {
                    begun = true;
                    node.send_upload(&id, upload, patience, &at).await
                }
                Err(error) => Err(error),
            };
            // Whom nobody has taken anything from yet waits as for any other answer.
            let patience = if begun { PATIENCE } else { Duration::ZERO };
            match done {
                Err(error) if may_pass(&error) && began.elapsed() < patience.max(self.timeout) => {
                    nodes.rotate_left(1);
                    tokio::time::sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    }

    /// Sends a file to the one node that this is a client of.
    async fn send_upload(
        &self,
        id: &str,
        upload: &Upload<'_>,
        patience: Duration,
        at: &Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<(), Error> {
        let (mut offset, mut progress) = (0, Instant::now());
        loop {
            let error = match self.append(id, upload, offset, at).await {
                Ok(()) => return Ok(()),
                Err(error) if may_pass(&error) => error,
                Err(error) => return Err(error),
            };
            // A node that answers is not waited for as long as one that is being started again.
            let patience = match error {
                Error::Problem { .. } => self.timeout,
                _ => patience,
            };
            // Where it has got to, once it can be asked.
            loop {
                if progress.elapsed() >= patience {
                    return Err(error);
                }
                tokio::time::sleep(PAUSE).await;
                match self.offset(id).await {
                    Ok(reached) => {
                        if reached > offset {
                            progress = Instant::now();
                        }
                        offset = reached;
                        break;
                    }
                    // It has forgotten it.
                    Err(error @ Error::Problem { status: 404, .. }) => return Err(error),
                    Err(error) if may_pass(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    async fn begin_upload(&self, upload: &Upload<'_>) -> Result<String, Error> {
        let path = STANDARD.encode(upload.path);
        let sha256 = STANDARD.encode(upload.sha256.to_string());
        let call = Call::new(Method::POST, &["uploads"])
            .header(RESUMABLE.0, RESUMABLE.1)
            .header("upload-length", upload.size.to_string())
            .header("upload-metadata", format!("path {path},sha256 {sha256}"))
            .once();
        let response = self.send(call).await?;
        let location = header(&response, "location").unwrap_or_default();
        match location.rsplit('/').next() {
            Some(id) if !id.is_empty() => Ok(id.to_owned()),
            _ => Err(Error::Setup("the node does not say where to".to_owned())),
        }
    }

    async fn append(
        &self,
        id: &str,
        upload: &Upload<'_>,
        offset: u64,
        at: &Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<(), Error> {
        let reached = std::sync::atomic::AtomicU64::new(offset);
        let at = Arc::clone(at);
        at(offset);
        let sent = move |more| {
            at(reached.fetch_add(more, std::sync::atomic::Ordering::Relaxed) + more);
        };
        let call = Call::new(Method::PATCH, &["uploads", id])
            .header(RESUMABLE.0, RESUMABLE.1)
            .header("upload-offset", offset.to_string())
            .header("content-type", "application/offset+octet-stream")
            .payload(Payload::Part(Part {
                path: upload.file.to_owned(),
                from: offset,
                sent: Arc::new(sent),
            }))
            .once();
        self.send(call).await.map(drop)
    }

    async fn offset(&self, id: &str) -> Result<u64, Error> {
        let call = Call::new(Method::HEAD, &["uploads", id])
            .header(RESUMABLE.0, RESUMABLE.1)
            .query("consistency", "local")
            .once();
        let response = self.send(call).await?;
        let offset = header(&response, "upload-offset").and_then(|text| text.parse().ok());
        offset.ok_or_else(|| Error::Setup("the node does not say how far it has got".to_owned()))
    }
}

fn header<'r>(response: &'r Response, name: &str) -> Option<&'r str> {
    response.headers().get(name)?.to_str().ok()
}

/// Whether it may be otherwise a moment later, or at another node.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } | Error::Unknown { .. } => true,
        Error::Problem { status, .. } => matches!(status, 404 | 408 | 409 | 503 | 504),
        Error::Setup(_) | Error::File { .. } => false,
    }
}
