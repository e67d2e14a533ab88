//! The keys of the cluster's secrets: random, replicated only sealed under the key that members
//! hold, and never used themselves: each purpose has a key of its own, made by HKDF (RFC 5869).

use std::fmt;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use muster_storage::model::{Octets, Sealed, SealedKey};
use muster_storage::state;
use ring::{hkdf, hmac};
use uuid::Uuid;

use crate::Error;
use crate::inner::Inner;
use crate::tls::Sealer;

/// Octets of the random nonce before a ciphertext: so many that keys need not be counted.
const NONCE: usize = 24;

/// For what a key is used. What is made for one purpose says nothing for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Sealing params. A new cluster that is made of this one opens them too.
    Params,
    /// Tokens of machines. A new cluster that is made of this one takes none of them: what was used
    /// up or revoked since the state was kept must not come alive again.
    MachineTokens,
}

/// The keyring of a cluster, opened. The last key seals and signs; all of them open and verify.
#[derive(Clone)]
pub struct Keyring {
    cluster: Uuid,
    keys: Vec<(u32, [u8; 32])>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys of {})", self.keys.len(), self.cluster)
    }
}

impl Keyring {
    /// One key, for a new cluster.
    pub(crate) fn generate(cluster: Uuid) -> Self {
        Self {
            cluster,
            keys: vec![(1, rand::random())],
        }
    }

    /// The one of the cluster that this node is in.
    pub(crate) fn of(inner: &Inner) -> Result<Self, Error> {
        let lacks = |what: &str| Error::Refused(format!("this node has no {what}"));
        let sealer = inner.sealer.as_ref().ok_or_else(|| lacks("keyring"))?;
        let cluster = inner.memory.read(|state| state.cluster().cloned());
        Self::open(&cluster.ok_or_else(|| lacks("cluster yet"))?, sealer)
    }

    /// Opens the one that is replicated.
    pub(crate) fn open(cluster: &state::Cluster, sealer: &Sealer) -> Result<Self, Error> {
        let open = |sealed: &SealedKey| {
            let key = sealer.open(&sealed.key, &place(sealed.id, cluster.id))?;
            let key = key
                .try_into()
                .map_err(|_| Error::Corrupt(format!("key {} of the keyring", sealed.id)))?;
            Ok::<_, Error>((sealed.id, key))
        };
        Ok(Self {
            cluster: cluster.id,
            keys: cluster.keyring.iter().map(open).collect::<Result<_, _>>()?,
        })
    }

    /// The same keys, as those of another cluster.
    pub(crate) fn of_cluster(self, cluster: Uuid) -> Self {
        Self { cluster, ..self }
    }

    /// All keys, sealed for replication.
    pub(crate) fn sealed(&self, sealer: &Sealer) -> Result<Vec<SealedKey>, Error> {
        let seal = |(id, key): &(u32, [u8; 32])| {
            Ok(SealedKey {
                id: *id,
                key: sealer.seal(key, &place(*id, self.cluster))?,
            })
        };
        self.keys.iter().map(seal).collect()
    }

    /// A new key for it, sealed for replication.
    pub(crate) fn next_key(&self, sealer: &Sealer) -> Result<SealedKey, Error> {
        let newest = self.keys.last().map_or(0, |(id, _)| *id);
        let next = Self {
            cluster: self.cluster,
            keys: vec![(newest.saturating_add(1), rand::random())],
        };
        let key = next.sealed(sealer)?.pop();
        key.ok_or_else(|| Error::Corrupt("a key is not there".into()))
    }

    /// Number of the key that seals.
    ///
    /// # Errors
    /// When the cluster has no keys.
    pub fn newest_key(&self) -> Result<u32, Error> {
        Ok(self.newest()?.0)
    }

