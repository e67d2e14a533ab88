//! The packet path under mutated packets: parser, decision, commit, reply.
//!
//! Each round is one history: packets of `corpus/dhcp`, changed in ways that a stupid or hostile
//! sender might, come one after another to a living state, and what is proposed is committed. The
//! rounds are the same each time, from [`SEED`]; `MUSTER_FUZZ_ROUNDS` asks for more of them, and a
//! packet that breaks a rule is printed as it belongs into the corpus.
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::world::*;
use dhcproto::v4::MessageType;
use muster_node::dhcp::decide::{Action, conclude, decide};
use muster_node::dhcp::reply::Reply;
use muster_node::dhcp::request::{Arrival, Request};
use muster_storage::model::{ClientKey, LeaseState};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

const SEED: u64 = 0x6d75_7374;

/// Histories in a run of all tests.
const ROUNDS: u64 = 400;

/// Packets in a history.
const PACKETS: usize = 40;

/// Octets of the header before the options.
const HEADER: usize = 240;

/// Option codes that the packet path looks at.
const CODES: [u8; 24] = [
    12, 43, 50, 51, 52, 53, 54, 55, 57, 60, 61, 77, 80, 82, 93, 97, 118, 124, 125, 175, 208, 0,
    254, 255,
];

fn corpus() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/dhcp");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|problem| panic!("{folder:?}: {problem}"))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            hex::decode(text.split_whitespace().collect::<String>())
                .unwrap_or_else(|problem| panic!("{path:?}: {problem}"))
        })
        .collect()
}

/// A site with everything that a packet may meet: classes, reservations, a shared network.
fn site() -> World {
    let mut world = World::with(|subnet| {
        subnet.pools = vec!["10.77.0.118-10.77.0.123".parse().unwrap()];
        subnet.rapid_commit = true;
        subnet.shared_network = Some("hall".to_owned());
        let mut set = |code: &str, value: &str| {
            subnet.options.insert(code.to_owned(), value.to_owned());
        };
        set("209", "pxelinux.cfg/{{ node }}");
        set("225", &"long ".repeat(90));
        set("119", "lab.example, example");
        subnet.classes = serde_json::from_value(serde_json::json!([
            {"name": "roms", "match": {"vendor_classes": ["PXEClient*"]}, "lease_secs": 300,
             "options": {"43": "0x060108ff", "224": "rom"}},
            {"name": "port", "match": {"circuit_ids": ["Gi1"]},
             "pools": ["10.77.0.130-10.77.0.131"]},
        ]))
        .unwrap();
    });
    let mut annex = subnet();
    annex.name = "annex".to_owned();
    annex.cidr = "10.78.0.0/24".parse().unwrap();
    annex.pools = vec!["10.78.0.10-10.78.0.11".parse().unwrap()];
    annex.shared_network = Some("hall".to_owned());
    world.put(muster_storage::model::Object::Subnet(Box::new(annex)));
    world.reserve("10.77.0.120", OTHER);
    world.machine("m1", MAC);
    world
}

/// One of the ways in which a packet is changed.
fn mutate(random: &mut StdRng, packet: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let any = |random: &mut StdRng, length: usize| random.random_range(0..length.max(1));
    match random.random_range(0..10) {
        0 => {
            let at = any(random, packet.len());
            if let Some(octet) = packet.get_mut(at) {
                *octet = random.random();
            }
        }
        1 => {
            let at = any(random, packet.len());
            if let Some(octet) = packet.get_mut(at) {
                *octet ^= 1 << random.random_range(0..8);
            }
        }
        2 => packet.truncate(any(random, packet.len() + 1)),
        // Another client, of few, so that they meet.
        3 | 4 => {
            if let Some(octet) = packet.get_mut(33) {
                *octet = 0x50 + random.random_range(0..6u8);
            }
        }
        // Another message.
        5 => {
            if let Some([53, 1, kind]) = packet.get_mut(HEADER..HEADER + 3) {
                *kind = random.random_range(0..10);
            }
        }
        // An option of any length and value before the others.
        6 | 7 => {
            let code = *CODES.choose(random).unwrap();
            let length = *[0, 1, 2, 4, 4, 5, 17, 64, 255].choose(random).unwrap();
            let mut option = vec![code, length];
            option.extend((0..length).map(|_| random.random::<u8>()));
            let at = packet.len().min(HEADER + 3);
            packet.splice(at..at, option);
        }
        // An address of the pool where an address may stand.
        8 => {
            let address = [10, 77, 0, random.random_range(110..135u8)];
            let at = *[12, 24, HEADER + 5].choose(random).unwrap();
            if let Some(field) = packet.get_mut(at..at + 4) {
                field.copy_from_slice(&address);
            }
        }
        // The options of another packet after these.
        _ => {
            let other = corpus.choose(random).unwrap();
            if packet.last() == Some(&255) {
                packet.pop();
            }
            packet.extend(other.get(HEADER..).unwrap_or_default());
        }
    }
}

fn arrival(random: &mut StdRng) -> Arrival {
    Arrival {
        link: [NODE].into(),
        source: SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, random.random()), 68),
        destination: *[NODE, Ipv4Addr::BROADCAST].choose(random).unwrap(),
        boot_server: random.random_ratio(1, 8),
    }
}

