//! What nodes see and people should look into.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use uuid::Uuid;

use super::{Mac, NodeId, Sha256, Timestamp};

/// Something out of order that a node saw. The history tells of it; nothing is decided by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// Who saw it.
    pub node: NodeId,
    /// What it saw.
    pub trouble: Trouble,
}

/// What is out of order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// A client took the offer of a DHCP server that is no node, and that the subnet does not name
    /// as one that may be there.
    ForeignServer {
        /// Name of the subnet.
        subnet: String,
        /// What the server calls itself (option 54).
        server: Ipv4Addr,
        /// The client.
        client: Option<Mac>,
    },
    /// An address that was offered is in use by another than the client; it is quarantined.
    AddressInUse {
        /// Name of the subnet.
        subnet: String,
        /// The address.
        address: Ipv4Addr,
        /// Who answered for it.
        by: Option<Mac>,
    },
    /// The node had no quorum for longer than an election takes.
    Minority {
        /// From when.
        since: Timestamp,
        /// Until when.
        until: Timestamp,
    },
    /// A machine was to be installed and is not; it boots its disk.
    InstallFailed {
        /// Which machine.
        machine: Uuid,
        /// What was to install it.
        bootenv: String,
        /// Attempts that it took.
        attempts: u32,
        /// In words for people.
        why: String,
    },
    /// A machine began to boot, and nothing more was seen of it for too long.
    BootStalled {
        /// Which machine.
        machine: Uuid,
        /// What it was to boot.
        bootenv: String,
        /// When something was seen of it last.
        since: Timestamp,
    },
    /// A file on the node's disk is not what it was; it is put aside and pulled again.
    ArtifactDamaged {
        /// Digest that it should have.
        sha256: Sha256,
        /// What is wrong with it.
        problem: String,
    },
}

impl Trouble {
    /// All that [`Trouble::label`] says.
    pub const LABELS: [&str; 6] = [
        "foreign_server",
        "address_in_use",
        "minority",
        "install_failed",
        "boot_stalled",
        "artifact_damaged",
    ];

    /// A word for it: the key of its event.
    pub fn label(&self) -> &'static str {
        match self {
            Self::ForeignServer { .. } => "foreign_server",
            Self::AddressInUse { .. } => "address_in_use",
            Self::Minority { .. } => "minority",
            Self::InstallFailed { .. } => "install_failed",
            Self::BootStalled { .. } => "boot_stalled",
            Self::ArtifactDamaged { .. } => "artifact_damaged",
        }
    }
}
