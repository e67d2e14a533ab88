//! What the API presents before the node has a certificate from the cluster.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

use super::Error;

/// A certificate that nobody signed: enough for a health check that does not verify.
pub fn tls(node_name: &str, address: IpAddr) -> Result<Arc<ServerConfig>, Error> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::Service(format!("making a first certificate: {error}"))
    };
    let names = vec![
        node_name.to_owned(),
        address.to_string(),
        "localhost".to_owned(),
    ];
    let made = rcgen::generate_simple_self_signed(names).map_err(|error| failed(&error))?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(vec![made.cert.der().clone()], key)
            })
            .map_err(|error| failed(&error))?;
    Ok(Arc::new(config))
}
