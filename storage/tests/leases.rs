//! Who may have which address, and when another may: the rules of `State::offer` and of the lease
//! commands, as tables and as a property over random histories.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod lease_world;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use lease_world::*;
use muster_storage::command::Client;
use muster_storage::model::{ClientKey, LeaseRule, LeaseState, Object, ObjectKind, Octets};
use muster_storage::schema::Needs as _;
use muster_storage::state::{Claim, Grant};
use muster_storage::{Command, Mac, NodeId, State, Timestamp};
use proptest::prelude::*;

#[test]
fn a_bind_promises_less_than_it_commits() {
    let mut world = World::new(10);
    let lease = world.bind(&client(1), ip(100)).unwrap();
    assert_eq!(lease.promised_until, START.plus_secs(LEASE));
    assert_eq!(lease.expires_at, START.plus_secs(COMMITTED));
    assert_eq!(lease.held_until, lease.expires_at);
    let confirm = |world: &World| {
        let confirmed = world.state.confirmable(&client(1), ip(100), world.now);
        confirmed.map(|(_, secs)| secs)
    };
    assert_eq!(confirm(&world), Some(3600));
    world.pass(LEASE);
    assert_eq!(confirm(&world), Some(3600), "to the second");
    world.pass(1);
    assert_eq!(confirm(&world), None, "never past the committed end");
    assert_eq!(
        world.state.confirmable(&client(2), ip(100), world.now),
        None
    );
}

/// A lease says by which rule its holder got it, and an extension leaves that as it is.
#[test]
fn a_lease_names_its_rule() {
    let mut world = World::new(10);
    let subnet = serde_json::from_value(serde_json::json!({
        "name": "lab", "cidr": "10.77.0.0/24", "lease_secs": LEASE,
        "pools": ["10.77.0.100-10.77.0.109"],
        "classes": [{
            "name": "arm", "match": {"architectures": [11]}, "pools": ["10.77.0.200-10.77.0.209"],
        }],
    }))
    .unwrap();
    world.put(Object::Subnet(subnet)).result.unwrap();
    world.reserve(ip(50), 3).result.unwrap();
    let mut arm = client(2);
    arm.traits.architectures = vec![11];
    let in_class = LeaseRule::ClassPool("arm".to_owned());
    let cases = [
        (client(1), ip(100), LeaseRule::Pool),
        (arm, ip(200), in_class),
        (client(3), ip(50), LeaseRule::Reservation),
    ];
    for (client, address, rule) in cases {
        assert_eq!(world.bind(&client, address).unwrap().rule, rule);
        assert_eq!(world.bind(&client, address).unwrap().rule, rule, "extended");
    }
    let one = client(1);
    world.release(&one, ip(100)).result.unwrap();
    assert_eq!(world.lease(ip(100)).rule, LeaseRule::Pool, "as it was");
    let again = world.bind(&one, ip(100)).unwrap();
    assert_eq!(again.rule, LeaseRule::Previous);
    world.reserve(ip(100), 1).result.unwrap();
    assert_eq!(
        world.bind(&one, ip(100)).unwrap().rule,
        LeaseRule::Reservation
    );
}

#[test]
fn what_may_not_be_bound() {
    let mut world = World::new(10);
    world.bind(&client(1), ip(100)).unwrap();
    world.reserve(ip(105), 9).result.unwrap();
    world.reserve(ip(50), 9).result.unwrap();
    let two = client(2);
    assert_eq!(world.bind(&two, ip(100)), taken(ip(100)));
    assert_eq!(world.bind(&two, ip(105)), foreign(ip(105)), "reserved");
    assert_eq!(
        world.bind(&two, ip(50)),
        foreign(ip(50)),
        "reserved, no pool"
    );
    assert_eq!(world.bind(&two, ip(120)), foreign(ip(120)), "no pool");
    let far = Ipv4Addr::new(192, 0, 2, 1);
    assert_eq!(world.bind(&two, far), foreign(far), "another network");
    let astray = Client {
        link: vec![far],
        ..client(2)
    };
    assert_eq!(world.bind(&astray, ip(101)), foreign(ip(101)), "no subnet");
    // One that has an address gets no second one beside it.
    assert_eq!(world.bind(&client(1), ip(101)), foreign(ip(101)));
}

