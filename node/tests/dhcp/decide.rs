//! RFC 2131 table 4, row by row.
use crate::world::*;
use dhcproto::v4::MessageType;
use ipnet::Ipv4Net;
use muster_node::dhcp::decide::{Action, Reason, conclude};
use muster_storage::Command;
use muster_storage::model::{LeaseState, Match, Object, Subnet, SubnetMode};

/// §4.3.1: binding, then previous address, then the one asked for, then the pool; reservation
/// before all.
#[test]
fn discover_offers_in_the_order_of_the_rfc() {
    let mut world = World::new();
    let asked = ip("10.77.0.150");
    let packet = Packet::discover(MAC).option(50, &asked.octets());
    assert_eq!(world.reply(&packet).yiaddr, asked, "requested");
    let own = world.lease(MAC);
    assert_eq!(world.reply(&packet).yiaddr, own, "current binding");
    world.answer(&release(MAC, own)).unwrap();
    assert_eq!(world.reply(&packet).yiaddr, own, "previous binding");
    world.reserve("10.77.0.50", MAC);
    assert_eq!(world.reply(&packet).yiaddr, ip("10.77.0.50"), "reservation");
    let stranger = Packet::discover(OTHER).option(50, &ip("10.77.0.50").octets());
    assert_ne!(world.reply(&stranger).yiaddr, ip("10.77.0.50"));
}

/// §4.3.1: the same client gets the same offer, and nothing is written for it.
#[test]
fn discover_is_stable_and_writes_nothing() {
    let mut world = World::new();
    let digest = world.state.digest();
    let first = world.reply(&Packet::discover(MAC));
    let second = world.reply(&Packet::discover(MAC));
    assert_eq!(first, second);
    assert_eq!(first.server_id, NODE);
    assert_eq!(first.lease_secs, Some(3600));
    assert_eq!(world.state.digest(), digest);
}

/// §4.3.2, SELECTING.
#[test]
fn selecting() {
    let mut world = World::new();
    let address = world.reply(&Packet::discover(MAC)).yiaddr;
    let select = Packet::select(MAC, address);
    assert!(matches!(
        world.decide(&select),
        Action::Propose(Command::Bind(_))
    ));
    let ack = world.reply(&select);
    assert_eq!(
        (ack.kind, ack.yiaddr, ack.server_id, ack.lease_secs),
        (MessageType::Ack, address, NODE, Some(3600))
    );
    // A copy, and a second DORA soon after, are confirmed without a write.
    assert!(matches!(world.decide(&select), Action::Reply(reply) if *reply == ack));
    // Another's identifier is another's client.
    let foreign = select.clone().option(54, &[192, 0, 2, 1]);
    assert_eq!(silent(&world.decide(&foreign)), Some(Reason::ForeignServer));
    // A peer's is ours, and the answer carries it.
    let peers = select.option(54, &PEER.octets());
    assert_eq!(world.reply(&peers).server_id, PEER);
}

/// §4.3.2, SELECTING: an offer that went to another is refused, so that firmware does not wait for its
/// answer; what was never offered is met with silence.
#[test]
fn selecting_what_is_taken_is_refused_and_what_is_foreign_is_silence() {
    let mut world = World::new();
    let taken = world.lease(MAC);
    let nak = world.reply(&Packet::select(OTHER, taken));
    assert_eq!((nak.kind, nak.server_id), (MessageType::Nak, NODE));
    // A node that lags may have offered what was given back and is kept.
    let release = Packet::new(MessageType::Release, MAC)
        .ciaddr(taken)
        .unicast(taken);
    world.answer(&release).unwrap();
    let nak = world.reply(&Packet::select(OTHER, taken));
    assert_eq!((nak.kind, nak.server_id), (MessageType::Nak, NODE));
    for address in [ip("10.77.0.5"), ip("192.0.2.7")] {
        assert_eq!(
            world.answer(&Packet::select(OTHER, address)),
            Err(Reason::Refused),
            "{address}"
        );
    }
}

