//! Who a client is, and what it gets by it: reservations, shared networks, classes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod lease_world;

use std::net::Ipv4Addr;

use lease_world::*;
use muster_storage::command::Client;
use muster_storage::model::{Object, Octets, Reservation, Subnet, TextOctets};
use muster_storage::state::{Claim, Grant};

/// RFC 4578 §2.3: the ROM sends its UUID, the operating system does not; both have the address. The
/// second card of the machine gets another.
#[test]
fn a_reservation_by_uuid_lasts_through_the_boot() {
    let uuid = uuid::Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
    let swapped = uuid::Uuid::from_bytes_le(*uuid.as_bytes());
    for sent in [uuid, swapped] {
        let mut world = World::new(10);
        let reservation = Reservation {
            uuid: Some(uuid),
            ..owner(ip(50))
        };
        world.put(Object::Reservation(reservation)).result.unwrap();
        let mut rom = client(1);
        rom.boots = true;
        rom.traits.uuid = Some(sent);
        assert_eq!(world.offer(&rom), Some((ip(50), Grant::Reservation)));
        world.bind(&rom, ip(50)).unwrap();
        let system = Client {
            client_id: Some(Octets(vec![1, 2, 3])),
            ..client(1)
        };
        assert_eq!(world.offer(&system), Some((ip(50), Grant::Reservation)));
        world.bind(&system, ip(50)).unwrap();
        let second_card = Client {
            mac: Some(mac_of(2)),
            ..rom
        };
        assert_eq!(world.bind(&second_card, ip(50)), taken(ip(50)));
        assert_eq!(world.offer(&second_card).unwrap().1, Grant::Pool);
        assert_ne!(world.offer(&client(3)).unwrap().0, ip(50));
    }
}

/// RFC 3046 §3.1 and §3.2: whoever is on the port has the address; a renewal by unicast comes
/// without the relay's word.
#[test]
fn a_reservation_by_relay_port() {
    let mut world = World::new(10);
    let text = |text: &str| Some(TextOctets(text.as_bytes().to_vec()));
    let relayed = |number: u8, circuit: &str, remote: &str| {
        let mut relay = vec![1, circuit.len() as u8];
        relay.extend(circuit.bytes());
        relay.extend([2, remote.len() as u8]);
        relay.extend(remote.bytes());
        Client {
            relay: Some(Octets(relay)),
            ..client(number)
        }
    };
    for (address, circuit_id, remote_id) in [
        (ip(50), text("Gi1/0/1"), None),
        (ip(51), text("Gi1/0/1"), text("leaf2")),
        (ip(52), None, text("leaf3")),
    ] {
        let reservation = Reservation {
            circuit_id,
            remote_id,
            ..owner(address)
        };
        world.put(Object::Reservation(reservation)).result.unwrap();
    }
    let rows = [
        (relayed(1, "Gi1/0/1", "leaf1"), Some(ip(50))),
        (relayed(2, "Gi1/0/1", "leaf2"), Some(ip(51))),
        (relayed(3, "Gi1/0/9", "leaf3"), Some(ip(52))),
        (relayed(4, "Gi1/0/9", "leaf1"), None),
        (client(5), None),
    ];
    for (client, expected) in rows {
        let (address, rule) = world.offer(&client).unwrap();
        let reserved = (rule == Grant::Reservation).then_some(address);
        assert_eq!(reserved, expected, "{client:?}");
    }
    let on_port = relayed(1, "Gi1/0/1", "leaf1");
    world.bind(&on_port, ip(50)).unwrap();
    let past_the_relay = world.state.confirmable(&client(1), ip(50), world.now);
    assert!(past_the_relay.is_some());
    world.bind(&client(1), ip(50)).unwrap();
    // Another machine on the port waits until the first one's promise is over.
    let next = relayed(6, "Gi1/0/1", "leaf1");
    assert_eq!(world.bind(&next, ip(50)), taken(ip(50)));
    world.release(&client(1), ip(50)).result.unwrap();
    world.reclaim();
    assert_eq!(world.offer(&next), Some((ip(50), Grant::Reservation)));
}

