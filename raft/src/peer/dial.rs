//! Dialling a peer: address looked up at every attempt, and never more attempts than a dead peer
//! is worth.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use super::breakable::Breakable;
use super::{CONNECT_TIMEOUT, KEEP_ALIVE};
use crate::Error;
use crate::tls::{ANY_PEER, Dialler, PeerCertificate, cluster_in};

/// Between two attempts at a peer that does not answer, whoever asks.
const PAUSE: Duration = Duration::from_millis(300);

/// Limits the attempts at one peer and remembers how the last one went.
#[derive(Default)]
pub struct Gate {
    failed: Mutex<Option<(Instant, bool)>>,
    stranger: Mutex<Option<Uuid>>,
}

impl Gate {
    /// Whether the last attempt was refused by the peer's machine: nobody listens there.
    pub fn refused(&self) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|(_, refused)| refused)
    }

    /// The cluster of the node that answered at the peer's address, when the same authority certified
    /// it for another one.
    pub fn stranger(&self) -> Option<Uuid> {
        *self.stranger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer called, so it is there: it is dialled at once when it is next needed.
    pub fn open(&self) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        *failed = None;
    }

    fn enter(&self) -> io::Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *failed {
            Some((at, _)) if at.elapsed() < PAUSE => Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "the peer did not answer a moment ago",
            )),
            Some((at, _)) => {
                // Others wait while this attempt runs.
                *at = Instant::now();
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(crate) fn leave<T>(&self, result: &io::Result<T>) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        *failed = result.as_ref().err().map(|error| {
            let refused = error.kind() == io::ErrorKind::ConnectionRefused;
            (Instant::now(), refused)
        });
        let mut stranger = self.stranger.lock().unwrap_or_else(PoisonError::into_inner);
        *stranger = result.as_ref().err().and_then(other_cluster);
    }
}

/// The cluster that a certificate names which is good, but not for the node that was dialled. The
/// name is looked at only after the signature.
fn other_cluster(error: &io::Error) -> Option<Uuid> {
    use rustls::{CertificateError, Error};
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            expected,
            presented,
        }) => {
            let own = cluster_in(&expected.to_str());
            let mut found = presented.iter().filter_map(|name| cluster_in(name));
            found.find(|found| Some(*found) != own)
        }
        _ => None,
    }
}

/// Where a peer listens, and by which key it is known, once it is.
pub struct Target {
    /// `HOST:PORT`.
    pub address: String,
    /// Hash of its public key.
    pub key_hash: Option<[u8; 32]>,
}

/// Dials a peer that must have the key of its member record, or one that took its place: the authority alone does not tell a
/// member from a node that was removed.
async fn dial_peer(
    target: Target,
    name: ServerName<'static>,
    tls: Dialler,
) -> io::Result<Breakable<TlsStream<TcpStream>>> {
    // Before the certificate is looked up that this connection will be known by.
    let ended = tls.ended();
    let called = name.to_str().into_owned();
    let stream = dial(target.address, name, tls.config).await?;
    let chain = stream.get_ref().1.peer_certificates();
    let presented = chain.and_then(PeerCertificate::new);
    let has_key =
        |expected| presented.is_some_and(|presented| presented.has_key(&called, expected));
    if target.key_hash.is_some_and(|expected| !has_key(expected)) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the node that answered does not have the member's key",
        ));
    }
    Ok(Breakable::new(stream, ended.cancelled_owned()))
}

async fn dial(
    address: String,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    metrics::counter!("muster_raft_dials_total").increment(1);
    let connect = async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        TlsConnector::from(tls).connect(name, tcp).await
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connect)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer does not answer"))?
}

fn endpoint() -> Endpoint {
    // The address is the connector's affair.
    Endpoint::from_static("https://peer")
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
}

/// A channel to a peer that dials when it is needed.
pub fn peer_channel(
    name: &str,
    target: impl Fn() -> Option<Target> + Send + Sync + 'static,
    tls: Dialler,
    gate: Arc<Gate>,
) -> Result<Channel, Error> {
    let name = ServerName::try_from(name.to_owned())
        .map_err(|error| Error::Config(format!("peer name: {error}")))?;
    let connector = tower::service_fn(move |_: hyper::Uri| {
        let (name, tls, gate) = (name.clone(), tls.clone(), Arc::clone(&gate));
        let target = target();
        async move {
            gate.enter()?;
            let result = match target {
                Some(target) => dial_peer(target, name, tls).await,
                None => Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "the peer's address is not known yet",
                )),
            };
            gate.leave(&result);
            result.map(TokioIo::new)
        }
    });
    Ok(endpoint().connect_with_connector_lazy(connector))
}

/// A connection for the first call of a joiner.
pub async fn join_channel(address: &str, tls: ClientConfig) -> Result<Channel, Error> {
    let tls = Arc::new(tls);
    let target = address.to_owned();
    let connector = tower::service_fn(move |_: hyper::Uri| {
        let (target, tls) = (target.clone(), Arc::clone(&tls));
        async move {
            let name = ServerName::try_from(ANY_PEER)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            dial(target, name, tls).await.map(TokioIo::new)
        }
    });
    endpoint()
        .connect_with_connector(connector)
        .await
        .map_err(|error| Error::Io {
            doing: format!("reaching {address}"),
            source: io::Error::other(crate::peer::root_cause(&error)),
        })
}
