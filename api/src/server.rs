//! The API on the wire: HTTPS for everyone, and a Unix socket for those on the machine.
//!
//! A server is up before the node belongs to a cluster: what it serves, and with which
//! certificate, is set when that is known.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::auth::Peer;

/// Connections at a time, on each of the two listeners.
pub const CONNECTIONS_MAX: usize = 8192;

/// Octets with which an HTTP/2 client introduces itself (RFC 9113 §3.4).
const PREFACE: usize = 24;

/// How often a quiet HTTP/2 client is asked whether it is there, and how long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// A client that does not finish its TLS handshake, or a request's header, by then is gone.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);

/// How long open requests may take once the server stops.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// After an error of `accept` (no file descriptors, mostly) we wait a little.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is served now.
#[derive(Clone)]
pub struct Serving(Arc<RwLock<(Router, Arc<rustls::ServerConfig>)>>);

impl Serving {
    /// Serves `router` with the certificate in `tls`.
    pub fn new(router: Router, tls: Arc<rustls::ServerConfig>) -> Self {
        Self(Arc::new(RwLock::new((router, tls))))
    }

    /// Serves something else from now on, also on connections that are open.
    pub fn set(&self, router: Router, tls: Arc<rustls::ServerConfig>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = (router, tls);
    }

    fn router(&self) -> Router {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .clone()
    }

    fn tls(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).1)
    }
}

/// Serves HTTPS until `stop`; then lets open requests end.
pub async fn serve_tls(listener: TcpListener, serving: Serving, stop: CancellationToken) {
    let connections = Connections::new(serving);
    let shares = Shares::of(CONNECTIONS_MAX, "api");
    while let Some((stream, peer, permit)) = connections.accept(&stop, || listener.accept()).await {
        let Some(share) = shares.take(peer.ip()) else {
            continue;
        };
        let serving = connections.serving.clone();
        let watcher = connections.graceful.watcher();
        tokio::spawn(async move {
            // Small answers must not wait for more to send.
            let _ = stream.set_nodelay(true);
            let acceptor = TlsAcceptor::from(serving.tls());
            match tokio::time::timeout(HANDSHAKE_WAIT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let version = match stream.get_ref().1.alpn_protocol() {
                        Some(b"h2") => Http::Two,
                        _ => Http::One,
                    };
                    serve(stream, version, Peer::Remote, serving, watcher).await;
                }
                Ok(Err(error)) => {
                    metrics::counter!(MALFORMED, "service" => "api").increment(1);
                    tracing::debug!(%error, "TLS handshake failed");
                }
                Err(_) => tracing::debug!("TLS handshake took too long"),
            }
            drop((permit, share));
        });
    }
    connections.finish().await;
}

/// Serves HTTP on a Unix socket until `stop`.
pub async fn serve_unix(listener: UnixListener, serving: Serving, stop: CancellationToken) {
    let connections = Connections::new(serving);
    while let Some((stream, _, permit)) = connections.accept(&stop, || listener.accept()).await {
        let serving = connections.serving.clone();
        let watcher = connections.graceful.watcher();
        tokio::spawn(async move {
            match stream.peer_cred() {
                Ok(peer) => {
                    let peer = Peer::Local { uid: peer.uid() };
                    serve(stream, Http::One, peer, serving, watcher).await;
                }
                Err(error) => tracing::debug!(%error, "no credentials of a socket's peer"),
            }
            drop(permit);
        });
    }
    connections.finish().await;
}

/// Listens on a Unix socket that only its owner and group may use; one that a dead process left
/// behind is replaced.
///
/// # Errors
/// When the path cannot be used, or another process listens on it.
pub fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another process listens on {}", path.display()),
        ));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Listens on a TCP port on all addresses.
///
/// # Errors
/// When the port is taken or not allowed.
pub async fn listen_tcp(port: u16) -> io::Result<TcpListener> {
    // IPv6 sockets take IPv4 as well, unless the machine has no IPv6.
    match TcpListener::bind(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port))).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(_) => {
            TcpListener::bind(SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, port))).await
        }
    }
}

