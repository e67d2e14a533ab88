//! The service on real sockets: two network namespaces, a veth pair between them, and Debian's
//! own client. Needs root.
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::process::Command as Process;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::world::{MAC, NODE, OTHER, Packet, Read, ip, subnet};
use dhcproto::v4::MessageType;
use muster_node::boot::Recorder;
use muster_node::dhcp::{self, Interfaces};
use muster_node::spans::Spans;
use muster_raft::Cluster;
use muster_storage::command::PutMode;
use muster_storage::model::{LeaseState, Object};
use muster_storage::{Actor, Command, Proposal, RequestId, State};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};
use tokio_util::sync::CancellationToken;

const SERVER_INTERFACE: &str = "srv";
const CLIENT_INTERFACE: &str = "cli";

fn run(command: &str) {
    let mut words = command.split_whitespace();
    let status = Process::new(words.next().unwrap())
        .args(words)
        .status()
        .unwrap();
    assert!(status.success(), "{command}");
}

fn connect(client_thread: nix::unistd::Pid) {
    run(&format!(
        "ip link add {SERVER_INTERFACE} type veth peer name {CLIENT_INTERFACE}"
    ));
    run(&format!("ip addr add {NODE}/24 dev {SERVER_INTERFACE}"));
    run(&format!("ip link set {SERVER_INTERFACE} up"));
    run(&format!(
        "ip link set {CLIENT_INTERFACE} netns {client_thread}"
    ));
}

async fn propose(cluster: &Cluster, command: Command) {
    let outcome = cluster
        .propose(Proposal {
            request: RequestId(uuid::Uuid::new_v4()),
            actor: Actor("test".to_owned()),
            if_match: None,
            remember: None,
            command,
        })
        .await
        .unwrap();
    assert!(outcome.result.is_ok(), "{outcome:?}");
}

/// Waits until the state is so.
async fn wait(cluster: &Cluster, what: &str, so: impl Fn(&State) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !cluster.read(&so) {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Serves in one namespace while `client` runs in another, with a link between them, until the
/// client has ended and the state is as `until` says. What `client` is given makes the link anew.
fn with_service(
    client: impl FnOnce(&dyn Fn()),
    until: impl Fn(&State) -> bool + Send + Sync + 'static,
) {
    unshare(CloneFlags::CLONE_NEWNET).expect("root, to make a network namespace");
    run("ip link set lo up");
    let client_thread = nix::unistd::gettid();
    let (ready, is_ready) = mpsc::channel();
    let (rewire, rewired) = mpsc::channel::<()>();
    let (end, ended) = mpsc::channel::<()>();
    let server = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        connect(client_thread);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let cluster = solo().await;
            propose(
                &cluster,
                Command::Put {
                    object: Object::Subnet(Box::new(subnet())),
                    mode: PutMode::Apply,
                },
            )
            .await;
            let stop = CancellationToken::new();
            let options = dhcp::Options {
                interfaces: Interfaces::All,
                dhcp_port: 67,
                proxy_port: 4011,
                boot_port: 8091,
                tftp_port: 69,
                advertise: IpAddr::V4(NODE),
                recorder: Recorder::start(cluster.clone(), Spans::default(), stop.clone()),
            };
            let serving = tokio::spawn(dhcp::serve(cluster.clone(), options, stop.clone()));
            // An address is registered after its interface is served.
            let registered = |state: &State| state.members().any(|it| it.identifiers == [NODE]);
            wait(&cluster, "the interface", registered).await;
            ready.send(()).unwrap();
            while ended.try_recv().is_err() {
                if rewired.try_recv().is_ok() {
                    run(&format!("ip link del {SERVER_INTERFACE}"));
                    wait(&cluster, "its end", |state| !registered(state)).await;
                    connect(client_thread);
                    wait(&cluster, "its return", registered).await;
                    ready.send(()).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            wait(&cluster, "what the client did", until).await;
            stop.cancel();
            serving.await.unwrap().unwrap();
        });
    });
    is_ready.recv().unwrap();
    run(&format!("ip link set {CLIENT_INTERFACE} up"));
    client(&|| {
        rewire.send(()).unwrap();
        is_ready.recv().unwrap();
        run(&format!("ip link set {CLIENT_INTERFACE} up"));
    });
    end.send(()).unwrap();
    server.join().unwrap();
}

async fn solo() -> Cluster {
    Cluster::solo().await
}

/// A client's socket that hears broadcasts without having an address.
fn client_socket(address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket
        .bind_device(Some(CLIENT_INTERFACE.as_bytes()))
        .unwrap();
    socket.set_broadcast(true).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket
        .bind(&SocketAddrV4::new(address, port).into())
        .unwrap();
    let socket = UdpSocket::from(socket);
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    socket
}

/// Asks as clients do: again, when there is no answer.
fn ask(socket: &UdpSocket, packet: &Packet, to: Ipv4Addr) -> (Read, SocketAddrV4) {
    let mut buffer = [0; 2048];
    for _ in 0..10 {
        socket
            .send_to(&packet.bytes(), SocketAddrV4::new(to, 67))
            .unwrap();
        if let Ok((length, std::net::SocketAddr::V4(from))) = socket.recv_from(&mut buffer) {
            return (Read::bytes(buffer[..length].to_vec()), from);
        }
    }
    panic!("no reply to {packet:?}");
}

