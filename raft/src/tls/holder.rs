//! The certificate that a node shows, which may be replaced while it runs.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use super::config::bad;
use super::{Certificate, NodeKey, Succession, parse_pem};
use crate::Error;

/// What a node proves with who it is.
pub struct Credential {
    pub key: NodeKey,
    pub certificate: Certificate,
    /// Of the authority.
    pub ca_pem: String,
    pub succession: Succession,
}

/// The node's certificate, as all its new connections show it.
#[derive(Debug)]
pub struct CertificateHolder(RwLock<Shown>);

#[derive(Clone, Debug)]
struct Shown {
    /// With the authority's certificate, which a joiner looks for in the chain, and the succession.
    to_peers: Arc<CertifiedKey>,
    to_clients: Arc<CertifiedKey>,
    /// Cancelled when another key takes the place of this one.
    replaced: CancellationToken,
}

impl CertificateHolder {
    /// Holds a first certificate.
    pub fn new(credential: &Credential) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self(RwLock::new(shown(credential)?))))
    }

    /// Shows another certificate for the same key.
    pub fn renew(&self, credential: &Credential) -> Result<(), Error> {
        let new = shown(credential)?;
        let mut shown = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *shown = Shown {
            replaced: shown.replaced.clone(),
            ..new
        };
        Ok(())
    }

    /// Shows a certificate for another key, and has the connections end that were made with the old
    /// one: it is not taken any more once the others know of the new one.
    pub fn replace(&self, credential: &Credential) -> Result<(), Error> {
        let new = shown(credential)?;
        let mut shown = self.0.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *shown, new).replaced.cancel();
        Ok(())
    }

    /// Cancelled when the present key is replaced.
    pub fn replaced(&self) -> CancellationToken {
        self.shown().replaced
    }

    fn shown(&self) -> Shown {
        let shown = self.0.read().unwrap_or_else(PoisonError::into_inner);
        shown.clone()
    }
}

fn shown(credential: &Credential) -> Result<Shown, Error> {
    let certificate = parse_pem(&credential.certificate.pem)?;
    let chain = vec![certificate, parse_pem(&credential.ca_pem)?];
    let mut longer = chain.clone();
    longer.extend(credential.succession.certificates().iter().cloned());
    let pem = credential.key.pem();
    let certified = |chain: Vec<CertificateDer<'static>>| {
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(bad)?;
        let certified = CertifiedKey::from_der(chain, key, &default_provider());
        certified.map(Arc::new).map_err(bad)
    };
    Ok(Shown {
        to_peers: certified(longer)?,
        to_clients: certified(chain)?,
        replaced: CancellationToken::new(),
    })
}

/// What peers are shown, whoever dialled.
#[derive(Debug)]
pub struct ToPeers(pub Arc<CertificateHolder>);

impl ResolvesServerCert for ToPeers {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.shown().to_peers)
    }
}

impl ResolvesClientCert for ToPeers {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.shown().to_peers)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What clients of the API are shown.
#[derive(Debug)]
pub struct ToClients(pub Arc<CertificateHolder>);

impl ResolvesServerCert for ToClients {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.shown().to_clients)
    }
}
