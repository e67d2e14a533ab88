//! Secrets that are replicated, as they are kept: sealed.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Octets;

/// A key of the cluster's keyring, sealed under the key that only members hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedKey {
    /// Its number: one more than that of the key before it.
    pub id: u32,
    /// The key.
    pub key: Octets,
}

/// A secret, sealed under a key of the keyring for the one place where it stands.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    /// Number of the key.
    pub key: u32,
    /// Nonce and ciphertext.
    pub octets: Octets,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed(by key {})", self.key)
    }
}
