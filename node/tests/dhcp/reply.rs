//! Replies as octets: RFC 2131 table 3 and §4.1, option rules of RFC 2132 and its successors, and
//! boot data for each kind of firmware.
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::world::*;
use dhcproto::v4::MessageType;
use muster_node::dhcp::reply::Destination;
use muster_storage::Mac;
use muster_storage::model::SubnetMode;

fn read(world: &mut World, packet: &Packet) -> Read {
    Read::of(&world.reply(packet), packet)
}

fn udp(address: &str, port: u16) -> Destination {
    Destination::Udp(SocketAddrV4::new(ip(address), port))
}

/// RFC 2131 table 3: what is copied, what is zero.
#[test]
fn fields_of_table_3() {
    let mut world = World::new();
    let own = world.lease(MAC);
    let mut packet = Packet::renew(MAC, own);
    packet.header[3] = 3; // hops
    packet.header[8..10].copy_from_slice(&[0, 9]); // secs
    packet.header[34..44].copy_from_slice(&[7; 10]); // beyond the hardware address
    let ack = read(&mut world, &packet);
    assert_eq!(ack.bytes[..4], [2, 1, 6, 0], "op, htype, hlen, hops");
    assert_eq!(ack.bytes[4..8], [0xde, 0xad, 0xbe, 0xef], "xid");
    assert_eq!(ack.bytes[8..10], [0, 0], "secs");
    assert_eq!(ack.address(12), own, "ciaddr");
    assert_eq!(ack.address(16), own, "yiaddr");
    assert_eq!(ack.address(20), ip("0.0.0.0"), "siaddr without boot data");
    assert_eq!(ack.bytes[28..44], packet.header[28..44], "chaddr");
    let offer = read(&mut world, &Packet::discover(OTHER).broadcast_flag());
    assert_eq!(offer.bytes[10..12], [0x80, 0], "flags");
    assert_eq!(offer.address(12), ip("0.0.0.0"), "ciaddr of an OFFER");
    for code in [50, 55, 57, 56] {
        assert_eq!(offer.get(code), None, "option {code} in an OFFER");
    }
}

/// RFC 2131 table 3: NAK and the ACK of an INFORM carry no lease; T1 and T2 of §4.4.5.
#[test]
fn times() {
    let mut world = World::new();
    let own = world.lease(MAC);
    let ack = read(&mut world, &Packet::renew(MAC, own));
    let long = |code| u32::from_be_bytes(ack.get(code).unwrap().try_into().unwrap());
    assert_eq!((long(51), long(58), long(59)), (3600, 1800, 3150));
    let inform = Packet::new(MessageType::Inform, MAC).ciaddr(own);
    let nak = Packet::reboot(MAC, ip("192.0.2.7")).option(61, &[1, 2, 3]);
    for packet in [inform, nak] {
        let reply = read(&mut world, &packet);
        for code in [51, 58, 59] {
            assert_eq!(reply.get(code), None, "{packet:?}");
        }
        assert!(reply.get(54).is_some());
    }
}

/// RFC 2131 table 3 and RFC 6842: the NAK.
#[test]
fn nak() {
    let mut world = World::new();
    world.lease(MAC);
    let packet = Packet::reboot(MAC, ip("192.0.2.7"))
        .option(60, b"PXEClient")
        .option(55, &[1, 3, 6]);
    let nak = read(&mut world, &packet);
    assert_eq!(nak.bytes[12..28], [0; 16], "ciaddr to giaddr");
    assert_eq!(nak.codes(), [53, 54, 56]);
    assert_eq!(
        world.reply(&packet).destination(&packet.request()),
        udp("255.255.255.255", 68)
    );
    // Through a relay: to the relay, which must broadcast it.
    let relayed = packet.giaddr(RELAY).option(82, &[1, 1, 7]);
    let reply = world.reply(&relayed);
    let nak = Read::of(&reply, &relayed);
    assert_eq!(nak.bytes[10], 0x80);
    assert_eq!(nak.codes(), [53, 54, 56, 82]);
    assert_eq!(
        reply.destination(&relayed.request()),
        udp("10.77.0.254", 67)
    );
}

