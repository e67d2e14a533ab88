//! Connections of the clients: TLS with a certificate at both ends, gRPC and HTTP over it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

/// Who a client is, and whom it trusts; all PEM.
pub struct Credentials {
    pub ca: String,
    /// Certificate and key.
    pub own: Option<(String, String)>,
}

/// Where a server is, and how to speak with it.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    /// What clients come from.
    pub from: Ipv4Addr,
    /// A name in the server's certificate.
    pub name: ServerName<'static>,
    pub tls: Arc<ClientConfig>,
}

impl Target {
    /// A server that speaks the protocol `alpn`.
    pub fn new(
        address: SocketAddr,
        name: &str,
        credentials: &Credentials,
        alpn: &[u8],
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots
            .add(certificate(&credentials.ca)?)
            .context("trusting an authority")?;
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let mut tls = match &credentials.own {
            Some((own, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("reading a key")?;
                builder
                    .with_client_auth_cert(vec![certificate(own)?], key)
                    .context("using a certificate")?
            }
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![alpn.to_vec()];
        Ok(Self {
            address,
            from: Ipv4Addr::LOCALHOST,
            name: ServerName::try_from(name.to_owned()).context("a server's name")?,
            tls: Arc::new(tls),
        })
    }

    /// A connection of its own.
    pub async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.from, 0).into())?;
        let tcp = socket.connect(self.address).await?;
        tcp.set_nodelay(true)?;
        TlsConnector::from(Arc::clone(&self.tls))
            .connect(self.name.clone(), tcp)
            .await
    }

    /// A connection that many gRPC clients share.
    pub async fn channel(&self) -> Result<Channel> {
        let target = self.clone();
        let connector = tower::service_fn(move |_: hyper::Uri| {
            let target = target.clone();
            async move { target.connect().await.map(TokioIo::new) }
        });
        Endpoint::from_shared(format!("https://{}", self.address))
            .context("an endpoint")?
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .connect_with_connector(connector)
            .await
            .with_context(|| format!("connecting to {}", self.address))
    }
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).context("reading a certificate")
}