/// An address that was offered and found in use: whoever asks for it is told, and of another address
/// that the same client has from another server nothing is said (§4.3.2).
#[test]
fn an_offered_address_that_was_found_in_use() {
    let mut world = World::new();
    let address = world.reply(&Packet::discover(MAC)).yiaddr;
    let select = Packet::select(MAC, address);
    let quarantine = Command::Quarantine {
        client: Box::new(select.request().client),
        address,
        node: muster_storage::NodeId(1),
    };
    world.apply(quarantine).result.unwrap();
    assert_eq!(world.reply(&select).kind, MessageType::Nak);
    let others = Packet::select(OTHER, address);
    assert_eq!(world.reply(&others).kind, MessageType::Nak);
    assert_ne!(world.reply(&Packet::discover(MAC)).yiaddr, address);
    let elsewhere = Packet::reboot(MAC, ip("10.77.0.7"));
    assert_eq!(world.answer(&elsewhere), Err(Reason::UnknownClient));
    let here = Packet::reboot(MAC, address);
    assert_eq!(world.reply(&here).kind, MessageType::Nak);
}

/// §4.3.2, INIT-REBOOT.
#[test]
fn init_reboot() {
    let mut world = World::new();
    let own = world.lease(MAC);
    let right = world.decide(&Packet::reboot(MAC, own));
    assert!(matches!(right, Action::Reply(reply) if reply.kind == MessageType::Ack));
    for wrong in [ip("10.77.0.7"), ip("192.0.2.7")] {
        let packet = Packet::reboot(MAC, wrong);
        assert_eq!(world.decide(&packet), Action::Confirm, "{wrong}");
        let nak = world.reply(&packet);
        assert_eq!((nak.kind, nak.yiaddr), (MessageType::Nak, ip("0.0.0.0")));
    }
    // Unknown client: silence, but for an address that cannot be right on this link.
    let unknown = Packet::reboot(OTHER, own);
    assert_eq!(world.decide(&unknown), Action::Confirm);
    assert_eq!(world.answer(&unknown), Err(Reason::UnknownClient));
    let astray = Packet::reboot(OTHER, ip("192.0.2.7"));
    assert_eq!(world.decide(&astray), Action::Confirm);
    assert_eq!(world.reply(&astray).kind, MessageType::Nak);
}

/// §4.3.2, INIT-REBOOT through a relay: the network is the relay's, or the one that it names
/// (RFC 3527); an unknown network is met with silence.
#[test]
fn init_reboot_through_a_relay() {
    let mut world = World::new();
    let own = world.lease(MAC);
    let far = ip("192.0.2.1");
    let selects = [5, 4, 10, 77, 0, 0];
    let rows: [(&str, Packet, Result<MessageType, Reason>); 6] = [
        (
            "right",
            Packet::reboot(MAC, own).giaddr(RELAY),
            Ok(MessageType::Ack),
        ),
        (
            "known, wrong address",
            Packet::reboot(MAC, ip("10.77.0.7")).giaddr(RELAY),
            Ok(MessageType::Nak),
        ),
        (
            "unknown, wrong network",
            Packet::reboot(OTHER, far).giaddr(RELAY),
            Ok(MessageType::Nak),
        ),
        (
            "unknown, right network",
            Packet::reboot(OTHER, ip("10.77.0.7")).giaddr(RELAY),
            Err(Reason::UnknownClient),
        ),
        (
            "right, by link selection",
            Packet::reboot(MAC, own).giaddr(far).option(82, &selects),
            Ok(MessageType::Ack),
        ),
        (
            "a network that is not served",
            Packet::reboot(MAC, own).giaddr(far),
            Err(Reason::UnknownSubnet),
        ),
    ];
    for (what, packet, expected) in rows {
        let kind = world.answer(&packet).map(|reply| reply.unwrap().kind);
        assert_eq!(kind, expected, "{what}");
    }
}

/// §4.3.2, INIT-REBOOT: a lease that ran out is had again while nobody else got the address.
#[test]
fn init_reboot_after_expiry() {
    let mut world = World::new();
    let own = world.lease(MAC);
    world.pass(3 * 3600);
    world.apply(Command::Expire);
    assert_eq!(world.bound(own).unwrap().state, LeaseState::Expired);
    assert_eq!(
        world.reply(&Packet::reboot(MAC, own)).kind,
        MessageType::Ack
    );
    assert_eq!(world.bound(own).unwrap().state, LeaseState::Bound);
}

