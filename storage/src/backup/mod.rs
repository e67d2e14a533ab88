//! The file of a backup: a tar archive of sections, each with its checksum.
//!
//! | section | what it holds |
//! |---|---|
//! | `backup.json` | [`Header`]: of which cluster, at which revision |
//! | `keys.json` | the key to the cluster's secrets, sealed by a passphrase |
//! | `rows/000000` … | the rows of the state, in key order, some MiB in each |
//! | `artifacts.json` | [`ArtifactNote`]s: which files the state names |
//! | `artifacts/SHA256` … | their bytes, where asked for |
//! | `SHA256SUMS` | the checksums of all sections before, in the form of `sha256sum` |
//! | `END` | the checksum of `SHA256SUMS`: of the whole, and the sign that it is whole |
//!
//! In a section of rows each row is the length of its key and of its value, four octets each, big
//! endian, then the key and the value as they are stored.

mod read;
mod write;

use std::io;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::{Revision, Sha256, Timestamp};
use crate::state::Digest;

pub use read::{read, rows};
pub use write::Writer;

/// The layout that this binary writes and reads.
pub const FORMAT: u32 = 1;

/// Name of the first section.
pub const HEADER: &str = "backup.json";
/// Name of the section with the sealed key.
pub const KEYS: &str = "keys.json";
/// Directory of the sections with rows.
pub const ROWS: &str = "rows/";
/// Name of the section that lists artifacts.
pub const ARTIFACTS: &str = "artifacts.json";
/// Directory of the sections with bytes of artifacts.
pub const BLOBS: &str = "artifacts/";
const SUMS: &str = "SHA256SUMS";
const END: &str = "END";

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Layout of the file.
    pub format: u32,
    /// Version of the binary that wrote it.
    pub version: String,
    /// Of which cluster.
    pub cluster_id: Uuid,
    /// State as of this revision.
    pub revision: Revision,
    /// Last log entry that is in it.
    pub applied: u64,
    /// Time of that entry.
    pub at: Timestamp,
    /// Sum over all rows.
    pub digest: Digest,
}

/// An artifact that the state names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactNote {
    /// Its key.
    pub path: String,
    /// Its bytes.
    pub sha256: Sha256,
    /// How many they are.
    pub size: u64,
    /// Whether the backup holds them.
    pub included: bool,
}

/// Why a backup cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// It is not what was written.
    #[error("the backup is damaged in section `{section}`: {problem}; use another backup")]
    Damaged {
        /// Where.
        section: String,
        /// What is wrong there.
        problem: String,
    },
    /// It ends before its end.
    #[error("the backup ends early, after section `{0}`; use another backup")]
    Truncated(String),
    /// It is something else.
    #[error("the file is no backup: {0}")]
    Other(String),
    /// Written by a newer binary.
    #[error("the backup has format {0}, this binary knows {FORMAT}; use a newer muster")]
    Newer(u32),
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
