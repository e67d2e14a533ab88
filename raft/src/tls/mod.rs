//! Transport security: mutual TLS 1.3 between peers, the API's server side, and the joiner's first
//! call, which trusts by the hash in its token.

mod authority;
mod config;
mod token;

pub use authority::{ANY_PEER, Authority, Names, NodeKey, Request, Sealer, cluster_in, peer_name};
pub use config::{CertificateHolder, api_server, join_client, peer_client, peer_server};
pub use token::Token;

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

/// The certificate that a peer presented, already checked against the authority.
#[derive(Clone, Debug)]
pub struct PeerCertificate(pub CertificateDer<'static>);

impl PeerCertificate {
    /// Whether it was made for this node of this cluster.
    pub fn is_for(&self, cluster: Uuid, node: u64) -> bool {
        let Ok(parsed) = ParsedCertificate::try_from(&self.0) else {
            return false;
        };
        ServerName::try_from(peer_name(cluster, node))
            .is_ok_and(|name| rustls::client::verify_server_name(&parsed, &name).is_ok())
    }

    /// Hash of its public key, as the member record has it.
    pub fn key_hash(&self) -> Option<[u8; 32]> {
        let parsed = ParsedCertificate::try_from(&self.0).ok()?;
        Some(Sha256::digest(parsed.subject_public_key_info()).into())
    }
}
