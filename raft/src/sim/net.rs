//! Links in memory: they carry the calls of the peer protocol from the generated client to the
//! generated server of another node, late, in another order, twice, or not at all.
//!
//! What TCP promises holds: octets of one stream keep their order, and a stream that loses some is
//! broken. Separate calls overtake each other; some that Raft must bear twice are made twice.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::transport::Channel;
use tower::{BoxError, Service as _};

use super::chance::Chance;
use super::mutant::{self, Mutant};
use super::oracle::{Ballot, Oracle};
use crate::peer::{Gate, Origin, Service, members_server};
use crate::tls::PeerCertificate;
use crate::wire::proto;
use crate::wire::proto::peer_server::PeerServer;

/// A connection on which nothing arrives is given up after as long as this.
const GIVEN_UP: Duration = Duration::from_millis(2000);
/// Dialling takes at most as long as this.
const DIALLING: Duration = Duration::from_millis(1000);

/// How the links are.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Milliseconds that a message is on its way.
    pub delay: std::ops::Range<u64>,
    /// One message in so many is lost and sent again after a while.
    pub lost: u64,
    /// One message in so many breaks its connection.
    pub breaks: u64,
    /// One call in so many arrives twice.
    pub twice: u64,
}

impl Weather {
    /// A healthy network.
    pub fn fair() -> Self {
        Self {
            delay: 0..2,
            lost: 10_000,
            breaks: 50_000,
            twice: 200,
        }
    }
}

/// A node as others reach it.
#[derive(Clone)]
struct Endpoint {
    server: PeerServer<Service>,
    dead: CancellationToken,
}

struct Inner {
    endpoints: BTreeMap<u64, Endpoint>,
    cut: BTreeSet<(u64, u64)>,
    weather: Weather,
    messages: u64,
}

/// All links.
pub struct Net {
    inner: Mutex<Inner>,
    chance: Arc<Chance>,
    mutant: Option<Mutant>,
}

fn broken() -> Status {
    Status::unavailable("the connection broke")
}

fn method(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

impl Net {
    /// No node yet, in fair weather.
    pub fn new(chance: Arc<Chance>, mutant: Option<Mutant>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                endpoints: BTreeMap::new(),
                cut: BTreeSet::new(),
                weather: Weather::fair(),
                messages: 0,
            }),
            chance,
            mutant,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node can be reached.
    pub fn join(&self, node: u64, service: Service, dead: CancellationToken) {
        let server = members_server(service);
        self.lock()
            .endpoints
            .insert(node, Endpoint { server, dead });
    }

    /// A node is gone.
    pub fn leave(&self, node: u64) {
        self.lock().endpoints.remove(&node);
    }

    /// Nothing gets from these to those.
    pub fn cut(&self, from: &[u64], to: &[u64]) {
        let mut inner = self.lock();
        for from in from {
            inner.cut.extend(to.iter().map(|to| (*from, *to)));
        }
    }

    /// All cuts are mended.
    pub fn heal(&self) {
        self.lock().cut.clear();
    }

    /// From now on the links are like this.
    pub fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Messages carried.
    pub fn messages(&self) -> u64 {
        self.lock().messages
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.lock().cut.contains(&(from, to))
    }

    fn endpoint(&self, node: u64) -> Option<Endpoint> {
        self.lock().endpoints.get(&node).cloned()
    }

    /// How long a message is on its way; nothing when it breaks its connection.
    fn fate(&self, from: u64, to: u64) -> Option<Duration> {
        let weather = {
            let mut inner = self.lock();
            inner.messages += 1;
            inner.weather.clone()
        };
        if self.is_cut(from, to) || self.chance.once_in(weather.breaks) {
            return None;
        }
        let mut delay = self.chance.millis(weather.delay);
        if self.chance.once_in(weather.lost) {
            delay += self.chance.millis(200..900);
        }
        Some(delay)
    }

    /// Resolves when a message has arrived.
    async fn travel(&self, from: u64, to: u64) -> Result<(), Status> {
        match self.fate(from, to) {
            Some(delay) => {
                sleep(delay).await;
                if !self.is_cut(from, to) {
                    return Ok(());
                }
                sleep(GIVEN_UP).await;
            }
            None if self.is_cut(from, to) => sleep(GIVEN_UP).await,
            None => sleep(self.chance.millis(0..50)).await,
        }
        Err(broken())
    }
}

