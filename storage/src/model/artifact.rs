//! Files that machines boot.

use serde::{Deserialize, Serialize};

use super::Sha256;

/// A file that all nodes hold; the bytes never enter the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Path below `/artifacts/`; the key.
    pub path: String,
    /// Digest of the bytes.
    pub sha256: Sha256,
    /// Length in bytes.
    pub size: u64,
}

/// What artifacts may take of the disks, and how each node looks after them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArtifactSettings {
    /// Bytes that all of them together may have; without it the disks are the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// Bytes that one may have.
    pub max_bytes: u64,
    /// How long bytes that no artifact names any more are kept, in seconds: scripts that were served
    /// before may still ask for them.
    pub grace_secs: u32,
    /// Between two verifications of what is on a disk, in seconds.
    pub verify_secs: u32,
}

impl ArtifactSettings {
    /// Whether nothing is set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for ArtifactSettings {
    fn default() -> Self {
        Self {
            quota_bytes: None,
            // An image of a disk, and a bound on what one mistake can fill.
            max_bytes: 64 << 30,
            grace_secs: 3600,
            verify_secs: 86_400,
        }
    }
}
