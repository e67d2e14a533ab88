//! Subnets, their pools and reservations.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use super::{Class, Loaders, Mac, Octets, TextOctets};

/// A network that machines sit on, and how its clients are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// Unique name.
    pub name: String,
    /// The network, as in `10.77.0.0/24`.
    pub cidr: Ipv4Net,
    /// Ranges that dynamic leases are taken from; empty means reservations only.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// Option 3.
    #[serde(default)]
    pub routers: Vec<Ipv4Addr>,
    /// Option 6.
    #[serde(default)]
    pub dns_servers: Vec<Ipv4Addr>,
    /// Option 15.
    #[serde(default)]
    pub domain_name: Option<String>,
    /// Promised lease time in seconds; the cluster's default when absent.
    #[serde(default)]
    pub lease_secs: Option<u32>,
    /// Further DHCP options by number or name; values are templates.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// `siaddr` for boot clients instead of the answering node.
    #[serde(default)]
    pub next_server: Option<Ipv4Addr>,
    /// Whom DHCP serves here.
    #[serde(default)]
    pub mode: SubnetMode,
    /// What makes two packets come from one client.
    #[serde(default, rename = "match")]
    pub matching: Match,
    /// Subnets that name the same network here share one link: a client on it, directly or behind
    /// a relay with an address of any of them, may get an address of each.
    #[serde(default)]
    pub shared_network: Option<String>,
    /// Whether a client that offers to take an address at once gets it (RFC 4039): only where no
    /// other DHCP server is on the link.
    #[serde(default)]
    pub rapid_commit: bool,
    /// DHCP servers that may be on the link beside this cluster. Of others that clients choose there
    /// is an alert.
    #[serde(default)]
    pub foreign_servers: Vec<Ipv4Addr>,
    /// Whether addresses are probed when they are offered to a new holder.
    #[serde(default)]
    pub conflict_detection: ConflictDetection,
    /// Clients that get something else.
    #[serde(default)]
    pub classes: Vec<Class>,
    /// What firmware loads first here, unless its machine says otherwise.
    #[serde(default, skip_serializing_if = "Loaders::is_empty")]
    pub loaders: Loaders,
    /// Whether nodes answer router solicitations by saying that they are none (RFC 4861 §6.2.3), which
    /// spares iPXE 13 to 16 s in each of its stages. For links without an IPv6 router.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub router_advertisement: bool,
}

/// Whom DHCP serves on a subnet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubnetMode {
    /// Addresses and boot data for everyone.
    #[default]
    Full,
    /// Boot data only, beside a foreign DHCP server (PXE 2.1 proxyDHCP).
    Proxy,
    /// Addresses only for clients with a reservation.
    ReservedOnly,
    /// Silence.
    Off,
}

/// Whether an address is probed by ARP when it is offered to one who does not have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConflictDetection {
    /// It is, and the offer does not wait for it.
    #[default]
    Background,
    /// It is not.
    Off,
}

/// What makes two packets come from one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Match {
    /// By MAC for machines, reservations and boot clients, else by client identifier if one is sent.
    #[default]
    Auto,
    /// By hardware address only.
    Mac,
    /// By client identifier if one is sent (RFC 2131 §4.2).
    ClientId,
}

/// An inclusive range of addresses, written `10.77.0.100-10.77.0.199` or as one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pool {
    /// First address.
    pub first: Ipv4Addr,
    /// Last address.
    pub last: Ipv4Addr,
}

impl Pool {
    /// Whether `address` lies in the range.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.first <= address && address <= self.last
    }

    /// Number of addresses.
    pub fn len(&self) -> u32 {
        (u32::from(self.last) - u32::from(self.first)).saturating_add(1)
    }

    /// Never: a range has at least one address.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Why a text is not a pool.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a pool; write FIRST-LAST, as in 10.77.0.100-10.77.0.199")]
pub struct BadPool(String);

impl FromStr for Pool {
    type Err = BadPool;

    fn from_str(text: &str) -> Result<Self, BadPool> {
        let bad = || BadPool(text.to_owned());
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first: Ipv4Addr = first.trim().parse().map_err(|_| bad())?;
        let last: Ipv4Addr = last.trim().parse().map_err(|_| bad())?;
        if first > last {
            return Err(bad());
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Serialize for Pool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// An address kept for one client: exactly one of `mac`, `client_id`, `machine`, `uuid`, or the place
/// of the client's cable as its relay names it, by `circuit_id`, `remote_id` or both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    /// The address; the key.
    pub address: Ipv4Addr,
    /// Owner by hardware address.
    #[serde(default)]
    pub mac: Option<Mac>,
    /// Owner by client identifier (option 61), hexadecimal.
    #[serde(default)]
    pub client_id: Option<Octets>,
    /// Owner by machine UUID: any of the machine's MACs.
    #[serde(default)]
    pub machine: Option<Uuid>,
    /// Owner by the UUID that its firmware sends in option 97 (RFC 4578 §2.3), as the operating
    /// system shows it.
    #[serde(default)]
    pub uuid: Option<Uuid>,
    /// Owner by option 82.1, the relay's port (RFC 3046 §3.1).
    #[serde(default)]
    pub circuit_id: Option<TextOctets>,
    /// Owner by option 82.2 (RFC 3046 §3.2).
    #[serde(default)]
    pub remote_id: Option<TextOctets>,
}
