//! Transport security: mutual TLS 1.3 between peers, the API's server side, and the joiner's first
//! call, which trusts by the hash in its token.

mod authority;
mod config;
mod holder;
mod succession;
mod token;

pub use authority::{
    ANY_PEER, Authority, Certificate, LIFE, Names, NodeKey, Request, Sealer, cluster_in, peer_name,
};
pub use config::{Dialler, api_server, join_client, peer_client, peer_server};
pub use holder::{CertificateHolder, Credential};
pub use succession::Succession;
pub use token::Token;

use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::Error;

/// Hash by which a join token pins the authority.
pub fn pin(ca_pem: &str) -> Result<[u8; 32], Error> {
    Ok(Sha256::digest(parse_pem(ca_pem)?).into())
}

fn parse_pem(pem: &str) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| Error::Corrupt(format!("certificate: {error}")))
}

/// What a peer presented, already checked against the authority. It is asked at every call of a
/// connection: clones share what was read from it.
#[derive(Clone, Debug)]
pub struct PeerCertificate(Arc<Presented>);

#[derive(Debug)]
struct Presented {
    certificate: CertificateDer<'static>,
    key_hash: [u8; 32],
    /// How its key follows from earlier ones, as it says.
    succession: Box<[CertificateDer<'static>]>,
    /// The node that it was found to be made for.
    made_for: OnceLock<(Uuid, u64)>,
}

impl PeerCertificate {
    /// Takes a chain: the peer's own, the authority's, and its succession.
    pub fn new(chain: &[CertificateDer<'static>]) -> Option<Self> {
        let (certificate, others) = chain.split_first()?;
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        let key_hash = Sha256::digest(parsed.subject_public_key_info()).into();
        Some(Self(Arc::new(Presented {
            certificate: certificate.clone(),
            key_hash,
            succession: others.get(1..).unwrap_or_default().into(),
            made_for: OnceLock::new(),
        })))
    }

    /// Whether it was made for this node of this cluster.
    pub fn is_for(&self, cluster: Uuid, node: u64) -> bool {
        if self.0.made_for.get() == Some(&(cluster, node)) {
            return true;
        }
        let Ok(parsed) = ParsedCertificate::try_from(&self.0.certificate) else {
            return false;
        };
        let named = ServerName::try_from(peer_name(cluster, node))
            .is_ok_and(|name| rustls::client::verify_server_name(&parsed, &name).is_ok());
        if named {
            // One that was made for two nodes is read anew for the second.
            let _ = self.0.made_for.set((cluster, node));
        }
        named
    }

    /// Whether it is of the key that the record of the node with this name has, or of one that took
    /// that key's place.
    pub fn has_key(&self, name: &str, expected: [u8; 32]) -> bool {
        self.0.key_hash == expected
            || ServerName::try_from(name).is_ok_and(|name| {
                succession::leads(&self.0.succession, &name, self.0.key_hash, expected)
            })
    }
}
