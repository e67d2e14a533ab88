//! The peer protocol's messages and their conversion to and from openraft's types.
//!
//! Everything that arrives is checked here; what cannot be converted is an [`Malformed`] and never
//! reaches openraft.

use std::collections::{BTreeMap, BTreeSet};

use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use openraft::vote::{RaftLeaderId, RaftLeaderIdExt};

use crate::types::{
    Address, EntryBytes, LeaderId, LogEntry, LogId, Membership, StoredMembership, TypeConfig, Vote,
};

/// Generated from `proto/peer.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("muster.peer.v1");
}

/// A message that a peer should not have sent.
#[derive(Debug, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(&'static str);

impl From<Malformed> for tonic::Status {
    fn from(malformed: Malformed) -> Self {
        Self::invalid_argument(malformed.to_string())
    }
}

impl From<Malformed> for std::io::Error {
    fn from(malformed: Malformed) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, malformed)
    }
}

impl From<&LogId> for proto::LogId {
    fn from(id: &LogId) -> Self {
        let leader = id.committed_leader_id();
        Self {
            term: leader.term(),
            node: *leader.node_id(),
            index: id.index(),
        }
    }
}

impl From<proto::LogId> for LogId {
    fn from(id: proto::LogId) -> Self {
        Self::new(LeaderId::new_committed(id.term, id.node), id.index)
    }
}

impl From<&Vote> for proto::Vote {
    fn from(vote: &Vote) -> Self {
        Self {
            term: vote.leader_id().term(),
            node: *vote.leader_id().node_id(),
            committed: vote.is_committed(),
        }
    }
}

impl From<proto::Vote> for Vote {
    fn from(vote: proto::Vote) -> Self {
        if vote.committed {
            Self::new_committed(vote.term, vote.node)
        } else {
            Self::new(vote.term, vote.node)
        }
    }
}

impl From<&Membership> for proto::Membership {
    fn from(membership: &Membership) -> Self {
        let configs = membership.get_joint_config().iter();
        Self {
            configs: configs
                .map(|voters| proto::Config {
                    voters: voters.iter().copied().collect(),
                })
                .collect(),
            nodes: membership
                .nodes()
                .map(|(id, address)| proto::Node {
                    id: *id,
                    address: address.0.clone(),
                })
                .collect(),
        }
    }
}

impl TryFrom<proto::Membership> for Membership {
    type Error = Malformed;

    fn try_from(membership: proto::Membership) -> Result<Self, Malformed> {
        let configs: Vec<BTreeSet<u64>> = membership
            .configs
            .into_iter()
            .map(|config| config.voters.into_iter().collect())
            .collect();
        let nodes: BTreeMap<u64, Address> = membership
            .nodes
            .into_iter()
            .map(|node| (node.id, Address(node.address)))
            .collect();
        if configs.is_empty() && nodes.is_empty() {
            return Ok(Self::default());
        }
        Self::new(configs, nodes).map_err(|_| Malformed("a membership that contradicts itself"))
    }
}

impl From<&StoredMembership> for proto::StoredMembership {
    fn from(stored: &StoredMembership) -> Self {
        Self {
            id: stored.log_id().as_ref().map(Into::into),
            membership: Some(stored.membership().into()),
        }
    }
}

impl TryFrom<proto::StoredMembership> for StoredMembership {
    type Error = Malformed;

    fn try_from(stored: proto::StoredMembership) -> Result<Self, Malformed> {
        let membership = stored.membership.unwrap_or_default().try_into()?;
        Ok(Self::new(stored.id.map(Into::into), membership))
    }
}

impl From<&LogEntry> for proto::LogEntry {
    fn from(entry: &LogEntry) -> Self {
        use proto::log_entry::Payload;
        Self {
            id: Some((&entry.log_id).into()),
            payload: match &entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(bytes) => Some(Payload::Entry(bytes.0.clone())),
                EntryPayload::Membership(membership) => {
                    Some(Payload::Membership(membership.into()))
                }
            },
        }
    }
}

impl TryFrom<proto::LogEntry> for LogEntry {
    type Error = Malformed;

    fn try_from(entry: proto::LogEntry) -> Result<Self, Malformed> {
        use proto::log_entry::Payload;
        Ok(Self {
            log_id: entry
                .id
                .ok_or(Malformed("a log entry without its id"))?
                .into(),
            payload: match entry.payload {
                None => EntryPayload::Blank,
                Some(Payload::Entry(bytes)) => EntryPayload::Normal(EntryBytes(bytes)),
                Some(Payload::Membership(membership)) => {
                    EntryPayload::Membership(membership.try_into()?)
                }
            },
        })
    }
}

