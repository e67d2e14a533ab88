//! What a node can say about the cluster.

use std::net::{IpAddr, Ipv4Addr};

use muster_storage::model::Member;
use muster_storage::{NodeId, Revision};
use serde::Serialize;
use uuid::Uuid;

use crate::inner::Inner;
use crate::wire::proto;

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
    /// Why it does not take part, or must be doubted.
    pub fault: Option<String>,
    /// Whether it is there still but about to stop.
    pub draining: bool,
    /// TFTP transfers that run on it, and open HTTP boot connections; absent when it does not say.
    pub transfers: Option<u64>,
}

/// Whether a member votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It votes, and others may be stopped in reliance on its vote.
    Voter,
    /// It only receives for now, or is about to vote.
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
    /// Whether it is about to stop.
    pub draining: bool,
    /// Whether it is this node.
    pub own: bool,
}

fn fault_of(inner: &Inner, peer: NodeId, said: Option<&proto::Status>) -> Option<String> {
    let told = said.map(|said| said.fault.clone());
    let differs = || {
        let doubt = "its state differs from this node's";
        inner.board.differs(peer.0).then(|| doubt.to_owned())
    };
    told.filter(|fault| !fault.is_empty()).or_else(differs)
}

/// The cluster as a node sees it.
pub fn of(inner: &Inner) -> Status {
    let view = inner.view();
    let progress = *inner.progress.borrow();
    let members: Vec<Member> = inner
        .memory
        .read(|state| state.members().cloned().collect());
    let contacts = members
        .iter()
        .map(|member| inner.board.contact(member.id.0));
    let contacts: Vec<_> = contacts.collect();
    let furthest = contacts
        .iter()
        .flatten()
        .map(|contact| contact.status.applied)
        .fold(progress.applied.max(view.committed), u64::max);
    let nodes = members.into_iter().zip(contacts).map(|(member, contact)| {
        let own = member.id == inner.id;
        let said = contact.as_ref().map(|contact| &contact.status);
        let applied = if own {
            Some(progress.applied)
        } else {
            said.map(|said| said.applied)
        };
        let revision = if own {
            Some(progress.revision)
        } else {
            said.map(|said| Revision(said.revision))
        };
        NodeStatus {
            id: member.id,
            role: match view.is_voter(member.id.0) {
                true => Role::Voter,
                false => Role::Learner,
            },
            revision,
            lag: applied.map(|applied| furthest.saturating_sub(applied)),
            last_contact_ms: if own {
                Some(0)
            } else {
                contact
                    .as_ref()
                    .map(|c| u64::try_from(c.at.elapsed().as_millis()).unwrap_or(u64::MAX))
            },
            live: own || contact.as_ref().is_some_and(|contact| contact.live()),
            fault: if own {
                inner.fault()
            } else {
                fault_of(inner, member.id, said)
            },
            draining: match own {
                true => *inner.draining.borrow(),
                false => inner.board.is_draining(member.id.0),
            },
            transfers: match own {
                true => Some(inner.transfers.running()),
                false => said.and_then(|said| said.transfers),
            },
            name: member.name,
            address: member.address,
            version: member.version,
        }
    });
    Status {
        cluster_id: inner.cluster_id,
        leader: inner.leader(),
        revision: progress.revision,
        quorum: inner.has_quorum(),
        nodes: nodes.collect(),
    }
}
