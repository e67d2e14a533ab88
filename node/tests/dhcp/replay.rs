//! What real firmware sent, captured on a wire, and what it is answered; and the same packets
//! damaged, which must never do more than be dropped.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::pcap;
use crate::world::*;
use dhcproto::v4::MessageType;
use muster_node::dhcp::decide::{Action, decide};
use muster_node::dhcp::offers::Notice;
use muster_node::dhcp::reply::Destination;
use muster_node::dhcp::request::{Arrival, Firmware, Request};
use muster_storage::Command;
use muster_storage::command::Bind;
use proptest::prelude::*;

/// The server of the captures; their clients name it, so it takes the place of a peer.
const CAPTURED_SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);

/// The address that they were given.
const CAPTURED_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 110);

/// What clients sent to DHCP servers.
fn requests(capture: &str) -> Vec<Vec<u8>> {
    pcap::datagrams(capture, 67)
}

fn arrival() -> Arrival {
    Arrival {
        link: [NODE].into(),
        source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
        destination: Ipv4Addr::BROADCAST,
        boot_server: false,
    }
}

fn world() -> World {
    let mut world = World::new();
    let mut peer = world.state.member_named("b").unwrap().clone();
    peer.identifiers.push(CAPTURED_SERVER);
    world.apply(Command::UpdateMember(Box::new(peer)));
    world
}

fn act(world: &World, request: &Request) -> Action {
    world.view(false, |view| decide(&world.state, request, view, world.now))
}

/// Each packet of a capture gets an OFFER, or is bound although it names a peer's identifier, and
/// the boot file is the one that this stage of the boot needs.
#[test]
fn captured_clients_are_answered() {
    let script = "http://10.77.0.1:8091/boot.ipxe?mac=";
    let (rom, http) = ("snponly.efi", "http://10.77.0.1:8091/snponly.efi");
    // What each capture's packets must be told to load, in order; none for an operating system.
    let rows: [(&str, &[Option<&str>]); 8] = [
        (
            "bios-ipxe.pcap",
            &[Some(script), Some(script), Some(script), None, None],
        ),
        (
            "bios-pxelinux.pcap",
            &[Some(script), Some(script), Some(script), None, None],
        ),
        (
            "bios-undionly.pcap",
            &[
                Some(script),
                Some(script),
                Some(script),
                Some(script),
                Some(script),
                Some(script),
                None,
                None,
            ],
        ),
        ("linux.pcap", &[None, None]),
        (
            "uefi-http4.pcap",
            &[
                Some(http),
                Some(http),
                Some(script),
                Some(script),
                Some(script),
                None,
                None,
            ],
        ),
        ("uefi-http6.pcap", &[Some(script); 4]),
        (
            "uefi-pxe4.pcap",
            &[
                Some(rom),
                Some(rom),
                Some(script),
                Some(script),
                Some(script),
                None,
                None,
            ],
        ),
        ("uefi-pxe6.pcap", &[Some(script); 4]),
    ];
    for (capture, files) in rows {
        let mut world = world();
        let packets = requests(capture);
        assert_eq!(packets.len(), files.len(), "{capture}");
        for (bytes, file) in packets.iter().zip(files) {
            let request = Request::parse(bytes, arrival()).expect(capture);
            let reply = match (request.kind, act(&world, &request)) {
                (MessageType::Discover, Action::Reply(reply)) => *reply,
                (MessageType::Request, Action::Propose(command)) => {
                    assert!(
                        matches!(&command, Command::Bind(bind)
                            if matches!(**bind, Bind { address, .. } if address == CAPTURED_ADDRESS)),
                        "{command:?}"
                    );
                    let outcome = world.apply(command);
                    assert_eq!(bound(&outcome).address, CAPTURED_ADDRESS);
                    let reply = world.view(true, |view| {
                        muster_node::dhcp::decide::conclude(
                            &world.state,
                            &request,
                            &outcome,
                            view,
                            world.now,
                        )
                    });
                    reply.unwrap().unwrap()
                }
                // Once bound, the next stage is confirmed without a write.
                (MessageType::Request, Action::Reply(reply)) => *reply,
                (kind, action) => panic!("{capture}: {kind:?} {action:?}"),
            };
            let read = Read::bytes(reply.encode(&request));
            assert_eq!(request.firmware.is_some(), file.is_some(), "{capture}");
            assert!(
                read.file().starts_with(file.unwrap_or_default())
                    && (file.is_some() || read.file().is_empty()),
                "{capture}: {} is not {file:?}",
                read.file()
            );
            if request.kind == MessageType::Request {
                assert_eq!(reply.server_id, CAPTURED_SERVER, "the one that it named");
            }
            if request.firmware == Some(Firmware::Http) {
                assert_eq!(read.get(60), Some(&b"HTTPClient"[..]));
            }
            assert_eq!(
                request.broadcast(),
                matches!(reply.destination(&request), Destination::Udp(_)),
                "{capture}"
            );
        }
    }
}