    /// Seals a secret for the one place where it stands, which has to be named again to open it.
    ///
    /// # Errors
    /// When the cluster has no keys.
    pub fn seal(&self, purpose: Purpose, secret: &[u8], place: &str) -> Result<Sealed, Error> {
        let (id, key) = self.newest()?;
        let nonce: [u8; NONCE] = rand::random();
        let payload = Payload {
            msg: secret,
            aad: place.as_bytes(),
        };
        let sealed = XChaCha20Poly1305::new(&self.derive(purpose, key)?.into())
            .encrypt(XNonce::from_slice(&nonce), payload)
            .map_err(|_| Error::Corrupt(format!("{place} cannot be sealed")))?;
        Ok(Sealed {
            key: id,
            octets: Octets([&nonce[..], &sealed].concat()),
        })
    }

    /// Opens what [`Keyring::seal`] made for the same purpose and place.
    ///
    /// # Errors
    /// When it was made for another place, is damaged, or its key is gone.
    pub fn open_sealed(
        &self,
        purpose: Purpose,
        sealed: &Sealed,
        place: &str,
    ) -> Result<Vec<u8>, Error> {
        let bad = || Error::Corrupt(format!("{place} does not open; write it anew"));
        let known = self.keys.iter().find(|(id, _)| *id == sealed.key);
        let (_, key) = known.ok_or_else(bad)?;
        let (nonce, msg) = sealed.octets.0.split_at_checked(NONCE).ok_or_else(bad)?;
        let payload = Payload {
            msg,
            aad: place.as_bytes(),
        };
        XChaCha20Poly1305::new(&self.derive(purpose, key)?.into())
            .decrypt(XNonce::from_slice(nonce), payload)
            .map_err(|_| bad())
    }

    /// A proof that a member of this cluster said `message`: HMAC-SHA-256 (RFC 2104) under the
    /// newest key.
    ///
    /// # Errors
    /// When the cluster has no keys.
    pub fn sign(&self, purpose: Purpose, message: &[u8]) -> Result<[u8; 32], Error> {
        let (_, key) = self.newest()?;
        let tag = hmac::sign(&self.hmac(purpose, key)?, message);
        tag.as_ref()
            .try_into()
            .map_err(|_| Error::Corrupt("a proof of odd length".into()))
    }

    /// Whether [`Keyring::sign`] made this proof, under whichever key. Takes as long for a wrong one.
    pub fn verify(&self, purpose: Purpose, message: &[u8], proof: &[u8]) -> bool {
        self.keys.iter().any(|(_, key)| {
            self.hmac(purpose, key)
                .is_ok_and(|key| hmac::verify(&key, message, proof).is_ok())
        })
    }

    fn newest(&self) -> Result<(u32, &[u8; 32]), Error> {
        let newest = self.keys.last().map(|(id, key)| (*id, key));
        newest.ok_or_else(|| Error::Refused("this cluster was founded without a keyring".into()))
    }

    fn hmac(&self, purpose: Purpose, key: &[u8; 32]) -> Result<hmac::Key, Error> {
        let key = self.derive(purpose, key)?;
        Ok(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }

    fn derive(&self, purpose: Purpose, key: &[u8; 32]) -> Result<[u8; 32], Error> {
        let info: [&[u8]; 2] = match purpose {
            Purpose::Params => [b"muster params", b""],
            Purpose::MachineTokens => [b"muster machine tokens of ", self.cluster.as_bytes()],
        };
        let mut derived = [0; 32];
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"muster")
            .extract(key)
            .expand(&info, hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut derived))
            .map_err(|_| Error::Corrupt("no key can be derived".into()))?;
        Ok(derived)
    }
}