/// A reservation made since the lease takes effect when the client asks next.
#[test]
fn a_new_reservation_ends_the_old_address() {
    let mut world = World::new();
    let own = world.lease(MAC);
    world.reserve("10.77.0.50", MAC);
    for packet in [Packet::reboot(MAC, own), Packet::renew(MAC, own)] {
        assert_eq!(world.reply(&packet).kind, MessageType::Nak);
    }
    assert_eq!(world.lease(MAC), ip("10.77.0.50"));
}

/// §4.3.2, RENEWING and REBINDING.
#[test]
fn renewing_and_rebinding() {
    for ask in [Packet::renew, Packet::rebind] {
        let mut world = World::new();
        let own = world.lease(MAC);
        world.pass(1800);
        assert!(
            matches!(world.decide(&ask(MAC, own)), Action::Reply(reply)
                if reply.kind == MessageType::Ack && reply.lease_secs == Some(3600)),
            "early: confirmed from the committed lease"
        );
        world.pass(3000);
        assert!(
            matches!(
                world.decide(&ask(MAC, own)),
                Action::Propose(Command::Bind(_))
            ),
            "late: a write"
        );
        let ack = world.reply(&ask(MAC, own));
        assert_eq!((ack.yiaddr, ack.lease_secs), (own, Some(3600)));
        // A stranger with this address, and one with none.
        assert_eq!(world.answer(&ask(OTHER, own)), Err(Reason::UnknownClient));
        let other = world.lease(OTHER);
        assert_eq!(world.reply(&ask(OTHER, own)).kind, MessageType::Nak);
        assert_eq!(world.reply(&ask(OTHER, other)).kind, MessageType::Ack);
    }
}

/// §4.3.3: from the holder, with 50 and 54; the address is given to nobody for a while.
#[test]
fn decline_is_quarantine() {
    let mut world = World::new();
    let own = world.lease(MAC);
    let cases = [
        (decline(OTHER, own), Reason::NotHolder),
        (decline(MAC, ip("10.77.0.7")), Reason::NotHolder),
        (decline(MAC, own).without(54), Reason::Incomplete),
        (decline(MAC, own).without(50), Reason::Incomplete),
        (
            decline(MAC, own).option(54, &[192, 0, 2, 1]),
            Reason::ForeignServer,
        ),
    ];
    for (packet, reason) in cases {
        assert_eq!(world.answer(&packet), Err(reason));
        assert_eq!(world.bound(own).unwrap().state, LeaseState::Bound);
    }
    assert_eq!(world.answer(&decline(MAC, own)), Ok(None));
    assert_eq!(world.bound(own).unwrap().state, LeaseState::Declined);
    assert_ne!(world.lease(MAC), own);
}

/// §4.3.4: from the holder alone; the address is remembered for it.
#[test]
fn release_frees_for_the_holder() {
    let mut world = World::new();
    let own = world.lease(MAC);
    assert_eq!(world.answer(&release(OTHER, own)), Err(Reason::NotHolder));
    assert_eq!(world.bound(own).unwrap().state, LeaseState::Bound);
    assert_eq!(world.answer(&release(MAC, own)), Ok(None));
    assert_eq!(world.bound(own).unwrap().state, LeaseState::Released);
    assert_eq!(world.reply(&Packet::discover(MAC)).yiaddr, own);
}

/// §4.3.5: parameters, no lease, nothing written.
#[test]
fn inform() {
    let mut world = World::new();
    let digest = world.state.digest();
    let own = ip("10.77.0.20");
    let packet = Packet::new(MessageType::Inform, MAC).ciaddr(own);
    let ack = world.reply(&packet);
    assert_eq!(
        (ack.kind, ack.yiaddr, ack.lease_secs),
        (MessageType::Ack, ip("0.0.0.0"), None)
    );
    assert_eq!(world.state.digest(), digest);
    let nowhere = Packet::new(MessageType::Inform, MAC);
    assert_eq!(world.answer(&nowhere), Err(Reason::Incomplete));
}