/// The four identities of one machine (ROM, iPXE, installer) keep one address through a boot.
#[test]
fn a_captured_boot_keeps_one_address() {
    for capture in ["uefi-pxe4.pcap", "uefi-http4.pcap", "bios-undionly.pcap"] {
        let mut world = world();
        let mut addresses = Vec::new();
        for bytes in requests(capture) {
            let request = Request::parse(&bytes, arrival()).unwrap();
            match act(&world, &request) {
                Action::Propose(command) => {
                    addresses.push(bound(&world.apply(command)).address);
                }
                Action::Reply(reply) if request.kind == MessageType::Request => {
                    addresses.push(reply.yiaddr);
                }
                _ => {}
            }
        }
        assert!(addresses.len() >= 2);
        assert!(
            addresses.iter().all(|address| *address == CAPTURED_ADDRESS),
            "{addresses:?}"
        );
    }
}

fn captured() -> Vec<Vec<u8>> {
    [
        "bios-undionly.pcap",
        "uefi-http4.pcap",
        "uefi-pxe4.pcap",
        "linux.pcap",
    ]
    .into_iter()
    .flat_map(requests)
    .collect()
}

/// Parses, decides and encodes: whatever comes of it, it comes without a panic.
fn swallow(world: &World, bytes: &[u8], boot_server: bool) {
    let arrival = Arrival {
        boot_server,
        ..arrival()
    };
    let Ok(request) = Request::parse(bytes, arrival) else {
        return;
    };
    for confirmed in [false, true] {
        let action = world.view(confirmed, |view| {
            decide(&world.state, &request, view, world.now)
        });
        match action {
            Action::Reply(reply) => {
                let bytes = reply.encode(&request);
                assert!((300..=1472).contains(&bytes.len()), "{}", bytes.len());
                let _ = reply.destination(&request);
            }
            Action::Propose(command) => {
                let mut state = world.state.clone();
                let proposal = muster_storage::Proposal {
                    request: muster_storage::RequestId(uuid::Uuid::nil()),
                    actor: muster_storage::Actor("test".to_owned()),
                    if_match: None,
                    remember: None,
                    command,
                };
                let entry = muster_storage::Entry {
                    at: world.now,
                    proposals: vec![proposal],
                };
                state.apply(muster_storage::Revision::new(99, 0), &entry);
                state.take_rows().expect("rows that can be stored");
            }
            Action::Confirm | Action::Silent(_) => {}
        }
    }
}

#[test]
fn every_truncation_of_a_captured_packet_is_taken_or_dropped() {
    let world = world();
    for bytes in captured() {
        for length in 0..bytes.len() {
            swallow(&world, &bytes[..length], false);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        swallow(&world(), &bytes, false);
        let _ = Notice::decode(&bytes);
    }

    #[test]
    fn random_options_do_no_harm(
        options in proptest::collection::vec(any::<u8>(), 0..400),
        header in proptest::collection::vec(any::<u8>(), 44),
        kind in 0u8..20,
        boot_server: bool,
    ) {
        let mut packet = Packet::new(MessageType::from(kind), MAC);
        packet.header[3..28].copy_from_slice(&header[3..28]);
        let mut bytes = packet.bytes();
        bytes.pop();
        bytes.extend(&options);
        swallow(&world(), &bytes, boot_server);
    }

    #[test]
    fn damaged_captures_do_no_harm(
        pick: prop::sample::Index,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        boot_server: bool,
    ) {
        let packets = captured();
        let mut bytes = packets[pick.index(packets.len())].clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        swallow(&world(), &bytes, boot_server);
    }
}

/// What is malformed is named.
#[test]
fn malformed_packets_are_named() {
    use muster_node::dhcp::request::Malformed::*;
    let good = Packet::discover(MAC);
    let header = |at: usize, value: u8| {
        let mut packet = good.clone();
        packet.header[at] = value;
        packet.parse()
    };
    assert_eq!(Request::parse(&good.bytes()[..239], arrival()), Err(Short));
    assert_eq!(header(0, 2), Err(NotARequest));
    assert_eq!(header(236, 0), Err(BadCookie));
    assert_eq!(header(2, 17), Err(BadHardware));
    assert_eq!(header(28, 0x53), Err(BadHardware), "group address");
    assert_eq!(good.clone().without(53).parse(), Err(Bootp));
    assert_eq!(Packet::discover([0; 6]).parse(), Err(NoIdentity));
    assert_eq!(
        good.clone().option(50, &[1, 2, 3]).parse(),
        Err(OptionLength)
    );
    assert_eq!(good.clone().option(54, &[]).parse(), Err(OptionLength));
    assert_eq!(
        good.clone().option(82, &[1, 9, 0]).parse(),
        Err(OptionOverrun)
    );
    let mut overrun = good.bytes();
    overrun.pop();
    overrun.extend([12, 200, b'x']);
    assert_eq!(Request::parse(&overrun, arrival()), Err(OptionOverrun));
    let mut repeated = good.bytes();
    repeated.pop();
    repeated.extend([61, 2, 1, 2, 12, 1, b'h', 61, 1, 3, 255]);
    let request = Request::parse(&repeated, arrival()).unwrap();
    assert_eq!(request.client.client_id.unwrap().0, [1, 2, 3], "RFC 3396");
    // RFC 2132 §9.3: options in `file` and `sname`.
    let mut overloaded = good.option(52, &[3]);
    overloaded.header[108..115].copy_from_slice(&[50, 4, 10, 77, 0, 120, 255]);
    overloaded.header[44..49].copy_from_slice(&[12, 2, b'm', b'1', 255]);
    let request = overloaded.request();
    assert_eq!(request.client.requested, Some(ip("10.77.0.120")));
    assert_eq!(request.client.hostname.as_deref(), Some("m1"));
}
