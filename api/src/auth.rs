//! Who is asking: HTTP Basic, bearer tokens, or root on the node's own socket.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use muster_storage::Actor;
use muster_storage::model::Sha256;
use rand::TryRngCore as _;
use sha2::Digest as _;
use tokio::sync::Semaphore;

use crate::problem::Problem;
use crate::{App, Shared};

/// Who root on the socket is.
pub(crate) const ADMIN: &str = "admin";

/// Passwords that are checked at a time: each takes 19 MiB and some 30 ms of a core, and whoever
/// guesses must not keep the node from its work.
const CHECKS_MAX: usize = 2;

/// Requests that may wait for a check; more are turned away at once.
const CHECKS_WAITING_MAX: usize = 64;

/// Verified credentials that are remembered.
const VERIFIED_MAX: usize = 1024;

/// Longest password, in octets.
pub const PASSWORD_MAX: usize = 1024;

/// How long who names what this node does not know waits for news from the leader.
pub(crate) const CATCH_UP: Duration = Duration::from_millis(500);

/// Marks our tokens, so that leaked ones are found by scanners.
const TOKEN_PREFIX: &str = "mst_";

static CHECKS: LazyLock<Checks> = LazyLock::new(Checks::default);

/// Bounds what hashing passwords may take of the node.
struct Checks {
    waiting: Semaphore,
    running: Arc<Semaphore>,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            waiting: Semaphore::new(CHECKS_WAITING_MAX),
            running: Arc::new(Semaphore::new(CHECKS_MAX)),
        }
    }
}

impl Checks {
    /// Works on a thread of its own when it is its turn.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let place = self.waiting.try_acquire().map_err(|_| {
            Problem::new(
                "unavailable",
                "too many passwords wait to be checked; try again, or use a token",
            )
        })?;
        let failed = || Problem::new("internal", "a worker thread failed");
        let running = Arc::clone(&self.running).acquire_owned().await;
        let permit = running.map_err(|_| failed())?;
        drop(place);
        // The thread keeps the permit: a client that hangs up does not end the work.
        let working = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        working.await.map_err(|_| failed())
    }
}

/// Over what a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// TLS.
    Remote,
    /// The Unix socket, from a process of this user.
    Local {
        /// Its effective user id.
        uid: u32,
    },
}

/// Hashes of credentials that were verified against a present password hash.
#[derive(Default)]
pub(crate) struct Verified(Mutex<HashSet<[u8; 32]>>);

impl Verified {
    fn contains(&self, key: &[u8; 32]) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(key)
    }

    fn insert(&self, key: [u8; 32]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= VERIFIED_MAX {
            known.clear();
        }
        known.insert(key);
    }
}

/// Lets a request through with the [`Actor`] it acts for, or turns it away with 401.
pub(crate) async fn authenticate(
    State(app): State<Shared>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let peer = request.extensions().get::<Peer>().copied();
    let credentials = request.headers().get(header::AUTHORIZATION).cloned();
    let actor = identify(&app, peer, credentials).await?;
    request.extensions_mut().insert(actor);
    Ok(next.run(request).await)
}

async fn identify(
    app: &App,
    peer: Option<Peer>,
    credentials: Option<HeaderValue>,
) -> Result<Actor, Problem> {
    let Some(credentials) = credentials else {
        return match peer {
            Some(Peer::Local { uid }) if is_trusted(uid) => Ok(Actor(ADMIN.to_owned())),
            Some(Peer::Local { .. }) => Err(refused(
                "only root and the user that runs muster are admitted without credentials",
            )),
            Some(Peer::Remote) | None => Err(refused(
                "send HTTP Basic credentials or `Authorization: Bearer TOKEN`",
            )),
        };
    };
    let (scheme, value) = credentials
        .to_str()
        .ok()
        .and_then(|text| text.trim().split_once(' '))
        .ok_or_else(|| refused("the Authorization header cannot be read"))?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => by_token(app, value.trim()).await,
        "basic" => by_password(app, value.trim()).await,
        _ => Err(refused("use Basic or Bearer authorization")),
    }
}

fn refused(detail: &str) -> Problem {
    Problem::new("unauthorized", detail)
}

/// Root, and the user that this process runs as.
fn is_trusted(uid: u32) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    static OWN: LazyLock<Option<u32>> =
        LazyLock::new(|| std::fs::metadata("/proc/self").ok().map(|own| own.uid()));
    uid == 0 || *OWN == Some(uid)
}

async fn by_token(app: &App, token: &str) -> Result<Actor, Problem> {
    let bad = || refused("the token is unknown, expired or revoked");
    if !token.starts_with(TOKEN_PREFIX) {
        return Err(bad());
    }
    let hash = token_hash(token);
    let now = app.cluster.now();
    let user =
        |state: &muster_storage::State| state.token(&hash, now).map(|token| token.user.clone());
    if let Some(user) = app.cluster.read(user) {
        return Ok(Actor(user));
    }
    // It may have been made on another node a moment ago.
    let caught_up = tokio::time::timeout(CATCH_UP, app.cluster.read_linear(user)).await;
    match caught_up {
        Ok(Ok(Some(user))) => Ok(Actor(user)),
        Ok(Ok(None) | Err(_)) | Err(_) => Err(bad()),
    }
}