/// RFC 2131 §4.1: where replies go.
#[test]
fn destinations() {
    let mut world = World::new();
    let own = world.lease(MAC);
    let frame = Destination::Frame(Mac(MAC), SocketAddrV4::new(own, 68));
    let mut infiniband = Packet::discover(MAC).option(61, &[255, 1, 2, 3]);
    infiniband.header[1] = 32;
    infiniband.header[2] = 0;
    infiniband.header[28..34].fill(0);
    let unicast_inform = Packet::new(MessageType::Inform, MAC).ciaddr(ip("10.77.0.20"));
    let silent_inform = Packet::new(MessageType::Inform, MAC).unicast(ip("10.77.0.21"));
    let mut other_port = Packet::discover(MAC).giaddr(RELAY).option(82, &[19, 0]);
    other_port.arrival.source = SocketAddrV4::new(RELAY, 1067);
    let rows = [
        ("OFFER", Packet::discover(MAC), frame),
        (
            "OFFER, flag",
            Packet::discover(MAC).broadcast_flag(),
            udp("255.255.255.255", 68),
        ),
        (
            "OFFER, relay",
            Packet::discover(MAC).giaddr(RELAY),
            udp("10.77.0.254", 67),
        ),
        ("ACK", Packet::select(MAC, own), frame),
        (
            "ACK, renewal",
            Packet::renew(MAC, own),
            Destination::Udp(SocketAddrV4::new(own, 68)),
        ),
        (
            "ACK, rebinding",
            Packet::rebind(MAC, own),
            Destination::Udp(SocketAddrV4::new(own, 68)),
        ),
        (
            "ACK, relayed renewal",
            Packet::rebind(MAC, own).giaddr(RELAY),
            udp("10.77.0.254", 67),
        ),
        ("RFC 4390", infiniband, udp("255.255.255.255", 68)),
        ("INFORM", unicast_inform.clone(), udp("10.77.0.20", 68)),
        (
            "INFORM, relay",
            unicast_inform.giaddr(RELAY),
            udp("10.77.0.20", 68),
        ),
        ("INFORM by source", silent_inform, udp("10.77.0.21", 68)),
        ("RFC 8357", other_port, udp("10.77.0.254", 1067)),
    ];
    for (what, packet, expected) in rows {
        let reply = world.reply(&packet);
        assert_eq!(reply.destination(&packet.request()), expected, "{what}");
    }
}

/// RFC 2131 §4.3.1: in the order of option 55, mask before router, then what is needed.
#[test]
fn options_by_request_list() {
    let mut world = World::new();
    let own = world.lease(MAC);
    let codes = |list: &[u8]| {
        let packet = Packet::renew(MAC, own).option(55, list);
        let reply = world.view(false, |view| {
            muster_node::dhcp::decide::decide(&world.state, &packet.request(), view, world.now)
        });
        let muster_node::dhcp::decide::Action::Reply(reply) = reply else {
            panic!("confirmed")
        };
        Read::of(&reply, &packet).codes()
    };
    let first = [53, 54, 51, 58, 59];
    let rows: [(&[u8], &[u8]); 5] = [
        (&[6, 3, 1, 42], &[6, 1, 3, 42]),
        (&[3, 6, 1], &[6, 1, 3]),
        (&[15, 15, 200, 53], &[15, 1]),
        (&[28, 26], &[28, 26, 1]),
        (&[], &[1, 3, 6, 15, 26, 28, 42]),
    ];
    for (list, rest) in rows {
        assert_eq!(codes(list), [&first, rest].concat(), "{list:?}");
    }
}

#[test]
fn values_of_options() {
    let mut world = World::with(|subnet| {
        let mut set = |key: &str, value: &str| {
            subnet.options.insert(key.to_owned(), value.to_owned());
        };
        set("224", "node {{ node }}");
        set("225", "0x00ff");
        set("121", "10.0.0.0/8 10.77.0.1");
        set("no-such-option", "x");
        set("19", "perhaps");
        set("54", "192.0.2.1");
    });
    world.machine("m1", MAC);
    let offer = read(
        &mut world,
        &Packet::discover(MAC).option(55, &[3, 121, 1, 12, 15, 28, 42, 26, 224, 225, 19]),
    );
    let rows: [(u8, Option<&[u8]>); 11] = [
        (1, Some(&[255, 255, 255, 0])),
        (3, Some(&[10, 77, 0, 1])),
        (12, Some(b"m1")),
        (15, Some(b"lab.example")),
        (28, Some(&[10, 77, 0, 255])),
        (42, Some(&[10, 77, 0, 9])),
        (26, Some(&1400u16.to_be_bytes())),
        (224, Some(b"node 10.77.0.1")),
        (225, Some(&[0, 255])),
        (19, None),
        (54, Some(&[10, 77, 0, 1])),
    ];
    for (code, value) in rows {
        assert_eq!(offer.get(code), value, "option {code}");
    }
    let position = |code| offer.codes().iter().position(|have| *have == code);
    assert!(position(121) < position(3), "RFC 3442");
}