/// What every reply keeps to, whatever it answers.
fn check(reply: &Reply, request: &Request) {
    let bytes = reply.encode(request);
    let limit = usize::from(request.max_size.unwrap_or(576)).clamp(576, 1500) - 28;
    // The relay's option is for the relay, which takes it out.
    let relay = request.relay.as_ref().map_or(0, |it| it.option.len() + 2);
    let limit = limit.max(HEADER + 1 + relay + 100);
    assert!(bytes.len() >= 300, "RFC 951: {}", bytes.len());
    assert!(
        bytes.len() <= limit,
        "RFC 2132 §9.10: {} > {limit}",
        bytes.len()
    );
    assert_eq!(bytes[0], 2);
    assert_eq!(bytes[2], request.hlen);
    assert_eq!(bytes[3], 0, "hops");
    assert_eq!(bytes[4..8], request.xid.to_be_bytes());
    assert_eq!(bytes[28..44], request.chaddr);
    let read = Read::bytes(bytes);
    assert_eq!(read.codes()[0], 53);
    assert_eq!(read.get(53), Some(&[u8::from(reply.kind)][..]));
    assert!(read.get(54).is_some());
    if let Some(relay) = &request.relay {
        assert_eq!(read.get(82), Some(&relay.option[..]), "RFC 3046 §2.2");
    }
    // What fits beside the rest.
    let id = request.client.client_id.as_ref();
    if let Some(id) = id.filter(|id| id.0.len() < 100) {
        assert_eq!(read.get(61), Some(&id.0[..]), "RFC 6842");
    }
    match reply.kind {
        MessageType::Nak => assert_eq!(read.bytes[12..24], [0; 12]),
        MessageType::Offer | MessageType::Ack => {
            let grants = reply.lease_secs.is_some();
            assert_eq!(read.get(51).is_some(), grants);
            assert_eq!(reply.yiaddr.is_unspecified(), !grants);
        }
        other => panic!("a server sends no {other:?}"),
    }
    let _ = reply.destination(request);
}

/// One packet as the shell treats it. Says to whom the ACK that it brought gives which address.
fn take(world: &mut World, bytes: &[u8], arrival: Arrival) -> Option<(ClientKey, Ipv4Addr)> {
    let request = Request::parse(bytes, arrival).ok()?;
    let look = |world: &World, confirmed| {
        world.view(confirmed, |view| {
            decide(&world.state, &request, view, world.now)
        })
    };
    let mut action = look(world, false);
    if let Action::Reply(reply) = &action {
        assert_ne!(reply.kind, MessageType::Nak, "a NAK before catching up");
    }
    if action == Action::Confirm {
        action = look(world, true);
    }
    let reply = match action {
        Action::Reply(reply) => *reply,
        Action::Silent(_) => return None,
        Action::Confirm => panic!("asked to confirm what is confirmed"),
        Action::Propose(command) => {
            assert!(world.quorum, "a write without a quorum");
            let outcome = world.apply(command);
            world.state.take_rows().expect("rows that can be stored");
            let reply = world.view(true, |view| {
                conclude(&world.state, &request, &outcome, view, world.now)
            });
            reply.ok().flatten()?
        }
    };
    check(&reply, &request);
    (reply.kind == MessageType::Ack && reply.lease_secs.is_some()).then(|| {
        let lease = world.bound(reply.yiaddr).expect("a lease that was ACKed");
        assert_eq!(lease.state, LeaseState::Bound);
        let promised = u64::from(reply.lease_secs.unwrap_or_default());
        assert!(
            lease.expires_at >= world.now.plus_secs(promised),
            "{lease:?}"
        );
        (lease.client.clone(), reply.yiaddr)
    })
}

fn history(seed: u64, corpus: &[Vec<u8>]) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = site();
    // Until when whom which address was promised to.
    let mut promised: BTreeMap<Ipv4Addr, (ClientKey, muster_storage::Timestamp)> = BTreeMap::new();
    for _ in 0..PACKETS {
        let mut packet = corpus.choose(&mut random).unwrap().clone();
        for _ in 0..random.random_range(0..5) {
            mutate(&mut random, &mut packet, corpus);
        }
        world.quorum = random.random_ratio(9, 10);
        world.pass(*[0, 0, 1, 60, 4000].choose(&mut random).unwrap());
        if world.quorum && random.random_ratio(1, 10) {
            world.apply(muster_storage::Command::Expire);
        }
        let arrival = arrival(&mut random);
        let given = catch_unwind(AssertUnwindSafe(|| take(&mut world, &packet, arrival)));
        let Ok(given) = given else {
            panic!("history {seed}, packet:\n{}", hex::encode(&packet));
        };
        if let Some((client, address)) = given {
            let end = world.bound(address).unwrap().expires_at;
            let before = promised.insert(address, (client.clone(), end));
            if let Some((other, until)) = before.filter(|(other, _)| *other != client) {
                // An owner passes its reservation between its own identities.
                let own = world.state.object(
                    muster_storage::model::ObjectKind::Reservation,
                    &address.to_string(),
                );
                assert!(
                    until <= world.now || own.is_some(),
                    "history {seed}: {address} of {other} went to {client} before {until}"
                );
            }
        }
    }
}

#[test]
fn mutated_packets_break_no_rule() {
    let corpus = corpus();
    let rounds = std::env::var("MUSTER_FUZZ_ROUNDS").map_or(ROUNDS, |text| {
        text.parse().expect("MUSTER_FUZZ_ROUNDS is a number")
    });
    for round in 0..rounds {
        history(SEED.wrapping_add(round), &corpus);
    }
}

/// A packet of the corpus that is answered by nothing tests nothing but the parser.
#[test]
fn the_corpus_reaches_every_part() {
    let mut kinds: Vec<u8> = Vec::new();
    for packet in corpus() {
        let mut world = site();
        let mut random = StdRng::seed_from_u64(SEED);
        let arrival = Arrival {
            boot_server: false,
            ..arrival(&mut random)
        };
        let request = Request::parse(&packet, arrival).expect("a packet without a fault");
        kinds.push(request.kind.into());
        take(&mut world, &packet, request.arrival);
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, [1, 3, 4, 7, 8]);
}
