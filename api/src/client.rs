//! A client of the API: over the Unix socket or HTTPS, to whichever node answers.

mod stream;
mod upload;

pub use stream::{Event, Events};
pub use upload::Upload;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use reqwest::{Method, Response, StatusCode, Url, header};
use serde_json::Value;
use tokio::io::AsyncSeekExt as _;

/// Pause before all endpoints are tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// How long a node may take to accept a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(2);

/// A machine that does not answer at all for so long, so often, is gone, also when nothing is sent.
const SILENCE: Duration = Duration::from_secs(5);
const SILENCES: u32 = 3;

/// How long one of several nodes may take to answer what can be asked of another.
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// How long a node may take to answer a write: longer than it waits itself.
const WRITE_WAIT: Duration = Duration::from_secs(15);

/// Octets of a file that are read at a time.
const PIECE: usize = 256 << 10;

/// Names a request, so that it is done once however often it is sent.
const KEY: &str = "idempotency-key";

/// By what a client is known.
#[derive(Clone)]
pub enum Credentials {
    /// A bearer token.
    Token(String),
    /// HTTP Basic.
    Password {
        /// User.
        username: String,
        /// Password.
        password: String,
    },
}

/// Where nodes are reached.
#[derive(Clone, Debug)]
pub enum Target {
    /// The Unix socket of a node on this machine.
    Socket(PathBuf),
    /// Base URLs, `https://HOST:8092`, and the certificate of the cluster's authority, PEM.
    Https {
        /// Tried in this order, beginning with the one that answered last.
        endpoints: Vec<String>,
        /// Whom to trust; the system's authorities when absent.
        ca_pem: Option<Vec<u8>>,
    },
}

/// Why there is no answer, or not the one hoped for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused or failed, and said why.
    #[error("{detail}")]
    Problem {
        /// HTTP status.
        status: u16,
        /// Stable code.
        code: String,
        /// What happened and what to do.
        detail: String,
    },
    /// No node could be reached.
    #[error("cannot reach {target}: {problem}; is muster running there?")]
    Unreachable {
        /// Where.
        target: String,
        /// Why.
        problem: String,
    },
    /// The connection broke after the request was sent.
    #[error("{target} did not answer ({problem}): it is not known whether the write was made")]
    Unknown {
        /// Where.
        target: String,
        /// Why.
        problem: String,
    },
    /// The client cannot be set up.
    #[error("{0}")]
    Setup(String),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// What is sent.
#[derive(Clone, Debug, Default)]
pub enum Payload {
    /// Nothing.
    #[default]
    Nothing,
    /// A JSON value.
    Json(Value),
    /// A part of a file.
    Part(Part),
}

/// A file from an offset on.
#[derive(Clone)]
pub struct Part {
    path: PathBuf,
    from: u64,
    /// Told how many octets were handed to the connection.
    sent: std::sync::Arc<dyn Fn(u64) + Send + Sync>,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} from {}", self.path.display(), self.from)
    }
}

