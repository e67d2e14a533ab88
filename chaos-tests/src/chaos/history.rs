//! What clients did and were told, and what befell the cluster meanwhile, in microseconds since the
//! beginning.

use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use muster_storage::linear::{Action, Told};
use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum Record {
    /// An operation on an object.
    Call(Call),
    /// What a DHCP client asked and was told.
    Exchange(Exchange),
    /// A machine was switched on.
    Boot(Boot),
    /// What was done to the cluster.
    Fault(Fault),
}

/// An operation on an object, over the API.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// When it was asked, and when an answer came or was waited for no more.
    pub start: u64,
    /// See `start`.
    pub end: u64,
    /// Who asked.
    pub client: String,
    /// Who was asked.
    pub node: String,
    /// The object.
    pub key: String,
    /// What was asked for.
    pub action: Action,
    /// What came of it.
    pub told: Told,
    /// Status of the answer, if there was one.
    pub status: Option<u16>,
    /// What the node had applied when it answered.
    pub revision: Option<u64>,
}

/// What a DHCP client wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// An address: DISCOVER, OFFER, REQUEST.
    Bind,
    /// More time, of the server that gave the address (RENEWING).
    Renew,
    /// More time, of any server (REBINDING).
    Rebind,
    /// To know whether its address is its own still (INIT-REBOOT).
    Reboot,
    /// To give its address back. Nobody answers.
    Release,
    /// To say that its address is in use. Nobody answers.
    Decline,
}

/// What it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// Yes.
    Ack,
    /// No.
    Nak,
    /// Nothing, for as long as the client could wait.
    Nothing,
}

/// What a DHCP client asked and was told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exchange {
    /// Its first message.
    pub start: u64,
    /// Its last REQUEST, of which it counts its time; its first message if it sent none.
    pub requested: u64,
    /// The answer, or the end of its patience.
    pub end: u64,
    /// Who.
    pub mac: String,
    /// Whether a relay stood between.
    pub relayed: bool,
    /// What it wanted.
    pub want: Want,
    /// What it was told.
    pub said: Said,
    /// The address that it asked for, or was given.
    pub address: Option<Ipv4Addr>,
    /// How long it was promised.
    pub seconds: Option<u32>,
    /// Whose answer it was, by the address that it came from.
    pub from: Option<Ipv4Addr>,
}

/// A machine from power-on to its callback.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Boot {
    /// When it was switched on.
    pub start: u64,
    /// When it was up, or had nothing left to try.
    pub end: u64,
    /// Which.
    pub mac: String,
    /// Its firmware.
    pub model: String,
    /// Whether it came up.
    pub up: bool,
    /// Fetches that another node had to complete.
    pub fall_backs: usize,
    /// How often another entry of its boot order had to be tried.
    pub next_entries: usize,
    /// What it went through.
    pub setbacks: Vec<String>,
}

/// What was done to the cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// When it began to be done.
    pub start: u64,
    /// Since when it was in force.
    pub struck: u64,
    /// Until when it was.
    pub healing: u64,
    /// When all was whole again.
    pub end: u64,
    /// Its kind.
    pub kind: String,
    /// What it was, with the names of nodes.
    pub what: String,
    /// Addresses of nodes that could reach no majority while it was in force.
    pub alone: Vec<Ipv4Addr>,
    /// Their names.
    pub alone_names: Vec<String>,
    /// Why the cluster did not become whole in time, if it did not.
    pub trouble: Option<String>,
}

/// All of it, as it is written down.
#[derive(Debug)]
pub struct History {
    began: Instant,
    records: Mutex<Vec<Record>>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            records: Mutex::default(),
        }
    }
}

impl History {
    /// Microseconds since the beginning.
    pub fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    /// When that was, in microseconds since the beginning.
    pub fn at(&self, when: Instant) -> u64 {
        let since = when.saturating_duration_since(self.began);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// Writes something down.
    pub fn add(&self, record: Record) {
        self.records().push(record);
    }

    /// What was written down so far.
    pub fn all(&self) -> Vec<Record> {
        self.records().clone()
    }

    fn records(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
