//! Putting a new node in the place of a dead one, by one order to the leader.
//!
//! The new node votes first, which it comes to by itself; only then is the dead one removed. So there
//! are never fewer copies than before, and at no time do fewer nodes make a majority. Each step is
//! decided on what is seen at the moment: whoever leads later goes on from there.

use std::sync::Arc;
use std::time::Duration;

use muster_storage::event::{Action, Subject};
use muster_storage::{NodeId, State};
use tokio::time::Instant;

use super::{confirm, remove};
use crate::Error;
use crate::inner::Inner;

/// How long one order waits for the new node; less than whoever gave the order waits for the leader.
const WAIT: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_millis(50);

/// What the leader sees of a node.
#[derive(Clone, Debug)]
struct Seen {
    /// As people call it.
    name: String,
    id: u64,
    /// Whether the state has it.
    member: bool,
    /// Whether Raft's membership has it.
    present: bool,
    votes: bool,
    health: Health,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Live,
    /// It was heard of, and is not any more.
    Silent,
    /// The leader has not heard of it since it was started itself.
    Unheard,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Refuse(String),
    /// Until the new node votes, or the dead one is out of Raft's membership.
    Wait,
    Remove,
    Done,
}

/// The one next step towards `new` in the place of `dead`.
fn next_step(dead: &Seen, new: &Seen) -> Step {
    let (was, is) = (&dead.name, &new.name);
    if dead.id == new.id {
        return Step::Refuse("a node cannot replace itself".into());
    }
    if !new.member {
        return Step::Refuse(not_joined(is).to_string());
    }
    if dead.member && dead.health == Health::Live {
        return Step::Refuse(format!(
            "node `{was}` answers, so it is not replaced; to take it out, `muster cluster drain \
             {was}` and then `muster cluster remove {was}`"
        ));
    }
    if new.health == Health::Silent {
        return Step::Refuse(format!(
            "node `{is}` is not live; start it, see `muster cluster status`, and give this command \
             again"
        ));
    }
    // Numbers grow.
    if new.id < dead.id {
        return Step::Refuse(format!(
            "node `{is}` was in the cluster before `{was}`, so it cannot take its place; join a new \
             node, or take `{was}` out with `muster cluster remove {was}`"
        ));
    }
    match dead {
        _ if !new.votes || new.health == Health::Unheard => Step::Wait,
        Seen { member: true, .. } => Step::Remove,
        Seen { present: true, .. } => Step::Wait,
        _ => Step::Done,
    }
}

/// A node that is to replace another is not there.
pub fn not_joined(node: &str) -> Error {
    Error::Refused(format!(
        "node `{node}` has not joined: make a token with `muster cluster join-token`, start the new \
         node with `muster serve --join HOST:8093 --join-token-file FILE`, and give this command \
         again"
    ))
}

/// A node that was a member, by name or number, as far back as the history is kept.
pub fn removed(state: &State, node: &str) -> Option<NodeId> {
    let number = node.parse().ok().map(NodeId);
    let changes = state.events_after(state.history_start()).ok()?;
    let gone = changes.filter_map(|change| match (&change.action, &change.subject) {
        (Action::Deleted, Subject::Member(member)) => Some(member),
        _ => None,
    });
    gone.filter(|member| member.name == node || Some(member.id) == number)
        .map(|member| member.id)
        .last()
}

fn look_at(inner: &Inner, id: u64) -> Seen {
    let name = inner
        .memory
        .read(|state| state.member(NodeId(id)).map(|member| member.name.clone()));
    let view = inner.view();
    Seen {
        id,
        member: name.is_some(),
        name: name.unwrap_or_else(|| id.to_string()),
        present: view.nodes.contains_key(&id),
        // A change that is under way may yet need the old majority.
        votes: view.is_voter(id) && !view.voters_change(),
        health: match inner.board.contact(id) {
            _ if id == inner.id.0 => Health::Live,
            Some(contact) if contact.live() => Health::Live,
            Some(_) => Health::Silent,
            None => Health::Unheard,
        },
    }
}

