//! Locks, and what else is all or nothing.

use super::*;

#[test]
fn a_locked_machine_stays_as_it_is() {
    let mut world = World::new();
    world.propose(lock("holds the database")).unwrap();
    let delete = || Command::Delete {
        kind: ObjectKind::Machine,
        key: "m1".into(),
    };
    assert_eq!(code(world.try_put(machine("live"))), "locked");
    assert_eq!(
        code(world.try_put(machine("local"))),
        "ok",
        "it is so already"
    );
    assert_eq!(code(world.propose(order_of("deb", None))), "locked");
    let refused = world.propose(delete()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "machine `m1` is locked (holds the database); `muster machines unlock m1` frees it"
    );
    assert_eq!(code(world.propose(lock("another reason"))), "ok");
    assert_eq!(world.state.lock(M1).unwrap().reason, "another reason");
    assert_eq!(code(world.propose(lock(&"x".repeat(256)))), "invalid");
    assert_eq!(code(world.propose(lock("two\nlines"))), "invalid");
    assert_eq!(code(world.propose(UNLOCK)), "ok");
    assert_eq!(code(world.propose(UNLOCK)), "ok", "as often as one likes");
    assert_eq!(code(world.try_put(machine("live"))), "ok");
    assert_eq!(code(world.propose(delete())), "ok");
    assert_eq!(code(world.propose(lock(""))), "not_found");
}

#[test]
fn of_a_lock_and_an_order_the_first_wins() {
    let codes = |outcomes: Vec<Outcome>| {
        let codes = outcomes.into_iter().map(|outcome| code(outcome.result));
        codes.collect::<Vec<_>>()
    };
    let mut world = World::new();
    let both = vec![lock(""), order_of("deb", None)];
    assert_eq!(codes(world.batch(both)), ["ok", "locked"]);
    let mut world = World::new();
    let both = vec![order_of("deb", None), lock("")];
    assert_eq!(codes(world.batch(both)), ["ok", "conflict"]);
    assert!(world.state.lock(M1).is_none());
}

#[test]
fn a_bundle_is_all_or_nothing() {
    let mut world = World::new();
    let bundle = Command::Many(vec![order_of("deb", None), lock("")]);
    assert_eq!(code(world.propose(bundle)), "conflict");
    assert!(world.state.install(M1).is_none());
    assert_eq!(world.bootenv(), "local");
    let bundle = Command::Many(vec![order_of("deb", None), CANCEL, lock("")]);
    assert_eq!(code(world.propose(bundle)), "ok");
    assert_eq!(world.install().phase, InstallPhase::Cancelled);
    assert!(world.state.lock(M1).is_some());
}

#[test]
fn a_machine_that_is_deleted_leaves_nothing() {
    let mut world = World::new();
    let order = world.order(3);
    world.boot(A);
    world.report(order, 1, Status::Failed);
    world.order(3);
    world.boot(A);
    let delete = Command::Delete {
        kind: ObjectKind::Machine,
        key: "m1".into(),
    };
    world.propose(delete).unwrap();
    assert!(world.state.install(M1).is_none());
    assert!(world.state.timeline(M1).is_none());
    world.pass(100_000);
    assert_eq!(world.state.stalled_boots(world.now).count(), 0);
    // What is seen of it later is passed over.
    world.saw(A, kernel());
    assert!(world.state.timeline(M1).is_none());
}