/// RFC 951: old ROMs drop what is shorter. RFC 6842 and RFC 3046: echoes, the relay's last.
#[test]
fn echoes_and_padding() {
    let mut world = World::new();
    let relay = [1, 2, 7, 8, 2, 0, 9, 1, 0];
    let packet = Packet::discover(MAC)
        .giaddr(RELAY)
        .option(61, &[1, 2, 3])
        .option(82, &relay)
        .option(55, &[1, 3, 82]);
    let offer = read(&mut world, &packet);
    assert!(offer.bytes.len() >= 300);
    assert_eq!(offer.get(61), Some(&[1, 2, 3][..]));
    assert_eq!(offer.options.last().unwrap(), &(82, relay.to_vec()));
    let plain = read(&mut world, &Packet::discover(MAC));
    assert_eq!(plain.get(61), None, "never invented");
    assert_eq!(plain.get(82), None);
}

/// RFC 3011 §2: a client that selects a subnet drops an OFFER or ACK that does not say so, whatever
/// it asks for, and also where the relay's choice (RFC 3527) comes before its own.
#[test]
fn subnet_selection_is_echoed() {
    let mut world = World::new();
    let selected = [10, 77, 0, 0];
    let packet = Packet::discover(MAC)
        .option(118, &selected)
        .option(55, &[1, 3]);
    let relayed = packet
        .clone()
        .option(118, &[192, 0, 2, 0])
        .giaddr(RELAY)
        .option(82, &[5, 4, 10, 77, 0, 0]);
    assert_eq!(read(&mut world, &packet).get(118), Some(&selected[..]));
    assert_eq!(
        read(&mut world, &relayed).get(118),
        Some(&[192, 0, 2, 0][..])
    );
    assert_eq!(
        read(&mut world, &Packet::discover(MAC)).get(118),
        None,
        "never invented"
    );
}

/// RFC 5071 §2: pxelinux reads its options out of what the ROM was answered; who does not boot gets
/// them on request only. RFC 8925 §3.3: 108 is for those alone that ask for it.
#[test]
fn options_that_are_sent_unasked_or_never_unasked() {
    let mut world = World::with(|subnet| {
        let mut set = |code: &str, value: &str| {
            subnet.options.insert(code.to_owned(), value.to_owned());
        };
        set("208", "0xf100747e");
        set("209", "pxelinux.cfg/lab");
        set("108", "1800");
    });
    let rom = read(&mut world, &Packet::discover(MAC).pxe(0));
    assert_eq!(rom.get(208), Some(&[0xf1, 0, 0x74, 0x7e][..]));
    assert_eq!(rom.get(209), Some(&b"pxelinux.cfg/lab"[..]));
    let rows: [(&[u8], bool, bool); 4] = [
        (&[1, 3], false, false),
        (&[1, 209], true, false),
        (&[1, 108], false, true),
        (&[], true, false),
    ];
    for (list, pxelinux, ipv6_only) in rows {
        let plain = read(&mut world, &Packet::discover(OTHER).option(55, list));
        let has = (plain.get(209).is_some(), plain.get(108).is_some());
        assert_eq!(has, (pxelinux, ipv6_only), "{list:?}");
    }
}