#[test]
fn an_expired_address_waits_for_the_margin() {
    let mut world = World::new(1);
    world.bind(&client(1), ip(100)).unwrap();
    world.pass(COMMITTED + MARGIN - 1);
    assert!(!world.state.has_expired(world.now));
    world.apply(Command::Expire);
    assert_eq!(world.bind(&client(2), ip(100)), taken(ip(100)));
    assert_eq!(world.offer(&client(2)), None);
    assert_eq!(world.offer(&client(1)), Some((ip(100), Grant::Previous)));
    world.pass(1);
    assert!(world.state.has_expired(world.now));
    assert_eq!(
        world.bind(&client(2), ip(100)),
        taken(ip(100)),
        "only a command of the leader frees it"
    );
    world.apply(Command::Expire);
    assert_eq!(world.lease(ip(100)).state, LeaseState::Expired);
    assert_eq!(world.offer(&client(2)), Some((ip(100), Grant::Pool)));
    world.bind(&client(2), ip(100)).unwrap();
    assert_eq!(world.bind(&client(1), ip(100)), taken(ip(100)));
}

/// Bound leases are counted as they come and go, and again when rows are loaded.
#[test]
fn bound_leases_are_counted_by_subnet() {
    let count = |state: &State| state.bound_by_subnet().map(|(_, count)| count).sum::<u64>();
    let mut world = World::new(3);
    assert_eq!(world.state.bound_by_subnet().count(), 0);
    for number in 1..=3 {
        let address = ip(99 + number);
        world.bind(&client(number), address).unwrap();
        world.bind(&client(number), address).unwrap();
    }
    assert_eq!(world.state.bound_by_subnet().next(), Some(("lab", 3)));
    let rows = world.state.rows().unwrap();
    let rows = rows
        .into_iter()
        .filter_map(|row| Some((row.key, row.value?)));
    assert_eq!(count(&State::load(rows).unwrap()), 3);
    world.release(&client(1), ip(100)).result.unwrap();
    world.decline(&client(2), ip(101)).result.unwrap();
    assert_eq!(count(&world.state), 1);
    world.pass(COMMITTED + MARGIN);
    world.apply(Command::Expire);
    assert_eq!(world.state.bound_by_subnet().count(), 0);
}

#[test]
fn a_renewal_keeps_the_longest_end() {
    let mut world = World::new(1);
    world.bind(&client(1), ip(100)).unwrap();
    let short = Client {
        lease_secs: Some(60),
        ..client(1)
    };
    let lease = world.bind(&short, ip(100)).unwrap();
    assert_eq!(lease.expires_at, START.plus_secs(120));
    assert_eq!(lease.held_until, START.plus_secs(COMMITTED));
    world.pass(1000);
    world.apply(Command::Expire);
    assert_eq!(world.bind(&client(2), ip(100)), taken(ip(100)));
}

#[test]
fn a_released_address_is_held_until_all_members_know() {
    let mut world = World::new(1);
    let lease = world.bind(&client(1), ip(100)).unwrap();
    let strange = world.release(&client(2), ip(100));
    assert!(strange.result.is_err());
    let before = world.state.revision();
    world.release(&client(1), ip(100)).result.unwrap();
    assert_eq!(world.lease(ip(100)).held_until, lease.held_until);
    assert!(!world.state.has_reclaimable(before));
    world.apply(Command::Reclaim {
        applied_by_all: before,
    });
    assert_eq!(world.bind(&client(2), ip(100)), taken(ip(100)));
    assert!(world.state.has_reclaimable(world.state.revision()));
    world.reclaim();
    assert_eq!(world.offer(&client(1)), Some((ip(100), Grant::Previous)));
    world.bind(&client(2), ip(100)).unwrap();
    // Without a reclaim its time must be over.
    let mut world = World::new(1);
    world.bind(&client(1), ip(100)).unwrap();
    world.release(&client(1), ip(100)).result.unwrap();
    world.pass(COMMITTED + MARGIN);
    world.apply(Command::Expire);
    world.bind(&client(2), ip(100)).unwrap();
}

