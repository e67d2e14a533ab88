//! Making a node ready to be stopped: it leads no more, and says that it is about to stop.
//!
//! Any node may be asked, about any node. The node that is to be drained does it itself, so that a
//! leader is not needed: it knows best whether it leads, and what it says of itself is its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use muster_storage::NodeId;
use tokio::sync::oneshot;
use tonic::Code;

use crate::answer::{self, Excuses};
use crate::inner::Inner;
use crate::peer::PeerClient;
use crate::view::View;
use crate::wire::proto;
use crate::{Error, manage};

/// How much runs on a node that is lost when it stops. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Transfers(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    tftp: AtomicUsize,
    http: AtomicUsize,
}

impl Transfers {
    /// So many TFTP transfers run.
    pub fn set_tftp(&self, running: usize) {
        self.0.tftp.store(running, Ordering::Relaxed);
    }

    /// So many connections of the HTTP boot service are open.
    pub fn set_http(&self, open: usize) {
        self.0.http.store(open, Ordering::Relaxed);
    }

    /// All of them.
    pub fn running(&self) -> u64 {
        let Counts { tftp, http } = &*self.0;
        let running = tftp.load(Ordering::Relaxed) + http.load(Ordering::Relaxed);
        u64::try_from(running).unwrap_or(u64::MAX)
    }
}

/// For the answer of a node that is asked whether it drains.
const ASKING: Duration = Duration::from_secs(1);

/// From the leave to fail until peers see that this node is gone, at most.
const FAILING: Duration = Duration::from_secs(2);

const EXCUSES: Excuses = Excuses {
    not_live: ", so there is nothing to drain",
    old_version: "is not drained from other nodes; ask it itself with --endpoint",
};

/// Drains a node, this one or another.
pub async fn order(inner: &Arc<Inner>, node: NodeId) -> Result<(), Error> {
    let ask = |mut peer: PeerClient| async move { peer.drain(proto::DrainRequest {}).await };
    answer::order(inner, node, &EXCUSES, carry_out(inner), ask).await
}

/// Answers a peer that wants this node drained.
pub async fn serve(inner: &Arc<Inner>) -> proto::OrderReply {
    answer::reply(carry_out(inner)).await
}

/// Whether this node is draining, or being drained.
pub fn claimed(inner: &Inner) -> bool {
    *inner.draining.borrow() || inner.claim.try_lock().is_err()
}

/// Drains this node, if the others can go on without it.
async fn carry_out(inner: &Arc<Inner>) -> Result<(), Error> {
    inner.check_running()?;
    let _claim = inner.claim.lock().await;
    settle(inner).await?;
    let view = inner.view();
    can_spare(&view, inner.id.0, |peer| inner.board.is_live(peer))?;
    if !*inner.draining.borrow() {
        no_other_drains(inner).await?;
    }
    hand_over(inner).await?;
    inner.draining.send_replace(true);
    tracing::info!("this node is drained");
    Ok(())
}

/// Whether this node could be stopped now: asked by those who are about to have it fail. Until the
/// others see that it is gone, no other one gets leave to drain or to fail.
pub async fn check_spare(inner: &Arc<Inner>) -> Result<(), Error> {
    let (tell, told) = oneshot::channel();
    let holder = Arc::clone(inner);
    inner.spawn(async move {
        let _claim = holder.claim.lock().await;
        let spare = is_spare(&holder).await;
        let fails = spare.is_ok();
        // Whoever asked may have given up.
        if tell.send(spare).is_ok() && fails {
            tokio::time::sleep(FAILING).await;
        }
    });
    told.await
        .unwrap_or_else(|_| Err(Error::Stopped("it is shutting down".into())))
}

async fn is_spare(inner: &Arc<Inner>) -> Result<(), Error> {
    can_spare(&inner.view(), inner.id.0, |peer| inner.board.is_live(peer))?;
    no_other_drains(inner).await?;
    match *inner.draining.borrow() {
        true => Err(Error::Refused(format!(
            "node {} is draining; wait until it has been stopped and started again",
            inner.id
        ))),
        false => Ok(()),
    }
}

/// Says that this node is about to stop, and hands leadership over if it has it; whatever becomes
/// of the others.
pub async fn prepare_to_stop(inner: &Arc<Inner>) {
    inner.draining.send_replace(true);
    if let Err(error) = settle(inner).await {
        tracing::warn!(%error, "stopping all the same");
    }
    if let Err(error) = hand_over(inner).await {
        tracing::warn!(%error, "leadership is not handed over");
    }
}

