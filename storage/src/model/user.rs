//! Who may use the API.

use serde::{Deserialize, Serialize};

use super::{Sha256, Timestamp};

/// A person or program with a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Unique name.
    pub name: String,
    /// Argon2id hash in PHC string format.
    pub password_hash: String,
}

/// A bearer token of a user. The secret itself is never stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// SHA-256 of the token; the key.
    pub hash: Sha256,
    /// Whose it is.
    pub user: String,
    /// End of validity.
    pub expires_at: Timestamp,
}
