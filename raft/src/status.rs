//! What a node can say about the cluster.

use std::net::{IpAddr, Ipv4Addr};

use muster_storage::{NodeId, Revision};
use serde::Serialize;
use uuid::Uuid;

/// The cluster as one node sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The cluster's id.
    pub cluster_id: Uuid,
    /// Who leads.
    pub leader: Option<NodeId>,
    /// How far this node has come.
    pub revision: Revision,
    /// Whether writes can be committed.
    pub quorum: bool,
    /// All members.
    pub nodes: Vec<NodeStatus>,
}

/// A member as one node sees it.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// What peers and machines reach.
    pub address: IpAddr,
    /// Whether it votes.
    pub role: Role,
    /// How far it has come; absent when it has not been heard of.
    pub revision: Option<Revision>,
    /// Log entries by which it is behind the furthest.
    pub lag: Option<u64>,
    /// Since it was last heard of.
    pub last_contact_ms: Option<u64>,
    /// Version of its binary.
    pub version: String,
    /// Whether it is there.
    pub live: bool,
}

/// Whether a member votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It votes.
    Voter,
    /// It only receives, for now.
    Learner,
}

/// A member with what is needed to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// What peers and machines reach.
    pub address: IpAddr,
    /// Port of the peer link.
    pub peer_port: u16,
    /// HTTPS port of the API.
    pub api_port: u16,
    /// HTTP port of the boot service.
    pub boot_port: u16,
    /// Addresses that it may put into DHCP option 54.
    pub identifiers: Vec<Ipv4Addr>,
    /// Whether it is there.
    pub live: bool,
    /// Whether it is this node.
    pub own: bool,
}
