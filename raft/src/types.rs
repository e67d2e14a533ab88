//! The types that openraft is instantiated with.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use muster_storage::Outcome;
use openraft::EntryPayload;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::store::{Machine, Snapshot};

/// The bytes of an encoded [`muster_storage::Entry`], kept as the leader made them.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryBytes(pub Bytes);

// openraft asks for these two; the wire and the disk have their own form, see `wire`.
impl Serialize for EntryBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for EntryBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| Self(bytes.into()))
    }
}

impl fmt::Debug for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} octets", self.0.len())
    }
}

impl fmt::Display for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What became of the proposals of an entry, in their order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Outcomes(pub Vec<Outcome>);

/// Where a node's peer link listens, as Raft's membership records it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address(pub String);

openraft::declare_raft_types!(
    /// Muster's choice of types for openraft.
    pub TypeConfig:
        D = EntryBytes,
        R = Outcomes,
        NodeId = u64,
        Node = Address,
);

pub type Raft = openraft::Raft<TypeConfig, Machine>;
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type LogEntry = openraft::Entry<LeaderId, EntryPayload<EntryBytes, u64, Address>>;
pub type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub type Membership = openraft::Membership<u64, Address>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub type RaftSnapshot = openraft::alias::SnapshotOf<TypeConfig, Arc<Snapshot>>;
