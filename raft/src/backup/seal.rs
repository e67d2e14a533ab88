//! The key to the cluster's secrets, sealed by a passphrase.

use argon2::{Algorithm, Argon2, Params, Version};
use muster_storage::backup::{self, KEYS};
use muster_storage::model::Octets;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Error;
use crate::tls::Sealer;

/// Cost of a guess: RFC 9106 §4, the second recommended choice, with one lane.
const COST: Cost = Cost {
    memory_kib: 64 << 10,
    passes: 3,
    lanes: 1,
};

/// What a file may ask of whoever opens it.
const COST_MAX: Cost = Cost {
    memory_kib: 1 << 20,
    passes: 16,
    lanes: 16,
};

/// Fewer characters can be guessed, whatever a guess costs.
const PASSPHRASE_MIN: usize = 8;

/// Parameters of Argon2id (RFC 9106).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// The section `keys.json`: the keyring under ChaCha20-Poly1305, whose key Argon2id makes of the
/// passphrase and the salt.
#[derive(Debug, Serialize, Deserialize)]
struct Sealed {
    argon2id: Cost,
    salt: Octets,
    keyring: Octets,
}

fn purpose(cluster: Uuid) -> String {
    format!("muster backup of {cluster}")
}

fn sealer(passphrase: &str, salt: &[u8], cost: Cost) -> Result<Sealer, Error> {
    let bad = |error: argon2::Error| Error::Refused(format!("the passphrase: {error}"));
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, None).map_err(bad)?;
    let mut key = [0; 32];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), salt, &mut key)
        .map_err(bad)?;
    Ok(Sealer::new(key))
}

/// Seals a keyring for a backup of `cluster`.
pub fn seal(keyring: &Sealer, passphrase: &str, cluster: Uuid) -> Result<Vec<u8>, Error> {
    if passphrase.chars().count() < PASSPHRASE_MIN {
        return Err(Error::Refused(format!(
            "the passphrase has fewer than {PASSPHRASE_MIN} characters"
        )));
    }
    let salt: [u8; 16] = rand::random();
    let sealed = Sealed {
        argon2id: COST,
        keyring: sealer(passphrase, &salt, COST)?.seal(keyring.key(), &purpose(cluster))?,
        salt: Octets(salt.to_vec()),
    };
    serde_json::to_vec_pretty(&sealed).map_err(|error| Error::Corrupt(error.to_string()))
}

/// Opens what [`seal`] made.
pub fn open(bytes: &[u8], passphrase: &str, cluster: Uuid) -> Result<Sealer, Error> {
    let damaged = |problem: String| {
        Error::Backup(backup::Error::Damaged {
            section: KEYS.to_owned(),
            problem,
        })
    };
    let sealed: Sealed =
        serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    let cost = sealed.argon2id;
    if cost.memory_kib > COST_MAX.memory_kib
        || cost.passes > COST_MAX.passes
        || cost.lanes > COST_MAX.lanes
    {
        return Err(damaged(format!("it asks for too much work: {cost:?}")));
    }
    let key = sealer(passphrase, &sealed.salt.0, cost)?
        .open(&sealed.keyring, &purpose(cluster))
        .map_err(|_| Error::Refused("the passphrase is not the one of this backup".to_owned()))?;
    let key = key.try_into();
    key.map(Sealer::new)
        .map_err(|_| damaged("the key is not one".to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_passphrase_and_the_cluster_open_it_and_nothing_else_does() {
        let (keyring, cluster) = (Sealer::generate(), Uuid::from_u128(1));
        let sealed = seal(&keyring, "correct horse", cluster).unwrap();
        let opened = open(&sealed, "correct horse", cluster).unwrap();
        assert_eq!(opened.key(), keyring.key());
        assert!(open(&sealed, "battery staple", cluster).is_err());
        assert!(open(&sealed, "correct horse", Uuid::from_u128(2)).is_err());
        assert!(seal(&keyring, "short", cluster).is_err());
        let text = String::from_utf8(sealed).unwrap();
        let greedy = text.replace("65536", "4294967295");
        let why = open(greedy.as_bytes(), "correct horse", cluster)
            .err()
            .unwrap();
        assert!(why.to_string().contains("too much work"), "{why}");
    }
}