async fn by_password(app: &App, encoded: &str) -> Result<Actor, Problem> {
    let bad = || refused("the user or the password is wrong");
    let decoded = STANDARD.decode(encoded).map_err(|_| bad())?;
    let text = String::from_utf8(decoded).map_err(|_| bad())?;
    let (name, password) = text.split_once(':').ok_or_else(bad)?;
    if password.len() > PASSWORD_MAX {
        return Err(bad());
    }
    let user = |state: &muster_storage::State| state.user(name).map(|u| u.password_hash.clone());
    let stored = app.cluster.read(user);
    if matches(app, name, password, stored.as_ref()).await? {
        return Ok(Actor(name.to_owned()));
    }
    // The user or the password may have come to another node a moment ago.
    let caught_up = tokio::time::timeout(CATCH_UP, app.cluster.read_linear(user)).await;
    match caught_up {
        Ok(Ok(newer))
            if newer != stored && matches(app, name, password, newer.as_ref()).await? =>
        {
            Ok(Actor(name.to_owned()))
        }
        Ok(Ok(_) | Err(_)) | Err(_) => Err(bad()),
    }
}

async fn matches(
    app: &App,
    name: &str,
    password: &str,
    stored: Option<&String>,
) -> Result<bool, Problem> {
    // An unknown user costs as much as a wrong password, so that names cannot be told by time.
    let hash = stored.unwrap_or(&DECOY).clone();
    let key = credentials_key(name, password, &hash);
    if app.verified.contains(&key) {
        return Ok(stored.is_some());
    }
    let right = check_password(password.to_owned(), hash).await? && stored.is_some();
    if right {
        app.verified.insert(key);
    }
    Ok(right)
}

fn credentials_key(name: &str, password: &str, hash: &str) -> [u8; 32] {
    let mut hasher = sha2::Sha256::new();
    for part in [name, password, hash] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// A hash that no password has.
static DECOY: LazyLock<String> =
    LazyLock::new(|| hash_now(&random_secret().unwrap_or_default()).unwrap_or_default());

/// Argon2id as OWASP recommends it: 19 MiB, two passes.
fn argon2() -> Argon2<'static> {
    let params = Params::new(19 * 1024, 2, 1, None).unwrap_or_default();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

async fn check_password(password: String, hash: String) -> Result<bool, Problem> {
    let check = move || {
        PasswordHash::new(&hash)
            .is_ok_and(|hash| argon2().verify_password(password.as_bytes(), &hash).is_ok())
    };
    CHECKS.run(check).await
}

/// The PHC string of a password, computed on a thread of its own.
///
/// # Errors
/// When the password is empty or too long.
pub async fn hash_password(password: String) -> Result<String, Problem> {
    if password.is_empty() || password.len() > PASSWORD_MAX {
        return Err(Problem::invalid(
            "password",
            format!("must have 1 to {PASSWORD_MAX} octets"),
        ));
    }
    let hash = CHECKS.run(move || hash_now(&password)).await?;
    hash.ok_or_else(|| Problem::new("internal", "the password could not be hashed"))
}

/// As [`hash_password`], on this thread; for founding.
pub fn hash_now(password: &str) -> Option<String> {
    let mut salt = [0; 16];
    rand::rngs::OsRng.try_fill_bytes(&mut salt).ok()?;
    let salt = SaltString::encode_b64(&salt).ok()?;
    let hash = argon2().hash_password(password.as_bytes(), &salt).ok()?;
    Some(hash.to_string())
}

/// 256 random bits as text: a password or the secret part of a token.
///
/// # Errors
/// When the system has no randomness to give.
pub fn random_secret() -> Result<String, Problem> {
    let mut bytes = [0; 32];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| Problem::new("internal", format!("no randomness: {error}")))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// A new bearer token and the hash under which the cluster knows it.
///
/// # Errors
/// As [`random_secret`].
pub fn new_token() -> Result<(String, Sha256), Problem> {
    let token = format!("{TOKEN_PREFIX}{}", random_secret()?);
    let hash = token_hash(&token);
    Ok((token, hash))
}

fn token_hash(token: &str) -> Sha256 {
    Sha256(sha2::Sha256::digest(token).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn who_hangs_up_does_not_make_room() {
        let checks = Arc::new(Checks::default());
        let mut ends = Vec::new();
        let mut tasks = Vec::new();
        for _ in 0..CHECKS_MAX {
            let (end, ended) = std::sync::mpsc::channel::<()>();
            ends.push(end);
            let checks = Arc::clone(&checks);
            tasks.push(tokio::spawn(async move {
                checks.run(move || ended.recv().is_ok()).await
            }));
        }
        while checks.running.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        for task in tasks {
            task.abort();
            assert!(task.await.is_err());
        }
        assert_eq!(checks.running.available_permits(), 0);
        let waiting: Vec<_> = (0..CHECKS_WAITING_MAX)
            .map(|_| {
                let checks = Arc::clone(&checks);
                tokio::spawn(async move { checks.run(|| ()).await })
            })
            .collect();
        while checks.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(checks.run(|| ()).await.unwrap_err().status, 503);
        drop(ends);
        for task in waiting {
            task.await.unwrap().unwrap();
        }
    }
}
