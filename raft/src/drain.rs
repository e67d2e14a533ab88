//! Making a node ready to be stopped: it leads no more, and says that it is about to stop.
//!
//! Any node may be asked, about any node. The node that is to be drained does it itself, so that a
//! leader is not needed: it knows best whether it leads, and what it says of itself is its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use muster_storage::NodeId;
use tonic::{Code, Status};

use crate::inner::Inner;
use crate::wire::proto;
use crate::{Error, manage};

/// For the answer of the node that is drained: longer than it takes to hand leadership over.
const DEADLINE: Duration = Duration::from_secs(10);

/// Drains a node, this one or another.
pub async fn order(inner: &Arc<Inner>, node: NodeId) -> Result<(), Error> {
    inner.check_running()?;
    if node == inner.id {
        return carry_out(inner).await;
    }
    let name = inner
        .memory
        .read(|state| state.member(node).map(|member| member.name.clone()))
        .ok_or_else(|| Error::NoSuchNode(node.to_string()))?;
    if !inner.board.is_live(node.0) {
        return Err(Error::Refused(format!(
            "node `{name}` is not live, so there is nothing to drain"
        )));
    }
    let mut fast = inner.links.to(node.0)?.fast;
    let call = fast.drain(proto::DrainRequest {});
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(reply)) => match reply.into_inner().problem {
            problem if problem.is_empty() => Ok(()),
            problem => Err(Error::Refused(problem)),
        },
        Ok(Err(status)) => Err(Error::Refused(no_answer(&name, &status))),
        Err(_) => Err(Error::Timeout),
    }
}

fn no_answer(name: &str, status: &Status) -> String {
    match status.code() {
        Code::Unimplemented => format!(
            "node `{name}` is of a version that is not drained from other nodes; ask it itself \
             with --endpoint"
        ),
        _ => format!(
            "node `{name}` could not be asked: {}",
            crate::peer::root_cause(status)
        ),
    }
}

/// Answers a peer that wants this node drained.
pub async fn serve(inner: &Arc<Inner>) -> proto::DrainReply {
    let result = carry_out(inner).await;
    proto::DrainReply {
        problem: result
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default(),
    }
}

/// Drains this node, if the others can go on without it.
async fn carry_out(inner: &Arc<Inner>) -> Result<(), Error> {
    inner.check_running()?;
    let voters = inner.view.borrow().voters.clone();
    can_spare(&voters, inner.id.0, |peer| inner.board.is_live(peer))?;
    hand_over(inner).await?;
    inner.draining.store(true, Ordering::Release);
    tracing::info!("this node is drained");
    Ok(())
}

/// Says that this node is about to stop, and hands leadership over if it has it; whatever becomes
/// of the others.
pub async fn prepare_to_stop(inner: &Arc<Inner>) {
    inner.draining.store(true, Ordering::Release);
    if let Err(error) = hand_over(inner).await {
        tracing::warn!(%error, "leadership is not handed over");
    }
}

/// Takes leadership from this node if another can have it. Where no other voter lives, nobody is
/// left who could lead in its place.
async fn hand_over(inner: &Arc<Inner>) -> Result<(), Error> {
    let view = inner.view.borrow().clone();
    let mut others = view.voters.iter().filter(|id| **id != inner.id.0);
    if !view.leading || !others.any(|id| inner.board.is_live(*id)) {
        return Ok(());
    }
    manage::transfer(inner, None).await
}

/// Whether a node can be stopped without writes coming to a halt that would else go on: the live
/// voters among the others must be a majority of all. `live` is asked about the others only.
///
/// A voter that is alone by design, or one of a minority, keeps nothing going that others could
/// take over: it is as ready to be stopped as it will ever be.
fn can_spare(voters: &BTreeSet<u64>, node: u64, live: impl Fn(u64) -> bool) -> Result<(), Error> {
    let others = voters.iter().filter(|id| **id != node && live(**id));
    let others = others.count();
    let majority = |count: usize| count > voters.len() / 2;
    let alone = voters.len() == 1;
    if !voters.contains(&node) || alone || majority(others) || !majority(others + 1) {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "without this node only {others} of {} voters would be live, so nothing could be written; \
         bring others back or add nodes first, see `muster cluster status`",
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
            let voters: BTreeSet<u64> = voters.iter().copied().collect();
            let result = can_spare(&voters, node, |id| live.contains(&id));
            assert_eq!(
                result.is_ok(),
                spared,
                "{voters:?} without {node}, {live:?}"
            );
        }
    }

    #[test]
    fn a_node_of_an_older_version_is_to_be_asked_itself() {
        assert!(no_answer("a", &Status::unimplemented("")).contains("--endpoint"));
        let gone = no_answer("a", &Status::unavailable("tcp connect error"));
        assert!(gone.contains("tcp connect error"), "{gone}");
    }
}
