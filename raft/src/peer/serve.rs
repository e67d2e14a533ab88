//! The listening side of the peer link.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::breakable::Breakable;
use super::{KEEP_ALIVE, MESSAGE_BYTES, Service};
use crate::tls::PeerCertificate;
use crate::wire::proto::peer_server::PeerServer;

/// Handshakes at a time; whoever comes then is hung up on.
const HANDSHAKES_MAX: usize = 64;
/// More of them, only for members' addresses: strangers cannot keep members out.
const MEMBER_HANDSHAKES_MAX: usize = 32;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(1500);
/// Connections without a certificate at a time, and how long each may last.
const JOINERS_MAX: usize = 32;
const JOINER_LIFETIME: Duration = Duration::from_secs(30);
/// Octets of a message, and calls at a time, on a connection without a certificate.
const JOIN_BYTES: usize = 64 << 10;
const JOINS_MAX: usize = 2;
/// The only call taken without a certificate.
const JOIN: &str = "/muster.peer.v1.Peer/Join";

/// What a connection tells the service about its other end.
#[derive(Clone)]
pub struct Origin {
    /// Present unless it is a joiner.
    pub certificate: Option<PeerCertificate>,
    /// Calls that it may make at a time as a joiner.
    joins: Arc<Semaphore>,
}

#[cfg(test)]
impl Origin {
    /// A member's connection.
    pub fn member(certificate: PeerCertificate) -> Self {
        Self {
            certificate: Some(certificate),
            joins: Arc::new(Semaphore::new(0)),
        }
    }
}

/// A peer's connection, which breaks when the node stops.
type PeerIo = Breakable<TlsStream<TcpStream>>;

/// Absent when there are too many joiners already.
fn admit(
    stream: TlsStream<TcpStream>,
    joiners: Arc<Semaphore>,
    stop: CancellationToken,
) -> Option<PeerIo> {
    if stream.get_ref().1.peer_certificates().is_some() {
        return Some(Breakable::new(stream, stop.cancelled_owned()));
    }
    let permit = joiners.try_acquire_owned().ok()?;
    Some(Breakable::new(stream, async move {
        let _permit = permit;
        let _ = tokio::time::timeout(JOINER_LIFETIME, stop.cancelled()).await;
    }))
}

impl Connected for PeerIo {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        let chain = self.get_ref().get_ref().1.peer_certificates();
        Origin {
            certificate: chain.and_then(PeerCertificate::new),
            joins: Arc::new(Semaphore::new(JOINS_MAX)),
        }
    }
}

/// Stands before the calls: from a connection without a certificate nothing is read but a small
/// request to join.
#[derive(Clone)]
struct Door {
    members: PeerServer<Service>,
    joiners: PeerServer<Service>,
}

impl NamedService for Door {
    const NAME: &'static str = <PeerServer<Service> as NamedService>::NAME;
}

impl tower::Service<http::Request<Body>> for Door {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let refuse = |status: Status| -> Self::Future {
            Box::pin(std::future::ready(Ok(status.into_http())))
        };
        let Some(origin) = request.extensions().get::<Origin>() else {
            return refuse(Status::internal("a connection of unknown origin"));
        };
        if origin.certificate.is_some() {
            return self.members.call(request);
        }
        if request.uri().path() != JOIN {
            return refuse(Status::unauthenticated("a client certificate is needed"));
        }
        let Ok(permit) = Arc::clone(&origin.joins).try_acquire_owned() else {
            return refuse(Status::resource_exhausted("one request to join at a time"));
        };
        let joining = self.joiners.call(request);
        Box::pin(async move {
            let reply = joining.await;
            drop(permit);
            reply
        })
    }
}

/// Leave to shake hands, or to be hung up on.
struct Places {
    anyone: Arc<Semaphore>,
    members: Arc<Semaphore>,
}

impl Places {
    fn new() -> Self {
        Self {
            anyone: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            members: Arc::new(Semaphore::new(MEMBER_HANDSHAKES_MAX)),
        }
    }

    fn take(&self, is_member: impl FnOnce() -> bool) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.anyone).try_acquire_owned() {
            return Some(permit);
        }
        if !is_member() {
            return None;
        }
        Arc::clone(&self.members).try_acquire_owned().ok()
    }
}

async fn accept(
    listener: TcpListener,
    service: Service,
    tls: Arc<ServerConfig>,
    connections: mpsc::Sender<io::Result<PeerIo>>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Places::new();
    let joiners = Arc::new(Semaphore::new(JOINERS_MAX));
    loop {
        let (tcp, from) = tokio::select! {
            () = connections.closed() => return,
            accepted = listener.accept() => match accepted {
                Ok((tcp, from)) => (tcp, from.ip().to_canonical()),
                Err(error) => {
                    // Out of file descriptors, for example: others will be closed.
                    tracing::warn!(%error, "cannot accept a peer connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Some(permit) = places.take(|| service.is_members_address(from)) else {
            metrics::counter!("muster_raft_handshakes_failed_total").increment(1);
            continue;
        };
        let (acceptor, connections, stop) = (acceptor.clone(), connections.clone(), stop.clone());
        let joiners = Arc::clone(&joiners);
        tokio::spawn(async move {
            let _permit = permit;
            let handshake = async {
                tcp.set_nodelay(true)?;
                acceptor.accept(tcp).await
            };
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
                Ok(Ok(stream)) => {
                    if let Some(io) = admit(stream, joiners, stop) {
                        // The server may be stopping.
                        let _ = connections.send(Ok(io)).await;
                    }
                }
                Ok(Err(error)) => {
                    metrics::counter!("muster_raft_handshakes_failed_total").increment(1);
                    tracing::debug!(%error, "a peer connection failed its handshake");
                }
                Err(_) => {
                    metrics::counter!("muster_raft_handshakes_failed_total").increment(1);
                }
            }
        });
    }
}

/// Answers members' calls, however they are carried.
pub fn members_server(service: Service) -> PeerServer<Service> {
    PeerServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES)
}

/// Serves peers until `stop`.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    service: Service,
    stop: CancellationToken,
) {
    let (sender, connections) = mpsc::channel(HANDSHAKES_MAX);
    let door = Door {
        members: members_server(service.clone()),
        joiners: PeerServer::new(service.clone()).max_decoding_message_size(JOIN_BYTES),
    };
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE * 2))
        .http2_keepalive_timeout(Some(KEEP_ALIVE * 2))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_concurrent_streams(1024)
        .add_service(door)
        .serve_with_incoming(ReceiverStream::new(connections));
    tokio::select! {
        () = stop.cancelled() => {}
        result = serving => if let Err(error) = result {
            tracing::error!(%error, "the peer link stopped");
        },
        () = accept(listener, service, tls, sender, stop.clone()) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_that_say_nothing_do_not_keep_members_out() {
        let places = Places::new();
        let strangers: Vec<_> = std::iter::repeat_with(|| places.take(|| false))
            .take_while(Option::is_some)
            .collect();
        assert_eq!(strangers.len(), HANDSHAKES_MAX);
        let members: Vec<_> = std::iter::repeat_with(|| places.take(|| true))
            .take_while(Option::is_some)
            .collect();
        assert_eq!(members.len(), MEMBER_HANDSHAKES_MAX);
        drop(strangers);
        assert!(places.take(|| false).is_some());
    }
}
