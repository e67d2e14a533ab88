//! rustls configurations.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::holder::{CertificateHolder, ToClients, ToPeers};
use super::parse_pem;
use crate::Error;

pub fn bad(error: impl std::fmt::Display) -> Error {
    Error::Corrupt(format!("certificate: {error}"))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

/// Certificates between peers are not judged by the time: a wrong clock must not take a site down,
/// and what revokes one is that the member's record has another key, or is gone. See ADR 10.
#[derive(Debug)]
struct NoClock;

/// A moment at which every certificate of ours is good, whenever it was made.
pub fn any_time() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(10 * 365 * 24 * 3600))
}

impl TimeProvider for NoClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(any_time())
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
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(NoClock))
        .with_protocol_versions(&[&TLS13])
        .map_err(bad)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(ToPeers(Arc::clone(holder))));
    // A resumed session would go on with the key that the peer had then.
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The client side of the peer link.
#[derive(Clone)]
pub struct Dialler {
    pub config: Arc<ClientConfig>,
    holder: Arc<CertificateHolder>,
}

impl Dialler {
    /// Cancelled when connections that are made from now on are to end.
    pub fn ended(&self) -> CancellationToken {
        self.holder.replaced()
    }
}

/// The client side of the peer link.
pub fn peer_client(holder: &Arc<CertificateHolder>, ca_pem: &str) -> Result<Dialler, Error> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(NoClock))
        .with_protocol_versions(&[&TLS13])
        .map_err(bad)?
        .with_root_certificates(roots(ca_pem)?)
        .with_client_cert_resolver(Arc::new(ToPeers(Arc::clone(holder))));
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Dialler {
        config: Arc::new(config),
        holder: Arc::clone(holder),
    })
}

/// The server side of the API.
pub fn api_server(holder: &Arc<CertificateHolder>) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(bad)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ToClients(Arc::clone(holder))));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The joiner's first call: trusts any node under the authority whose hash the token has.
pub fn join_client(pin: [u8; 32]) -> Result<ClientConfig, Error> {
    let verifier = PinVerifier {
        pin,
        provider: provider(),
    };
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(NoClock))
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