/// Where a key of the keyring stands.
fn place(id: u32, cluster: Uuid) -> String {
    format!("muster key {id} of {cluster}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn keyring() -> Keyring {
        Keyring::generate(Uuid::from_u128(1))
    }

    #[test]
    fn a_secret_opens_where_it_stands_and_nowhere_else() {
        let ring = keyring();
        let sealed = ring
            .seal(Purpose::Params, b"hunter2", "machine m1 param password")
            .unwrap();
        let open = |ring: &Keyring, purpose, sealed: &Sealed, place: &str| {
            ring.open_sealed(purpose, sealed, place).ok()
        };
        let place = "machine m1 param password";
        assert_eq!(
            open(&ring, Purpose::Params, &sealed, place).as_deref(),
            Some(&b"hunter2"[..])
        );
        let elsewhere = "machine m2 param password";
        assert_eq!(open(&ring, Purpose::Params, &sealed, elsewhere), None);
        assert_eq!(open(&ring, Purpose::MachineTokens, &sealed, place), None);
        assert_eq!(open(&keyring(), Purpose::Params, &sealed, place), None);
        let newer = Sealed {
            key: 2,
            ..sealed.clone()
        };
        assert_eq!(open(&ring, Purpose::Params, &newer, place), None);
        for length in [0, NONCE - 1, NONCE, sealed.octets.0.len() - 1] {
            let octets = Octets(sealed.octets.0[..length].to_vec());
            let cut = Sealed { key: 1, octets };
            assert_eq!(open(&ring, Purpose::Params, &cut, place), None, "{length}");
        }
        let again = ring.seal(Purpose::Params, b"hunter2", place).unwrap();
        assert_ne!(again, sealed, "equal secrets do not look equal");
    }

    #[test]
    fn a_new_cluster_opens_params_and_takes_no_tokens() {
        let (old, sealer) = (keyring(), Sealer::generate());
        let sealed = old.seal(Purpose::Params, b"hunter2", "here").unwrap();
        let proof = old.sign(Purpose::MachineTokens, b"m1 attempt 1").unwrap();
        let verify = |ring: &Keyring, message: &[u8], proof: &[u8]| {
            ring.verify(Purpose::MachineTokens, message, proof)
        };
        assert!(verify(&old, b"m1 attempt 1", &proof));
        assert!(!verify(&old, b"m1 attempt 2", &proof));
        assert!(!verify(&old, b"m1 attempt 1", &proof[..31]));
        assert!(!old.verify(Purpose::Params, b"m1 attempt 1", &proof));

        let id = Uuid::from_u128(2);
        let replicated = state::Cluster {
            id,
            ca_pem: String::new(),
            ca_key_sealed: Octets::default(),
            keyring: old.clone().of_cluster(id).sealed(&sealer).unwrap(),
        };
        let new = Keyring::open(&replicated, &sealer).unwrap();
        let opened = new.open_sealed(Purpose::Params, &sealed, "here").unwrap();
        assert_eq!(opened, b"hunter2");
        assert!(!verify(&new, b"m1 attempt 1", &proof));
        assert!(Keyring::open(&replicated, &Sealer::generate()).is_err());
        let moved = state::Cluster {
            id: Uuid::from_u128(3),
            ..replicated
        };
        assert!(Keyring::open(&moved, &sealer).is_err());
    }

    #[test]
    fn older_keys_open_and_verify_and_the_newest_seals() {
        let mut ring = keyring();
        let sealed = ring.seal(Purpose::Params, b"hunter2", "here").unwrap();
        let proof = ring.sign(Purpose::MachineTokens, b"m1").unwrap();
        ring.keys.push((2, rand::random()));
        assert!(ring.open_sealed(Purpose::Params, &sealed, "here").is_ok());
        assert!(ring.verify(Purpose::MachineTokens, b"m1", &proof));
        assert_eq!(ring.seal(Purpose::Params, b"x", "here").unwrap().key, 2);
        assert_ne!(ring.sign(Purpose::MachineTokens, b"m1").unwrap(), proof);
        let none = Keyring {
            keys: Vec::new(),
            ..ring
        };
        assert!(none.seal(Purpose::Params, b"x", "here").is_err());
        assert!(!none.verify(Purpose::MachineTokens, b"m1", &proof));
    }
}