fn kind(read: &Read) -> MessageType {
    MessageType::from(read.get(53).unwrap()[0])
}

/// dhclient goes into the background before it writes its process id.
fn when_written(path: &Path) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text,
            _ if Instant::now() > deadline => panic!("no {}", path.display()),
            _ => thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[test]
fn dhclient_gets_and_gives_back_a_lease() {
    let dir = tempfile::tempdir().unwrap();
    let (leases, pid) = (dir.path().join("leases"), dir.path().join("pid"));
    with_service(
        |_| {
            let dhclient = |flags: &[&str]| {
                let output = Process::new("dhclient")
                    .args(["-4", "-cf", "/dev/null", "-sf", "/bin/true"])
                    .arg("-lf")
                    .arg(&leases)
                    .arg("-pf")
                    .arg(&pid)
                    .args(flags)
                    .arg(CLIENT_INTERFACE)
                    .output()
                    .unwrap();
                assert!(
                    output.status.success(),
                    "{}",
                    String::from_utf8_lossy(&output.stderr)
                );
            };
            let start = Instant::now();
            dhclient(&["-1"]);
            println!("leased in {:?}", start.elapsed());
            let file = std::fs::read_to_string(&leases).unwrap();
            assert!(
                file.contains("option dhcp-server-identifier 10.77.0.1;"),
                "{file}"
            );
            assert!(
                file.contains("option domain-name \"lab.example\";"),
                "{file}"
            );
            // It knows its lease: INIT-REBOOT.
            let process = when_written(&pid);
            let process = nix::unistd::Pid::from_raw(process.trim().parse().unwrap());
            nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).unwrap();
            dhclient(&["-1"]);
            // The address is not configured by `/bin/true`, and RELEASE goes by unicast.
            let address = file
                .lines()
                .find_map(|line| line.trim().strip_prefix("fixed-address "))
                .unwrap()
                .trim_end_matches(';');
            run(&format!("ip addr add {address}/24 dev {CLIENT_INTERFACE}"));
            dhclient(&["-r"]);
        },
        |state| {
            let leases = state.leases_after(None);
            let states: Vec<LeaseState> = leases.map(|record| record.object.state).collect();
            states == [LeaseState::Released]
        },
    );
}

#[test]
fn broadcast_relay_and_renewal_reach_their_clients() {
    with_service(
        |_| {
            let socket = client_socket(Ipv4Addr::UNSPECIFIED, 68);
            let everyone = Ipv4Addr::BROADCAST;
            let discover = Packet::discover(MAC).broadcast_flag().pxe(7);
            let (offer, from) = ask(&socket, &discover, everyone);
            assert_eq!(kind(&offer), MessageType::Offer);
            assert_eq!(from, SocketAddrV4::new(NODE, 67));
            assert_eq!(offer.file(), "snponly.efi");
            assert_eq!(offer.address(20), NODE);
            let address = offer.address(16);
            let select = Packet::select(MAC, address).broadcast_flag();
            let (ack, _) = ask(&socket, &select, everyone);
            assert_eq!((kind(&ack), ack.address(16)), (MessageType::Ack, address));
            let astray = Packet::reboot(MAC, ip("192.0.2.7"));
            let (nak, _) = ask(&socket, &astray, everyone);
            assert_eq!(kind(&nak), MessageType::Nak);

            run(&format!("ip addr add {address}/24 dev {CLIENT_INTERFACE}"));
            let socket = client_socket(address, 68);
            let (ack, from) = ask(&socket, &Packet::renew(MAC, address), NODE);
            assert_eq!((kind(&ack), from.ip()), (MessageType::Ack, &NODE));

            let relay = ip("10.77.0.254");
            run(&format!("ip addr add {relay}/24 dev {CLIENT_INTERFACE}"));
            let socket = client_socket(relay, 67);
            let relayed = Packet::discover(OTHER)
                .giaddr(relay)
                .option(82, b"\x01\x02ab");
            let (offer, _) = ask(&socket, &relayed, NODE);
            assert_eq!(kind(&offer), MessageType::Offer);
            assert_eq!(offer.options.last().unwrap(), &(82, b"\x01\x02ab".to_vec()));

            // Garbage is dropped, and the next packet is answered.
            socket
                .send_to(&[1; 300], SocketAddrV4::new(NODE, 67))
                .unwrap();
            socket.send_to(&[], SocketAddrV4::new(NODE, 67)).unwrap();
            let (offer, _) = ask(&socket, &relayed, NODE);
            assert_eq!(kind(&offer), MessageType::Offer);
        },
        |_| true,
    );
}

#[test]
fn an_interface_that_comes_back_is_served_again() {
    with_service(
        |rewire| {
            let discover = Packet::discover(MAC).broadcast_flag();
            let socket = client_socket(Ipv4Addr::UNSPECIFIED, 68);
            let (first, _) = ask(&socket, &discover, Ipv4Addr::BROADCAST);
            rewire();
            let socket = client_socket(Ipv4Addr::UNSPECIFIED, 68);
            let (again, _) = ask(&socket, &discover, Ipv4Addr::BROADCAST);
            assert_eq!(first.address(16), again.address(16));
        },
        |_| true,
    );
}