impl From<AppendEntriesRequest<TypeConfig>> for proto::AppendRequest {
    fn from(request: AppendEntriesRequest<TypeConfig>) -> Self {
        Self {
            vote: Some((&request.vote).into()),
            previous: request.prev_log_id.as_ref().map(Into::into),
            commit: request.leader_commit.as_ref().map(Into::into),
            entries: request.entries.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<proto::AppendRequest> for AppendEntriesRequest<TypeConfig> {
    type Error = Malformed;

    fn try_from(request: proto::AppendRequest) -> Result<Self, Malformed> {
        let entries: Vec<LogEntry> = request
            .entries
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<_, _>>()?;
        // openraft looks at the ends only; a hole would be stored.
        let mut expected = request.previous.map(|id| id.index.wrapping_add(1));
        for entry in &entries {
            let index = entry.log_id.index();
            if expected.is_some_and(|expected| expected != index) {
                return Err(Malformed("log entries with a hole"));
            }
            expected = Some(index.wrapping_add(1));
        }
        Ok(Self {
            vote: required_vote(request.vote)?,
            prev_log_id: request.previous.map(Into::into),
            leader_commit: request.commit.map(Into::into),
            entries,
        })
    }
}

/// The vote of a message that cannot do without one.
pub fn required_vote(vote: Option<proto::Vote>) -> Result<Vote, Malformed> {
    vote.map(Into::into).ok_or(Malformed("a vote is missing"))
}

impl From<StreamAppendResult<TypeConfig>> for proto::AppendReply {
    fn from(result: StreamAppendResult<TypeConfig>) -> Self {
        use proto::append_reply::Result as Reply;
        Self {
            result: Some(match result {
                Ok(id) => Reply::Stored(proto::MaybeLogId {
                    id: id.as_ref().map(Into::into),
                }),
                Err(StreamAppendError::Conflict(id)) => Reply::Conflict((&id).into()),
                Err(StreamAppendError::HigherVote(vote)) => Reply::Newer((&vote).into()),
            }),
        }
    }
}

impl TryFrom<proto::AppendReply> for StreamAppendResult<TypeConfig> {
    type Error = Malformed;

    fn try_from(reply: proto::AppendReply) -> Result<Self, Malformed> {
        use proto::append_reply::Result as Reply;
        Ok(
            match reply.result.ok_or(Malformed("an empty append reply"))? {
                Reply::Stored(stored) => Ok(stored.id.map(Into::into)),
                Reply::Conflict(id) => Err(StreamAppendError::Conflict(id.into())),
                Reply::Newer(vote) => Err(StreamAppendError::HigherVote(vote.into())),
            },
        )
    }
}

impl From<(VoteRequest<TypeConfig>, bool)> for proto::VoteRequest {
    fn from((request, pre): (VoteRequest<TypeConfig>, bool)) -> Self {
        Self {
            vote: Some((&request.vote).into()),
            last: request.last_log_id.as_ref().map(Into::into),
            transfer: request.leadership_transfer,
            pre,
        }
    }
}

impl TryFrom<proto::VoteRequest> for VoteRequest<TypeConfig> {
    type Error = Malformed;

    fn try_from(request: proto::VoteRequest) -> Result<Self, Malformed> {
        Ok(Self {
            vote: required_vote(request.vote)?,
            last_log_id: request.last.map(Into::into),
            leadership_transfer: request.transfer,
        })
    }
}

impl From<VoteResponse<TypeConfig>> for proto::VoteReply {
    fn from(response: VoteResponse<TypeConfig>) -> Self {
        Self {
            vote: Some((&response.vote).into()),
            granted: response.vote_granted,
            last: response.last_log_id.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<proto::VoteReply> for VoteResponse<TypeConfig> {
    type Error = Malformed;

    fn try_from(reply: proto::VoteReply) -> Result<Self, Malformed> {
        Ok(Self {
            vote: required_vote(reply.vote)?,
            vote_granted: reply.granted,
            last_log_id: reply.last.map(Into::into),
        })
    }
}

impl From<&TransferLeaderRequest<TypeConfig>> for proto::TransferRequest {
    fn from(request: &TransferLeaderRequest<TypeConfig>) -> Self {
        Self {
            from: Some(request.from_leader().into()),
            to: *request.to_node_id(),
            last: request.last_log_id().map(Into::into),
        }
    }
}

impl TryFrom<proto::TransferRequest> for TransferLeaderRequest<TypeConfig> {
    type Error = Malformed;

    fn try_from(request: proto::TransferRequest) -> Result<Self, Malformed> {
        Ok(Self::new(
            required_vote(request.from)?,
            request.to,
            request.last.map(Into::into),
        ))
    }
}
