//! What is known of how a machine boots: separate facts, seen by whichever node did its part.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{InstallPhase, NodeId, Revision, Timestamp};

/// Facts of one machine that are kept.
pub const FACTS_MAX: usize = 64;

/// The last facts of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    /// Whose; the key.
    pub machine: Uuid,
    /// In the order in which they were written, at most [`FACTS_MAX`].
    pub facts: Vec<Fact>,
    /// The boot that is under way: more is to be seen of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_way: Option<UnderWay>,
}

/// A boot of which more is to be seen: the kernel of what is booted, or the callback of an install.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnderWay {
    /// What is booted.
    pub bootenv: String,
    /// The attempt, when it installs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Entry time of the last fact that is progress.
    pub progress_at: Timestamp,
    /// Whether people were told that there is none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stalled: bool,
}

/// Something that a node saw or did for a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// When that node saw it, first.
    pub at: Timestamp,
    /// When it saw the same again last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// How often in a row it saw the same.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub times: u32,
    /// Which node; absent when the cluster came to it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// What.
    pub step: Step,
}

fn once() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_once(times: &u32) -> bool {
    *times == 1
}

/// A step of a boot. None follows from another: a script that was served may never have run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Firmware or a loader was offered an address.
    Offered {
        /// Which.
        address: Ipv4Addr,
    },
    /// It has it.
    Bound {
        /// Which.
        address: Ipv4Addr,
    },
    /// A first-stage loader was sent to its end.
    Loader {
        /// Name of the file.
        name: String,
    },
    /// A script was served.
    Script {
        /// What it boots: a bootenv, `local` or `hold`.
        boots: String,
        /// Revision of the state of which it was made.
        revision: Revision,
        /// The attempt, when it installs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempt: Option<u32>,
    },
    /// The kernel was sent to its end.
    Kernel {
        /// Path of the artifact.
        path: String,
    },
    /// An initrd was sent to its end.
    Initrd {
        /// Path of the artifact.
        path: String,
    },
    /// Another artifact, or a rendered file, was sent to its end.
    File {
        /// Its path.
        path: String,
    },
    /// The machine called back.
    Reported,
    /// An order to install it came to this.
    Install {
        /// What.
        phase: InstallPhase,
        /// In words for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        why: String,
    },
    /// Nothing more was seen for too long.
    Stalled,
}

impl Step {
    /// A word for it, in metrics and traces.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Offered { .. } => "offered",
            Self::Bound { .. } => "bound",
            Self::Loader { .. } => "loader",
            Self::Script { .. } => "script",
            Self::Kernel { .. } => "kernel",
            Self::Initrd { .. } => "initrd",
            Self::File { .. } => "file",
            Self::Reported => "reported",
            Self::Install { .. } => "install",
            Self::Stalled => "stalled",
        }
    }
}

/// A fact as a node notes it down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Of which machine.
    pub machine: Uuid,
    /// When, by the cluster's time.
    pub at: Timestamp,
    /// What.
    pub step: Step,
}