/// The way from one life of a node to a peer.
#[derive(Clone)]
pub struct Line {
    pub net: Arc<Net>,
    pub from: u64,
    pub to: u64,
    pub gate: Arc<Gate>,
    /// Ends with the caller's life.
    pub dead: CancellationToken,
    pub oracle: Arc<Oracle>,
    pub certificate: PeerCertificate,
}

impl Line {
    async fn carry(self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let called = method(request.uri().path()).to_owned();
        if self.dead.is_cancelled() {
            return Err(broken().into());
        }
        let refused = |kind: io::ErrorKind| {
            let error = io::Error::from(kind);
            self.gate.leave::<()>(&Err(io::Error::from(kind)));
            Err(tonic::ConnectError(Box::new(error)).into())
        };
        let Some(mut there) = self.net.endpoint(self.to) else {
            if self.net.is_cut(self.from, self.to) {
                sleep(DIALLING).await;
                return refused(io::ErrorKind::TimedOut);
            }
            sleep(self.net.chance.millis(0..2)).await;
            return refused(io::ErrorKind::ConnectionRefused);
        };
        self.gate.leave(&Ok(()));
        let (parts, body) = request.into_parts();
        let mut asked = None;
        let body = if matches!(&*called, "Append" | "Pulse" | "Snapshot") {
            self.stream(body, self.from, self.to, &self.dead, &there.dead, &called)
        } else {
            let bytes = body.collect().await?.to_bytes();
            asked = vote_asked(&called, &bytes);
            if let Some(vote) = asked {
                self.oracle.stands(self.from, vote);
            }
            self.net.travel(self.from, self.to).await?;
            let bytes = self.tamper(&called, bytes);
            self.again(&called, &parts, &bytes);
            Body::new(Full::new(bytes))
        };
        let mut request = Request::from_parts(parts, body);
        request
            .extensions_mut()
            .insert(Origin::member(self.certificate.clone()));
        let dead = there.dead.clone();
        let voted_before = self.oracle.vote_of(self.to);
        let response = tokio::select! {
            biased;
            () = dead.cancelled() => return Err(broken().into()),
            response = there.server.call(request) => response?,
        };
        let (parts, body) = response.into_parts();
        let body = if matches!(&*called, "Append" | "Pulse" | "Fetch") {
            self.stream(body, self.to, self.from, &dead, &self.dead, "")
        } else {
            let body = tokio::select! {
                biased;
                () = dead.cancelled() => return Err(broken().into()),
                body = body.collect() => body?,
            };
            let trailers = body.trailers().cloned();
            let bytes = body.to_bytes();
            if let Some(vote) = asked.filter(|_| is_granted(&bytes)) {
                self.oracle.granted(self.to, vote, voted_before);
            }
            self.net.travel(self.to, self.from).await?;
            let bytes = match self.net.mutant {
                Some(mutant) => mutant::tamper_reply(mutant, &called, bytes),
                None => bytes,
            };
            let trailers = async move { trailers.map(Ok) };
            Body::new(Full::new(bytes).with_trailers(trailers))
        };
        Ok(Response::from_parts(parts, body))
    }

    /// Makes some calls twice, which Raft must bear.
    fn again(&self, called: &str, parts: &tonic::codegen::http::request::Parts, bytes: &Bytes) {
        let weather = self.net.lock().weather.clone();
        let bearable = matches!(
            called,
            "Vote" | "Heartbeat" | "TransferLeader" | "ReadIndex"
        );
        let made_again = called == "Propose" && self.net.mutant == Some(Mutant::ProposeTwice);
        if !(bearable || made_again) || !self.net.chance.once_in(weather.twice) {
            return;
        }
        let (line, parts, bytes) = (self.clone(), parts.clone(), bytes.clone());
        tokio::spawn(async move {
            sleep(line.net.chance.millis(0..300)).await;
            let Some(mut there) = line.net.endpoint(line.to) else {
                return;
            };
            let mut request = Request::from_parts(parts, Body::new(Full::new(bytes)));
            request
                .extensions_mut()
                .insert(Origin::member(line.certificate.clone()));
            tokio::select! {
                biased;
                () = there.dead.clone().cancelled_owned() => {}
                _ = there.server.call(request) => {}
            }
        });
    }