#[test]
fn what_is_given_back_late_may_have_been_given_anew() {
    let mut world = World::new(1);
    world.apply(Command::RaiseSchema { to: 2 }).result.unwrap();
    let late = Command::RELEASE_MS;
    // When the lease was written last, when the client gave it back, and when that is written, in
    // milliseconds; and whether it is.
    let table = [
        (0, 0, 0, true),
        (0, 5, late + 5, true),
        (0, 5, late + 6, false),
        (6, 5, 7, false),
        (6, 6, 7, true),
    ];
    for (bound, sent, written, good) in table {
        let start = world.now;
        let at = |milliseconds: u64| Timestamp(start.0 + milliseconds);
        world.now = at(bound);
        world.bind(&client(1), ip(100)).unwrap();
        world.now = at(written);
        let outcome = world.apply(Command::Release {
            client: Box::new(client(1)),
            address: ip(100),
            sent: Some(at(sent)),
        });
        let state = world.lease(ip(100)).state;
        assert_eq!(outcome.result.is_ok(), good, "{bound} {sent} {written}");
        assert_eq!(state == LeaseState::Released, good);
        // Binaries that do not look at it must not read it.
        let (_, entry) = world.entries.last().unwrap();
        assert_eq!(entry.needs(), 2);
    }
}

#[test]
fn a_declined_address_is_nobodys() {
    let mut world = World::new(1);
    world.bind(&client(1), ip(100)).unwrap();
    assert!(world.decline(&client(2), ip(100)).result.is_err());
    world.decline(&client(1), ip(100)).result.unwrap();
    assert_eq!(world.offer(&client(1)), None);
    assert_eq!(world.bind(&client(1), ip(100)), taken(ip(100)));
    world.reclaim();
    assert_eq!(world.bind(&client(2), ip(100)), taken(ip(100)));
    world.pass(COMMITTED + MARGIN);
    world.apply(Command::Expire);
    assert_eq!(world.offer(&client(2)), Some((ip(100), Grant::Pool)));
}

/// An address that answers a probe is nobody's for a while, whether nobody ever had it or the client
/// that it was offered to has given it back; what somebody has is left alone.
#[test]
fn an_address_in_use_is_quarantined() {
    let quarantine = |number, address| Command::Quarantine {
        client: Box::new(client(number)),
        address,
        node: NodeId(1),
    };
    for returned in [false, true] {
        let mut world = World::new(1);
        if returned {
            world.bind(&client(1), ip(100)).unwrap();
            world.release(&client(1), ip(100)).result.unwrap();
        }
        world.apply(quarantine(1, ip(100))).result.unwrap();
        assert_eq!(world.lease(ip(100)).state, LeaseState::Declined);
        for number in [1, 2] {
            assert_eq!(world.offer(&client(number)), None);
            assert_eq!(world.bind(&client(number), ip(100)), taken(ip(100)));
        }
        for number in [1, 2] {
            let again = world.apply(quarantine(number, ip(100))).result;
            assert!(again.is_err(), "no longer quarantine by asking again");
        }
        let decline_secs = u64::from(world.state.settings().decline_secs);
        let secs = match returned {
            true => COMMITTED.max(decline_secs),
            false => decline_secs,
        };
        world.pass(secs + MARGIN);
        world.apply(Command::Expire);
        assert_eq!(world.offer(&client(2)), Some((ip(100), Grant::Pool)));
    }
    let mut world = World::new(2);
    world.bind(&client(2), ip(100)).unwrap();
    for number in [1, 2] {
        assert!(world.apply(quarantine(number, ip(100))).result.is_err());
    }
    assert_eq!(world.lease(ip(100)).state, LeaseState::Bound);
    world.reserve(ip(101), 9).result.unwrap();
    for elsewhere in [ip(101), ip(50), Ipv4Addr::new(192, 0, 2, 1)] {
        assert!(world.apply(quarantine(1, elsewhere)).result.is_err());
        assert!(world.state.lease(elsewhere).is_none(), "{elsewhere}");
    }
}

#[test]
fn a_reservation_waits_for_the_address_to_be_free() {
    let mut world = World::new(2);
    world.bind(&client(1), ip(100)).unwrap();
    world.reserve(ip(100), 2).result.unwrap();
    assert_eq!(world.bind(&client(2), ip(100)), taken(ip(100)));
    assert_eq!(world.offer(&client(2)), Some((ip(101), Grant::Pool)));
    assert_eq!(
        world.bind(&client(1), ip(100)),
        foreign(ip(100)),
        "no renewal"
    );
    world.pass(COMMITTED + MARGIN);
    world.apply(Command::Expire);
    assert_eq!(world.offer(&client(2)), Some((ip(100), Grant::Reservation)));
    world.bind(&client(2), ip(100)).unwrap();
}