/// §4.3.2: fields that say nothing, and messages that are not for servers.
#[test]
fn what_is_incomplete_or_not_for_servers_is_silence() {
    let mut world = World::new();
    assert_eq!(
        world.answer(&Packet::new(MessageType::Request, MAC)),
        Err(Reason::Incomplete)
    );
    assert_eq!(
        world.answer(&Packet::new(MessageType::Release, MAC)),
        Err(Reason::Incomplete)
    );
    for kind in [MessageType::Offer, MessageType::Ack, MessageType::Nak] {
        assert_eq!(
            world.answer(&Packet::new(kind, MAC)),
            Err(Reason::Unsupported)
        );
    }
}

#[test]
fn a_link_without_a_subnet_or_a_registered_identifier_is_silence() {
    let mut world = World::new();
    let astray = Packet::discover(MAC).giaddr(ip("192.0.2.1"));
    assert_eq!(world.answer(&astray), Err(Reason::UnknownSubnet));
    world.identifier = None;
    assert_eq!(
        world.answer(&Packet::discover(MAC)),
        Err(Reason::NoIdentifier)
    );
}

#[test]
fn modes() {
    let mut world = World::with(|subnet| subnet.mode = SubnetMode::Off);
    assert_eq!(world.answer(&Packet::discover(MAC)), Err(Reason::Off));

    let mut world = World::with(|subnet| subnet.mode = SubnetMode::ReservedOnly);
    world.reserve("10.77.0.50", MAC);
    assert_eq!(world.lease(MAC), ip("10.77.0.50"));
    assert_eq!(
        world.answer(&Packet::discover(OTHER)),
        Err(Reason::NoAddress)
    );
    assert_eq!(
        world.answer(&Packet::reboot(OTHER, ip("192.0.2.7"))),
        Err(Reason::UnknownClient),
        "another server's client is not told no"
    );

    let mut world = World::with(|subnet| subnet.mode = SubnetMode::Proxy);
    assert_eq!(
        world.answer(&Packet::discover(MAC)),
        Err(Reason::NotForProxy)
    );
    let offer = world.reply(&Packet::discover(MAC).pxe(7));
    assert_eq!(
        (offer.kind, offer.yiaddr, offer.lease_secs),
        (MessageType::Offer, ip("0.0.0.0"), None)
    );
    assert_eq!(offer.boot.unwrap().file, "snponly.efi");
    assert_eq!(
        world.answer(&Packet::select(MAC, ip("10.77.0.100")).pxe(7)),
        Err(Reason::NotForProxy)
    );
    let mut ask = Packet::new(MessageType::Request, MAC)
        .pxe(7)
        .ciaddr(ip("10.77.0.120"));
    ask.arrival.boot_server = true;
    let ack = world.reply(&ask);
    assert_eq!(ack.kind, MessageType::Ack);
    assert_eq!(ack.boot.unwrap().file, "snponly.efi");
}

/// RFC 2131 §4.2 and the provisioning trap: one machine, four client identifiers.
#[test]
fn one_machine_keeps_one_address_through_its_boot() {
    let mut world = World::new();
    let rom = Packet::discover(MAC)
        .pxe(0)
        .option(61, &[0, 1, 2, 3, 4, 5, 6]);
    let address = world.reply(&rom).yiaddr;
    let mut select = rom;
    select.options.retain(|(code, _)| *code != 53);
    let select = select
        .option(53, &[3])
        .option(50, &address.octets())
        .option(54, &NODE.octets());
    assert_eq!(world.reply(&select).yiaddr, address);
    for id in [
        &[1, 0x52, 0x54, 0, 0, 0, 0x50][..],
        &[255, 0, 0, 0, 1, 0, 3, 9, 9],
    ] {
        let offer = world.reply(&Packet::discover(MAC).option(61, id));
        assert_eq!(offer.yiaddr, address, "{id:?}");
    }
    // An ordinary client's two identifiers are two clients.
    let one = world.reply(&Packet::discover(OTHER).option(61, &[0, 1]));
    let two = world.reply(&Packet::discover(OTHER).option(61, &[0, 2]));
    assert_ne!(one.yiaddr, two.yiaddr);
    let mut world = World::with(|subnet| subnet.matching = Match::Mac);
    let one = world.reply(&Packet::discover(OTHER).option(61, &[0, 1]));
    let two = world.reply(&Packet::discover(OTHER).option(61, &[0, 2]));
    assert_eq!(one.yiaddr, two.yiaddr);
}