/// RFC 2132 §9.10 and §9.3: never longer than the client takes; what does not fit goes into the
/// unused fields, and what is needed never falls out.
#[test]
fn size_limits_and_overload() {
    let mut world = World::with(|subnet| {
        for code in 224..=235 {
            subnet.options.insert(code.to_string(), "x".repeat(60));
        }
    });
    let list: Vec<u8> = [1, 3, 6, 15].into_iter().chain(224..=235).collect();
    let relay = [1, 20].into_iter().chain([7; 20]).collect::<Vec<u8>>();
    let packet = |size: u16| {
        Packet::discover(MAC)
            .giaddr(RELAY)
            .option(82, &relay)
            .option(55, &list)
            .option(57, &size.to_be_bytes())
            .option(61, &[1, 2, 3])
    };
    for size in [0, 300, 576, 590, 700, 1000, 1400, 1500, 9000] {
        let packet = packet(size);
        let offer = read(&mut world, &packet);
        let limit = usize::from(size).clamp(576, 1500) - 28;
        assert!(
            offer.bytes.len() <= limit,
            "{} > {limit}",
            offer.bytes.len()
        );
        for code in [1, 51, 53, 54, 58, 59, 61] {
            assert!(offer.get(code).is_some(), "option {code} at {size}");
        }
        assert_eq!(offer.codes()[0], 53);
        assert_eq!(offer.get(82), Some(&relay[..]));
        let kept = offer.codes().iter().filter(|code| **code >= 224).count();
        match size {
            0..=576 => {
                assert_eq!(offer.get(52), Some(&[3][..]));
                assert!(kept >= 5, "{kept} of 12 kept at {size}");
            }
            1400.. => {
                assert_eq!(offer.get(52), None);
                assert_eq!(kept, 12);
            }
            _ => {}
        }
    }
    // Without option 57 a client takes 576 octets; boot data keeps `file` to itself.
    let packet = Packet::discover(MAC).pxe(7).option(55, &list);
    let offer = read(&mut world, &packet);
    assert!(offer.bytes.len() <= 548);
    assert_eq!(offer.get(52), Some(&[2][..]));
    assert_eq!(offer.file(), "snponly.efi");
}

/// RFC 3046 §2.2: the relay's option is echoed whole, however long, and takes nothing away that the
/// client must be told; one that is longer than an option may be is none.
#[test]
fn a_long_relay_option_takes_nothing_away() {
    let mut world = World::new();
    let relay = [&[1, 253], &[7; 253][..]].concat();
    let packet = Packet::discover(MAC).giaddr(RELAY).option(82, &relay);
    let offer = read(&mut world, &packet);
    for code in [1, 51, 53, 54, 58, 59] {
        assert!(offer.get(code).is_some(), "option {code}");
    }
    assert_eq!(offer.options.last().unwrap(), &(82, relay));
    let longer = packet.option(82, &[0; 256]);
    assert!(longer.parse().is_err());
}

/// RFC 3396: options above 255 octets are split, and read whole.
#[test]
fn long_options() {
    let text = "long ".repeat(100);
    let mut world = World::with(|subnet| {
        subnet.options.insert("224".to_owned(), text.clone());
    });
    let packet = Packet::discover(MAC)
        .option(55, &[224])
        .option(57, &1500u16.to_be_bytes());
    let offer = read(&mut world, &packet);
    assert_eq!(offer.get(224), Some(text.trim().as_bytes()));
    let long_id = vec![9; 300];
    let packet = Packet::discover(MAC)
        .option(61, &long_id)
        .option(57, &1500u16.to_be_bytes());
    assert_eq!(read(&mut world, &packet).get(61), Some(&long_id[..]));
}

