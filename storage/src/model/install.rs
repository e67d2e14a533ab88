//! Installing machines: the order, how far it has come, and what stands against it.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{NodeId, Revision, Timestamp};
use crate::command::Actor;

/// An order to install a machine, and how far it has come. A machine has one; the next may take its
/// place when it has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Install {
    /// Who is installed; the key.
    pub machine: Uuid,
    /// Revision of the order: tells it from others of the machine.
    pub order: Revision,
    /// What installs it.
    pub bootenv: String,
    /// How many attempts it may take.
    pub attempts: u32,
    /// Number of the present attempt, from 1; 0 before the first.
    pub attempt: u32,
    /// How far it has come.
    pub phase: InstallPhase,
    /// Whether the kernel of the present attempt was handed over: what the machine boots next is
    /// another attempt.
    pub started: bool,
    /// Entry time of the order.
    pub ordered_at: Timestamp,
    /// On whose behalf.
    pub ordered_by: Actor,
    /// The last script of the present attempt; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<Served>,
    /// When and why it ended; absent while it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

/// Who let a machine have the script of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Served {
    /// Entry time of its first script.
    pub first_at: Timestamp,
    /// Entry time of its last.
    pub at: Timestamp,
    /// The node that asked for the last.
    pub node: NodeId,
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Entry time.
    pub at: Timestamp,
    /// In words for people.
    pub why: String,
}

/// How far an order has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstallPhase {
    /// The machine has not asked for its script yet.
    Armed,
    /// An attempt is open: the machine has, or had, its script.
    Open,
    /// The machine said that it is installed.
    Installed,
    /// The machine said that it failed, or used up its attempts.
    Failed,
    /// Taken back.
    Cancelled,
}

impl fmt::Display for InstallPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Armed => "armed",
            Self::Open => "open",
            Self::Installed => "installed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

impl Install {
    /// Whether it has not ended.
    pub fn is_active(&self) -> bool {
        matches!(self.phase, InstallPhase::Armed | InstallPhase::Open)
    }

    /// The present attempt, or the last.
    pub fn present(&self) -> Attempt {
        Attempt {
            order: self.order,
            number: self.attempt,
        }
    }

    /// Whether the token of this attempt is good now.
    pub fn admits(&self, attempt: Attempt) -> bool {
        self.phase == InstallPhase::Open && self.is(attempt)
    }

    /// Whether this attempt is the present one, or was the last.
    pub fn is(&self, attempt: Attempt) -> bool {
        self.present() == attempt
    }
}

/// Which attempt of a machine: what its token names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// Revision of the order.
    pub order: Revision,
    /// From 1.
    pub number: u32,
}

/// What a machine says of an attempt, with the token of which it proved that it was given it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// Which one.
    pub attempt: Attempt,
    /// What became of it.
    pub status: Status,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The machine is installed.
    Done,
    /// It is not.
    Failed,
}

/// Keeps a machine as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Which machine; the key.
    pub machine: Uuid,
    /// Why, for people; may be empty.
    pub reason: String,
    /// Entry time.
    pub at: Timestamp,
    /// On whose behalf.
    pub by: Actor,
}
