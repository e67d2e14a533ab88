//! Peers tell each other how they are, on one stream for each direction of dialling.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use muster_storage::NodeId;
use tokio::sync::broadcast;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};
use uuid::Uuid;

use crate::inner::Inner;
use crate::peer::REMOVED;
use crate::wire::proto;
use crate::wire::proto::beat::Beat as Kind;
use crate::{artifacts, clock, digests, promises, succession};

/// Between two statuses.
const BEAT: Duration = Duration::from_millis(200);
/// A stream on which nothing arrives for as long as this is given up.
const STALL: Duration = Duration::from_millis(1500);
/// Between two attempts to reach a peer, and two looks for silent ones.
const LOOK: Duration = Duration::from_millis(100);
/// Between two attempts at a peer that turns this node away.
const TURNED_AWAY: Duration = Duration::from_secs(5);
/// A gossip message is small or is not sent.
pub const GOSSIP_MAX: usize = 16 << 10;

fn status(inner: &Inner) -> proto::Beat {
    let progress = *inner.progress.borrow();
    let fault = inner.fault();
    let marks = digests::told(inner);
    let ended = succession::ended_leader(inner).unwrap_or(0);
    let view = inner.view();
    let status = proto::Status {
        revision: progress.revision.0,
        applied: progress.applied,
        leader: view.leader.unwrap_or(0),
        quorum: fault.is_none() && view.leads_quorum(inner.id.0),
        version: inner.options.version.clone(),
        last_log: view.last_log,
        wall: inner.memory.clock().wall(),
        time: inner.memory.clock().now().unwrap_or(0),
        marks,
        // A node that does not take part any more counts as dead, and says why.
        fault: fault.unwrap_or_default(),
        draining: *inner.draining.borrow(),
        ended,
        transfers: Some(inner.transfers.running()),
        vouched: Some(promises::vouched_lately(inner).0),
        holdings: Some(artifacts::holdings::mark(&inner.blobs.held())),
    };
    proto::Beat {
        beat: Some(Kind::Status(status)),
    }
}

/// Statuses for ever, with what is gossiped in between.
fn beats(
    inner: Arc<Inner>,
    gossip: Option<broadcast::Receiver<bytes::Bytes>>,
) -> impl Stream<Item = proto::Beat> + Send {
    let mut ticks = interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut view = inner.view.clone();
    let leads = view.borrow_and_update().leader == Some(inner.id.0);
    let draining = inner.draining.subscribe();
    let mut live = inner.board.live();
    live.mark_unchanged();
    futures::stream::unfold(
        (inner, ticks, gossip, view, leads, draining, live),
        |(inner, mut ticks, mut gossip, mut view, mut leads, mut draining, mut live)| async move {
            let beat = loop {
                let next = async {
                    match &mut gossip {
                        Some(gossip) => gossip.recv().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = inner.stop.cancelled() => return None,
                    _ = ticks.tick() => break status(&inner),
                    said = next => match said {
                        Ok(bytes) => break proto::Beat { beat: Some(Kind::Gossip(bytes)) },
                        // Best effort: what was missed is gone.
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return None,
                    },
                    // Nobody is to make a leader of this node any more.
                    Ok(()) = draining.changed() => break status(&inner),
                    // Nor does it wait for a leader that has ended.
                    Ok(()) = live.changed() => {
                        if succession::ended_leader(&inner).is_some() {
                            break status(&inner);
                        }
                    }
                    // A new leader is news; that it has another entry is none.
                    Ok(()) = view.changed() => {
                        let led = leads;
                        leads = view.borrow_and_update().leader == Some(inner.id.0);
                        if leads && !led {
                            break status(&inner);
                        }
                    }
                }
            };
            Some((beat, (inner, ticks, gossip, view, leads, draining, live)))
        },
    )
}

fn take(inner: &Inner, from: u64, beat: proto::Beat) {
    match beat.beat {
        Some(Kind::Status(status)) => {
            if status.time != 0 {
                inner.memory.clock().learn(status.time);
            }
            if let Some(mark) = status.holdings {
                inner.holdings.heard(from, mark);
            }
            inner.board.heard(from, status);
        }
        Some(Kind::Gossip(bytes)) if bytes.len() <= GOSSIP_MAX => {
            // Nobody may be listening.
            let _ = inner.gossip_in.send((NodeId(from), bytes));
        }
        _ => {}
    }
}

/// Answers a peer that dialled, for as long as `still` takes it for a member.
pub fn answer(
    inner: Arc<Inner>,
    from: u64,
    mut arriving: Streaming<proto::Beat>,
    still: impl Fn() -> Result<(), Status> + Send + 'static,
) -> Pin<Box<dyn Stream<Item = Result<proto::Beat, Status>> + Send>> {
    // What it says makes it live here, and a live peer may be asked something.
    if let Ok(link) = inner.links.to(from) {
        link.gate.open();
    }
    let listener = Arc::clone(&inner);
    let (ended, end) = tokio::sync::oneshot::channel::<Status>();
    inner.spawn(async move {
        while let Ok(Some(beat)) = arriving.message().await {
            if let Err(status) = still() {
                // The stream may have ended already.
                let _ = ended.send(status);
                return;
            }
            take(&listener, from, beat);
        }
    });
    let end = end.shared();
    let last = futures::stream::once(end.clone())
        .filter_map(|status| std::future::ready(status.ok().map(Err)));
    Box::pin(beats(inner, None).map(Ok).take_until(end).chain(last))
}

/// Keeps a dialler for every other member.
pub async fn run(inner: Arc<Inner>) {
    let mut diallers: std::collections::BTreeMap<u64, CancellationToken> = Default::default();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = inner.stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        inner.board.refresh();
        inner.desk.note_quorum(inner.has_quorum());
        digests::compare(&inner);
        clock::watch(&inner);
        let members: BTreeSet<u64> = inner.members().into_iter().map(|member| member.0).collect();
        for peer in members.iter().filter(|peer| **peer != inner.id.0) {
            diallers.entry(*peer).or_insert_with(|| {
                let stop = inner.stop.child_token();
                inner.spawn(keep_dialling(Arc::clone(&inner), *peer, stop.clone()));
                stop
            });
        }
        diallers.retain(|peer, stop| {
            let present = members.contains(peer);
            if !present {
                stop.cancel();
                inner.board.forget(*peer);
                inner.holdings.forget(*peer);
                inner.links.forget(*peer);
            }
            present
        });
    }
}

