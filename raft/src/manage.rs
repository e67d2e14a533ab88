//! Membership: the state says who belongs, the leader makes Raft follow.
//!
//! Joining and leaving are ordinary commands. What they mean for voters and learners is worked out
//! here, one change at a time, by whoever leads; so it survives any crash in between, and joins
//! queue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use muster_storage::model::Member;
use muster_storage::{Actor, Command, NodeId, Proposal, RequestId};
use openraft::ChangeMembers;
use tokio::time::Instant;
use uuid::Uuid;

use crate::Error;
use crate::inner::Inner;
use crate::types::Address;
use crate::view::View;
use crate::wire::proto;

/// Entries by which a learner may be behind to become a voter.
const CAUGHT_UP: u64 = 256;
/// Between two looks at the membership.
const LOOK: Duration = Duration::from_millis(200);
/// For an order to the leader, and for its effect.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where a member's peer link listens.
pub fn address(member: &Member) -> Address {
    Address(std::net::SocketAddr::new(member.address, member.peer_port).to_string())
}

/// The one next step towards a membership in which every member votes.
fn next_step(
    view: &View,
    members: &BTreeMap<u64, Address>,
    me: u64,
    live: impl Fn(u64) -> bool,
) -> Option<ChangeMembers<u64, Address>> {
    let gone: BTreeSet<u64> = view
        .nodes
        .keys()
        .filter(|id| !members.contains_key(id))
        .copied()
        .collect();
    if let Some(voters) = nonempty(gone.intersection(&view.voters).copied().collect()) {
        return Some(ChangeMembers::RemoveVoters(voters));
    }
    if !gone.is_empty() {
        return Some(ChangeMembers::RemoveNodes(gone));
    }
    let new = members.iter().find(|(id, _)| !view.nodes.contains_key(id));
    if let Some((id, address)) = new {
        return Some(ChangeMembers::AddNodes(BTreeMap::from([(
            *id,
            address.clone(),
        )])));
    }
    // One at a time, and only who is there and close behind: a voter that lags stalls commits.
    let ready = view.nodes.keys().find(|id| {
        let matched = view.matched.get(id).copied().unwrap_or(0);
        !view.voters.contains(id)
            && **id != me
            && live(**id)
            && matched > 0
            && matched.saturating_add(CAUGHT_UP) >= view.last_log
    });
    ready.map(|id| ChangeMembers::AddVoterIds(BTreeSet::from([*id])))
}

fn nonempty<T>(set: BTreeSet<T>) -> Option<BTreeSet<T>> {
    (!set.is_empty()).then_some(set)
}

fn members(inner: &Inner) -> BTreeMap<u64, Address> {
    inner.memory.read(|state| {
        state
            .members()
            .map(|member| (member.id.0, address(member)))
            .collect()
    })
}

/// Makes Raft's membership follow the state, while this node leads.
pub async fn run(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.tend.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        let view = inner.view.borrow().clone();
        if !view.leads_quorum(inner.id.0) {
            continue;
        }
        // Until the first entry of this term is applied the state may be behind the membership.
        if inner.progress.borrow().applied < view.committed {
            continue;
        }
        let step = |view: &View| {
            let members = members(&inner);
            if members.is_empty() {
                return None;
            }
            next_step(view, &members, inner.id.0, |id| inner.board.is_live(id))
        };
        if step(&view).is_none() {
            continue;
        }
        // What a fresh leader has applied may be older than what is committed: a node that has just
        // joined would look like one that left.
        let confirmed = async {
            match inner.own_read_index().await {
                Some(index) => inner.wait_applied(index).await,
                None => false,
            }
        };
        if tokio::time::timeout(DEADLINE, confirmed).await != Ok(true) {
            continue;
        }
        let view = inner.view.borrow().clone();
        let Some(change) = step(&view).filter(|_| view.leading) else {
            continue;
        };
        tracing::info!(?change, "changing the membership");
        let retain = matches!(change, ChangeMembers::RemoveVoters(_));
        let changing = inner.raft.change_membership(change, retain);
        match tokio::time::timeout(DEADLINE, changing).await {
            Ok(Ok(_)) => inner.tend.notify_one(),
            Ok(Err(error)) => tracing::warn!(%error, "the membership did not change"),
            Err(_) => tracing::warn!("the membership change takes long"),
        }
    }
}

