//! How entries and rows are written down, and the dated table of schemas.
//!
//! Every entry and row begins with the number of the smallest schema that can express it (two octets,
//! big endian), followed by MessagePack with named fields. A struct that changes in another way than by a field that may be
//! absent keeps its older shape here in a module `v1`, `v2` … with a conversion upward;
//! `tests/golden` holds frozen samples.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::command::Entry;

mod needs;

pub use needs::Needs;

/// The newest schema that this binary supports.
pub const CURRENT: u16 = 2;

/// The oldest schema that this binary supports: as far back as clusters can be upgraded at once.
pub const OLDEST: u16 = 1;

/// Schemas by number: what changed, and when. Those that a released version writes are frozen: their
/// samples in `tests/golden` do not change any more.
pub const HISTORY: &[(u16, &str, &str)] = &[
    (1, "2026-11-22", "the first schema"),
    (
        2,
        "2026-11-30",
        "labels of machines; a boot is watched from its firmware's first offer on, and what is \
         told late ends the watch of no newer one; what a client gives back is refused when it \
         comes late",
    ),
];

/// Bytes that cannot be understood. The node that meets them stops: skipping would diverge.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Corrupt {
    /// Too short to hold a schema number.
    #[error("{what} of {length} octets is too short to be one")]
    Short {
        /// What was being read.
        what: &'static str,
        /// How long it is.
        length: usize,
    },
    /// Written by a newer binary.
    #[error(
        "{what} has schema {found}, but this binary knows schemas up to {CURRENT}; \
         start a newer muster on this data"
    )]
    Newer {
        /// What was being read.
        what: &'static str,
        /// Its schema.
        found: u16,
    },
    /// Damaged, or of an unknown shape.
    #[error("{what} cannot be decoded: {problem}")]
    Undecodable {
        /// What was being read.
        what: &'static str,
        /// What the decoder said.
        problem: String,
    },
}

/// The stored form of a log entry.
///
/// # Errors
/// Only when a value in it cannot be expressed, which no checked command holds.
pub fn encode_entry(entry: &Entry) -> Result<Vec<u8>, Corrupt> {
    encode("log entry", entry)
}

/// Reads what [`encode_entry`] wrote.
///
/// # Errors
/// When the bytes are damaged or of a newer schema.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, Corrupt> {
    decode("log entry", bytes)
}

/// Most rows and small entries fit.
const TYPICAL_OCTETS: usize = 512;

pub(crate) fn encode<T: Serialize + Needs>(
    what: &'static str,
    value: &T,
) -> Result<Vec<u8>, Corrupt> {
    let mut bytes = Vec::with_capacity(TYPICAL_OCTETS);
    bytes.extend_from_slice(&value.needs().to_be_bytes());
    rmp_serde::encode::write_named(&mut bytes, value).map_err(|problem| Corrupt::Undecodable {
        what,
        problem: problem.to_string(),
    })?;
    Ok(bytes)
}

pub(crate) fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Corrupt> {
    let (number, body) = bytes.split_first_chunk::<2>().ok_or(Corrupt::Short {
        what,
        length: bytes.len(),
    })?;
    match u16::from_be_bytes(*number) {
        OLDEST..=CURRENT => rmp_serde::from_slice(body).map_err(|problem| Corrupt::Undecodable {
            what,
            problem: problem.to_string(),
        }),
        found => Err(Corrupt::Newer { what, found }),
    }
}
