//! What the state keeps of its members: identifiers, early reuse of addresses, and a bounded history.

#![allow(clippy::expect_used, clippy::panic)]

mod site;

use std::net::Ipv4Addr;

use muster_storage::command::{Bind, Client, PutMode, Refounding};
use muster_storage::model::{
    JoinToken, LeaseState, Machine, Member, Object, Octets, Sha256, Token,
};
use muster_storage::state::{Claim, EVENTS_OCTETS_MAX};
use muster_storage::{Command, Effect, Mac, NodeId, Revision, State, Timestamp};
use site::Site;
use uuid::Uuid;

/// A second passes from command to command.
fn founded() -> Site {
    Site::founded(member(1, &[]), 1000)
}

fn bind(site: &mut Site, last: u8) -> Ipv4Addr {
    let client = client(last);
    let offer = site
        .state
        .offer(&client, &|_| Claim::None, site.state.time())
        .expect("an offer");
    site.run(Command::Bind(Box::new(Bind {
        client,
        address: offer.address,
        node: NodeId(1),
    })));
    offer.address
}

fn member(last: u8, identifiers: &[Ipv4Addr]) -> Member {
    Member {
        identifiers: identifiers.to_vec(),
        ..site::member(last, 1)
    }
}

fn client(last: u8) -> Client {
    Client {
        mac: Some(Mac([2, 0, 0, 0, 0, last])),
        client_id: None,
        boots: false,
        link: vec![Ipv4Addr::new(10, 0, 0, 1)],
        requested: None,
        lease_secs: None,
        hostname: None,
        relay: None,
        traits: Default::default(),
    }
}

fn subnet() -> Command {
    let subnet = serde_json::json!({
        "name": "lab", "cidr": "10.0.0.0/24", "pools": ["10.0.0.100-10.0.0.101"], "lease_secs": 100
    });
    Command::Put {
        object: Object::Subnet(serde_json::from_value(subnet).expect("a subnet")),
        mode: PutMode::Create,
    }
}

#[test]
fn an_identifier_that_its_node_gave_up_is_honoured_until_the_last_lease_ends() {
    let (old, new) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
    let mut site = founded();
    site.run(subnet());
    site.run(Command::UpdateMember(Box::new(member(1, &[old]))));
    let address = bind(&mut site, 1);
    let until = site.state.lease(address).expect("bound").object.held_until;

    site.run(Command::UpdateMember(Box::new(member(1, &[new]))));
    let known = |site: &Site, address| site.state.identifier(address).cloned();
    assert_eq!(known(&site, old).and_then(|it| it.until), Some(until));
    assert_eq!(known(&site, new).map(|it| it.until), Some(None));

    // It comes back into use when the node has it again.
    site.run(Command::UpdateMember(Box::new(member(1, &[old, new]))));
    assert_eq!(known(&site, old).map(|it| it.until), Some(None));
}

#[test]
fn no_address_is_free_early_while_a_removed_member_may_still_confirm_it() {
    let mut site = founded();
    site.run(subnet());
    let Effect::Member(second) = site.run(Command::AddMember {
        member: Box::new(member(2, &[])),
        token: None,
    }) else {
        panic!("no member was added");
    };
    let address = bind(&mut site, 1);
    let hold = site.state.lease(address).expect("bound").object.held_until;
    let release = Command::Release {
        client: Box::new(client(1)),
        address,
        sent: None,
    };
    site.run(release);
    site.run(Command::RemoveMember { node: second });

    let all = Revision(u64::MAX);
    assert!(!site.state.has_reclaimable(all));
    let reclaim = Command::Reclaim {
        applied_by_all: all,
    };
    assert_eq!(site.run(reclaim.clone()), Effect::Ended(0));
    assert!(!site.state.lease(address).expect("kept").object.free);

    // Once the longest lease of that time has ended, releases are free at once again.
    site.index += hold.secs_since(site.state.time()) + 20;
    site.run(Command::Expire);
    let address = bind(&mut site, 3);
    let release = Command::Release {
        client: Box::new(client(3)),
        address,
        sent: None,
    };
    site.run(release);
    assert!(site.state.has_reclaimable(all));
    assert_eq!(site.run(reclaim), Effect::Ended(1));
    let lease = &site.state.lease(address).expect("kept").object;
    assert!(lease.free && lease.state == LeaseState::Released);
}

#[test]
fn history_is_bounded_in_octets_and_says_what_it_forgot() {
    let mut site = founded();
    let machine = Machine {
        uuid: Uuid::from_u128(7),
        name: "m1".into(),
        macs: vec![Mac([2, 0, 0, 0, 0, 1])],
        bootenv: "local".into(),
        profiles: Vec::new(),
        params: Default::default(),
        sealed: Default::default(),
        options: Default::default(),
        loaders: Default::default(),
        local_boot: None,
        labels: Default::default(),
    };
    let large = "x".repeat(8 << 20);
    for turn in 0..12 {
        let mut machine = machine.clone();
        machine
            .params
            .insert("large".into(), format!("{turn}{large}").into());
        site.run(Command::Put {
            object: Object::Machine(machine),
            mode: PutMode::Apply,
        });
    }
    assert!(site.state.events_after(Revision(0)).is_err());
    let kept: Vec<_> = site
        .state
        .events_after(site.state.history_start())
        .expect("as far as it is kept")
        .collect();
    // One entry may stand above the limit until the next one trims.
    let most = EVENTS_OCTETS_MAX / (8 << 20) + 1;
    assert!((2..=most).contains(&kept.len()), "{} changes", kept.len());

    let rows = site.state.rows().expect("rows").into_iter();
    let loaded = State::load(rows.filter_map(|row| Some((row.key, row.value?)))).expect("load");
    assert_eq!(loaded.digest(), site.state.digest());
    assert_eq!(loaded.history_start(), site.state.history_start());
}

#[test]
fn a_lost_cluster_goes_on_as_a_new_one_with_its_objects_and_without_its_tokens() {
    let mut site = founded();
    site.run(subnet());
    let address = bind(&mut site, 1);
    for (hash, token) in [(7, true), (8, false)] {
        let (hash, expires_at) = (Sha256([hash; 32]), Timestamp(u64::MAX));
        site.run(if token {
            Command::AddToken(Token {
                hash,
                user: "admin".into(),
                expires_at,
            })
        } else {
            Command::AddJoinToken(JoinToken { hash, expires_at })
        });
    }
    let effect = site.run(Command::Refound(Box::new(Refounding {
        cluster_id: Uuid::from_u128(2),
        ca_key_sealed: Octets(vec![1]),
        keyring: Vec::new(),
        member: member(1, &[]),
    })));
    let id = NodeId(Revision::new(site.index, 0).0);
    assert_eq!(effect, Effect::Member(id));
    let state = &site.state;
    let members: Vec<NodeId> = state.members().map(|member| member.id).collect();
    assert_eq!(members, [id], "ids are never used again");
    assert_eq!(state.cluster().expect("a cluster").id, Uuid::from_u128(2));
    assert!(state.lease(address).is_some() && state.user("admin").is_some());
    let (token, join_token) = (Sha256([7; 32]), Sha256([8; 32]));
    assert!(state.token(&token, Timestamp(0)).is_none());
    assert!(state.join_token(&join_token).is_none());
}
