//! What the leader writes by itself, and when.
use crate::world::*;
use dhcproto::v4::MessageType;
use muster_node::reconcile::{Signs, plan};
use muster_storage::model::{LeaseState, Member, Seen, Step};
use muster_storage::{Command, NodeId, Revision, schema};

const LEADER: NodeId = NodeId(1);

#[test]
fn nothing_is_written_while_nothing_is_due() {
    let mut world = World::new();
    world.lease(MAC);
    world.pass(2 * 3600);
    let all = Some(world.state.revision());
    assert_eq!(
        plan(
            &world.state,
            LEADER,
            Signs {
                vouched_by_all: all,
                ..Signs::at(world.now)
            }
        ),
        []
    );
}

#[test]
fn leases_end_after_their_margin() {
    let mut world = World::new();
    let address = world.lease(MAC);
    world.pass(2 * 3600 + 10);
    let commands = plan(&world.state, LEADER, Signs::at(world.now));
    assert_eq!(commands, [Command::Expire]);
    world.apply(Command::Expire);
    assert_eq!(world.bound(address).unwrap().state, LeaseState::Expired);
    assert_eq!(plan(&world.state, LEADER, Signs::at(world.now)), []);
}

#[test]
fn released_addresses_are_reclaimed_when_all_members_know() {
    let mut world = World::new();
    let address = world.lease(MAC);
    let before = world.state.revision();
    let release = Packet::new(MessageType::Release, MAC)
        .ciaddr(address)
        .unicast(address);
    world.answer(&release).unwrap();
    for behind in [None, Some(Revision(0)), Some(before)] {
        assert_eq!(
            plan(
                &world.state,
                LEADER,
                Signs {
                    vouched_by_all: behind,
                    ..Signs::at(world.now)
                }
            ),
            [],
            "{behind:?}"
        );
    }
    let applied_by_all = world.state.revision();
    let reclaim = Command::Reclaim { applied_by_all };
    let signs = Signs {
        vouched_by_all: Some(applied_by_all),
        ..Signs::at(world.now)
    };
    assert_eq!(
        plan(&world.state, LEADER, signs),
        std::slice::from_ref(&reclaim)
    );
    world.apply(reclaim);
    assert!(world.bound(address).unwrap().free);
    assert_eq!(plan(&world.state, LEADER, signs), []);
}

#[test]
fn time_that_is_behind_is_corrected() {
    let mut world = World::new();
    world.lease(MAC);
    let to = world.now.plus_secs(60);
    assert_eq!(
        plan(
            &world.state,
            LEADER,
            Signs {
                behind: Some(to),
                ..Signs::at(world.now)
            }
        ),
        [Command::CorrectTime { to }]
    );
}

#[test]
fn boots_that_come_to_nothing_are_told_of() {
    let mut world = World::new();
    world.machine("m1", MAC);
    let machine = world.state.machine("m1").unwrap().uuid;
    let seen = vec![Seen {
        machine,
        at: world.now,
        step: Step::Script {
            boots: "live".to_owned(),
            revision: Revision(0),
            attempt: None,
        },
    }];
    world.apply(Command::Saw { node: LEADER, seen });
    world.pass(899);
    assert_eq!(plan(&world.state, LEADER, Signs::at(world.now)), []);
    world.pass(1);
    let stalled = Command::BootStalled {
        machine,
        node: LEADER,
    };
    let commands = plan(&world.state, LEADER, Signs::at(world.now));
    assert_eq!(commands, std::slice::from_ref(&stalled));
    world.apply(stalled);
    assert_eq!(plan(&world.state, LEADER, Signs::at(world.now)), []);
}

#[test]
fn the_schema_is_raised_a_day_after_all_nodes_know_it_if_that_is_sure() {
    let mut world = World::new();
    let members: Vec<Member> = world.state.members().cloned().collect();
    for member in members {
        world.apply(Command::UpdateMember(Box::new(Member {
            max_schema: schema::CURRENT,
            ..member
        })));
    }
    let sure = |now| Signs {
        binaries_sure: true,
        ..Signs::at(now)
    };
    world.pass(24 * 3600 - 1);
    assert_eq!(plan(&world.state, LEADER, sure(world.now)), []);
    world.pass(1);
    assert_eq!(plan(&world.state, LEADER, Signs::at(world.now)), []);
    let raise = Command::RaiseSchema {
        to: schema::CURRENT,
    };
    assert_eq!(
        plan(&world.state, LEADER, sure(world.now)),
        std::slice::from_ref(&raise)
    );
    world.apply(raise);
    assert_eq!(world.state.schema(), schema::CURRENT);
    assert_eq!(plan(&world.state, LEADER, sure(world.now)), []);
}
