//! The listening side of the peer link.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::{KEEP_ALIVE, MESSAGE_BYTES, Service};
use crate::tls::PeerCertificate;
use crate::wire::proto::peer_server::PeerServer;

/// Handshakes at a time; more wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections without a certificate at a time, and how long each may last.
const JOINERS_MAX: usize = 32;
const JOINER_LIFETIME: Duration = Duration::from_secs(30);

/// What a connection tells the service about its other end.
#[derive(Clone)]
pub struct Origin {
    /// Present unless it is a joiner.
    pub certificate: Option<PeerCertificate>,
}

/// A connection that breaks when the node stops: a peer's streams would last for ever.
struct PeerIo {
    stream: TlsStream<TcpStream>,
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl PeerIo {
    /// Absent when there are too many joiners already.
    fn admit(
        stream: TlsStream<TcpStream>,
        joiners: Arc<Semaphore>,
        stop: CancellationToken,
    ) -> Option<Self> {
        let ended: Pin<Box<dyn Future<Output = ()> + Send>> =
            if stream.get_ref().1.peer_certificates().is_some() {
                Box::pin(stop.cancelled_owned())
            } else {
                let permit = joiners.try_acquire_owned().ok()?;
                Box::pin(async move {
                    let _permit = permit;
                    let _ = tokio::time::timeout(JOINER_LIFETIME, stop.cancelled()).await;
                })
            };
        Some(Self { stream, ended })
    }
}

impl Connected for PeerIo {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        let chain = self.stream.get_ref().1.peer_certificates();
        let leaf = chain.and_then(<[_]>::first).cloned();
        Origin {
            certificate: leaf.map(PeerCertificate),
        }
    }
}

impl AsyncRead for PeerIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

async fn accept(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    connections: mpsc::Sender<io::Result<PeerIo>>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let joiners = Arc::new(Semaphore::new(JOINERS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let tcp = tokio::select! {
            () = connections.closed() => return,
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    // Out of file descriptors, for example: others will be closed.
                    tracing::warn!(%error, "cannot accept a peer connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
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
                    if let Some(io) = PeerIo::admit(stream, joiners, stop) {
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

/// Serves peers until `stop`.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    service: Service,
    stop: CancellationToken,
) {
    let (sender, connections) = mpsc::channel(HANDSHAKES_MAX);
    let server = PeerServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE * 2))
        .http2_keepalive_timeout(Some(KEEP_ALIVE * 2))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_concurrent_streams(1024)
        .add_service(server)
        .serve_with_incoming(ReceiverStream::new(connections));
    tokio::select! {
        () = stop.cancelled() => {}
        result = serving => if let Err(error) = result {
            tracing::error!(%error, "the peer link stopped");
        },
        () = accept(listener, tls, sender, stop.clone()) => {}
    }
}
