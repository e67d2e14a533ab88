//! rustls configurations.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use sha2::{Digest, Sha256};

use super::parse_pem;
use crate::Error;

fn bad(error: impl std::fmt::Display) -> Error {
    Error::Corrupt(format!("certificate: {error}"))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

/// The node's certificate, as all its connections present it.
#[derive(Debug)]
pub struct CertificateHolder(Arc<CertifiedKey>);

impl CertificateHolder {
    /// Holds a certificate with its key and the authority's certificate, which a joiner looks for
    /// in the chain.
    pub fn new(certificate_pem: &str, key_pem: &str, ca_pem: &str) -> Result<Arc<Self>, Error> {
        certify(certificate_pem, key_pem, ca_pem).map(|certified| Arc::new(Self(certified)))
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0)
    }
}

fn certify(certificate: &str, key: &str, ca: &str) -> Result<Arc<CertifiedKey>, Error> {
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(bad)?;
    let chain = vec![parse_pem(certificate)?, parse_pem(ca)?];
    CertifiedKey::from_der(chain, key, &provider())
        .map(Arc::new)
        .map_err(bad)
}

impl ResolvesServerCert for CertificateHolder {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for CertificateHolder {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn roots(ca_pem: &str) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(parse_pem(ca_pem)?).map_err(bad)?;
    Ok(Arc::new(roots))
}

/// The server side of the peer link: clients of this cluster, or joiners without a certificate.
pub fn peer_server(holder: &Arc<CertificateHolder>, ca_pem: &str) -> Result<ServerConfig, Error> {
    let clients = WebPkiClientVerifier::builder_with_provider(roots(ca_pem)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(bad)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(bad)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::clone(holder) as _);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The client side of the peer link.
pub fn peer_client(holder: &Arc<CertificateHolder>, ca_pem: &str) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(bad)?
        .with_root_certificates(roots(ca_pem)?)
        .with_client_cert_resolver(Arc::clone(holder) as _);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The server side of the API.
pub fn api_server(holder: &Arc<CertificateHolder>) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(bad)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(holder) as _);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The joiner's first call: trusts any node under the authority whose hash the token has.
pub fn join_client(pin: [u8; 32]) -> Result<ClientConfig, Error> {
    let verifier = PinVerifier {
        pin,
        provider: provider(),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(bad)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Takes the authority from the presented chain, if it is the pinned one, and verifies under it.
#[derive(Debug)]
struct PinVerifier {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| Sha256::digest(certificate)[..] == self.pin)
            .ok_or_else(|| {
                rustls::Error::General(
                    "the node that answered is not of the cluster that made the join token".into(),
                )
            })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        rustls::client::verify_server_name(&parsed, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