/// Subnets of one shared network are one link, also for a relay with an address of one of them.
#[test]
fn subnets_may_say_that_they_share_a_link() {
    let mut world = World::new(1);
    let subnet = |name: &str, network: u8, shared: Option<&str>| {
        let subnet = serde_json::json!({
            "name": name, "cidr": format!("10.{network}.0.0/24"), "lease_secs": LEASE,
            "pools": [format!("10.{network}.0.100-10.{network}.0.100")],
            "shared_network": shared,
        });
        Object::Subnet(serde_json::from_value(subnet).unwrap())
    };
    world.put(subnet("lab", 77, Some("hall"))).result.unwrap();
    world.put(subnet("annex", 78, Some("hall"))).result.unwrap();
    world.put(subnet("other", 79, None)).result.unwrap();
    let annex = Ipv4Addr::new(10, 78, 0, 100);
    world.bind(&client(1), ip(100)).unwrap();
    assert_eq!(world.offer(&client(2)), Some((annex, Grant::Pool)));
    assert_eq!(world.bind(&client(2), annex).unwrap().subnet, "annex");
    let behind_annex = Client {
        link: vec![Ipv4Addr::new(10, 78, 0, 1)],
        ..client(1)
    };
    assert_eq!(
        world.offer(&behind_annex),
        Some((ip(100), Grant::Binding)),
        "one binding on the link"
    );
    assert_eq!(world.offer(&client(3)), None);
    world.put(subnet("annex", 78, None)).result.unwrap();
    assert_eq!(world.bind(&client(2), annex), foreign(annex));
}

/// Who is in a class gets its addresses from the class's pools, who is not never does, and what a
/// client has it keeps through the stages of its boot. Times are the first class's that names one.
#[test]
fn classes_have_pools_and_times() {
    let mut world = World::new(2);
    let lab: Box<Subnet> = serde_json::from_value(serde_json::json!({
        "name": "lab", "cidr": "10.77.0.0/24", "lease_secs": LEASE,
        "pools": ["10.77.0.100-10.77.0.101"],
        "classes": [
            {"name": "ipxe", "match": {"user_classes": ["iPXE"]}, "lease_secs": 300},
            {"name": "uefi", "match": {"vendor_classes": ["PXEClient*"], "architectures": [7, 9]},
             "pools": ["10.77.0.110-10.77.0.110"], "lease_secs": 600},
            {"name": "port", "match": {"circuit_ids": ["0x0001"]},
             "pools": ["10.77.0.120-10.77.0.120"]},
        ],
    }))
    .unwrap();
    world.put(Object::Subnet(lab)).result.unwrap();
    let rom = |number: u8, architecture: u16| {
        let mut rom = client(number);
        rom.boots = true;
        rom.traits.vendor_class = Some("PXEClient:Arch:00007".to_owned());
        rom.traits.architectures = vec![architecture];
        rom
    };
    let mut ipxe = rom(1, 7);
    ipxe.traits.user_classes = vec!["iPXE".to_owned()];
    let on_port = Client {
        relay: Some(Octets(vec![1, 2, 0, 1])),
        ..client(4)
    };
    let rows = [
        (rom(1, 7), Some(ip(110)), 600),
        (ipxe.clone(), Some(ip(110)), 300),
        (rom(2, 0), None, 3600),
        (client(3), None, 3600),
        (on_port.clone(), Some(ip(120)), 3600),
    ];
    for (client, expected, secs) in rows {
        let offer = world.state.offer(&client, &|_| Claim::None, world.now);
        let offer = offer.unwrap();
        match expected {
            Some(address) => assert_eq!(offer.address, address, "{client:?}"),
            None => assert!((ip(100)..=ip(101)).contains(&offer.address), "{client:?}"),
        }
        assert_eq!(offer.lease_secs, secs, "{client:?}");
    }
    assert_eq!(world.bind(&client(3), ip(110)), foreign(ip(110)));
    assert_eq!(world.bind(&rom(1, 7), ip(100)), foreign(ip(100)));
    let first = world.bind(&rom(1, 7), ip(110)).unwrap();
    assert_eq!(first.promised_until, START.plus_secs(600));
    assert_eq!(world.bind(&ipxe, ip(110)).unwrap().address, ip(110));
    assert_eq!(world.offer(&client(1)), Some((ip(110), Grant::Binding)));
    let system = world.bind(&client(1), ip(110)).unwrap();
    assert_eq!(system.promised_until, START.plus_secs(LEASE));
    // A class that is full gives nobody another's addresses.
    assert_eq!(world.offer(&rom(5, 9)), None);
    // A renewal by unicast is of the port's class although it does not say so.
    world.bind(&on_port, ip(120)).unwrap();
    assert_eq!(world.offer(&client(4)), Some((ip(120), Grant::Binding)));
}