/// Removes a socket's file when the server is done.
#[derive(Debug)]
pub struct SocketFile(pub PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

struct Connections {
    serving: Serving,
    room: Arc<Semaphore>,
    graceful: GracefulShutdown,
}

impl Connections {
    fn new(serving: Serving) -> Self {
        Self {
            serving,
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            graceful: GracefulShutdown::new(),
        }
    }

    /// The next connection, when there is room for it; none once the server stops.
    async fn accept<S, A, F>(
        &self,
        stop: &CancellationToken,
        accept: impl Fn() -> F,
    ) -> Option<(S, A, OwnedSemaphorePermit)>
    where
        F: Future<Output = io::Result<(S, A)>>,
    {
        loop {
            let next = async {
                let permit = Arc::clone(&self.room).acquire_owned().await;
                (permit, accept().await)
            };
            tokio::select! {
                () = stop.cancelled() => return None,
                (permit, accepted) = next => match (permit, accepted) {
                    (Ok(permit), Ok((stream, peer))) => return Some((stream, peer, permit)),
                    (_, Err(error)) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                    (Err(_), Ok(_)) => return None,
                },
            }
        }
    }

    async fn finish(self) {
        if tokio::time::timeout(STOP_WAIT, self.graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("some API requests did not end in time");
        }
    }
}

/// Connections turned away.
pub(crate) const REFUSED: &str = "muster_connections_refused_total";
/// Name of a metric.
pub(crate) const MALFORMED: &str = "muster_http_malformed_total";

/// Counts why a connection to a service ended, if it was that what came is no HTTP.
pub fn count_malformed(service: &'static str, error: &hyper::Error) {
    if error.is_parse() || error.is_incomplete_message() {
        metrics::counter!(MALFORMED, "service" => service).increment(1);
    }
}

/// Connections by address: half of all that there may be for one, so that one client cannot keep
/// all others out.
#[derive(Clone, Debug)]
pub struct Shares {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    most: usize,
    service: &'static str,
}

impl Shares {
    /// Shares of so many connections of a service.
    pub fn of(connections: usize, service: &'static str) -> Self {
        Self {
            open: Arc::default(),
            most: (connections / 2).max(1),
            service,
        }
    }

    /// One more connection from an address; none, and counted, when it has its share.
    pub fn take(&self, address: IpAddr) -> Option<Share> {
        let address = address.to_canonical();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= self.most {
            metrics::counter!(REFUSED, "service" => self.service).increment(1);
            tracing::debug!(%address, service = self.service, "too many connections from one address");
            return None;
        }
        *count += 1;
        let shares = self.clone();
        Some(Share { shares, address })
    }
}

/// A connection that is counted for as long as this lives.
#[derive(Debug)]
pub struct Share {
    shares: Shares,
    address: IpAddr,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut open = self
            .shares
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// What is spoken on a connection.
enum Http {
    One,
    Two,
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    version: Http,
    peer: Peer,
    serving: Serving,
    watcher: Watcher,
) {
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        serving.router().oneshot(request)
    });
    let service = TowerToHyperService::new(service);
    let result = match version {
        Http::One => {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HANDSHAKE_WAIT)
                .serve_connection(TokioIo::new(stream), service);
            watcher.watch(connection).await
        }
        Http::Two => {
            // Until the client has introduced itself nothing else watches it.
            let (mut reading, writing) = tokio::io::split(stream);
            let mut preface = [0; PREFACE];
            let introduced = reading.read_exact(&mut preface);
            match tokio::time::timeout(HANDSHAKE_WAIT, introduced).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => {
                    tracing::debug!("a client did not introduce itself");
                    return;
                }
            }
            let reading = io::Cursor::new(preface).chain(reading);
            let stream = tokio::io::join(reading, writing);
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(256)
                .keep_alive_interval(PING.0)
                .keep_alive_timeout(PING.1)
                .serve_connection(TokioIo::new(stream), service);
            watcher.watch(connection).await
        }
    };
    if let Err(error) = result {
        count_malformed("api", &error);
        tracing::debug!(%error, "connection ended");
    }
}
