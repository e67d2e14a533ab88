//! Join tokens: a secret, and the hash of the authority that the joiner is to trust.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::Error;

const PREFIX: &str = "muster1-";

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What the cluster checks.
    pub secret: [u8; 32],
    /// SHA-256 of the authority's certificate, which the joiner checks.
    pub pin: [u8; 32],
}

impl Token {
    /// A token with a fresh secret.
    pub fn generate(pin: [u8; 32]) -> Self {
        Self {
            secret: rand::random(),
            pin,
        }
    }

    /// What the cluster stores of it.
    pub fn hash(secret: &[u8]) -> muster_storage::model::Sha256 {
        muster_storage::model::Sha256(Sha256::digest(secret).into())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [self.secret, self.pin].concat();
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(Error::BadToken)?;
        let bytes = URL_SAFE_NO_PAD
            .decode(encoded)
            .map_err(|_| Error::BadToken)?;
        let (secret, pin) = bytes.split_first_chunk::<32>().ok_or(Error::BadToken)?;
        Ok(Self {
            secret: *secret,
            pin: pin.try_into().map_err(|_| Error::BadToken)?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back_whole_and_garbage_does_not() {
        let token = Token::generate([7; 32]);
        let text = format!(" {token}\n");
        assert!(text.parse::<Token>().unwrap() == token);
        for bad in ["", "muster1-", "muster1-AAAA", "other", "muster1-ä"] {
            assert!(matches!(bad.parse::<Token>(), Err(Error::BadToken)));
        }
    }
}