/// Boot data by architecture and class; none for who does not ask.
#[test]
fn boot_data() {
    let mut world = World::new();
    let plain = read(
        &mut world,
        &Packet::discover(MAC).option(55, &[1, 3, 66, 67]),
    );
    assert_eq!(
        (plain.address(20), plain.file()),
        (ip("0.0.0.0"), String::new())
    );
    assert_eq!((plain.get(66), plain.get(67)), (None, None));

    let files = [
        (0, "undionly.kpxe"),
        (6, "snponly-i386.efi"),
        (7, "snponly.efi"),
        (9, "snponly.efi"),
        (11, "snponly-arm64.efi"),
    ];
    for (architecture, file) in files {
        let offer = read(&mut world, &Packet::discover(MAC).pxe(architecture));
        assert_eq!(offer.file(), file);
        assert_eq!(offer.get(67), Some(file.as_bytes()));
        assert_eq!(offer.get(66), Some(&b"10.77.0.1"[..]));
        assert_eq!(offer.address(20), NODE, "siaddr");
        assert_eq!(offer.get(60), Some(&b"PXEClient"[..]));
        assert_eq!(offer.get(43), Some(&[6, 1, 8, 255][..]));
        assert_eq!(offer.get(97), Some(&[0; 17][..]));
    }
    let unknown = read(&mut world, &Packet::discover(MAC).pxe(0x4242));
    assert_eq!((unknown.file(), unknown.get(43)), (String::new(), None));
    assert_ne!(
        unknown.address(16),
        ip("0.0.0.0"),
        "it gets an address all the same"
    );

    let script = "http://10.77.0.1:8091/boot.ipxe?mac=52:54:00:00:00:50";
    let offer = read(&mut world, &Packet::discover(MAC).ipxe());
    assert_eq!(offer.file(), script);
    assert_eq!(offer.get(67), Some(script.as_bytes()));
    assert_eq!(
        offer.get(175),
        Some(&[176, 1, 1][..]),
        "no wait for a proxyDHCP server"
    );
    assert_eq!((offer.get(60), offer.get(43)), (None, None));
    let classed = Packet::discover(MAC).pxe(7).option(77, b"\x04iPXE");
    assert_eq!(read(&mut world, &classed).file(), script, "RFC 3004");

    let http = Packet::discover(MAC)
        .option(60, b"HTTPClient:Arch:00016:UNDI:003000")
        .option(93, &[0, 16]);
    let offer = read(&mut world, &http);
    let url = "http://10.77.0.1:8091/snponly.efi";
    assert_eq!(offer.get(67), Some(url.as_bytes()));
    assert_eq!(offer.get(60), Some(&b"HTTPClient"[..]), "UEFI 2.10 §24.7");
    let by_class = http.without(93);
    assert_eq!(read(&mut world, &by_class).file(), url);
}

/// 66, 67 and next_server override our choice, for boot clients alone.
#[test]
fn boot_overrides() {
    let mut world = World::with(|subnet| {
        subnet.next_server = Some(ip("10.77.0.8"));
        subnet
            .options
            .insert("66".to_owned(), "tftp.example".to_owned());
        subnet
            .options
            .insert("bootfile-name".to_owned(), "grub-{{ node }}".to_owned());
    });
    let offer = read(&mut world, &Packet::discover(MAC).pxe(7));
    assert_eq!(offer.address(20), ip("10.77.0.8"));
    assert_eq!(offer.get(66), Some(&b"tftp.example"[..]));
    assert_eq!(offer.file(), "grub-10.77.0.1");
    let plain = read(&mut world, &Packet::discover(OTHER).option(55, &[66, 67]));
    assert_eq!(
        (plain.file(), plain.get(66), plain.get(67)),
        (String::new(), None, None)
    );
    assert_eq!(plain.address(20), Ipv4Addr::UNSPECIFIED);
}

