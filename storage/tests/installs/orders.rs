//! Orders to install, their attempts and tokens.

use super::*;

#[test]
fn what_may_be_ordered() {
    let mut world = World::new();
    let unknown = Command::OrderInstall {
        machine: Uuid::from_u128(9),
        bootenv: "deb".into(),
        attempts: None,
    };
    for (command, expected) in [
        (unknown, "not_found"),
        (order_of("none", None), "not_found"),
        (order_of("live", None), "invalid"),
        (order_of("deb", Some(0)), "invalid"),
        (order_of("deb", Some(101)), "invalid"),
        (CANCEL, "conflict"),
        (order_of("deb", None), "ok"),
        (order_of("deb", None), "conflict"),
        (CANCEL, "ok"),
        (order_of("deb", Some(100)), "ok"),
    ] {
        let told = format!("{command:?}");
        assert_eq!(code(world.propose(command)), expected, "{told}");
    }
}

#[test]
fn an_order_takes_as_many_attempts_as_the_settings_say() {
    let mut world = World::new();
    let settings = |install_attempts| {
        Object::Settings(Settings {
            install_attempts,
            ..Settings::default()
        })
    };
    world.propose(order_of("deb", None)).unwrap();
    assert_eq!(world.install().attempts, 3);
    world.propose(CANCEL).unwrap();
    world.put(settings(7));
    world.propose(order_of("deb", None)).unwrap();
    assert_eq!(world.install().attempts, 7);
    assert_eq!(code(world.try_put(settings(0))), "invalid");
}

#[test]
fn a_machine_is_installed_and_boots_its_disk_from_then_on() {
    let mut world = World::new();
    assert_eq!(world.target(), BootTarget::Local);
    let order = world.order(3);
    assert_eq!(world.bootenv(), "deb");
    assert!(matches!(world.target(), BootTarget::Install { .. }));
    assert_eq!(world.install().phase, InstallPhase::Armed);
    assert_eq!(world.boot(A), 1);
    assert_eq!(world.report(order, 1, Status::Done), TokenUse::Used);
    assert_eq!(world.install().phase, InstallPhase::Installed);
    assert_eq!(
        (world.bootenv(), world.target()),
        ("local", BootTarget::Local)
    );
    // The answer may have been lost: it says so again, to another node.
    assert_eq!(world.report(order, 1, Status::Done), TokenUse::Repeated);
    assert_eq!(world.report(order, 1, Status::Failed), TokenUse::Spent);
    assert_eq!(world.install().phase, InstallPhase::Installed);
    assert!(world.told.is_empty(), "{:?}", world.told);
}

#[test]
fn a_machine_that_says_that_it_failed_boots_its_disk() {
    let mut world = World::new();
    let order = world.order(3);
    world.boot(A);
    assert_eq!(world.report(order, 1, Status::Failed), TokenUse::Used);
    assert_eq!(world.install().phase, InstallPhase::Failed);
    assert_eq!(world.target(), BootTarget::Local);
    assert_eq!(world.report(order, 1, Status::Failed), TokenUse::Repeated);
    assert_eq!(world.report(order, 1, Status::Done), TokenUse::Spent);
    assert_eq!(world.told, ["install_failed"]);
}

#[test]
fn a_report_without_a_token_installs_nothing() {
    let mut world = World::new();
    world.order(3);
    world.boot(A);
    let plain = Command::Report {
        machine: M1,
        body: "status=done".into(),
        verdict: None,
        node: None,
    };
    assert_eq!(world.propose(plain), Ok(Effect::Done));
    assert_eq!(world.state.report(M1).unwrap().body, "status=done");
    assert_eq!(world.install().phase, InstallPhase::Open);
}

#[test]
fn tokens_of_other_attempts_and_orders_do_nothing() {
    let mut world = World::new();
    let first = world.order(3);
    // None is open yet.
    assert_eq!(world.report(first, 0, Status::Done), TokenUse::Spent);
    assert_eq!(world.report(first, 1, Status::Done), TokenUse::Spent);
    assert_eq!((world.boot(A), world.boot(B)), (1, 2));
    let admits = |world: &World, order, number| world.state.admits(M1, Attempt { order, number });
    for (number, good) in [(1, false), (2, true), (3, false)] {
        assert_eq!(admits(&world, first, number), good, "{number}");
    }
    assert_eq!(world.report(first, 1, Status::Done), TokenUse::Spent);
    assert_eq!(world.report(first, 3, Status::Done), TokenUse::Spent);
    assert_eq!(world.install().phase, InstallPhase::Open);

    world.propose(CANCEL).unwrap();
    assert!(!admits(&world, first, 2));
    assert_eq!(world.report(first, 2, Status::Done), TokenUse::Spent);
    assert_eq!(world.install().phase, InstallPhase::Cancelled);

    let second = world.order(3);
    assert_eq!((world.boot(A), world.boot(A)), (1, 2));
    assert_eq!(world.report(first, 2, Status::Done), TokenUse::Spent);
    assert_eq!(world.install().phase, InstallPhase::Open);
    assert_eq!(world.report(second, 2, Status::Done), TokenUse::Used);
}

