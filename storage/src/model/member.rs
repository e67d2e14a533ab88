//! Nodes of the cluster and what lets a new one in.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{NodeId, Sha256, Timestamp};

/// A node that has joined. Voter or learner is Raft's knowledge alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Never reused.
    pub id: NodeId,
    /// Unique among present members.
    pub name: String,
    /// What peers and machines reach.
    pub address: IpAddr,
    /// Port of the peer link.
    pub peer_port: u16,
    /// HTTPS port of the API.
    pub api_port: u16,
    /// HTTP port of the boot service.
    pub boot_port: u16,
    /// Version of the binary that it last reported.
    pub version: String,
    /// Oldest schema that its binary supports.
    pub min_schema: u16,
    /// Newest schema that its binary supports.
    pub max_schema: u16,
    /// SHA-256 of its certificate's public key; removal of the member revokes it.
    pub key_hash: Sha256,
    /// Addresses that it may put into DHCP option 54.
    pub identifiers: Vec<Ipv4Addr>,
}

/// An address that DHCP clients may name in option 54, with the member that registered it.
/// Kept after the member is removed, until the longest lease granted before has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identifier {
    /// The address.
    pub address: Ipv4Addr,
    /// Who registered it.
    pub node: NodeId,
    /// When it stops being honoured; absent while the member is in the cluster.
    pub until: Option<Timestamp>,
}

/// Lets nodes join until it expires or is revoked. The secret itself is never stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// SHA-256 of the secret part; the key.
    pub hash: Sha256,
    /// End of validity.
    pub expires_at: Timestamp,
}
