//! How a node's present key follows from those that it had before.
//!
//! Peers know a member by the key in its record. One that was away while a member took a new key
//! still expects the old one, and must not be locked out for that. So the old key signs a certificate
//! for the new one, and the node shows it with its own: whoever expects an earlier key follows the
//! line from the present one back to it. A node that was removed has the authority's key, but not
//! those of the members, and cannot draw such a line.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer};
use rustls::RootCertStore;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use sha2::{Digest, Sha256};

use super::authority::{END, NodeKey, bad, set_end};
use crate::Error;

/// Earlier keys that are shown. Whoever expects an older one has to join anew.
const KEPT: usize = 8;

/// One certificate for each key, the present one first; each is signed by the key of the next, the
/// last by its own.
#[derive(Clone, Default)]
pub struct Succession(Vec<CertificateDer<'static>>);

impl Succession {
    /// As it was stored, as far as it leads to the present key: one for a key that was not taken into
    /// use may stand before.
    pub fn parse(text: &str, present: [u8; 32]) -> Result<Self, Error> {
        let lines = text.lines().map(|line| STANDARD.decode(line));
        let stored: Result<Vec<_>, _> = lines.collect();
        let stored = stored.map_err(|error| Error::Corrupt(format!("succession: {error}")))?;
        let stored = stored.into_iter().map(CertificateDer::from);
        let known = stored.skip_while(|certificate| key_hash(certificate) != Some(present));
        Ok(Self(known.collect()))
    }

    /// For storing.
    pub fn text(&self) -> String {
        let lines = self
            .0
            .iter()
            .map(|certificate| STANDARD.encode(certificate));
        lines.map(|line| line + "\n").collect()
    }

    /// The one after a new key was taken; `name` is the node's among its peers.
    pub fn extend(&self, name: &str, old: &NodeKey, new: &NodeKey) -> Result<Self, Error> {
        let mut params = CertificateParams::new([name.to_owned()]).map_err(bad)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        set_end(&mut params, END);
        let old_key = Issuer::from_params(&params, &old.0);
        let link = params.signed_by(&new.0, &old_key).map_err(bad)?;
        let mut line = vec![link.der().clone()];
        if self.0.is_empty() {
            line.push(params.self_signed(&old.0).map_err(bad)?.der().clone());
        }
        line.extend(self.0.iter().cloned());
        line.truncate(KEPT + 1);
        Ok(Self(line))
    }

    /// The certificates to be shown.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }
}

fn key_hash(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(Sha256::digest(parsed.subject_public_key_info()).into())
}

/// Whether `line` leads from the `present` key of the node of that name to the `expected` one.
pub fn leads(
    line: &[CertificateDer<'_>],
    name: &ServerName<'_>,
    present: [u8; 32],
    expected: [u8; 32],
) -> bool {
    let mut key = present;
    for pair in line.windows(2).take(KEPT) {
        let [link, signer] = pair else {
            return false;
        };
        if key_hash(link) != Some(key) || !is_signed(link, signer, name) {
            return false;
        }
        match key_hash(signer) {
            Some(earlier) if earlier == expected => return true,
            Some(earlier) => key = earlier,
            None => return false,
        }
    }
    false
}

fn is_signed(
    link: &CertificateDer<'_>,
    signer: &CertificateDer<'_>,
    name: &ServerName<'_>,
) -> bool {
    let Ok(parsed) = ParsedCertificate::try_from(link) else {
        return false;
    };
    let mut signers = RootCertStore::empty();
    let algorithms = default_provider().signature_verification_algorithms.all;
    signers.add(signer.clone().into_owned()).is_ok()
        && verify_server_name(&parsed, name).is_ok()
        && verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &signers,
            &[],
            super::config::any_time(),
            algorithms,
        )
        .is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NAME: &str = "n7.cluster.muster.internal";

    fn keys<const N: usize>() -> [NodeKey; N] {
        [(); N].map(|()| NodeKey::generate().unwrap())
    }

    fn hash(key: &NodeKey) -> [u8; 32] {
        key.hash().0
    }

    fn line(keys: &[NodeKey]) -> Succession {
        let pairs = keys.windows(2);
        pairs.fold(Succession::default(), |line, pair| {
            line.extend(NAME, &pair[0], &pair[1]).unwrap()
        })
    }

    fn follows(line: &Succession, present: &NodeKey, expected: &NodeKey) -> bool {
        let name = ServerName::try_from(NAME).unwrap();
        leads(line.certificates(), &name, hash(present), hash(expected))
    }

    #[test]
    fn the_present_key_follows_from_each_that_was_had_before() {
        let keys: [_; 4] = keys();
        let text = line(&keys).text();
        let line = Succession::parse(&text, hash(&keys[3])).unwrap();
        assert_eq!(line.certificates().len(), 4);
        for earlier in &keys[..3] {
            assert!(follows(&line, &keys[3], earlier));
        }
        assert!(!follows(&line, &keys[2], &keys[3]));
        // The newest was not taken into use.
        let before = Succession::parse(&text, hash(&keys[2])).unwrap();
        assert!(follows(&before, &keys[2], &keys[0]));
        let none = Succession::parse(&text, [0; 32]).unwrap();
        assert!(none.certificates().is_empty());
    }

    #[test]
    fn nobody_else_draws_such_a_line() {
        let [first, second, thief] = keys();
        let good = line(&[first, second]);
        let [link, own] = good.certificates() else {
            unreachable!("a link and the first key's own");
        };
        let first = key_hash(own).unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let leads = |line: &[CertificateDer<'static>], name: &ServerName<'_>, key| {
            super::leads(line, name, key, first)
        };
        let second = key_hash(link).unwrap();
        assert!(leads(good.certificates(), &name, second));
        // Its own link stands before a key that did not sign it.
        let [stranger] = keys();
        let forged = line(&[stranger, thief]);
        let [forged, _] = forged.certificates() else {
            unreachable!("a link and the stranger's own");
        };
        let by_thief = key_hash(forged).unwrap();
        assert!(!leads(&[forged.clone(), own.clone()], &name, by_thief));
        // Another's line with a key of one's own.
        assert!(!leads(good.certificates(), &name, by_thief));
        let other = ServerName::try_from("n8.cluster.muster.internal").unwrap();
        assert!(!leads(good.certificates(), &other, second));
    }

    #[test]
    fn no_more_than_the_latest_are_shown() {
        let keys: [_; KEPT + 3] = keys();
        let line = line(&keys);
        let last = keys.last().unwrap();
        assert_eq!(line.certificates().len(), KEPT + 1);
        assert!(follows(&line, last, &keys[2]));
        assert!(!follows(&line, last, &keys[1]));
    }
}