    fn tamper(&self, called: &str, bytes: Bytes) -> Bytes {
        match self.net.mutant {
            Some(mutant) => mutant::tamper(mutant, called, bytes),
            None => bytes,
        }
    }

    /// A body that arrives piece by piece.
    fn stream(
        &self,
        mut body: Body,
        from: u64,
        to: u64,
        sender: &CancellationToken,
        receiver: &CancellationToken,
        called: &str,
    ) -> Body {
        type Piece = (Instant, Result<Frame<Bytes>, Status>);
        let (queue, arriving) = mpsc::unbounded_channel::<Piece>();
        let (line, called) = (self.clone(), called.to_owned());
        let (sender, gone) = (sender.clone(), receiver.clone());
        tokio::spawn(async move {
            let mut last = Instant::now();
            loop {
                let frame = tokio::select! {
                    biased;
                    () = sender.cancelled() => Some(Err(broken())),
                    () = gone.cancelled() => return,
                    () = queue.closed() => return,
                    frame = body.frame() => frame,
                };
                let now = Instant::now();
                let sent = match frame {
                    None => return,
                    Some(Err(status)) => (now, Err(status)),
                    Some(Ok(frame)) => match line.net.fate(from, to) {
                        Some(delay) => {
                            last = last.max(now + delay);
                            let frame = frame.map_data(|data| line.tamper(&called, data));
                            (last, Ok(frame))
                        }
                        None => (now + GIVEN_UP, Err(broken())),
                    },
                };
                let ends = sent.1.is_err();
                if queue.send(sent).is_err() || ends {
                    return;
                }
            }
        });
        let net = Arc::clone(&self.net);
        let pieces = futures::stream::unfold(Some(arriving), move |arriving| {
            let net = Arc::clone(&net);
            async move {
                let mut arriving = arriving?;
                let (at, piece) = arriving.recv().await?;
                sleep_until(at).await;
                if piece.is_ok() && net.is_cut(from, to) {
                    sleep(GIVEN_UP).await;
                    return Some((Err(broken()), None));
                }
                Some((piece, Some(arriving)))
            }
        });
        Body::new(StreamBody::new(Box::pin(pieces)))
    }
}

/// The one message of a call or an answer, behind what gRPC puts before it.
fn message<M: Message + Default>(frame: &[u8]) -> Option<M> {
    M::decode(frame.get(mutant::FRAME..)?).ok()
}

/// The vote that a call asks for; absent when it only asks whether it would be granted.
fn vote_asked(called: &str, frame: &[u8]) -> Option<Ballot> {
    let request: proto::VoteRequest = message(frame).filter(|_| called == "Vote")?;
    let vote = request.vote.filter(|_| !request.pre)?;
    Some((vote.term, vote.node))
}

fn is_granted(frame: &[u8]) -> bool {
    message(frame).is_some_and(|reply: proto::VoteReply| reply.granted)
}

/// What carries the calls to a peer: in most tests of this crate a connection, in the simulation a
/// line.
#[derive(Clone)]
pub enum Wire {
    /// A connection.
    Grpc(Channel),
    /// A line in memory.
    Line(Line),
}

impl From<Channel> for Wire {
    fn from(channel: Channel) -> Self {
        Self::Grpc(channel)
    }
}

impl tower::Service<Request<Body>> for Wire {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Self::Grpc(channel) => channel.poll_ready(context).map_err(Into::into),
            Self::Line(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self {
            Self::Grpc(channel) => {
                let calling = channel.call(request);
                async move { Ok(calling.await?) }.boxed()
            }
            Self::Line(line) => line.clone().carry(request).boxed(),
        }
    }
}
