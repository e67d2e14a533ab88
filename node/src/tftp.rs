//! The boot tree by TFTP (RFC 1350, 2347 to 2349, 7440), for firmware that knows nothing better.
//!
//! Servers for each address of this node, because a client drops answers that come from another
//! address than the one it asked: one on each thread, among which the kernel deals the clients out.
//! Addresses that come and go, as floating ones do, are followed.

mod transfer;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use async_tftp::server::TftpServerBuilder;
use muster_raft::Cluster;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::boot::{self, Tree};
use transfer::{Active, Handler};
use worker::Worker;

/// How the TFTP service runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// UDP port.
    pub tftp_port: u16,
    /// TCP port of the boot service that scripts name.
    pub boot_port: u16,
    /// Address that machines reach this node at.
    pub advertise: IpAddr,
    /// Directory of first-stage loaders.
    pub loader_dir: PathBuf,
    /// Where it is noted what machines fetch.
    pub recorder: boot::Recorder,
}

/// Why the TFTP service could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port is taken or may not be used.
    #[error("cannot listen on UDP port {port} of {address} for TFTP")]
    Listen {
        /// The advertised address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// There is no thread to run it on.
    #[error("cannot start the thread that serves TFTP")]
    Thread(#[source] io::Error),
}

/// How often the addresses of this node are read anew.
const ADDRESSES_EVERY: Duration = Duration::from_secs(2);

/// How long to wait for an acknowledgement before sending again, unless the client names a time.
const RETRY: Duration = Duration::from_secs(1);

/// How often a window is sent again. Clients ask anew after that; OVMF's size probe leaves a
/// transfer that nobody acknowledges, and the same client port may come back after a reset.
const RETRIES_MAX: u32 = 10;

/// Longest blocks that fit one Ethernet frame: firmware does not put fragments together well.
const BLOCK_MAX_V4: u16 = 1468;
const BLOCK_MAX_V6: u16 = 1448;

/// Most blocks in flight to one client.
const WINDOW_MAX: u16 = 64;

/// Octets of requests that may wait in the kernel: machines of a rack are switched on together.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Serves until `stop` is cancelled and the transfers that run are done, or time is up.
///
/// # Errors
/// When the port of the advertised address cannot be listened on, or there is no thread.
pub async fn serve(
    cluster: Cluster,
    options: Options,
    stop: CancellationToken,
) -> Result<(), Error> {
    boot::metrics::describe();
    let mut servers = Servers {
        port: options.tftp_port,
        active: Active::told_to(cluster.transfers().clone()),
        tree: Tree::new(cluster, &options.loader_dir, options.recorder),
        workers: Worker::start_all().map_err(Error::Thread)?,
        running: BTreeMap::new(),
        refused: BTreeSet::new(),
    };
    let address = options.advertise;
    let started = servers.start(address).await;
    started.map_err(|source| Error::Listen {
        address,
        port: options.tftp_port,
        source,
    })?;
    tracing::info!(%address, port = options.tftp_port, "serving TFTP");
    loop {
        servers.follow_addresses(address).await;
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(ADDRESSES_EVERY) => {}
        }
    }
    let end = Instant::now() + boot::DRAIN;
    while servers.active.count() > 0 && Instant::now() < end {
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The servers of each address, one for each worker.
type Running = BTreeMap<IpAddr, Vec<AbortOnDropHandle<()>>>;

/// The servers of all addresses. Their transfers end soon after they were dropped.
struct Servers {
    port: u16,
    tree: Tree,
    active: Active,
    workers: Vec<Worker>,
    running: Running,
    /// Addresses that could not be listened on: said once.
    refused: BTreeSet<IpAddr>,
}

impl Servers {
    /// Starts servers for addresses that came or whose server failed, and ends those of addresses
    /// that are gone. `kept` is served whether it is seen or not.
    async fn follow_addresses(&mut self, kept: IpAddr) {
        let mut present = match own_addresses() {
            Ok(present) => present,
            Err(error) => {
                tracing::warn!(%error, "cannot read this node's addresses");
                return;
            }
        };
        present.insert(kept);
        let (running, gone) =
            mem::take(&mut self.running)
                .into_iter()
                .partition(|(address, servers)| {
                    present.contains(address) && !servers.iter().any(AbortOnDropHandle::is_finished)
                });
        self.running = running;
        end(gone).await;
        self.refused.retain(|address| present.contains(address));
        for address in present {
            if self.running.contains_key(&address) {
                continue;
            }
            match self.start(address).await {
                Ok(()) => {
                    self.refused.remove(&address);
                }
                Err(error) if self.refused.insert(address) => {
                    tracing::warn!(%address, %error, "cannot serve TFTP on this address");
                }
                Err(_) => {}
            }
        }
    }

    async fn start(&mut self, address: IpAddr) -> io::Result<()> {
        let block_max = if address.is_ipv4() {
            BLOCK_MAX_V4
        } else {
            BLOCK_MAX_V6
        };
        let sockets = listen(SocketAddr::new(address, self.port), self.workers.len())?;
        let mut servers = Vec::new();
        for (worker, socket) in self.workers.iter().zip(sockets) {
            let handler = Handler::new(self.tree.clone(), self.active.clone());
            let builder = TftpServerBuilder::with_handler(handler)
                .timeout(RETRY)
                .max_send_retries(RETRIES_MAX)
                .block_size_limit(block_max)
                .window_size_limit(WINDOW_MAX);
            let builder = worker.within(|| builder.std_socket(socket));
            let server = builder.map_err(io::Error::other)?.build().await;
            let server = server.map_err(io::Error::other)?;
            servers.push(worker.spawn(async move {
                if let Err(error) = server.serve().await {
                    tracing::warn!(%address, %error, "TFTP failed on this address and is started anew");
                }
            }));
        }
        self.running.insert(address, servers);
        Ok(())
    }
}

/// Ends servers, and waits until they have given their sockets back.
async fn end(servers: Running) {
    for server in servers.into_values().flatten() {
        server.abort();
        // That it was ended is all that there is to say.
        let _ = server.await;
    }
}

/// Sockets that share an address: what comes from one port of a client comes to the same one.
///
/// # Errors
/// When another program has the port.
fn listen(address: SocketAddr, count: usize) -> io::Result<Vec<std::net::UdpSocket>> {
    let mut sockets = Vec::new();
    for _ in 0..count {
        let socket = socket_for(address)?;
        // Who shares has to find others that do: the first is alone, or fails.
        socket.set_reuse_port(!sockets.is_empty())?;
        socket.bind(&address.into())?;
        socket.set_reuse_port(true)?;
        sockets.push(socket.into());
    }
    Ok(sockets)
}

fn socket_for(address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    Ok(socket)
}

/// All addresses of this node that can be listened on without naming an interface.
fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = address.as_sockaddr_in6().map(|v6| v6.ip());
        v4.or(v6.filter(|ip| !ip.is_unicast_link_local()).map(IpAddr::V6))
    });
    Ok(addresses.collect())
}
