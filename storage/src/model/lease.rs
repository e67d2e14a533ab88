//! Leases: which client has which address until when.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Mac, NodeId, Octets, Timestamp};

/// What a binding belongs to (RFC 2131 §4.2, as the subnet's `match` decides).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientKey {
    /// The hardware address.
    Mac(Mac),
    /// The client identifier, option 61.
    Id(Octets),
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => mac.fmt(f),
            Self::Id(id) => write!(f, "id:{id}"),
        }
    }
}

/// An address and its present or last holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// The address; the key.
    pub address: Ipv4Addr,
    /// Name of the subnet.
    pub subnet: String,
    /// The holder.
    pub client: ClientKey,
    /// Hardware address that the holder last used.
    pub mac: Option<Mac>,
    /// Client identifier that the holder last sent.
    pub client_id: Option<Octets>,
    /// Option 12.
    pub hostname: Option<String>,
    /// The machine that owns the MAC, if any.
    pub machine: Option<Uuid>,
    /// Where the lease stands.
    pub state: LeaseState,
    /// When the holder got the address.
    pub bound_at: Timestamp,
    /// End of what the client was promised at the last commit.
    pub promised_until: Timestamp,
    /// Committed end, ahead of the promise so that early renewals need no write.
    pub expires_at: Timestamp,
    /// Largest committed end that this holder ever had, or the end of a quarantine. No other
    /// client gets the address before it plus the margin, unless it is reclaimed (DESIGN invariant 7).
    pub held_until: Timestamp,
    /// Whether the address may go to another client now.
    pub free: bool,
    /// Node that bound it.
    pub node: NodeId,
    /// By which rule the holder got it.
    pub rule: LeaseRule,
    /// Whether the holder has sent a PXE, HTTP boot or iPXE class: then it is known by its MAC.
    pub boots: bool,
    /// Option 82 as last relayed; a renewal by unicast comes without it.
    pub relay: Option<Octets>,
    /// Option 97 as last sent: an operating system comes without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

impl Lease {
    /// Whether it was given back before its end and waits until every member knows of that.
    pub fn is_returned(&self) -> bool {
        self.state == LeaseState::Released && !self.free
    }
}

/// By which rule a holder got its address (RFC 2131 §4.3.1, reservations first). An extension
/// leaves it as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseRule {
    /// A reservation named the client.
    Reservation,
    /// The client had it before.
    Previous,
    /// It was free in the subnet's pools.
    Pool,
    /// It was free in the pools of the class of this name.
    ClassPool(String),
}

impl fmt::Display for LeaseRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reservation => f.write_str("reservation"),
            Self::Previous => f.write_str("previous address"),
            Self::Pool => f.write_str("pool"),
            Self::ClassPool(class) => write!(f, "pool of class {class}"),
        }
    }
}

/// Where a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// The client has it.
    Bound,
    /// The client gave it back.
    Released,
    /// A client found it in use: nobody gets it for a while.
    Declined,
    /// Its time is over.
    Expired,
}

impl fmt::Display for LeaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bound => "bound",
            Self::Released => "released",
            Self::Declined => "declined",
            Self::Expired => "expired",
        })
    }
}
