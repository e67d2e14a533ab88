//! Boot service: what firmware, iPXE, kernels and installers fetch, by HTTP and by TFTP.
//!
//! [`Tree`] is the one answer to "what is at this path for this client"; [`serve`] puts it on HTTP
//! and [`crate::tftp`] on TFTP. Nothing in the tree is a file that was made for a machine: scripts
//! and files are rendered when they are asked for.

mod content;
mod disk;
pub mod facts;
mod fence;
mod http;
mod metadata;
pub mod metrics;
pub mod names;
mod report;
pub mod script;
mod send_file;
pub mod stamp;
mod target;
pub mod trace;
mod tree;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use muster_raft::Cluster;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use content::Reader;
pub use facts::Recorder;
pub use target::{Target, without_token};
pub use tree::{Client, Content, Problem, Source, Tree};

/// How the boot service runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// TCP port of plain HTTP.
    pub boot_port: u16,
    /// Address that machines reach this node at.
    pub advertise: IpAddr,
    /// Directory of first-stage loaders.
    pub loader_dir: PathBuf,
    /// Where it is noted what machines fetch.
    pub recorder: Recorder,
}

/// Why the boot service could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port is taken or may not be used.
    #[error("cannot listen on TCP port {port} for boot requests")]
    Listen {
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
}

/// How long transfers that run may go on after the service was told to stop.
pub(crate) const DRAIN: Duration = Duration::from_secs(5);

/// Serves HTTP until `stop` is cancelled and what runs is done, or [`DRAIN`] is over.
///
/// # Errors
/// When the port cannot be listened on.
pub async fn serve(
    cluster: Cluster,
    options: Options,
    stop: CancellationToken,
) -> Result<(), Error> {
    let port = options.boot_port;
    let listener = listen(port).map_err(|source| Error::Listen { port, source })?;
    serve_on(listener, cluster, options, stop).await;
    Ok(())
}

/// As [`serve`], on a listener made before.
pub async fn serve_on(
    listener: TcpListener,
    cluster: Cluster,
    options: Options,
    stop: CancellationToken,
) {
    metrics::describe();
    tracing::info!(
        url = %format!("http://{}", SocketAddr::new(options.advertise, options.boot_port)),
        dir = %options.loader_dir.display(),
        "serving boot requests"
    );
    let tree = Tree::new(cluster, &options.loader_dir, options.recorder);
    http::serve(listener, tree, stop).await;
}

/// A socket for IPv6 and IPv4, or for IPv4 alone where the system has no IPv6.
fn listen(port: u16) -> io::Result<TcpListener> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let socket = match Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.bind(&any.into()).map(|()| socket)
        }
        Err(error) => Err(error),
    };
    let socket = match socket {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into())?;
            socket
        }
        bound => bound?,
    };
    // Connections inherit these: a machine that lost power must not hold one for hours.
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10)),
    )?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(60)))?;
    socket.set_nonblocking(true)?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}