#[test]
fn a_client_that_moves_gives_its_old_address_back() {
    let mut world = World::new(2);
    world.bind(&client(1), ip(100)).unwrap();
    world.reserve(ip(50), 1).result.unwrap();
    world.bind(&client(1), ip(50)).unwrap();
    assert_eq!(world.lease(ip(100)).state, LeaseState::Released);
    assert_eq!(world.bind(&client(2), ip(100)), taken(ip(100)));
    world.reclaim();
    world.bind(&client(2), ip(100)).unwrap();
}

/// An installer with a client identifier takes over its machine's reservation from the ROM; the
/// address stays held for as long as either was promised it.
#[test]
fn a_machines_reservation_passes_between_its_identities() {
    let mut world = World::new(2);
    let installer = Client {
        client_id: Some(Octets(vec![1, 2, 3])),
        ..client(3)
    };
    let first = world.bind(&installer, ip(100)).unwrap();
    assert_eq!(first.client, ClientKey::Id(Octets(vec![1, 2, 3])));
    world.reserve(ip(100), 3).result.unwrap();
    let rom = Client {
        lease_secs: Some(60),
        ..client(3)
    };
    let second = world.bind(&rom, ip(100)).unwrap();
    assert_eq!(second.client, ClientKey::Mac(mac_of(3)));
    assert_eq!(second.expires_at, START.plus_secs(120));
    assert_eq!(second.held_until, first.held_until);
}

#[test]
fn all_nodes_offer_the_same_and_losers_part() {
    let world = World::new(100);
    let mut addresses: Vec<Ipv4Addr> = (0..50)
        .map(|number| world.offer(&client(number)).unwrap().0)
        .collect();
    assert_eq!(addresses[7], world.clone().offer(&client(7)).unwrap().0);
    addresses.sort_unstable();
    addresses.dedup();
    assert!(addresses.len() > 30, "spread: {}", addresses.len());
    let first = world.offer(&client(1)).unwrap().0;
    let taken = |it| {
        if it == first {
            Claim::Offered
        } else {
            Claim::None
        }
    };
    let second = world.state.offer(&client(1), &taken, world.now);
    assert_ne!(second.unwrap().address, first);
}

/// However few are left and wherever they are, an address that nobody claims is found; and when all
/// are claimed, the one with the weakest claim.
#[test]
fn the_last_address_that_nobody_claims_is_found() {
    let world = World::new(150);
    for number in 0..150 {
        let left = ip(100 + number);
        let claim = |it| {
            if it == left {
                Claim::None
            } else {
                Claim::Offered
            }
        };
        let found = world.state.offer(&client(1), &claim, world.now);
        assert_eq!(found.unwrap().address, left);
        let claim = |it| {
            if it == left {
                Claim::Peer
            } else {
                Claim::Offered
            }
        };
        let found = world.state.offer(&client(1), &claim, world.now);
        assert_eq!(found.unwrap().address, left);
    }
    let all = world
        .state
        .offer(&client(1), &|_| Claim::Offered, world.now);
    assert!(all.is_some(), "offers may lapse");
}

