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

use crate::inner::Inner;
use crate::types::Address;
use crate::view::View;
use crate::wire::proto;
use crate::{Error, answer};

mod lost;
mod replace;

pub use replace::{not_joined, removed};

/// Entries by which a node may be behind to become a voter, or the leader.
const CAUGHT_UP: u64 = 256;
/// Between two looks at the membership.
const LOOK: Duration = Duration::from_millis(200);
/// For an order to the leader, and for its effect.
const DEADLINE: Duration = Duration::from_secs(10);
/// For a change of the voters to end before leadership is handed over.
pub const SETTLING: Duration = Duration::from_secs(3);

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
    // A change of the voters that an earlier leader began, or that took too long. Left half done it
    // would need a majority of the old ones for ever.
    if view.voters_change() {
        return Some(ChangeMembers::AddVoterIds(BTreeSet::new()));
    }
    let gone: BTreeSet<u64> = view
        .nodes
        .keys()
        .filter(|id| !members.contains_key(id))
        .copied()
        .collect();
    if let Some(voters) = nonempty(
        gone.iter()
            .copied()
            .filter(|id| view.is_voter(*id))
            .collect(),
    ) {
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
    let ready = view
        .nodes
        .keys()
        .find(|id| !view.is_voter(**id) && **id != me && live(**id) && is_close(view, **id));
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

/// Waits until this node, as leader, has applied everything that was committed before the call. What
/// a fresh leader has applied may be older than what is committed: a node that has just joined would
/// look like one that left.
async fn confirm(inner: &Inner) -> bool {
    let confirmed = async {
        match inner.own_read_index().await {
            Some(index) => inner.wait_applied(index).await,
            None => false,
        }
    };
    tokio::time::timeout(DEADLINE, confirmed).await == Ok(true)
}

/// Makes Raft's membership follow the state, while this node leads.
pub async fn run(inner: Arc<Inner>) {
    let mut silent = lost::Silent::default();
    loop {
        tokio::select! {
            () = inner.tend.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        let view = inner.view();
        if !view.leads_quorum(inner.id.0) {
            silent = lost::Silent::default();
            continue;
        }
        lost::remove(&inner, &view, &mut silent).await;
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
        if !confirm(&inner).await {
            continue;
        }
        let _turn = inner.handover.lock().await;
        let view = inner.view();
        let Some(change) = step(&view).filter(|_| view.leading) else {
            continue;
        };
        tracing::info!(?change, "changing the membership");
        // Who loses its vote still learns that it did.
        let changing = inner.raft.change_membership(change, true);
        match tokio::time::timeout(DEADLINE, changing).await {
            Ok(Ok(_)) => inner.tend.notify_one(),
            Ok(Err(error)) => tracing::warn!(%error, "the membership did not change"),
            Err(_) => tracing::warn!("the membership change takes long"),
        }
    }
}

/// Tells the cluster this node's present address, ports, version and key, whenever its record has
/// others.
pub async fn announce(inner: Arc<Inner>) {
    let mut key = inner.credentials.key_changes();
    loop {
        let known = inner.memory.read(|state| state.member(inner.id).cloned());
        let present = |known: &Member| Member {
            identifiers: known.identifiers.clone(),
            ..inner.as_member()
        };
        if let Some(member) = known.filter(|known| *known != present(known)) {
            let member = present(&member);
            let proposal = Proposal {
                request: RequestId(Uuid::new_v4()),
                actor: Actor(format!("node:{}", inner.options.node_name)),
                if_match: None,
                remember: None,
                command: Command::UpdateMember(Box::new(member)),
            };
            match crate::desk::propose(&inner, proposal).await {
                Ok(outcome) if outcome.result.is_ok() => {}
                Ok(outcome) => {
                    tracing::error!(error = ?outcome, "the cluster does not take this node's record");
                }
                Err(error) => tracing::debug!(%error, "cannot announce this node yet"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            Ok(()) = key.changed() => {}
        }
    }
}

/// Answers a peer that took this node for the leader.
pub async fn serve(inner: &Arc<Inner>, request: proto::ManageRequest) -> proto::ManageReply {
    match carry_out(inner, request).await {
        Err(Error::NoLeader) => not_leader(),
        result => {
            let (cause, problem) = answer::encode(result);
            proto::ManageReply {
                problem,
                not_leader: false,
                cause,
            }
        }
    }
}

/// Another node leads, or will soon.
fn not_leader() -> proto::ManageReply {
    proto::ManageReply {
        not_leader: true,
        ..Default::default()
    }
}

/// Carries out an order as leader.
async fn carry_out(inner: &Arc<Inner>, request: proto::ManageRequest) -> Result<(), Error> {
    use proto::manage_request::Order;
    if !inner.view().leading {
        return Err(Error::NoLeader);
    }
    match request.order {
        // A leader cannot well leave: the next one removes it.
        Some(Order::Remove(node)) if node == inner.id.0 => {
            removable(inner, node)?;
            transfer(inner, None).await?;
            Err(Error::NoLeader)
        }
        Some(Order::Remove(node)) => remove(inner, node).await,
        Some(Order::Replace(proto::Replace { dead, new })) => {
            replace::carry_out(inner, dead, new).await
        }
        Some(Order::TransferTo(node)) => transfer(inner, (node != 0).then_some(node)).await,
        None => Err(Error::Refused("an empty order".into())),
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
                    Ok(Err(_)) => not_leader(),
                    Err(_) => return Err(Error::Timeout),
                }
            }
            None => not_leader(),
        };
        if !reply.not_leader {
            return answer::decode(reply.cause, reply.problem);
        }
        if Instant::now() >= deadline {
            return Err(Error::NoLeader);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether the rest can go on without a node.
fn removable(inner: &Inner, node: u64) -> Result<(), Error> {
    let view = inner.view();
    let mut left = view.all_voters();
    left.remove(&node);
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
    propose_removal(inner, node).await?;
    let mut view = inner.view.clone();
    let gone = view.wait_for(|view| !view.nodes.contains_key(&node) || !view.leading);
    let gone = tokio::time::timeout(DEADLINE, gone).await.is_ok();
    gone.then_some(()).ok_or(Error::Timeout)
}

/// Strikes a node off the state, if the rest can go on without it; [`run`] does the rest.
async fn propose_removal(inner: &Arc<Inner>, node: u64) -> Result<(), Error> {
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
    Ok(())
}

/// Hands leadership over, and waits until another node leads.
///
/// # Errors
/// [`Error::NoLeader`] when a certain node is asked for and this one does not lead, or another one
/// was elected: the order is then for whoever leads now.
pub async fn transfer(inner: &Arc<Inner>, to: Option<u64>) -> Result<(), Error> {
    if to == Some(inner.id.0) {
        return Ok(());
    }
    let turn = tokio::time::timeout(SETTLING, inner.handover.lock());
    let _turn = turn.await.map_err(|_| {
        Error::Refused("the voters are being changed, and that takes long; try again".into())
    })?;
    let view = inner.view();
    if !view.leading {
        return to.map_or(Ok(()), |_| Err(Error::NoLeader));
    }
    let asked = to;
    let to = match to {
        Some(to) if !view.is_voter(to) => {
            return Err(Error::Refused("that node is not a voter".into()));
        }
        Some(to) if !inner.board.is_live(to) => {
            return Err(Error::Refused("that node is not live".into()));
        }
        Some(to) if inner.board.is_draining(to) => {
            return Err(Error::Refused("that node is draining".into()));
        }
        Some(to) => {
            catch_up(inner, to).await?;
            to
        }
        None => successor(inner, &view).ok_or_else(|| {
            Error::Refused("no other voter is live, or it is draining as well".into())
        })?,
    };
    let stopped = |error: openraft::errors::Fatal<_>| Error::Stopped(error.to_string());
    inner
        .raft
        .trigger()
        .transfer_leader(to)
        .await
        .map_err(stopped)?;
    let mut view = inner.view.clone();
    let other =
        |view: &Arc<View>| !view.leading && view.leader.is_some_and(|now| now != inner.id.0);
    let leader = match tokio::time::timeout(Duration::from_secs(3), view.wait_for(other)).await {
        Ok(Ok(view)) => view.leader,
        _ => return Err(Error::Timeout),
    };
    match asked {
        Some(asked) if leader != Some(asked) => Err(Error::NoLeader),
        _ => Ok(()),
    }
}

/// Waits until a voter has nearly all of the log: one that was away cannot be elected before, and
/// the others do not wait for it.
async fn catch_up(inner: &Arc<Inner>, to: u64) -> Result<(), Error> {
    let mut view = inner.view.clone();
    let close = |view: &Arc<View>| !view.leading || is_close(view, to);
    match tokio::time::timeout(SETTLING, view.wait_for(close)).await {
        Ok(Ok(view)) if view.leading => Ok(()),
        Ok(_) => Err(Error::NoLeader),
        Err(_) => Err(Error::Refused(
            "that node is still catching up; try again when `muster cluster status` shows it \
             without a lag"
                .into(),
        )),
    }
}

/// Whether a node has so much of the log that it can vote, or lead, without being waited for.
fn is_close(view: &View, node: u64) -> bool {
    let matched = view.matched.get(&node).copied().unwrap_or(0);
    matched > 0 && matched.saturating_add(CAUGHT_UP) >= view.last_log
}

/// Who could best lead in this node's place.
pub fn successor(inner: &Inner, view: &View) -> Option<u64> {
    let others = view.nodes.keys().copied().filter(|id| {
        *id != inner.id.0
            && view.is_voter(*id)
            && inner.board.is_live(*id)
            && !inner.board.is_draining(*id)
    });
    others.max_by_key(|id| view.matched.get(id).copied().unwrap_or(0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
