//! Clients of a subnet that are told apart, and what they get instead of what all get.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::{Pool, TextOctets};

/// Clients of a subnet that have something in common. A client is in every class whose condition
/// it meets; of several that say the same thing, the first one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Unique in its subnet.
    pub name: String,
    /// Who is in it.
    #[serde(default, rename = "match")]
    pub condition: Condition,
    /// Where its clients get new addresses from, and nobody else; the subnet's pools when empty.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// Promised lease time in seconds; the subnet's when absent.
    #[serde(default)]
    pub lease_secs: Option<u32>,
    /// Options before those of the subnet, written as there.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// `siaddr` for boot clients before that of the subnet.
    #[serde(default)]
    pub next_server: Option<Ipv4Addr>,
}

/// What a client must be: of each list that is not empty, one item has to fit. One that says
/// nothing is met by every client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Option 60 (RFC 2132 §9.13); `*` at the end stands for whatever follows.
    #[serde(default)]
    pub vendor_classes: Vec<String>,
    /// Any of the classes in option 77 (RFC 3004), as above.
    #[serde(default)]
    pub user_classes: Vec<String>,
    /// Any of the enterprise numbers in options 124 and 125 (RFC 3925).
    #[serde(default)]
    pub enterprises: Vec<u32>,
    /// Any of the architectures in option 93 (RFC 4578 §2.1).
    #[serde(default)]
    pub architectures: Vec<u16>,
    /// The relay, `giaddr`.
    #[serde(default)]
    pub relays: Vec<Ipv4Addr>,
    /// Option 82.1: the relay's port (RFC 3046 §3.1).
    #[serde(default)]
    pub circuit_ids: Vec<TextOctets>,
    /// Option 82.2: who is behind it (RFC 3046 §3.2).
    #[serde(default)]
    pub remote_ids: Vec<TextOctets>,
    /// What the machine that owns the MAC boots: the stage that its installation is in.
    #[serde(default)]
    pub bootenvs: Vec<String>,
    /// Whether a machine owns the MAC.
    #[serde(default)]
    pub known: Option<bool>,
}