/// Carries the order out as leader.
pub async fn carry_out(inner: &Arc<Inner>, dead: u64, new: u64) -> Result<(), Error> {
    if !confirm(inner).await {
        return Err(Error::NoLeader);
    }
    let deadline = Instant::now() + WAIT;
    loop {
        if !inner.view().leading {
            return Err(Error::NoLeader);
        }
        match next_step(&look_at(inner, dead), &look_at(inner, new)) {
            Step::Refuse(why) => return Err(Error::Refused(why)),
            Step::Done => return Ok(()),
            Step::Remove => {
                tracing::info!(node = new, replaced = dead, "replacing a node");
                remove(inner, dead).await?;
            }
            Step::Wait if Instant::now() >= deadline => return Err(not_yet(inner, dead, new)),
            Step::Wait => tokio::time::sleep(LOOK).await,
        }
    }
}

fn not_yet(inner: &Inner, dead: u64, new: u64) -> Error {
    let (dead, new) = (look_at(inner, dead), look_at(inner, new));
    let (was, is) = (&dead.name, &new.name);
    if new.votes && new.health == Health::Live {
        return Error::NotYet(format!(
            "node `{is}` votes, and node `{was}` is being removed; give this command again"
        ));
    }
    if new.health == Health::Unheard {
        return Error::NotYet(format!(
            "node `{is}` has not been heard of yet; nothing was removed. See that it runs, and give \
             this command again"
        ));
    }
    let view = inner.view();
    let matched = view.matched.get(&new.id).copied().unwrap_or(0);
    Error::NotYet(format!(
        "node `{is}` does not vote yet, it is {} log entries behind; nothing was removed. Give this \
         command again, with a longer --timeout to wait",
        view.last_log.saturating_sub(matched)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(id: u64) -> Seen {
        Seen {
            name: format!("n{id}"),
            id,
            member: true,
            present: true,
            votes: true,
            health: Health::Live,
        }
    }

    #[test]
    fn the_new_node_votes_before_the_dead_one_goes() {
        let new = seen(900);
        let dead = Seen {
            health: Health::Silent,
            ..seen(3)
        };
        let learner = Seen {
            votes: false,
            ..new.clone()
        };
        let struck = Seen {
            member: false,
            ..dead.clone()
        };
        let gone = Seen {
            present: false,
            votes: false,
            ..struck.clone()
        };
        let unheard = |seen: &Seen| Seen {
            health: Health::Unheard,
            ..seen.clone()
        };
        for (dead, new, expected) in [
            (&dead, &learner, Step::Wait),
            (&dead, &unheard(&learner), Step::Wait),
            (&dead, &unheard(&new), Step::Wait),
            // Dead for longer than the leader runs.
            (&unheard(&dead), &new, Step::Remove),
            (&dead, &new, Step::Remove),
            // Whoever led died after it had struck the dead node off.
            (&struck, &new, Step::Wait),
            (&gone, &learner, Step::Wait),
            (&gone, &new, Step::Done),
        ] {
            assert_eq!(next_step(dead, new), expected, "{dead:?} by {new:?}");
        }
    }

    #[test]
    fn what_would_harm_is_refused_with_what_to_do_instead() {
        let dead = Seen {
            health: Health::Silent,
            ..seen(3)
        };
        let new = seen(900);
        let with = |change: fn(&mut Seen)| {
            let mut new = new.clone();
            change(&mut new);
            new
        };
        for (dead, new, words) in [
            (&seen(3), &new, "muster cluster drain n3"),
            (&dead, &dead, "itself"),
            (
                &dead,
                &with(|new| new.health = Health::Silent),
                "is not live",
            ),
            (&dead, &with(|new| new.member = false), "join-token"),
            (&dead, &seen(1), "muster cluster remove n3"),
        ] {
            let step = next_step(dead, new);
            assert!(
                matches!(&step, Step::Refuse(why) if why.contains(words)),
                "{step:?} without {words}"
            );
        }
    }
}
