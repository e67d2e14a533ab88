//! Router advertisements that say that this is no router (RFC 4861 §6.2.3), on links whose subnet
//! asks for them.
//!
//! iPXE solicits a router in each of its stages, and waits 13 to 16 s for one to answer before it goes
//! on with IPv4. An advertisement with a lifetime of 0 and without prefixes ends the wait: nobody takes
//! its sender for a router, and nobody gets an address or a route from it.

mod solicitation;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use muster_raft::Cluster;
use nix::sys::socket::{SockaddrIn6, recvfrom};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::dhcp::Interfaces;
use crate::dhcp::interfaces::Interface;
use solicitation::{ALL_ROUTERS, Pace, is_solicitation};

/// How often interfaces, and what their subnets say, are looked at.
const RESCAN: Duration = Duration::from_secs(2);

/// What every message of Neighbor Discovery is sent and received with: routers do not pass it on
/// (RFC 4861 §6.1.1).
const HOP_LIMIT: u32 = 255;

const ROUTER_SOLICITATION: u32 = 133;

/// Type 134, code 0, a checksum that the kernel fills in, no hop limit, no flags, lifetime 0, no
/// times (RFC 4861 §4.2).
const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Answers until `stop`. What cannot be had, such as IPv6 on an interface, is done without.
pub async fn serve(cluster: Cluster, interfaces: Interfaces, stop: CancellationToken) {
    let mut links: BTreeMap<String, (u32, AbortOnDropHandle<()>)> = BTreeMap::new();
    loop {
        let wanted = wanted(&cluster, &interfaces);
        links.retain(|name, (index, task)| {
            let stays = wanted.get(name).is_some_and(|it| it.index == *index);
            stays && !task.is_finished()
        });
        for (name, interface) in wanted {
            if links.contains_key(&name) {
                continue;
            }
            match Solicitations::open(&interface) {
                Ok(socket) => {
                    tracing::info!(interface = name, "answering router solicitations");
                    let task = AbortOnDropHandle::new(tokio::spawn(answer(socket, name.clone())));
                    links.insert(name, (interface.index, task));
                }
                Err(problem) => {
                    tracing::debug!(interface = name, error = %problem, "router solicitations are not heard");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RESCAN) => {}
        }
    }
}

/// The interfaces on whose link a subnet asks for it, by name.
fn wanted(cluster: &Cluster, interfaces: &Interfaces) -> BTreeMap<String, Interface> {
    let mut present = interfaces.present().unwrap_or_default();
    cluster.read(|state| {
        present.retain(|_, interface| {
            let mut subnets = state.subnets_of_link(&interface.addresses);
            subnets.any(|subnet| subnet.router_advertisement)
        });
    });
    present
}

async fn answer(socket: Solicitations, interface: String) {
    let mut pace = Pace::default();
    loop {
        let from = match socket.next().await {
            Ok(from) => from,
            Err(problem) => {
                tracing::debug!(interface, error = %problem, "router solicitations are heard no more");
                return;
            }
        };
        let Some(to) = pace.destination(from, Instant::now()) else {
            continue;
        };
        if let Err(problem) = socket.advertise(to) {
            tracing::debug!(interface, address = %to, error = %problem, "router advertisement not sent");
        }
    }
}

/// A socket on one interface that hears router solicitations, and nothing else.
struct Solicitations {
    socket: AsyncFd<Socket>,
    index: u32,
}

impl Solicitations {
    fn open(interface: &Interface) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.set_nonblocking(true)?;
        socket.attach_filter(&[
            // The type, and the hop limit, which is in the header before what the socket gets: at
            // 7 octets from the start of the network layer (SKF_NET_OFF).
            SockFilter::new(0x30, 0, 0, 0),
            SockFilter::new(0x15, 0, 3, ROUTER_SOLICITATION),
            SockFilter::new(0x30, 0, 0, 0xfff0_0007),
            SockFilter::new(0x15, 0, 1, HOP_LIMIT),
            SockFilter::new(0x06, 0, 0, u32::from(u16::MAX)),
            SockFilter::new(0x06, 0, 0, 0),
        ])?;
        socket.bind_device(Some(interface.name.as_bytes()))?;
        socket.set_unicast_hops_v6(HOP_LIMIT)?;
        socket.set_multicast_hops_v6(HOP_LIMIT)?;
        socket.set_multicast_if_v6(interface.index)?;
        socket.set_multicast_loop_v6(false)?;
        socket.join_multicast_v6(&ALL_ROUTERS, interface.index)?;
        // SAFETY: a socket is one open file, which stays open until it is dropped with this.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self {
            socket,
            index: interface.index,
        })
    }

    /// Who solicits next.
    async fn next(&self) -> io::Result<Ipv6Addr> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut buffer = [0; 1500];
            let read = |socket: &AsyncFd<Socket>| {
                let from = recvfrom::<SockaddrIn6>(socket.as_raw_fd(), &mut buffer);
                from.map_err(io::Error::from)
            };
            match ready.try_io(read) {
                Ok(Ok((length, from))) => {
                    let packet = buffer.get(..length).unwrap_or_default();
                    let from = from.map(|from| from.ip());
                    if let Some(from) = from.filter(|from| is_solicitation(packet, *from)) {
                        return Ok(from);
                    }
                }
                Ok(Err(problem)) if problem.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(problem)) => return Err(problem),
                Err(_would_block) => {}
            }
        }
    }

    fn advertise(&self, to: Ipv6Addr) -> io::Result<()> {
        let to = SocketAddrV6::new(to, 0, 0, self.index);
        self.socket.get_ref().send_to(&ADVERTISEMENT, &to.into())?;
        Ok(())
    }
}
