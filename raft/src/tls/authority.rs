//! The cluster's own certificate authority.
//!
//! Every member can open the sealed CA key, so a node renews its own certificate by itself. How long
//! a certificate is good concerns clients of the API only; see ADR 10.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use muster_storage::Timestamp;
use muster_storage::model::{Octets, Sha256};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateSigningRequestDer;
use sha2::{Digest, Sha256 as Hasher};
use uuid::Uuid;

use crate::Error;
use crate::store::Memory;

/// Seals secrets that are replicated, under a key that only members hold.
#[derive(Clone)]
pub struct Sealer {
    key: [u8; 32],
}

impl Sealer {
    /// A sealer with a given key.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// A sealer with a fresh key.
    pub fn generate() -> Self {
        Self {
            key: rand::random(),
        }
    }

    /// The key itself.
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// Seals `secret`; `purpose` must be named again to open it.
    pub fn seal(&self, secret: &[u8], purpose: &str) -> Result<Octets, Error> {
        let nonce: [u8; 12] = rand::random();
        let payload = Payload {
            msg: secret,
            aad: purpose.as_bytes(),
        };
        let sealed = ChaCha20Poly1305::new(&self.key.into())
            .encrypt(Nonce::from_slice(&nonce), payload)
            .map_err(|_| Error::Corrupt("a secret cannot be sealed".into()))?;
        Ok(Octets([&nonce[..], &sealed].concat()))
    }

    /// Opens what [`Sealer::seal`] made.
    pub fn open(&self, sealed: &Octets, purpose: &str) -> Result<Vec<u8>, Error> {
        let bad = || {
            Error::Corrupt(
                "a sealed secret does not open under this node's keyring; restore the keyring \
                 file from a peer"
                    .into(),
            )
        };
        let (nonce, msg) = sealed.0.split_at_checked(12).ok_or_else(bad)?;
        let payload = Payload {
            msg,
            aad: purpose.as_bytes(),
        };
        ChaCha20Poly1305::new(&self.key.into())
            .decrypt(Nonce::from_slice(nonce), payload)
            .map_err(|_| bad())
    }
}

/// What a node's certificate says.
#[derive(Clone, Debug)]
pub struct Names<'a> {
    /// Its cluster.
    pub cluster: Uuid,
    /// Its number.
    pub node: u64,
    /// Its name.
    pub name: &'a str,
    /// What peers and machines reach.
    pub address: IpAddr,
}

/// The name by which peers check that they reached this very node.
pub fn peer_name(cluster: Uuid, node: u64) -> String {
    format!("n{node}.{cluster}.muster.internal")
}

/// The cluster in a name that [`peer_name`] made, wherever it stands in `text`.
pub fn cluster_in(text: &str) -> Option<Uuid> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '-'));
    let mut names = words.filter_map(|word| word.strip_suffix(".muster.internal"));
    names.find_map(|name| name.split_once('.')?.1.parse().ok())
}

/// A name in every node's certificate, for a joiner that knows no more.
pub const ANY_PEER: &str = "peer.muster.internal";

/// For how long a node's certificate is good, in milliseconds: what clients bear at most.
pub const LIFE: u64 = 397 * 24 * 3600 * 1000;

/// 2026-01-01: a clock that says less is wrong.
const BEGINNING: Timestamp = Timestamp(1_767_225_600_000);

/// 2120-01-01, the end of the authority and of whatever is not to end before it.
pub const END: Timestamp = Timestamp(4_733_510_400_000);

/// A certificate of a node.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// PEM.
    pub pem: String,
    /// When it ends; absent when it was not made by this process.
    pub until: Option<Timestamp>,
}

pub fn bad(error: rcgen::Error) -> Error {
    Error::Corrupt(format!("certificate: {error}"))
}

fn key_hash(key: &impl PublicKeyData) -> Sha256 {
    Sha256(Hasher::digest(key.subject_public_key_info()).into())
}

