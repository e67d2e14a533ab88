//! What a cluster adds to RFC 2131 table 4: offers of several nodes, identifiers of others, and what
//! is not said without a quorum.
use crate::world::*;
use dhcproto::v4::MessageType;
use muster_node::dhcp::decide::{Action, Reason};
use muster_storage::Command;
use muster_storage::state::Claim;

/// §4.3.1: what others were offered is left alone, and an offer stands when it is asked for again,
/// also at a node that would have chosen another address by now.
#[test]
fn an_offer_stands_and_keeps_others_away() {
    let mut world = World::new();
    let first = world.reply(&Packet::discover(MAC)).yiaddr;
    world.claimed.push(first);
    let second = world.reply(&Packet::discover(MAC)).yiaddr;
    assert_ne!(second, first);
    world.claimed.clear();
    world.offered = Some(second);
    assert_eq!(world.reply(&Packet::discover(MAC)).yiaddr, second);
    let asked = ip("10.77.0.150");
    let packet = Packet::discover(MAC).option(50, &asked.octets());
    assert_eq!(world.reply(&packet).yiaddr, asked);
    world.claimed.push(second);
    assert_eq!(world.reply(&Packet::discover(MAC)).yiaddr, first);
    let own = world.lease(MAC);
    assert_eq!(world.reply(&packet).yiaddr, own);
}

/// A node whose share of the pool is on offer leaves new clients to the others, but not those that
/// it owes an address; and not for ever.
#[test]
fn what_falls_to_peers_is_left_to_them_first() {
    let mut world = World::new();
    world.lease(OTHER);
    world.claim = Claim::Peer;
    let left = Some(Reason::LeftToPeer);
    assert_eq!(silent(&world.decide(&Packet::discover(MAC))), left);
    assert_eq!(
        world.reply(&Packet::discover(OTHER)).kind,
        MessageType::Offer
    );
    world.insist = true;
    assert_eq!(world.reply(&Packet::discover(MAC)).kind, MessageType::Offer);
    (world.claim, world.insist) = (Claim::Own, false);
    assert_eq!(world.reply(&Packet::discover(MAC)).kind, MessageType::Offer);
}

/// When all that is free is on offer, a new client waits until it asks again: of two that are offered
/// one address one loses. Those that are owed an address do not wait.
#[test]
fn what_is_on_offer_is_offered_to_no_other_at_first() {
    let mut world = World::new();
    world.lease(OTHER);
    world.claim = Claim::Offered;
    let discover = Packet::discover(MAC);
    assert_eq!(silent(&world.decide(&discover)), Some(Reason::LeftToPeer));
    world.insist = true;
    assert_eq!(silent(&world.decide(&discover)), Some(Reason::AllOffered));
    let owed = world.reply(&Packet::discover(OTHER));
    assert_eq!(owed.kind, MessageType::Offer);
    world.again = true;
    assert_eq!(world.reply(&discover).kind, MessageType::Offer);
}

/// A removed member's identifier is honoured while leases live that it may have granted.
#[test]
fn a_removed_members_identifier_is_honoured_for_a_while() {
    let mut world = World::new();
    let address = world.lease(MAC);
    let peer = world.state.member_named("b").unwrap().id;
    world.apply(Command::RemoveMember { node: peer });
    let select = Packet::select(MAC, address).option(54, &PEER.octets());
    assert_eq!(world.reply(&select).server_id, PEER);
    world.pass(3 * 3600);
    assert_eq!(silent(&world.decide(&select)), Some(Reason::ForeignServer));
}

/// A client that renews keeps the server it knows, whoever answers in its place; when that one is
/// gone it learns of another, to which its next renewal goes.
#[test]
fn a_renewal_keeps_its_server_while_that_lives() {
    let mut world = World::new();
    let own_node = world.node;
    let peer = world.state.member_named("b").unwrap().id;
    world.node = peer;
    let own = world.lease(MAC);
    world.node = own_node;
    for packet in [Packet::rebind(MAC, own), Packet::reboot(MAC, own)] {
        assert_eq!(world.reply(&packet).server_id, PEER);
    }
    let chosen = Packet::renew(MAC, own);
    assert_eq!(
        world.reply(&chosen).server_id,
        NODE,
        "by unicast to this one"
    );
    world.dead = Some(peer);
    for packet in [Packet::rebind(MAC, own), Packet::reboot(MAC, own)] {
        assert_eq!(world.reply(&packet).server_id, NODE);
    }
}

