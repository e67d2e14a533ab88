//! What is known of a site and its nodes. What a node of an older version does not tell is left as it
//! is by default, and judged to be in order.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dhcp::facts::Links;

/// A site, as far as one node sees it or can ask the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Site {
    /// The cluster; absent when no node runs that could tell.
    pub cluster: Option<Cluster>,
    /// What each node says of itself.
    pub nodes: Vec<Node>,
    /// Nodes that said nothing.
    pub unheard: Vec<Unheard>,
}

/// A node that said nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unheard {
    /// Its name.
    pub node: String,
    /// Why.
    pub why: String,
}

/// What all nodes hold in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cluster {
    /// Whether writes can be committed.
    pub quorum: bool,
    /// Who leads.
    pub leader: Option<String>,
    /// All members.
    pub members: Vec<Member>,
    /// Subnets on which somebody is served.
    pub subnets: Vec<Subnet>,
    /// Objects that cannot be used.
    pub unavailable: Vec<Unavailable>,
    /// Artifacts that a node lacks.
    pub incomplete: Vec<Incomplete>,
    /// What nodes told people to look into within a day, newest first.
    pub alerts: Vec<Alert>,
}

/// A member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// What others reach.
    pub address: Option<IpAddr>,
    /// Whether it is there.
    pub live: bool,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it is about to stop.
    pub draining: bool,
    /// Log entries by which it is behind.
    pub lag: u64,
    /// Why it does not take part, or must be doubted.
    pub fault: Option<String>,
    /// Version of its binary.
    pub version: String,
}

/// A subnet on which somebody is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subnet {
    /// Its name.
    pub name: String,
    /// Addresses in its pools.
    pub pool: u64,
    /// How many of them are taken.
    pub taken: u64,
    /// Members with an address on it.
    pub servers: Vec<String>,
}

/// An object that cannot be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unavailable {
    /// As in the API.
    pub kind: String,
    /// Its name.
    pub key: String,
    /// Why.
    pub problems: Vec<String>,
}

/// An artifact that a node lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Incomplete {
    /// Its path.
    pub path: String,
    /// Nodes that lack it.
    pub missing: Vec<String>,
    /// Nodes that hold it.
    pub holders: Vec<String>,
}

/// What a node told people to look into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Alert {
    /// When, in words.
    pub at: String,
    /// What kind of trouble.
    pub kind: String,
    /// What it is about, as in the events.
    pub about: String,
}

/// A node by its own word.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its clocks.
    pub clock: Option<Clock>,
    /// Days until its certificate ends.
    pub certificate_days: Option<i64>,
    /// Its links.
    pub links: Links,
    /// The machine that it runs on.
    pub host: Host,
    /// How it was started.
    pub configuration: Value,
}

/// The clocks of a node at one time, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Clock {
    /// That of its machine.
    pub wall: u64,
    /// The cluster's time.
    pub cluster: u64,
}

/// A machine that a node runs on, or is to run on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Why that cannot be used.
    pub data_problems: Vec<String>,
    /// Whether others may look into it.
    pub data_exposed: bool,
    /// Octets of what is in it, by name.
    pub sizes: BTreeMap<String, u64>,
    /// Its disk.
    pub disk: Option<Disk>,
    /// Where loaders are.
    pub loader_dir: PathBuf,
    /// Loaders that firmware is sent to and that are not there.
    pub loaders_missing: Vec<String>,
    /// Why the directory of loaders cannot be read.
    pub loader_problem: Option<String>,
    /// Ports that it serves.
    pub ports: Vec<Port>,
    /// Files that it may have open.
    pub open_files: Option<u64>,
    /// Settings with which it would not start.
    pub settings_problems: Vec<String>,
    /// Whether the node runs.
    pub running: bool,
}

/// The disk of a data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    /// Octets of it.
    pub size: u64,
    /// Octets that are left.
    pub free: u64,
}

/// A port, and who has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Port {
    /// What is served on it.
    pub service: String,
    /// `udp` or `tcp`.
    pub protocol: String,
    /// Its number.
    pub port: u16,
    /// Processes other than the node that have it.
    pub others: Vec<Process>,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Absent without the right to look.
    pub pid: Option<i32>,
    /// Name of its program.
    pub name: Option<String>,
    /// User that it runs as.
    pub uid: u32,
}