/// Two subnets on one link: what the client has or is owed on either comes first, then the pools in
/// order of the networks, whichever address of the interface comes first.
#[test]
fn subnets_share_a_link() {
    let mut world = World::new(1);
    let second = serde_json::from_value(serde_json::json!({
        "name": "annex", "cidr": "10.78.0.0/24", "lease_secs": LEASE,
        "pools": ["10.78.0.100-10.78.0.101"],
    }));
    world.put(Object::Subnet(second.unwrap())).result.unwrap();
    let annex = |last| Ipv4Addr::new(10, 78, 0, last);
    let on_both = |number| Client {
        link: vec![annex(1), ip(1)],
        ..client(number)
    };
    assert_eq!(world.offer(&on_both(1)), Some((ip(100), Grant::Pool)));
    let swapped = Client {
        link: vec![ip(1), annex(1)],
        ..on_both(1)
    };
    assert_eq!(world.offer(&swapped), Some((ip(100), Grant::Pool)));
    assert_eq!(world.bind(&on_both(1), ip(100)).unwrap().subnet, "lab");

    let (other, rule) = world.offer(&on_both(2)).unwrap();
    assert_eq!(rule, Grant::Pool);
    assert_eq!(world.bind(&on_both(2), other).unwrap().subnet, "annex");
    assert_eq!(world.offer(&on_both(2)), Some((other, Grant::Binding)));
    assert!(
        world
            .state
            .confirmable(&on_both(2), other, world.now)
            .is_some()
    );
    // One binding on the link, not one on each subnet.
    world.bind(&on_both(1), other).unwrap_err();
    let free = if other == annex(100) {
        annex(101)
    } else {
        annex(100)
    };
    world.bind(&on_both(1), free).unwrap_err();

    world.reserve(free, 2).result.unwrap();
    assert_eq!(world.offer(&on_both(2)), Some((free, Grant::Reservation)));
    assert_eq!(world.bind(&on_both(2), free).unwrap().subnet, "annex");
    assert_eq!(world.lease(other).state, LeaseState::Released);
}

#[test]
fn a_correction_of_the_time_cuts_no_promise_short() {
    let mut world = World::new(2);
    let bound = world.bind(&client(1), ip(100)).unwrap();
    world.decline(&client(1), ip(100));
    let declined = world.lease(ip(100)).held_until;
    let bound = world.bind(&client(2), ip(101)).unwrap_or(bound);
    world.correct_time(7200);
    let moved = world.lease(ip(101));
    assert_eq!(moved.expires_at, bound.expires_at.plus_secs(7200));
    assert_eq!(moved.promised_until, bound.promised_until.plus_secs(7200));
    assert_eq!(moved.bound_at, bound.bound_at);
    assert_eq!(world.lease(ip(100)).held_until, declined.plus_secs(7200));
    assert!(!world.state.has_expired(world.now));
    // To where it is already, or back: nothing happens.
    for secs in [0, 60] {
        let to = Timestamp(world.now.0 - secs * 1000);
        world.apply(Command::CorrectTime { to });
        assert_eq!(world.state.time(), world.now);
        assert_eq!(
            world.lease(ip(101)).expires_at,
            bound.expires_at.plus_secs(7200)
        );
    }
}

