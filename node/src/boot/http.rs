//! The tree on plain HTTP/1: exact lengths, ranges, no redirects, bounded connections.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use muster_api::server::{Shares, count_malformed};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::report::report;
use super::send_file::{Connection, Outbox};
use super::target::{Target, without_token};
use super::tree::{Client, Content, Problem, Tree};
use super::{DRAIN, metrics};
use crate::spans::{Protocol, Visit};

/// Open connections; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 4096;

/// How long a connection may be idle, or take to send the head of a request.
const IDLE: Duration = Duration::from_secs(75);

/// What UEFI firmware calls itself.
const UEFI_HTTP_BOOT: &[u8] = b"UefiHttpBoot/";
/// Of the state that a file was rendered from.
const REVISION: HeaderName = HeaderName::from_static("muster-revision");

/// Which objects went into a file, each with its revision.
const MADE_OF: HeaderName = HeaderName::from_static("muster-made-of");

/// Octets that wait in a connection's socket, beside those on their way: of few connections enough
/// to keep a fast machine busy, of many so few that they take turns in small steps.
fn unsent_max(connections: usize) -> u32 {
    const ALL: usize = 16 << 20;
    let share = ALL / connections.max(1);
    u32::try_from(share.clamp(256 << 10, 2 << 20)).unwrap_or(u32::MAX)
}

/// Serves until `stop`, then lets running requests end within [`DRAIN`].
pub(super) async fn serve(listener: TcpListener, tree: Tree, stop: CancellationToken) {
    let router = Router::new().fallback(answer).with_state(tree.clone());
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(64 * 1024);
    let running = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let transfers = tree.cluster().transfers().clone();
    let open = {
        let room = Arc::clone(&room);
        move || {
            let open = CONNECTIONS_MAX.saturating_sub(room.available_permits());
            metrics::connections(open);
            transfers.set_http(open);
        }
    };
    let shares = Shares::of(CONNECTIONS_MAX, "boot");
    while let Some((stream, peer, permit)) = accept(&listener, &room, &stop).await {
        let Some(share) = shares.take(peer.ip()) else {
            continue;
        };
        let address = peer.ip().to_canonical();
        let outbox = Outbox::default();
        let stream = TokioIo::new(Connection::new(stream, outbox.clone()));
        let router = router.clone().layer(Extension((address, outbox)));
        let connection = builder.serve_connection(stream, TowerToHyperService::new(router));
        let connection = running.watch(connection);
        open();
        let closed = open.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                count_malformed("boot", &error);
                tracing::debug!(address = %peer.ip(), %error, "boot connection ended early");
            }
            drop((permit, share));
            closed();
        });
    }
    drop(listener);
    if timeout(DRAIN, running.shutdown()).await.is_err() {
        tracing::warn!(
            "boot requests were cut off, because they took longer than the time to stop"
        );
    }
}

/// The next connection; none when the service stops.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    loop {
        let accepted = async {
            let permit = Arc::clone(room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => return None,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Heads of answers must not wait for the client's delayed acknowledgements.
                let _ = stream.set_nodelay(true);
                let open = CONNECTIONS_MAX.saturating_sub(room.available_permits());
                let _ = SockRef::from(&stream).set_tcp_notsent_lowat(unsent_max(open));
                return Some((stream, peer, permit.ok()?));
            }
            Err(error) => {
                // Most often no file descriptor is left; some will be freed.
                tracing::warn!(%error, "cannot accept a boot connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(
    State(tree): State<Tree>,
    Extension((address, outbox)): Extension<(IpAddr, Outbox)>,
    request: Request,
) -> Response {
    let began = Instant::now();
    let (head, body) = request.into_parts();
    let client = Client {
        address,
        uefi_http: head
            .headers
            .get(header::USER_AGENT)
            .is_some_and(|agent| agent.as_bytes().starts_with(UEFI_HTTP_BOOT)),
        visit: Visit {
            protocol: Protocol::Http,
            began,
        },
    };
    let target = Target::parse(head.uri.path(), head.uri.query())
        .map(|target| target.with_token(bearer(&head.headers)));
    let kind = target.as_ref().map_or("unknown", Target::kind);
    let response = match target {
        None => refusal(StatusCode::NOT_FOUND, "there is nothing at this path"),
        Some(Target::Report { machine, token }) => {
            report(&tree, machine, token.as_deref(), client, (&head, body)).await
        }
        Some(target) => get(&tree, &target, client, &head, outbox).await,
    };
    let status = response.status();
    metrics::answered(kind, status.as_u16(), began.elapsed());
    log(client.address, &head.uri, status);
    response
}

/// The token in the header of a request (RFC 6750 §2.1).
fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    is_bearer.then(|| token.trim().to_owned())
}

fn log(client: IpAddr, uri: &Uri, status: StatusCode) {
    let (path, status) = (without_token(uri.path()), status.as_u16());
    if status >= 500 {
        tracing::warn!(address = %client, %path, status, "boot request failed");
    } else {
        tracing::debug!(address = %client, %path, status, "boot request");
    }
}

async fn get(
    tree: &Tree,
    target: &Target,
    client: Client,
    request: &Parts,
    outbox: Outbox,
) -> Response {
    if !matches!(request.method, Method::GET | Method::HEAD) {
        let refusal = refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are served here",
        );
        return ([(header::ALLOW, "GET, HEAD")], refusal).into_response();
    }
    let content = match tree.find(target, client).await {
        Ok(content) => content,
        Err(problem) => return refused(&problem),
    };
    let outbox = (request.method != Method::HEAD).then_some(outbox);
    match content_response(tree, content, outbox, &request.headers).await {
        Ok(response) => response,
        Err(problem) => refused(&problem),
    }
}