/// The certificate authority, able to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// Makes a new one.
    pub fn generate(cluster: Uuid) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(bad)?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Muster cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_end(&mut params, END);
        let certificate = params.self_signed(&key).map_err(bad)?;
        Ok(Self {
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Opens the one whose sealed key is replicated.
    pub fn open(pem: &str, sealed: &Octets, sealer: &Sealer, cluster: Uuid) -> Result<Self, Error> {
        let key = String::from_utf8(sealer.open(sealed, &purpose(cluster))?)
            .map_err(|_| Error::Corrupt("the CA key is not text".into()))?;
        let key = KeyPair::from_pem(&key).map_err(bad)?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_pem(pem, key).map_err(bad)?,
            pem: pem.to_owned(),
        })
    }

    /// The one of the cluster that this node is in; absent before the node has the state.
    pub fn of(memory: &Memory, sealer: &Sealer) -> Result<Option<Self>, Error> {
        let cluster = memory.read(|state| state.cluster().cloned());
        cluster
            .map(|cluster| Self::open(&cluster.ca_pem, &cluster.ca_key_sealed, sealer, cluster.id))
            .transpose()
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its private key, sealed for replication.
    pub fn sealed_key(&self, sealer: &Sealer, cluster: Uuid) -> Result<Octets, Error> {
        sealer.seal(
            self.issuer.key().serialize_pem().as_bytes(),
            &purpose(cluster),
        )
    }

    /// A certificate for a key that is at hand, good from now on.
    pub fn sign(
        &self,
        names: &Names<'_>,
        key: &KeyPair,
        now: Timestamp,
    ) -> Result<Certificate, Error> {
        self.certify(names, key, end(now))
    }

    /// A certificate for the key of a request; what else the request says is ignored.
    pub fn sign_request(
        &self,
        names: &Names<'_>,
        request: &Request,
        now: Timestamp,
    ) -> Result<Certificate, Error> {
        self.certify(names, &request.0.public_key, end(now))
    }

    /// A certificate that ends at a given time.
    pub fn certify(
        &self,
        names: &Names<'_>,
        key: &impl PublicKeyData,
        until: Timestamp,
    ) -> Result<Certificate, Error> {
        let certificate = node_params(names, until)?.signed_by(key, &self.issuer);
        Ok(Certificate {
            pem: certificate.map_err(bad)?.pem(),
            until: Some(until),
        })
    }
}

/// When a certificate ends that is made now.
fn end(now: Timestamp) -> Timestamp {
    Timestamp(now.max(BEGINNING).0.saturating_add(LIFE)).min(END)
}

fn purpose(cluster: Uuid) -> String {
    format!("muster CA key of {cluster}")
}

fn node_params(names: &Names<'_>, until: Timestamp) -> Result<CertificateParams, Error> {
    let dns = [
        peer_name(names.cluster, names.node),
        ANY_PEER.to_owned(),
        names.name.to_owned(),
        "localhost".to_owned(),
    ];
    let mut params = CertificateParams::new(dns.to_vec()).map_err(bad)?;
    let mut addresses = vec![
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
        names.address,
    ];
    addresses.dedup();
    params
        .subject_alt_names
        .extend(addresses.into_iter().map(SanType::IpAddress));
    params
        .distinguished_name
        .push(DnType::CommonName, names.name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    set_end(&mut params, until);
    Ok(params)
}

/// The lifetime of a certificate. The clocks of machines and clients may be years behind, so it begins
/// long ago.
pub fn set_end(params: &mut CertificateParams, until: Timestamp) {
    params.not_before = rcgen::date_time_ymd(1975, 1, 1);
    let until = Duration::from_secs(until.min(END).0 / 1000);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + until;
}

/// A joiner's request for a certificate.
pub struct Request(CertificateSigningRequestParams);

impl Request {
    /// Reads and checks one that arrived.
    pub fn parse(der: &[u8]) -> Result<Self, Error> {
        CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
            .map(Self)
            .map_err(|error| Error::NotAdmitted(format!("certificate request: {error}")))
    }

    /// Makes one for `key`.
    pub fn make(key: &KeyPair) -> Result<Vec<u8>, Error> {
        let request = CertificateParams::default()
            .serialize_request(key)
            .map_err(bad)?;
        Ok(request.der().to_vec())
    }

    /// Hash of the key that it is for.
    pub fn key_hash(&self) -> Sha256 {
        key_hash(&self.0.public_key)
    }
}

/// The key pair of a node.
pub struct NodeKey(pub KeyPair);

impl NodeKey {
    /// Makes a new one.
    pub fn generate() -> Result<Self, Error> {
        KeyPair::generate().map(Self).map_err(bad)
    }

    /// Reads a stored one.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        KeyPair::from_pem(pem).map(Self).map_err(bad)
    }

    /// For storing.
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Hash of the public key, as the member record has it.
    pub fn hash(&self) -> Sha256 {
        key_hash(&self.0)
    }
}