/// Tells the cluster this node's present address, ports and version, if they changed.
pub async fn announce(inner: Arc<Inner>) {
    loop {
        let known = inner.memory.read(|state| state.member(inner.id).cloned());
        if let Some(known) = known {
            let mut member = inner.as_member(known.key_hash);
            member.identifiers = known.identifiers.clone();
            if member == known {
                return;
            }
            let proposal = Proposal {
                request: RequestId(Uuid::new_v4()),
                actor: Actor(format!("node:{}", inner.options.node_name)),
                if_match: None,
                remember: None,
                command: Command::UpdateMember(Box::new(member)),
            };
            match crate::desk::propose(&inner, proposal).await {
                Ok(outcome) if outcome.result.is_ok() => return,
                Ok(outcome) => {
                    tracing::error!(?outcome, "the cluster does not take this node's record");
                }
                Err(error) => tracing::debug!(%error, "cannot announce this node yet"),
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Carries out an order as leader.
pub async fn serve(inner: &Arc<Inner>, request: proto::ManageRequest) -> proto::ManageReply {
    use proto::manage_request::Order;
    if !inner.view.borrow().leading {
        return proto::ManageReply {
            not_leader: true,
            ..Default::default()
        };
    }
    let result = match request.order {
        // A leader cannot well leave: the next one removes it.
        Some(Order::Remove(node)) if node == inner.id.0 => match removable(inner, node) {
            Ok(()) => match transfer(inner, None).await {
                Ok(()) => {
                    return proto::ManageReply {
                        not_leader: true,
                        ..Default::default()
                    };
                }
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        },
        Some(Order::Remove(node)) => remove(inner, node).await,
        Some(Order::TransferTo(node)) => transfer(inner, (node != 0).then_some(node)).await,
        None => Err(Error::Refused("an empty order".into())),
    };
    proto::ManageReply {
        problem: result
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default(),
        not_leader: false,
    }
}

/// Gives an order to whoever leads.
pub async fn order(inner: &Arc<Inner>, order: proto::manage_request::Order) -> Result<(), Error> {
    let deadline = Instant::now() + DEADLINE;
    let request = proto::ManageRequest { order: Some(order) };
    loop {
        let (leading, leader) = inner.leadership();
        let reply = match leader {
            _ if leading => serve(inner, request).await,
            Some(leader) => {
                let mut fast = inner.links.to(leader)?.fast;
                match tokio::time::timeout_at(deadline, fast.manage(request)).await {
                    Ok(Ok(reply)) => reply.into_inner(),
                    Ok(Err(_)) => proto::ManageReply {
                        not_leader: true,
                        ..Default::default()
                    },
                    Err(_) => return Err(Error::Timeout),
                }
            }
            None => proto::ManageReply {
                not_leader: true,
                ..Default::default()
            },
        };
        if !reply.not_leader {
            return if reply.problem.is_empty() {
                Ok(())
            } else {
                Err(Error::Refused(reply.problem))
            };
        }
        if Instant::now() >= deadline {
            return Err(Error::NoLeader);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether the rest can go on without a node.
fn removable(inner: &Inner, node: u64) -> Result<(), Error> {
    let view = inner.view.borrow().clone();
    let left: Vec<u64> = view
        .voters
        .iter()
        .copied()
        .filter(|id| *id != node)
        .collect();
    if left.is_empty() {
        return Err(Error::Refused("the last voter cannot be removed".into()));
    }
    let live = |id: &&u64| **id == inner.id.0 || inner.board.is_live(**id);
    if left.iter().filter(live).count() <= left.len() / 2 {
        return Err(Error::Refused(
            "without this node the live voters would be no majority; bring the others back first"
                .into(),
        ));
    }
    Ok(())
}

async fn remove(inner: &Arc<Inner>, node: u64) -> Result<(), Error> {
    removable(inner, node)?;
    let proposal = Proposal {
        request: RequestId(Uuid::new_v4()),
        actor: Actor(format!("node:{}", inner.options.node_name)),
        if_match: None,
        remember: None,
        command: Command::RemoveMember { node: NodeId(node) },
    };
    let outcome = crate::desk::propose(inner, proposal).await?;
    outcome
        .result
        .map_err(|rejection| Error::Refused(rejection.to_string()))?;
    inner.tend.notify_one();
    let mut view = inner.view.clone();
    let gone = view.wait_for(|view| !view.nodes.contains_key(&node) || !view.leading);
    let gone = tokio::time::timeout(DEADLINE, gone).await.is_ok();
    gone.then_some(()).ok_or(Error::Timeout)
}

/// Hands leadership over, and waits until another node leads.
pub async fn transfer(inner: &Arc<Inner>, to: Option<u64>) -> Result<(), Error> {
    let view = inner.view.borrow().clone();
    if to == Some(inner.id.0) {
        return Ok(());
    }
    let candidates = view
        .voters
        .iter()
        .filter(|id| **id != inner.id.0 && inner.board.is_live(**id));
    let best = candidates.max_by_key(|id| view.matched.get(id).copied().unwrap_or(0));
    let to = match to {
        Some(to) if !view.voters.contains(&to) => {
            return Err(Error::Refused("that node is not a voter".into()));
        }
        Some(to) if !inner.board.is_live(to) => {
            return Err(Error::Refused("that node is not live".into()));
        }
        Some(to) => to,
        None => *best.ok_or_else(|| Error::Refused("no other voter is live".into()))?,
    };
    let stopped = |error: openraft::errors::Fatal<_>| Error::Stopped(error.to_string());
    inner
        .raft
        .trigger()
        .transfer_leader(to)
        .await
        .map_err(stopped)?;
    let mut view = inner.view.clone();
    let other = |view: &View| !view.leading && view.leader.is_some_and(|now| now != inner.id.0);
    match tokio::time::timeout(Duration::from_secs(3), view.wait_for(other)).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(Error::Timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(voters: &[u64], nodes: &[u64], matched: &[(u64, u64)]) -> View {
        View {
            leading: true,
            voters: voters.iter().copied().collect(),
            nodes: nodes.iter().map(|id| (*id, String::new())).collect(),
            matched: matched.iter().copied().collect(),
            last_log: 1000,
            ..View::default()
        }
    }

    fn members(ids: &[u64]) -> BTreeMap<u64, Address> {
        ids.iter().map(|id| (*id, Address::default())).collect()
    }

    #[test]
    fn a_joiner_learns_first_and_votes_when_it_is_close() {
        let step = |view: &View, live: bool| next_step(view, &members(&[1, 9]), 1, |_| live);
        let fresh = view(&[1], &[1], &[]);
        assert!(matches!(
            step(&fresh, true),
            Some(ChangeMembers::AddNodes(_))
        ));
        let behind = view(&[1], &[1, 9], &[(9, 10)]);
        assert!(step(&behind, true).is_none());
        let close = view(&[1], &[1, 9], &[(9, 990)]);
        assert!(step(&close, false).is_none());
        assert!(matches!(
            step(&close, true),
            Some(ChangeMembers::AddVoterIds(_))
        ));
        assert!(step(&view(&[1, 9], &[1, 9], &[(9, 990)]), true).is_none());
    }

    #[test]
    fn who_left_loses_its_vote_and_then_its_place() {
        let step = |view: &View| next_step(view, &members(&[1, 2]), 1, |_| true);
        let voter = view(&[1, 2, 3], &[1, 2, 3], &[]);
        assert!(matches!(step(&voter), Some(ChangeMembers::RemoveVoters(_))));
        let learner = view(&[1, 2], &[1, 2, 3], &[]);
        assert!(matches!(
            step(&learner),
            Some(ChangeMembers::RemoveNodes(_))
        ));
    }
}