pub(super) fn refused(problem: &Problem) -> Response {
    let status = match problem {
        Problem::NotFound(_) => StatusCode::NOT_FOUND,
        Problem::Private | Problem::Token => StatusCode::FORBIDDEN,
        Problem::Unconfirmed | Problem::Interrupted | Problem::Peers => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Problem::Render(_) | Problem::Disk(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    if let Problem::Disk(error) = problem {
        tracing::error!(%error, "boot content cannot be read");
    }
    refusal(status, &problem.to_string())
}

pub(super) fn refusal(status: StatusCode, text: &str) -> Response {
    (status, format!("{text}\n")).into_response()
}

/// The part of the content that the request wants; without an outbox only what is said about it.
async fn content_response(
    tree: &Tree,
    mut content: Content,
    outbox: Option<Outbox>,
    request: &HeaderMap,
) -> Result<Response, Problem> {
    let length = content.length;
    let etag = format!("\"{}\"", content.etag);
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    set(headers, header::ACCEPT_RANGES, "bytes");
    set(headers, header::ETAG, &etag);
    set(headers, header::CONTENT_TYPE, content.media);
    if let Some(stamp) = &content.stamp {
        set(headers, REVISION, &stamp.revision.to_string());
        set(headers, MADE_OF, &stamp.to_string());
    }
    if matches(request, &header::IF_NONE_MATCH, &etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    let range = match wanted(request, &etag, length) {
        Wanted::All => 0..length,
        Wanted::Part(range) => {
            let last = range.end.saturating_sub(1);
            let value = format!("bytes {}-{last}/{length}", range.start);
            set(headers, header::CONTENT_RANGE, &value);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            range
        }
        Wanted::Nothing => {
            set(headers, header::CONTENT_RANGE, &format!("bytes */{length}"));
            set(headers, header::CONTENT_LENGTH, "0");
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            return Ok(response);
        }
    };
    let octets = range.end.saturating_sub(range.start);
    set(
        response.headers_mut(),
        header::CONTENT_LENGTH,
        &octets.to_string(),
    );
    if let Some(outbox) = outbox {
        let mut left = octets;
        let mut fact = content.fact.take().filter(|_| range.end == length);
        let chunks = content.chunks(tree.cluster(), range, outbox).await?;
        *response.body_mut() = Body::from_stream(chunks.inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                left = left.saturating_sub(chunk.len() as u64);
                if left == 0
                    && let Some(fact) = fact.take()
                {
                    fact.sent();
                }
            }
        }));
    }
    Ok(response)
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // What is set here is printable: digits, digests, constants.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Whether a condition header names this ETag.
fn matches(request: &HeaderMap, name: &HeaderName, etag: &str) -> bool {
    let value = request.get(name).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| {
        let mut tags = value.split(',').map(str::trim);
        tags.any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
    })
}

/// What a request wants of the content (RFC 9110 §14).
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part(Range<u64>),
    Nothing,
}

fn wanted(request: &HeaderMap, etag: &str, length: u64) -> Wanted {
    let range = request
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    let unchanged = match request.get(header::IF_RANGE) {
        None => true,
        Some(tag) => tag.as_bytes() == etag.as_bytes(),
    };
    match range.filter(|_| unchanged) {
        None => Wanted::All,
        Some(range) => part(range, length),
    }
}

/// One range; several, and what is no range, get all, as the RFC allows.
fn part(range: &str, length: u64) -> Wanted {
    let Some((first, last)) = range
        .strip_prefix("bytes=")
        .and_then(|range| range.trim().split_once('-'))
    else {
        return Wanted::All;
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(length),
        (Ok(first), Err(_)) if last.is_empty() => first..length,
        (Err(_), Ok(count)) if first.is_empty() => length.saturating_sub(count)..length,
        _ => return Wanted::All,
    };
    if range.is_empty() {
        Wanted::Nothing
    } else {
        Wanted::Part(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let check = |range, expected| assert_eq!(part(range, 10), expected, "{range}");
        check("bytes=0-0", Wanted::Part(0..1));
        check("bytes=2-5", Wanted::Part(2..6));
        check("bytes=2-", Wanted::Part(2..10));
        check("bytes=2-99999999999999999999", Wanted::All);
        check("bytes=2-18446744073709551615", Wanted::Part(2..10));
        check("bytes=-3", Wanted::Part(7..10));
        check("bytes=-30", Wanted::Part(0..10));
        check("bytes=10-", Wanted::Nothing);
        check("bytes=-0", Wanted::Nothing);
        check("bytes=5-2", Wanted::All);
        check("bytes=0-1,3-4", Wanted::All);
        check("lines=0-1", Wanted::All);
        check("bytes=", Wanted::All);
        check("bytes=-", Wanted::All);
    }

    #[test]
    fn few_connections_have_more_octets_waiting_than_many() {
        for (connections, most) in [(0, 2048), (1, 2048), (8, 2048), (32, 512), (4096, 256)] {
            assert_eq!(unsent_max(connections), most << 10, "{connections}");
        }
    }

    #[test]
    fn range_of_nothing_is_unsatisfiable() {
        assert_eq!(part("bytes=0-", 0), Wanted::Nothing);
    }

    #[test]
    fn range_of_older_content_gives_all() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=1-"));
        assert_eq!(wanted(&headers, "\"a\"", 5), Wanted::Part(1..5));
        headers.insert(header::IF_RANGE, HeaderValue::from_static("\"a\""));
        assert_eq!(wanted(&headers, "\"a\"", 5), Wanted::Part(1..5));
        headers.insert(header::IF_RANGE, HeaderValue::from_static("\"b\""));
        assert_eq!(wanted(&headers, "\"a\"", 5), Wanted::All);
    }
}