#[derive(Clone, Debug)]
enum Step {
    Dora(u8, Option<u8>),
    Bind(u8, Option<u8>, u8),
    Release(u8, Option<u8>, u8),
    Decline(u8, Option<u8>, u8),
    EndLease(u8),
    Expire,
    Reclaim,
    Pass(u16),
    CorrectTime(u16),
    Reserve(u8, u8),
    Unreserve(u8),
    Subnet(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || (0u8..5, proptest::option::weighted(0.2, 0u8..2));
    let address = || 98u8..106;
    let step = prop_oneof![
        6 => who().prop_map(|(mac, id)| Step::Dora(mac, id)),
        3 => (who(), address()).prop_map(|((mac, id), at)| Step::Bind(mac, id, at)),
        2 => (who(), address()).prop_map(|((mac, id), at)| Step::Release(mac, id, at)),
        1 => (who(), address()).prop_map(|((mac, id), at)| Step::Decline(mac, id, at)),
        1 => address().prop_map(Step::EndLease),
        3 => Just(Step::Expire),
        2 => Just(Step::Reclaim),
        // Around the ends of leases, their margins and quarantines.
        4 => prop_oneof![
            (0u16..5000).boxed(),
            proptest::sample::select(vec![1, 5, 110, 115, 120, 125, 7190, 7195, 7200, 7205]).boxed(),
        ]
        .prop_map(Step::Pass),
        1 => (0u16..20_000).prop_map(Step::CorrectTime),
        1 => (address(), 0u8..5).prop_map(|(at, mac)| Step::Reserve(at, mac)),
        1 => address().prop_map(Step::Unreserve),
        1 => (1u8..8).prop_map(Step::Subnet),
    ];
    proptest::collection::vec(step, 1..80)
}

/// What one client was last promised at an address.
struct Promise {
    client: ClientKey,
    mac: Option<Mac>,
    until: Timestamp,
    given_back: bool,
}

fn stranger(mac: u8, id: Option<u8>) -> Client {
    Client {
        client_id: id.map(|id| Octets(vec![mac, id])),
        boots: mac == 0,
        lease_secs: (mac == 1).then_some(60),
        ..client(mac)
    }
}

fn run(world: &mut World, step: &Step, promises: &mut BTreeMap<Ipv4Addr, Promise>) {
    let bound = match *step {
        Step::Dora(mac, id) => {
            let client = stranger(mac, id);
            let offer = world.offer(&client);
            offer.map(|(address, _)| {
                let bound = world.bind(&client, address);
                bound.expect("what is offered and not raced for is bound")
            })
        }
        Step::Bind(mac, id, at) => world.bind(&stranger(mac, id), ip(at)).ok(),
        Step::Release(mac, id, at) => {
            world.release(&stranger(mac, id), ip(at));
            None
        }
        Step::Decline(mac, id, at) => {
            world.decline(&stranger(mac, id), ip(at));
            None
        }
        Step::EndLease(at) => {
            world.apply(Command::EndLease { address: ip(at) });
            None
        }
        Step::Expire => {
            world.apply(Command::Expire);
            None
        }
        Step::Reclaim => {
            for (address, promise) in promises.iter_mut() {
                let state = world.state.lease(*address).map(|it| it.object.state);
                promise.given_back |= state == Some(LeaseState::Released);
            }
            world.reclaim();
            None
        }
        Step::Pass(secs) => {
            world.pass(secs.into());
            None
        }
        Step::CorrectTime(secs) => {
            world.correct_time(secs.into());
            for promise in promises.values_mut() {
                promise.until = promise.until.plus_secs(secs.into());
            }
            None
        }
        Step::Reserve(at, mac) => {
            world.reserve(ip(at), mac);
            None
        }
        Step::Unreserve(at) => {
            world.apply(Command::Delete {
                kind: ObjectKind::Reservation,
                key: ip(at).to_string(),
            });
            None
        }
        Step::Subnet(size) => {
            world.subnet(size);
            None
        }
    };
    let Some(lease) = bound else { return };
    let until = lease.expires_at;
    let mut longest = until;
    if let Some(before) = promises.get(&lease.address) {
        let same_client = before.client == lease.client || before.mac == lease.mac;
        let over = before.until.plus_secs(MARGIN) <= world.now;
        assert!(
            same_client || over || before.given_back,
            "{} given to {} while {} may still use it",
            lease.address,
            lease.client,
            before.client
        );
        if same_client && !before.given_back {
            longest = before.until.max(until);
        }
    }
    promises.insert(
        lease.address,
        Promise {
            client: lease.client,
            mac: lease.mac,
            until: longest,
            given_back: false,
        },
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// No address is given to a second client while the first may believe it has it; no client has
    /// two addresses; and the history alone makes the state.
    #[test]
    fn no_address_has_two_owners(steps in steps()) {
        let mut world = World::new(6);
        let mut promises = BTreeMap::new();
        for step in &steps {
            run(&mut world, step, &mut promises);
            let mut owners = BTreeMap::new();
            for record in world.state.leases_after(None) {
                let lease = &record.object;
                if lease.state == LeaseState::Bound && lease.expires_at > world.now {
                    let second = owners.insert(lease.client.clone(), lease.address);
                    prop_assert_eq!(second, None, "two addresses of {}", lease.client);
                }
            }
        }
        let mut replayed = State::default();
        for (revision, entry) in &world.entries {
            replayed.apply(*revision, entry);
        }
        prop_assert_eq!(replayed.digest(), world.state.digest());
        let rows = world.state.rows().unwrap();
        let loaded = State::load(rows.into_iter().map(|row| (row.key, row.value.unwrap()))).unwrap();
        prop_assert_eq!(loaded.digest(), world.state.digest());
        for mac in 0..5 {
            let client = stranger(mac, None);
            let offer = |state: &State| state.offer(&client, &|_| Claim::None, world.now);
            prop_assert_eq!(offer(&loaded), offer(&world.state));
            prop_assert_eq!(offer(&replayed), offer(&world.state));
        }
    }
}