impl Part {
    async fn body(&self) -> Result<(u64, reqwest::Body), Error> {
        let failed = |source| Error::File {
            path: self.path.display().to_string(),
            source,
        };
        let mut file = tokio::fs::File::open(&self.path).await.map_err(failed)?;
        let length = file.metadata().await.map_err(failed)?.len();
        let from = std::io::SeekFrom::Start(self.from);
        file.seek(from).await.map_err(failed)?;
        let sent = std::sync::Arc::clone(&self.sent);
        let pieces = tokio_util::io::ReaderStream::with_capacity(file, PIECE);
        let pieces = pieces.inspect_ok(move |piece| sent(piece.len() as u64));
        let body = reqwest::Body::wrap_stream(pieces);
        Ok((length.saturating_sub(self.from), body))
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    path: Vec<String>,
    query: Vec<(String, String)>,
    headers: Vec<(&'static str, String)>,
    payload: Payload,
    streamed: bool,
    once: bool,
}

impl Call {
    /// A request to `/api/v1/` and these segments; a segment may hold slashes.
    pub fn new(method: Method, path: &[&str]) -> Self {
        Self {
            method,
            path: path.iter().map(|part| (*part).to_owned()).collect(),
            query: Vec::new(),
            headers: vec![("accept", "application/json".to_owned())],
            payload: Payload::Nothing,
            streamed: false,
            once: false,
        }
    }

    /// Leaves it to the caller to try again.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// Lets the answer take as long as it takes.
    #[must_use]
    pub fn streamed(mut self) -> Self {
        self.streamed = true;
        self
    }

    /// Adds a query parameter.
    #[must_use]
    pub fn query(mut self, name: &str, value: impl Into<String>) -> Self {
        self.query.push((name.to_owned(), value.into()));
        self
    }

    /// Sets a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.into()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn payload(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }

    /// Whether sending it twice does no more than sending it once.
    fn repeatable(&self) -> bool {
        self.method != Method::POST || self.has_key()
    }

    fn reads(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }

    fn has_key(&self) -> bool {
        self.headers.iter().any(|(name, _)| *name == KEY)
    }

    /// Lets the nodes recognise it when it is sent again.
    fn keyed(self) -> Self {
        // Orders about nodes are not remembered.
        let order = self
            .path
            .first()
            .is_some_and(|part| part == "cluster" || part == "nodes");
        match self.payload {
            Payload::Part(_) => self,
            _ if self.reads() || order || self.has_key() => self,
            _ => self.header(KEY, uuid::Uuid::new_v4().to_string()),
        }
    }

    fn without_key(mut self) -> Self {
        self.headers.retain(|(name, _)| *name != KEY);
        self
    }

    fn url(&self, base: &str) -> Result<Url, Error> {
        let bad = || Error::Setup(format!("`{base}` is no URL; write https://HOST:8092"));
        let mut url = Url::parse(base).map_err(|_| bad())?;
        let parts = self.path.iter().flat_map(|part| part.split('/'));
        url.path_segments_mut()
            .map_err(|()| bad())?
            .pop_if_empty()
            .extend(["api", "v1"].into_iter().chain(parts));
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        Ok(url)
    }
}

/// A client. Remembers which node answered last.
pub struct Client {
    http: reqwest::Client,
    endpoints: Vec<String>,
    /// For messages: what a person gave.
    names: Vec<String>,
    credentials: Option<Credentials>,
    timeout: Duration,
    preferred: AtomicUsize,
}

impl Client {
    /// A client that tries for `timeout` before it gives up.
    ///
    /// # Errors
    /// When there is no endpoint, or the certificate cannot be read.
    pub fn new(
        target: Target,
        credentials: Option<Credentials>,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let setup = |error: reqwest::Error| Error::Setup(chain(&error));
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_WAIT)
            .tcp_keepalive(SILENCE)
            .tcp_keepalive_interval(SILENCE)
            .tcp_keepalive_retries(SILENCES)
            .tcp_user_timeout(SILENCE * SILENCES);
        let (builder, endpoints, names) = match target {
            Target::Socket(path) => {
                let name = path.display().to_string();
                // There need be no authorities on this machine: nothing is encrypted.
                let nobody: [reqwest::Certificate; 0] = [];
                (
                    builder.unix_socket(path).tls_certs_only(nobody),
                    vec!["http://localhost".to_owned()],
                    vec![name],
                )
            }
            Target::Https { endpoints, ca_pem } => {
                let builder = match ca_pem {
                    None => builder,
                    Some(pem) => {
                        let trusted = reqwest::Certificate::from_pem_bundle(&pem).map_err(setup)?;
                        builder.tls_certs_only(trusted)
                    }
                };
                (builder.https_only(true), endpoints.clone(), endpoints)
            }
        };
        if endpoints.is_empty() {
            return Err(Error::Setup("no endpoint is given".to_owned()));
        }
        Ok(Self {
            http: builder.build().map_err(setup)?,
            endpoints,
            names,
            credentials,
            timeout,
            preferred: AtomicUsize::new(0),
        })
    }

    /// A client for each endpoint alone, that which answered last first.
    pub fn each(&self) -> Vec<Self> {
        let first = self.preferred.load(Ordering::Relaxed);
        let all = self.endpoints.iter().zip(&self.names);
        let mut each: Vec<Self> = all
            .map(|(endpoint, name)| Self {
                http: self.http.clone(),
                endpoints: vec![endpoint.clone()],
                names: vec![name.clone()],
                credentials: self.credentials.clone(),
                timeout: self.timeout,
                preferred: AtomicUsize::new(0),
            })
            .collect();
        let count = each.len().max(1);
        each.rotate_left(first % count);
        each
    }

    /// Sends a request to the first node that can take it; the answer is a success.
    ///
    /// # Errors
    /// When it is refused, or no node took it in time.
    pub async fn send(&self, call: Call) -> Result<Response, Error> {
        let mut call = call.keyed();
        let deadline = Instant::now() + self.timeout;
        loop {
            let mut failures = Vec::new();
            let first = self.preferred.load(Ordering::Relaxed);
            for turn in 0..self.endpoints.len() {
                let index = (first + turn) % self.endpoints.len();
                match self.attempt(index, &call, deadline).await {
                    Attempt::Answer(response) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return succeeded(response).await;
                    }
                    Attempt::Next(error) => {
                        if matches!(&error, Error::Problem { code, .. } if code == "keys_full") {
                            call = call.without_key();
                        }
                        failures.push(error);
                    }
                    Attempt::Final(error) => return Err(error),
                }
            }
            if call.once || Instant::now() + PAUSE >= deadline {
                return Err(most_telling(failures));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// As [`Client::send`], reading the answer as JSON.
    ///
    /// # Errors
    /// As [`Client::send`], and when the answer is no JSON.
    pub async fn json(&self, call: Call) -> Result<Value, Error> {
        let response = self.send(call).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        let target = response.url().to_string();
        response.json().await.map_err(|error| Error::Unreachable {
            target,
            problem: chain(&error),
        })
    }

    async fn attempt(&self, index: usize, call: &Call, deadline: Instant) -> Attempt {
        let (Some(base), Some(name)) = (self.endpoints.get(index), self.names.get(index)) else {
            return Attempt::Final(Error::Setup("no endpoint is given".to_owned()));
        };
        let request = match self.request(base, call, deadline).await {
            Ok(request) => request,
            Err(error) => return Attempt::Final(error),
        };
        match request.send().await {
            Ok(response) if may_be_tried_again(&response, call) => {
                match succeeded(response).await {
                    Ok(response) => Attempt::Answer(response),
                    Err(error) => Attempt::Next(error),
                }
            }
            Ok(response) => Attempt::Answer(response),
            Err(error) => {
                let (target, problem) = (name.clone(), chain(&error));
                if error.is_connect() || call.repeatable() {
                    Attempt::Next(Error::Unreachable { target, problem })
                } else {
                    Attempt::Final(Error::Unknown { target, problem })
                }
            }
        }
    }

    async fn request(
        &self,
        base: &str,
        call: &Call,
        deadline: Instant,
    ) -> Result<reqwest::RequestBuilder, Error> {
        let mut request = self.http.request(call.method.clone(), call.url(base)?);
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        request = match &self.credentials {
            None => request,
            Some(Credentials::Token(token)) => request.bearer_auth(token),
            Some(Credentials::Password { username, password }) => {
                request.basic_auth(username, Some(password))
            }
        };
        let wait = match call.payload {
            Payload::Part(_) => None,
            _ if call.streamed => None,
            _ if call.has_key() || !call.repeatable() => Some(WRITE_WAIT),
            _ if self.endpoints.len() > 1 => Some(ANSWER_WAIT),
            _ => Some(
                deadline
                    .saturating_duration_since(Instant::now())
                    .max(CONNECT_WAIT),
            ),
        };
        if let Some(wait) = wait {
            request = request.timeout(wait);
        }
        Ok(match &call.payload {
            Payload::Nothing => request,
            Payload::Json(value) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(value.to_string()),
            Payload::Part(part) => {
                let (length, body) = part.body().await?;
                request.header(header::CONTENT_LENGTH, length).body(body)
            }
        })
    }
}

/// Whether another attempt may do better, and does not do it twice.
fn may_be_tried_again(response: &Response, call: &Call) -> bool {
    match response.status() {
        StatusCode::SERVICE_UNAVAILABLE => true,
        StatusCode::GATEWAY_TIMEOUT => call.has_key(),
        _ => false,
    }
}

enum Attempt {
    Answer(Response),
    Next(Error),
    Final(Error),
}

/// What a node said, before what was said of nodes that could not be reached.
fn most_telling(failures: Vec<Error>) -> Error {
    let (mut targets, mut problems) = (Vec::new(), Vec::new());
    for failure in failures {
        match failure {
            Error::Unreachable { target, problem } => {
                problems.push(format!("{target}: {problem}"));
                targets.push(target);
            }
            answer => return answer,
        }
    }
    Error::Unreachable {
        target: targets.join(", "),
        problem: problems.join("; "),
    }
}

async fn succeeded(response: Response) -> Result<Response, Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body: Value = response.json().await.unwrap_or_default();
    let text = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
    Err(Error::Problem {
        status: status.as_u16(),
        code: text("code").unwrap_or_default(),
        detail: text("detail").unwrap_or_else(|| format!("the server answered {status}")),
    })
}

/// An error with all that caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