/// What a class says comes before what the subnet says, the first class before others, the machine
/// before all. RFC 3004 and RFC 3925 tell clients apart, each in the encodings that are met.
#[test]
fn options_by_class_and_machine() {
    let world = || {
        World::with(|subnet| {
            let mut set = |code: &str, value: &str| {
                subnet.options.insert(code.to_owned(), value.to_owned());
            };
            set("224", "subnet");
            set("43", "for others");
            subnet.classes = serde_json::from_value(serde_json::json!([
                {"name": "kiosk", "match": {"user_classes": ["kiosk"]},
                 "options": {"224": "kiosk"}},
                {"name": "arm", "match": {"architectures": [11]}, "next_server": "10.77.0.8",
                 "options": {"67": "grub-{{ node }}", "43": "0x0601", "224": "arm"}},
                {"name": "cable", "match": {"enterprises": [4491]}, "options": {"224": "cable"}},
                {"name": "behind", "match": {"relays": [RELAY]}, "options": {"224": "behind"}},
                {"name": "installing", "match": {"bootenvs": ["local"]},
                 "options": {"224": "installing"}},
                {"name": "strangers", "match": {"known": false}, "options": {"225": "stranger"}},
            ]))
            .unwrap();
        })
    };
    let list = Packet::discover(MAC).option(55, &[43, 224, 225]);
    let rows = [
        ("subnet", list.clone()),
        ("kiosk", list.clone().option(77, b"\x05other\x05kiosk")),
        ("kiosk", list.clone().option(77, b"kiosk")),
        ("subnet", list.clone().option(77, b"\x05other")),
        ("arm", list.clone().option(93, &[0, 7, 0, 11])),
        (
            "kiosk",
            list.clone().option(93, &[0, 11]).option(77, b"kiosk"),
        ),
        (
            "cable",
            list.clone()
                .option(124, b"\0\0\x01\x57\x01a\0\0\x11\x8b\x01b"),
        ),
        ("cable", list.clone().option(125, b"\0\0\x11\x8b\x00")),
        ("subnet", list.clone().option(125, b"\0\0\x11")),
        ("behind", list.clone().giaddr(RELAY)),
    ];
    for (expected, packet) in rows {
        let offer = read(&mut world(), &packet);
        assert_eq!(offer.get(224), Some(expected.as_bytes()), "{packet:?}");
        assert_eq!(offer.get(225), Some(&b"stranger"[..]));
        assert_eq!(offer.file(), "");
    }
    let mut owned = world();
    owned.machine("m1", MAC);
    let offer = read(&mut owned, &list);
    assert_eq!(offer.get(224), Some(&b"installing"[..]));
    assert_eq!(offer.get(225), None);
    owned.machine_with("m1", MAC, |machine| {
        let mut set = |code: &str, value: &str| {
            machine.options.insert(code.to_owned(), value.to_owned());
        };
        set("224", "machine {{ node }}");
        set("hostname", "other");
        set("67", "own.efi");
    });
    let offer = read(&mut owned, &list.clone().option(55, &[12, 224]));
    assert_eq!(offer.get(224), Some(&b"machine 10.77.0.1"[..]));
    assert_eq!(offer.get(12), Some(&b"other"[..]));
    let boot = read(&mut owned, &Packet::discover(MAC).pxe(11));
    assert_eq!(
        (boot.file(), boot.address(20)),
        ("own.efi".to_owned(), ip("10.77.0.8"))
    );

    let arm = read(&mut world(), &Packet::discover(MAC).pxe(11));
    assert_eq!(arm.file(), "grub-10.77.0.1");
    assert_eq!(arm.get(43), Some(&[6, 1][..]));
    let intel = read(&mut world(), &Packet::discover(MAC).pxe(7));
    let own = [6, 1, 8, 255];
    assert_eq!(intel.get(43), Some(&own[..]), "not the subnet's");
    assert_eq!(intel.address(20), NODE);
}

/// PXE 2.1 §2.2.2 and §2.2.3: the proxy's OFFER is broadcast, the boot server's ACK goes back to
/// the port that it came from.
#[test]
fn proxy() {
    let mut world = World::with(|subnet| subnet.mode = SubnetMode::Proxy);
    let packet = Packet::discover(MAC).pxe(0);
    let reply = world.reply(&packet);
    assert_eq!(
        reply.destination(&packet.request()),
        udp("255.255.255.255", 68)
    );
    let offer = Read::of(&reply, &packet);
    assert_eq!(offer.address(16), ip("0.0.0.0"));
    assert_eq!(offer.file(), "undionly.kpxe");
    assert_eq!(offer.get(60), Some(&b"PXEClient"[..]));
    assert_eq!((offer.get(51), offer.get(1)), (None, None));
    let ipxe = read(&mut world, &Packet::discover(MAC).ipxe());
    assert_eq!(ipxe.get(60), Some(&b"PXEClient"[..]));
    assert_eq!(
        ipxe.get(175),
        None,
        "it must wait for the other server's address"
    );

    let own = ip("10.77.0.120");
    let mut ask = Packet::new(MessageType::Request, MAC).pxe(0).ciaddr(own);
    ask.arrival.boot_server = true;
    ask.arrival.source = SocketAddrV4::new(own, 4011);
    let reply = world.reply(&ask);
    assert_eq!(reply.destination(&ask.request()), udp("10.77.0.120", 4011));
    let ack = Read::of(&reply, &ask);
    assert_eq!(ack.get(53), Some(&[5][..]));
    assert_eq!((ack.address(12), ack.address(16)), (own, ip("0.0.0.0")));
    assert_eq!(ack.file(), "undionly.kpxe");
}