/// Invariants 4 and 5: no NAK and nothing new without a quorum; what is committed is confirmed,
/// never past its end less the margin, and only by a node that has caught up.
#[test]
fn without_a_quorum() {
    let mut world = World::new();
    let own = world.lease(MAC);
    world.quorum = false;
    let confirm = [
        Packet::select(MAC, own),
        Packet::reboot(MAC, own),
        Packet::renew(MAC, own),
        Packet::rebind(MAC, own),
        Packet::discover(MAC),
    ];
    // Committed until 7200 s after the bind.
    for (passed, promised) in [(0, 3600), (3500, 3600), (100, 3590), (3000, 590)] {
        world.pass(passed);
        for packet in &confirm {
            let reply = world.reply(packet);
            assert_eq!(reply.lease_secs, Some(promised), "{packet:?}");
        }
    }
    world.pass(550);
    for packet in &confirm {
        assert_eq!(world.answer(packet), Err(Reason::NoQuorum), "{packet:?}");
    }
    let mut world = World::new();
    let own = world.lease(MAC);
    world.quorum = false;
    let silence = [
        Packet::discover(OTHER),
        Packet::select(OTHER, ip("10.77.0.120")),
        Packet::select(MAC, ip("10.77.0.7")),
        Packet::reboot(MAC, ip("192.0.2.7")),
        Packet::renew(OTHER, own),
        release(MAC, own),
        decline(MAC, own),
    ];
    for packet in &silence {
        assert_eq!(world.answer(packet), Err(Reason::NoQuorum), "{packet:?}");
    }
    world.caught_up = false;
    for packet in &confirm {
        assert_eq!(world.answer(packet), Err(Reason::NotCaughtUp), "{packet:?}");
    }
}

/// Invariant 7, the rest: what needs no lease is served, what a client asks for at most is kept to,
/// and no option makes a write of it.
#[test]
fn without_a_quorum_what_promises_nothing_new_is_served() {
    let mut world = World::with(|subnet| subnet.rapid_commit = true);
    let own = world.lease(MAC);
    world.reserve("10.77.0.50", OTHER);
    world.quorum = false;
    let inform = Packet::new(MessageType::Inform, OTHER)
        .ciaddr(ip("10.77.0.7"))
        .unicast(ip("10.77.0.7"));
    let reply = world.reply(&inform);
    assert_eq!((reply.kind, reply.lease_secs), (MessageType::Ack, None));
    let mut short = Packet::renew(MAC, own).option(51, &600u32.to_be_bytes());
    assert_eq!(world.reply(&short).lease_secs, Some(600));
    let rapid = |mac| Packet::discover(mac).option(80, &[]);
    let reply = world.reply(&rapid(MAC));
    assert_eq!(reply.yiaddr, own, "what is committed");
    for packet in [
        rapid(OTHER),
        Packet::discover(OTHER),
        Packet::select(OTHER, ip("10.77.0.50")),
    ] {
        assert_eq!(world.answer(&packet), Err(Reason::NoQuorum), "{packet:?}");
    }
    // To the last second of what is committed, less the margin, and not one more.
    let margin = u64::from(world.state.settings().lease_margin_secs);
    let left = world.bound(own).unwrap().expires_at.secs_since(world.now);
    world.pass(left - margin - 60);
    short = Packet::renew(MAC, own);
    assert_eq!(world.reply(&short).lease_secs, Some(60));
    world.pass(1);
    assert_eq!(world.answer(&short), Err(Reason::NoQuorum));
    // Nor has anybody else got it by then: the others free it after the margin.
    world.quorum = true;
    world.pass(59 + margin);
    world.apply(Command::Expire);
    let newcomer = Packet::select([0x52, 0x54, 0, 0, 0, 0x52], own);
    assert_eq!(world.reply(&newcomer).kind, MessageType::Nak);
    world.pass(margin);
    world.apply(Command::Expire);
    assert_eq!(world.reply(&newcomer).yiaddr, own);
}

/// A node that has just started asks a quorum before it confirms from what it has on disk, and before
/// it offers what is free by that.
#[test]
fn after_a_start_the_first_answers_are_checked() {
    let mut world = World::new();
    let own = world.lease(MAC);
    world.caught_up = false;
    for (packet, answer) in [
        (Packet::renew(MAC, own), MessageType::Ack),
        (Packet::discover(OTHER), MessageType::Offer),
    ] {
        assert_eq!(world.decide(&packet), Action::Confirm);
        assert_eq!(world.reply(&packet).kind, answer);
    }
}

/// No NAK and no "unknown" before catching up: the lease may be newer than what this node has.
#[test]
fn silence_for_want_of_knowledge_comes_after_catching_up() {
    let world = World::new();
    let address = ip("10.77.0.120");
    for packet in [
        Packet::reboot(MAC, address),
        Packet::reboot(MAC, ip("192.0.2.7")),
        Packet::renew(MAC, address),
        Packet::rebind(MAC, address),
        release(MAC, address),
        decline(MAC, address),
    ] {
        assert_eq!(world.decide(&packet), Action::Confirm, "{packet:?}");
    }
}

/// A bind that loses in `apply` is a fact: NAK for who believes to have the address.
#[test]
fn a_renewal_that_loses_is_told() {
    let mut world = World::new();
    let own = world.lease(MAC);
    world.pass(3 * 3600);
    world.apply(Command::Expire);
    let taken = Packet::select(OTHER, own);
    let renewal = Packet::rebind(MAC, own);
    let Action::Propose(command) = world.decide(&renewal) else {
        panic!("the address is free still");
    };
    world.reply(&taken);
    let outcome = world.apply(command);
    let reply = world.view(true, |view| {
        muster_node::dhcp::decide::conclude(
            &world.state,
            &renewal.request(),
            &outcome,
            view,
            world.now,
        )
    });
    assert_eq!(reply.unwrap().unwrap().kind, MessageType::Nak);
}
