//! What changed, as a stream that can be resumed on any node, or as pages of history.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, Stream, StreamExt as _};
use muster_raft::Follow;
use muster_storage::{Change, Revision};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::extract::{Params, text};
use super::objects::{PAGE_DEFAULT, PAGE_MAX, whole_page};
use crate::problem::Problem;
use crate::{App, Shared, view};

/// Streams at a time on one node.
const STREAMS_MAX: usize = 1000;

/// A comment is sent this often, so that both ends notice a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

static STREAMS: std::sync::LazyLock<std::sync::Arc<Semaphore>> =
    std::sync::LazyLock::new(|| std::sync::Arc::new(Semaphore::new(STREAMS_MAX)));

/// Which events.
#[derive(Clone, Debug, Deserialize)]
pub struct Filter {
    after: Option<u64>,
    kind: Option<String>,
    key: Option<String>,
    limit: Option<usize>,
}

impl Filter {
    fn wants(&self, change: &Change) -> bool {
        let kind = self
            .kind
            .as_ref()
            .is_none_or(|kind| kind == change.subject.kind());
        kind && self
            .key
            .as_ref()
            .is_none_or(|key| *key == change.subject.key())
    }
}

/// A stream of server-sent events; pages of history when the client accepts only JSON.
pub async fn get(
    State(app): State<Shared>,
    Params(filter): Params<Filter>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let accepted = text(&headers, header::ACCEPT)?.unwrap_or_default();
    if accepted.contains("application/json") && !accepted.contains("text/event-stream") {
        return history(&app, &filter).map(IntoResponse::into_response);
    }
    let resumed = text(&headers, HeaderName::from_static("last-event-id"))?
        .filter(|id| !id.is_empty())
        .map(str::parse)
        .transpose()
        .map_err(|_| Problem::new("malformed", "Last-Event-ID is a revision"))?;
    let permit = std::sync::Arc::clone(&STREAMS)
        .try_acquire_owned()
        .map_err(|_| Problem::new("unavailable", "too many event streams on this node"))?;
    let after = app.cluster.read(|state| {
        let after = resumed.or(filter.after).map_or(state.revision(), Revision);
        state.events_after(after).map(|_| after)
    })?;
    let follow = app.cluster.follow(after);
    let stream = events(app, follow, filter, permit);
    Ok(Sse::new(stream)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

fn history(app: &App, filter: &Filter) -> Result<axum::Json<Value>, Problem> {
    let limit = filter.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let after = Revision(filter.after.unwrap_or_default());
    app.cluster.read(|state| {
        // History from the beginning is history as far as it is kept.
        let changes = state
            .events_after(after)
            .or_else(|gone| match filter.after {
                Some(_) => Err(gone),
                None => state.events_after(state.history_start()),
            })?;
        let mut items: Vec<(String, Value)> = Vec::new();
        for change in changes.filter(|change| filter.wants(change)) {
            let key = change.revision.to_string();
            // A page ends with a whole revision, as the next one begins after it.
            let begins = items.last().is_none_or(|(last, _)| *last != key);
            if items.len() >= limit && begins {
                let next = items.last().map(|(last, _)| last.clone());
                return Ok(axum::Json(whole_page(items, next, state.revision())));
            }
            items.push((key, view::change(state, change)));
        }
        Ok(axum::Json(whole_page(items, None, state.revision())))
    })
}

struct Following {
    app: Shared,
    follow: Follow,
    filter: Filter,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

fn events(
    app: Shared,
    follow: Follow,
    filter: Filter,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let stopping = app.stopping.clone();
    let following = Following {
        app,
        follow,
        filter,
        ended: false,
        _permit: permit,
    };
    stream::unfold(following, |mut following| async move {
        if following.ended {
            return None;
        }
        let events = following.next().await;
        Some((stream::iter(events.into_iter().map(Ok)), following))
    })
    .flatten()
    .take_until(stopping.cancelled_owned())
}

impl Following {
    /// The next events. A revision's id stands on its last change, so that who resumes after it
    /// has seen all of it.
    async fn next(&mut self) -> Vec<Event> {
        let changes = match self.follow.next().await {
            Ok(changes) => changes,
            Err(gone) => {
                self.ended = true;
                return vec![Event::default().event("gone").data(gone.to_string())];
            }
        };
        let wanted: Vec<_> = changes
            .iter()
            .filter(|change| self.filter.wants(change))
            .collect();
        let seen = changes.last().map(|change| change.revision);
        let told = wanted.last().map(|change| change.revision);
        // Who resumes has seen that there was nothing more for it.
        let rest = seen.filter(|_| seen != told);
        let rest = rest.map(|revision| Event::default().id(revision.to_string()));
        let events: Vec<Event> = self.app.cluster.read(|state| {
            let following = wanted.iter().skip(1).map(|change| Some(change.revision));
            wanted
                .iter()
                .zip(following.chain([None]))
                .map(|(change, next)| {
                    let event = Event::default().data(view::change(state, change).to_string());
                    if next == Some(change.revision) {
                        event
                    } else {
                        event.id(change.revision.to_string())
                    }
                })
                .collect()
        });
        events.into_iter().chain(rest).collect()
    }
}