/// RFC 4578 §2.3 and RFC 3046 §3.1, from the packet to the address.
#[test]
fn reservations_by_uuid_and_by_port() {
    let mut world = World::new();
    let put = |world: &mut World, owner: serde_json::Value| {
        world.put(Object::Reservation(serde_json::from_value(owner).unwrap()));
    };
    let uuid = "00112233-4455-6677-8899-aabbccddeeff";
    put(
        &mut world,
        serde_json::json!({"address": "10.77.0.50", "uuid": uuid}),
    );
    put(
        &mut world,
        serde_json::json!({"address": "10.77.0.51", "circuit_id": "Gi1"}),
    );
    let mut machine_id = vec![0, 0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66];
    machine_id.extend([0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
    let rom = |packet: Packet| packet.pxe(7).option(97, &machine_id);
    let own = ip("10.77.0.50");
    assert_eq!(world.reply(&rom(Packet::discover(MAC))).yiaddr, own);
    assert_eq!(world.reply(&rom(Packet::select(MAC, own))).yiaddr, own);
    // The operating system does not send it.
    assert_eq!(world.lease(MAC), own);

    let port = |packet: Packet| packet.giaddr(RELAY).option(82, b"\x01\x03Gi1");
    let own = ip("10.77.0.51");
    assert_eq!(world.reply(&port(Packet::discover(OTHER))).yiaddr, own);
    assert_eq!(world.reply(&port(Packet::select(OTHER, own))).yiaddr, own);
    // RENEWING, by unicast past the relay; late enough to be written.
    world.pass(6000);
    let ack = world.reply(&Packet::renew(OTHER, own));
    assert_eq!((ack.kind, ack.yiaddr), (MessageType::Ack, own));
}

/// RFC 2131 §4.3.1: a shorter lease that is asked for is granted, a longer one is not.
#[test]
fn asked_lease_times() {
    let mut world = World::new();
    for (asked, granted) in [(600u32, 600), (86_400, 3600), (1, 60)] {
        let packet = Packet::discover(MAC).option(51, &asked.to_be_bytes());
        assert_eq!(world.reply(&packet).lease_secs, Some(granted), "{asked}");
    }
}

/// RFC 4039 §3: where the subnet allows it, a DISCOVER with option 80 is one commit and an ACK with
/// it; a copy costs no second write; without a quorum, and without the option, all is as ever.
#[test]
fn rapid_commit() {
    let rapid = |mac| Packet::discover(mac).option(80, &[]);
    let mut world = World::with(|subnet| subnet.rapid_commit = true);
    let ack = world.reply(&rapid(MAC));
    assert_eq!((ack.kind, ack.lease_secs), (MessageType::Ack, Some(3600)));
    assert_eq!(world.bound(ack.yiaddr).unwrap().state, LeaseState::Bound);
    let read = Read::of(&ack, &rapid(MAC));
    assert_eq!(read.get(80), Some(&[][..]));
    assert!(matches!(world.decide(&rapid(MAC)), Action::Reply(again) if *again == ack));
    assert_eq!(
        Read::of(&ack, &Packet::select(MAC, ack.yiaddr)).get(80),
        None
    );
    assert_eq!(
        world.reply(&Packet::discover(OTHER)).kind,
        MessageType::Offer
    );
    world.quorum = false;
    assert_eq!(world.answer(&rapid(OTHER)), Err(Reason::NoQuorum));
    // One that loses in `apply` is silence; the client's next DISCOVER gets another address.
    world.quorum = true;
    let Action::Propose(late) = world.decide(&rapid(OTHER)) else {
        panic!("a write");
    };
    let Command::Bind(bind) = &late else {
        panic!("{late:?}")
    };
    let first = Packet::select([2, 0, 0, 0, 0, 9], bind.address);
    assert_eq!(world.reply(&first).kind, MessageType::Ack);
    let lost = world.apply(late);
    let silence = world.view(true, |view| {
        conclude(
            &world.state,
            &rapid(OTHER).request(),
            &lost,
            view,
            world.now,
        )
    });
    assert_eq!(silence, Err(Reason::Refused));

    let mut world = World::new();
    assert_eq!(world.reply(&rapid(MAC)).kind, MessageType::Offer);
}

/// RFC 3527, RFC 3011: the link that is selected counts, and an unknown one is never the relay's.
#[test]
fn link_selection() {
    let mut world = World::new();
    let far = ip("192.0.2.1");
    let selected =
        |option: u8, value: &[u8]| Packet::discover(MAC).giaddr(far).option(option, value);
    let by_relay = selected(82, &[5, 4, 10, 77, 0, 0]);
    assert_eq!(world.reply(&by_relay).kind, MessageType::Offer);
    let by_client = selected(118, &[10, 77, 0, 0]);
    assert_eq!(world.reply(&by_client).kind, MessageType::Offer);
    let unknown = Packet::discover(MAC)
        .giaddr(RELAY)
        .option(82, &[5, 4, 203, 0, 113, 1]);
    assert_eq!(world.answer(&unknown), Err(Reason::UnknownSubnet));
}

/// RFC 5107: the relay's address stands in for ours, in both directions.
#[test]
fn server_identifier_override() {
    let mut world = World::new();
    let relayed = |packet: Packet| packet.giaddr(RELAY).option(82, &[11, 4, 10, 77, 0, 254]);
    let offer = world.reply(&relayed(Packet::discover(MAC)));
    assert_eq!(offer.server_id, RELAY);
    let select = Packet::select(MAC, offer.yiaddr).option(54, &RELAY.octets());
    let ack = world.reply(&relayed(select.clone()));
    assert_eq!((ack.kind, ack.server_id), (MessageType::Ack, RELAY));
    assert_eq!(
        silent(&world.decide(&select)),
        Some(Reason::ForeignServer),
        "without the relay's word it is nobody's"
    );
}

/// A link with addresses of two subnets: the one of the address at hand serves the client, with its
/// own routers; an address of either is on the right network.
#[test]
fn two_subnets_share_a_link() {
    let annex = ip("10.78.0.1");
    let both = |mut packet: Packet| {
        packet.arrival.link = [annex, NODE].into();
        packet
    };
    let mut world = World::with(|subnet| subnet.pools.truncate(0));
    world.put(Object::Subnet(Box::new(Subnet {
        name: "annex".to_owned(),
        cidr: "10.78.0.0/24".parse().unwrap(),
        pools: vec!["10.78.0.100-10.78.0.199".parse().unwrap()],
        routers: vec![annex],
        ..subnet()
    })));
    world.reserve("10.77.0.50", OTHER);
    let offer = world.reply(&both(Packet::discover(MAC)));
    assert!(
        "10.78.0.0/24"
            .parse::<Ipv4Net>()
            .unwrap()
            .contains(&offer.yiaddr)
    );
    assert_eq!(offer.parameters[&3], annex.octets());
    let reserved = world.reply(&both(Packet::discover(OTHER)));
    assert_eq!(reserved.yiaddr, ip("10.77.0.50"));
    assert_ne!(offer.parameters[&3], reserved.parameters[&3]);

    let ack = world
        .answer(&both(Packet::select(MAC, offer.yiaddr)))
        .unwrap()
        .unwrap();
    assert_eq!((ack.kind, ack.yiaddr), (MessageType::Ack, offer.yiaddr));
    assert_eq!(ack.parameters[&3], annex.octets());
    let again = world.reply(&both(Packet::reboot(MAC, offer.yiaddr)));
    assert_eq!(again.kind, MessageType::Ack);
    // Known, but not with this address; and nobody's network.
    for wrong in ["10.77.0.50", "192.0.2.7"] {
        let Action::Reply(nak) = world.decide_confirmed(&both(Packet::reboot(MAC, ip(wrong))))
        else {
            panic!("no answer for {wrong}");
        };
        assert_eq!(nak.kind, MessageType::Nak);
    }
}