#[test]
fn an_attempt_is_used_up_by_its_kernel_and_by_nothing_else() {
    let mut world = World::new();
    world.order(9);
    // Read again by a machine that cannot fetch its initrd, from one node and another.
    for (node, secs) in [(A, 0), (A, 3), (B, 3), (A, 300), (B, 599)] {
        world.pass(secs);
        assert_eq!(world.open(node).attempt, 1, "after {secs} s");
    }
    let initrd = Step::Initrd { path: "k".into() };
    world.saw(B, initrd);
    assert_eq!(world.open(A).attempt, 1);
    world.saw(B, kernel());
    assert_eq!(world.open(A).attempt, 2, "the kernel had it");
    // What a node could only say late is no news of an attempt that was opened after it.
    let before = world.now;
    world.pass(30);
    world.saw(A, kernel());
    assert_eq!(world.open(A).attempt, 3);
    world.saw_at(B, before, kernel());
    assert_eq!(world.open(A).attempt, 3);
    // The node that gave the kernel may have died before it could say so.
    world.pass(600);
    assert_eq!(world.open(A).attempt, 4);
}

#[test]
fn one_boot_more_than_the_attempts_breaks_the_loop() {
    let mut world = World::new();
    let order = world.order(2);
    assert_eq!([world.boot(A), world.boot(B)], [1, 2]);
    assert!(world.told.is_empty());
    assert_eq!(world.boot(A), 0);
    assert_eq!(world.install().phase, InstallPhase::Failed);
    assert_eq!(
        (world.bootenv(), world.target()),
        ("local", BootTarget::Local)
    );
    assert_eq!(world.told, ["install_failed"]);
    assert_eq!(world.boot(B), 0);
    assert_eq!(world.told.len(), 1);
    assert_eq!(world.report(order, 2, Status::Done), TokenUse::Spent);
    let stale = open_as(world.install(), B);
    assert_eq!(code(world.propose(stale)), "conflict");
}

#[test]
fn what_a_node_read_before_opens_nothing() {
    let mut world = World::new();
    world.order(9);
    let armed = open_as(world.install(), A);
    assert_eq!(code(world.propose(armed.clone())), "ok");
    let open = open_as(world.install(), A);
    for (command, expected) in [(armed, "conflict"), (open.clone(), "ok")] {
        assert_eq!(code(world.propose(command)), expected);
    }
    // It comes so late that the installer is at work.
    world.saw(B, kernel());
    assert_eq!(code(world.propose(open)), "conflict");
    assert_eq!(world.install().attempt, 1);
    let again = open_as(world.install(), B);
    world.propose(CANCEL).unwrap();
    world.order(9);
    assert_eq!(code(world.propose(again)), "conflict");
    assert_eq!(world.install().attempt, 0);
}

#[test]
fn what_installs_is_served_by_order_only() {
    let mut world = World::new();
    world.put(machine("deb"));
    assert_eq!(world.target(), BootTarget::Local);
    assert!(
        world.rule().contains("no install is ordered"),
        "{}",
        world.rule()
    );
    world.put(machine("live"));
    assert!(matches!(world.target(), BootTarget::Bootenv(_)));

    // Nor is it for a machine that nobody owns.
    world.put(Object::Settings(Settings {
        unknown_bootenv: "deb".into(),
        ..Settings::default()
    }));
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    let plan = world.state.boot_plan(&BootClient { mac });
    assert!(matches!(plan.target, BootTarget::Hold { .. }), "{plan:?}");

    // One that stops to be marked as such in the middle is fenced all the same.
    world.order(3);
    world.put(Object::Bootenv(Bootenv {
        name: "deb".into(),
        kernel: Some("k".into()),
        ..Bootenv::default()
    }));
    assert!(matches!(world.target(), BootTarget::Install { .. }));
}

#[test]
fn a_bundle_that_is_applied_again_does_not_install_again() {
    let mut world = World::new();
    let order = world.order(3);
    world.boot(A);
    world.report(order, 1, Status::Done);
    world.put(machine("deb"));
    assert_eq!(world.bootenv(), "deb");
    assert_eq!(world.target(), BootTarget::Local);
}

#[test]
fn another_bootenv_takes_the_order_back() {
    let mut world = World::new();
    world.order(3);
    world.boot(A);
    let mut tagged = machine_named("m1");
    tagged.uuid = M1;
    tagged.macs = vec![MAC];
    tagged.bootenv = "deb".into();
    tagged.params = BTreeMap::from([("rack".into(), 7.into())]);
    world.put(Object::Machine(tagged));
    assert_eq!(world.install().phase, InstallPhase::Open);
    world.put(machine("live"));
    assert_eq!(world.install().phase, InstallPhase::Cancelled);
    assert!(world.install().ended.as_ref().unwrap().why.contains("live"));
    assert!(matches!(world.target(), BootTarget::Bootenv(_)));
}
