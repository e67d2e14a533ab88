//! What is broken on purpose, to see that the checks bite.

use std::sync::Arc;

use bytes::Bytes;
use muster_storage::{Outcome, Revision, State, schema};
use prost::Message;

use crate::host::Host;
use crate::inner::Inner;
use crate::types::EntryBytes;
use crate::wire::proto;

/// A way in which the cluster could be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Nothing is ever synced.
    SkipSync,
    /// A sync reports success before the data is durable.
    SyncLies,
    /// A leader takes up its old term without a vote when it comes back.
    LeaderRestore,
    /// Followers take for committed what they have only received.
    ApplyBeforeCommit,
    /// A vote does not survive the loss of power.
    ForgetVote,
    /// A vote is told before it is durable: the next entry makes it so.
    VoteNotSynced,
    /// The leader answers with what an entry will do, before it is committed.
    AckBeforeCommit,
    /// A released address is free at once.
    ForgetQuarantine,
    /// A node vouches for what it has applied, whatever it has promised.
    ForgetPromises,
    /// A node that starts again takes it that it had promised nothing.
    ForgetEarlierLives,
    /// A lease ends with its time, without the margin.
    ForgetMargin,
    /// Linearizable reads are answered from whatever this node has.
    ReadWithoutIndex,
    /// A follower's linearizable read does not wait until it has applied what it was told.
    ReadBeforeApplied,
    /// A write whose outcome is unknown is made again, and nobody remembers the first.
    RepeatUnknown,
    /// A message with proposals is taken for two, and nobody remembers the first.
    ProposeTwice,
    /// A leader writes its wall clock into entries.
    TrustWallClock,
}

impl Mutant {
    /// Every one.
    pub const ALL: [Self; 16] = [
        Self::SkipSync,
        Self::SyncLies,
        Self::LeaderRestore,
        Self::ApplyBeforeCommit,
        Self::ForgetVote,
        Self::VoteNotSynced,
        Self::AckBeforeCommit,
        Self::ForgetQuarantine,
        Self::ForgetPromises,
        Self::ForgetEarlierLives,
        Self::ForgetMargin,
        Self::ReadWithoutIndex,
        Self::ReadBeforeApplied,
        Self::RepeatUnknown,
        Self::ProposeTwice,
        Self::TrustWallClock,
    ];

    /// By its name in this file.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|mutant| format!("{mutant:?}") == name)
    }
}

/// As [`Mutant::TrustWallClock`]: the time for an entry.
pub fn trusted_wall(inner: &Inner) -> Option<u64> {
    let host = inner.memory.host();
    broken(host, Mutant::TrustWallClock).then(|| host.wall())
}

/// Whether a node is wrong in this way.
pub fn broken(host: &Host, by: Mutant) -> bool {
    match host {
        Host::Simulated(machine) => machine.mutant == Some(by),
        Host::Real => false,
    }
}

/// As [`Mutant::AckBeforeCommit`]: what an entry would do if it were committed next. It is still
/// proposed.
pub fn outcomes_before_commit(inner: &Arc<Inner>, entry: &Bytes) -> Option<Vec<Outcome>> {
    if !broken(inner.memory.host(), Mutant::AckBeforeCommit) {
        return None;
    }
    let decoded = schema::decode_entry(entry).ok()?;
    let next = inner.view().last_log.saturating_add(1);
    let mut state = inner.memory.read(State::clone);
    let outcomes = state.apply(Revision::new(next, 0), &decoded);
    let (raft, bytes) = (inner.raft.clone(), EntryBytes(entry.clone()));
    tokio::spawn(async move { raft.client_write(bytes).await });
    Some(outcomes.into_iter().map(|(outcome, _)| outcome).collect())
}

/// Changes a message on its way, framed as gRPC does: an octet for compression, the length (big
/// endian), the message.
pub fn tamper(mutant: Mutant, called: &str, bytes: Bytes) -> Bytes {
    change(bytes, |message| match (mutant, called) {
        (Mutant::ApplyBeforeCommit, "Append") => {
            let mut append = proto::AppendRequest::decode(message).ok()?;
            let last = append.entries.last().and_then(|entry| entry.id);
            append.commit = last.or(append.commit);
            Some(append.encode_to_vec())
        }
        _ => None,
    })
}

/// Changes a reply on its way.
pub fn tamper_reply(mutant: Mutant, called: &str, bytes: Bytes) -> Bytes {
    change(bytes, |_| match (mutant, called) {
        (Mutant::ReadBeforeApplied, "ReadIndex") => {
            Some(proto::ReadIndexReply { index: Some(0) }.encode_to_vec())
        }
        _ => None,
    })
}

/// Octets before a message.
pub const FRAME: usize = 5;

fn change(bytes: Bytes, to: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Bytes {
    let Some((head, message)) = bytes.split_at_checked(FRAME) else {
        return bytes;
    };
    // Several messages may share a frame of HTTP; those are left alone.
    if head[1..] != u32::try_from(message.len()).unwrap_or(0).to_be_bytes() {
        return bytes;
    }
    let Some(changed) = to(message) else {
        return bytes;
    };
    let length = u32::try_from(changed.len()).unwrap_or(u32::MAX);
    [&[0], &length.to_be_bytes()[..], &changed].concat().into()
}
