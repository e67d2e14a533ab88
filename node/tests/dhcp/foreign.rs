//! Which DHCP servers that clients choose are told of.
use crate::world::{MAC, NODE, OTHER, PEER, Packet, RELAY, World, ip};
use dhcproto::v4::MessageType;
use muster_node::dhcp::foreign::intruder;
use muster_storage::model::{Subnet, SubnetMode};

type Change = fn(&mut Subnet);

const FOREIGN: [u8; 4] = [10, 77, 0, 9];

fn seen(world: &World, packet: &Packet) -> Option<(String, [u8; 4])> {
    let request = packet.request();
    let (subnet, server) = intruder(&world.state, &request, world.now)?;
    Some((subnet.name.clone(), server.octets()))
}

fn takes(server: &[u8; 4]) -> Packet {
    Packet::select(MAC, ip("10.77.0.120")).option(54, server)
}

#[test]
fn an_intruder_is_who_is_chosen_and_should_not_be_there() {
    let intruder = Some(("lab".to_owned(), FOREIGN));
    let nothing = |_: &mut Subnet| {};
    let proxy = |subnet: &mut Subnet| subnet.mode = SubnetMode::Proxy;
    let off = |subnet: &mut Subnet| subnet.mode = SubnetMode::Off;
    let reserved = |subnet: &mut Subnet| subnet.mode = SubnetMode::ReservedOnly;
    let named = |subnet: &mut Subnet| subnet.foreign_servers = vec![FOREIGN.into()];
    let other = |subnet: &mut Subnet| subnet.foreign_servers = vec![ip("10.77.0.8")];
    let settings: [(&str, Change, _); 6] = [
        ("full", nothing, intruder.clone()),
        ("reserved-only", reserved, intruder.clone()),
        ("another is expected", other, intruder.clone()),
        ("it is expected", named, None),
        ("proxy", proxy, None),
        ("off", off, None),
    ];
    for (case, change, expected) in settings {
        let world = World::with(change);
        assert_eq!(seen(&world, &takes(&FOREIGN)), expected, "{case}");
        let relayed = takes(&FOREIGN).giaddr(RELAY);
        assert_eq!(seen(&world, &relayed), expected, "{case}, relayed");
    }

    let world = World::new();
    let override_ = [11, 4, FOREIGN[0], FOREIGN[1], FOREIGN[2], FOREIGN[3]];
    let quiet = [
        ("this node", takes(&NODE.octets())),
        ("a peer", takes(&PEER.octets())),
        ("nobody", takes(&[0; 4])),
        ("everybody", takes(&[255; 4])),
        (
            "the relay's word",
            takes(&FOREIGN).giaddr(RELAY).option(82, &override_),
        ),
        ("no choice", Packet::reboot(MAC, ip("10.77.0.120"))),
        (
            "a release",
            Packet::new(MessageType::Release, OTHER).option(54, &FOREIGN),
        ),
        ("no subnet", takes(&FOREIGN).giaddr(ip("192.0.2.1"))),
    ];
    for (case, packet) in quiet {
        assert_eq!(seen(&world, &packet), None, "{case}");
    }
}