async fn keep_dialling(inner: Arc<Inner>, peer: u64, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            // The stream broke: dial again at once, and take a refusal for death.
            heard = converse(&inner, peer) => if heard { continue },
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Returns whether anything was heard.
async fn converse(inner: &Arc<Inner>, peer: u64) -> bool {
    let Ok(link) = inner.links.to(peer) else {
        return false;
    };
    let mut fast = link.fast;
    let gossip = inner.gossip_out.subscribe();
    let call = fast.pulse(beats(Arc::clone(inner), Some(gossip)));
    let mut arriving = match tokio::time::timeout(STALL, call).await {
        Ok(Ok(reply)) => reply.into_inner(),
        Ok(Err(status)) => {
            if link.gate.refused() {
                inner.board.refused(peer);
            }
            if let Some(cluster) = link.gate.stranger() {
                met_stranger(inner, peer, cluster).await;
            } else {
                turned_away(inner, peer, &status).await;
            }
            return false;
        }
        Err(_) => return false,
    };
    let mut heard = false;
    loop {
        match tokio::time::timeout(STALL, arriving.message()).await {
            Ok(Ok(Some(beat))) => take(inner, peer, beat),
            Ok(Err(status)) => {
                turned_away(inner, peer, &status).await;
                return heard;
            }
            Ok(Ok(None)) | Err(_) => return heard,
        }
        heard = true;
    }
}

/// Where a peer listened there is a node of another cluster under the same authority: the cluster
/// was recovered or restored. Where others still make a quorum, that one is the stranger.
async fn met_stranger(inner: &Inner, peer: u64, cluster: Uuid) {
    tracing::error!(
        peer,
        %cluster,
        "a node of another cluster under the same authority listens at a peer's address"
    );
    if inner.desk.in_minority() {
        inner.cast_out(format!(
            "the cluster goes on without it as cluster {cluster}, recovered or restored, and what \
             this node has is of no use there; empty its data directory and join anew"
        ));
    }
    tokio::time::sleep(TURNED_AWAY).await;
}

async fn turned_away(inner: &Inner, peer: u64, status: &Status) {
    if status.code() != Code::PermissionDenied {
        return;
    }
    if status.message() == REMOVED {
        inner.cast_out(format!("{REMOVED}; empty its data directory and join anew"));
    }
    tracing::error!(
        peer,
        error = status.message(),
        "a peer turns this node away"
    );
    tokio::time::sleep(TURNED_AWAY).await;
}