/// Waits for the end of a change of the voters, in the midst of which the old ones, too, must have
/// their majority: without this node they may not. Where there is no quorum it does not end.
async fn settle(inner: &Arc<Inner>) -> Result<(), Error> {
    let mut view = inner.view.clone();
    let settled = view.wait_for(|view| !view.voters_change());
    match tokio::time::timeout(manage::SETTLING, settled).await {
        Err(_) if inner.has_quorum() => Err(Error::Refused(
            "the voters are being changed, and that takes long; try again when `muster cluster \
             status` shows everyone as voter"
                .into(),
        )),
        _ => Ok(()),
    }
}

/// Refuses when another node is draining.
///
/// Each node claims before it asks, so of two that are drained at the same time at least one hears
/// of the other.
async fn no_other_drains(inner: &Arc<Inner>) -> Result<(), Error> {
    let others: Vec<(u64, String)> = inner.memory.read(|state| {
        let others = state.members().filter(|member| member.id != inner.id);
        others
            .map(|member| (member.id.0, member.name.clone()))
            .collect()
    });
    let live = others
        .into_iter()
        .filter(|(id, _)| inner.board.is_live(*id));
    let asked = live.map(|(id, name)| async move {
        let mut fast = inner.links.to(id)?.fast;
        let call = fast.is_draining(proto::IsDrainingRequest {});
        match tokio::time::timeout(ASKING, call).await {
            Ok(Ok(reply)) if reply.get_ref().draining => Err(Error::Refused(format!(
                "node `{name}` is draining, and two nodes must not be drained at once; wait until \
                 it has been stopped and started again"
            ))),
            Ok(Ok(_)) => Ok(()),
            // Of a version that cannot say so.
            Ok(Err(status)) if status.code() == Code::Unimplemented => Ok(()),
            // It is gone by now.
            _ if !inner.board.is_live(id) => Ok(()),
            _ => Err(Error::Refused(format!(
                "node `{name}` does not say whether it is draining; try again"
            ))),
        }
    });
    futures::future::try_join_all(asked).await.map(drop)
}

/// Takes leadership from this node if another can have it. Where no other voter lives that stays,
/// nobody is left who could lead in its place.
async fn hand_over(inner: &Arc<Inner>) -> Result<(), Error> {
    let view = inner.view();
    if !view.leading || manage::successor(inner, &view).is_none() {
        return Ok(());
    }
    manage::transfer(inner, None).await
}

/// Whether a node can be stopped without writes coming to a halt that would else go on: the live
/// voters among the others must be a majority of all. `live` is asked about the others only.
///
/// A voter that is alone by design, or one of a minority, keeps nothing going that others could
/// take over: it is as ready to be stopped as it will ever be.
fn can_spare(view: &View, node: u64, live: impl Fn(u64) -> bool) -> Result<(), Error> {
    let voters = view.all_voters();
    let without = |id| id != node && live(id);
    let alone = voters.len() == 1;
    let goes_on = view.is_quorum(without) || !view.is_quorum(|id| id == node || without(id));
    if !voters.contains(&node) || alone || goes_on {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "without this node only {} of {} voters would be live, so nothing could be written; bring \
         others back or add nodes first, see `muster cluster status`",
        voters.iter().filter(|id| without(**id)).count(),
        voters.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_spared_when_the_others_are_a_majority_or_there_is_none_to_lose() {
        let cases: [(&[u64], u64, &[u64], bool); 9] = [
            (&[1, 2, 3], 1, &[2, 3], true),
            (&[1, 2, 3], 1, &[2], false),
            // No majority even with it.
            (&[1, 2, 3], 1, &[], true),
            (&[1], 1, &[], true),
            (&[1, 2], 1, &[2], false),
            (&[1, 2], 1, &[], true),
            // It does not vote.
            (&[1, 2, 3], 9, &[2, 3], true),
            (&[1, 2, 3, 4], 1, &[2, 3], false),
            (&[1, 2, 3, 4, 5], 1, &[2, 3, 4], true),
        ];
        for (voters, node, live, spared) in cases {
            let view = View {
                voters: vec![voters.iter().copied().collect()],
                ..View::default()
            };
            let result = can_spare(&view, node, |id| live.contains(&id));
            assert_eq!(
                result.is_ok(),
                spared,
                "{voters:?} without {node}, {live:?}"
            );
        }
    }
}
