//! What was seen of a machine.

use super::*;

#[test]
fn facts_are_kept_apart_and_joined_by_machine() {
    let mut world = World::new();
    world.order(3);
    let address = [10, 77, 0, 50].into();
    world.saw(A, Step::Offered { address });
    world.saw(B, Step::Bound { address });
    let loader = "snponly.efi".to_owned();
    world.saw(A, Step::Loader { name: loader });
    world.open(B);
    world.open(B);
    world.saw(A, kernel());
    let order = world.install().order;
    world.report(order, 1, Status::Done);
    let told: Vec<_> = world
        .timeline()
        .facts
        .iter()
        .map(|fact| (fact.node, fact.times, fact.step.clone()))
        .collect();
    assert_eq!(told.len(), 7, "{told:#?}");
    assert!(matches!(
        &told[3],
        (Some(B), 2, Step::Script { boots, attempt: Some(1), .. }) if boots == "deb"
    ));
    assert!(matches!(&told[5], (Some(A), 1, Step::Reported)));
    assert!(matches!(
        &told[6],
        (
            Some(A),
            1,
            Step::Install {
                phase: InstallPhase::Installed,
                ..
            }
        )
    ));
}

#[test]
fn the_last_facts_are_kept() {
    let mut world = World::new();
    for last in 0..=255 {
        let address = [10, 77, 0, last].into();
        world.saw(A, Step::Bound { address });
    }
    let facts = &world.timeline().facts;
    assert_eq!(facts.len(), FACTS_MAX);
    let last = Step::Bound {
        address: [10, 77, 0, 255].into(),
    };
    assert_eq!(facts.last().unwrap().step, last);
    let seen = Seen {
        machine: M1,
        at: world.now,
        step: last,
    };
    let seen = vec![seen; Command::SEEN_MAX + 1];
    assert_eq!(
        code(world.propose(Command::Saw { node: A, seen })),
        "invalid"
    );
}

fn script(boots: &str) -> Step {
    Step::Script {
        boots: boots.into(),
        revision: Revision(0),
        attempt: None,
    }
}

#[test]
fn a_boot_that_comes_to_nothing_is_told_of_once() {
    const STALL: u64 = 900;
    let mut world = World::new();
    // What waits or boots its disk is not under way.
    for boots in ["hold", "local"] {
        world.saw(A, script(boots));
        world.pass(STALL);
        assert_eq!(world.stalled(), 0, "{boots}");
    }
    world.put(machine("live"));
    world.saw(A, script("live"));
    world.pass(STALL - 1);
    assert_eq!(world.stalled(), 0);
    world.tell_stalled(A);
    assert!(world.told.is_empty(), "too early");
    // Reading the script again is no progress, an initrd is.
    world.saw(B, script("live"));
    world.pass(1);
    assert_eq!(world.stalled(), 1);
    world.saw(B, Step::Initrd { path: "k".into() });
    assert_eq!(world.stalled(), 0);
    world.pass(STALL);
    assert_eq!(world.stalled(), 1);
    world.tell_stalled(A);
    world.tell_stalled(A);
    assert_eq!(world.told, ["boot_stalled"]);
    assert_eq!(world.stalled(), 0);
    world.saw(B, script("live"));
    world.pass(STALL);
    assert_eq!(world.stalled(), 0, "it was told");
    // Power-cycled, it comes to its kernel, and is out of sight.
    world.saw(A, bound());
    world.saw(A, script("live"));
    world.saw(A, kernel());
    world.pass(STALL);
    assert_eq!(world.stalled(), 0);
    assert_eq!(world.told.len(), 1);
}

fn loader() -> Step {
    Step::Loader {
        name: "snponly.efi".into(),
    }
}

fn bound() -> Step {
    Step::Bound {
        address: [10, 77, 0, 50].into(),
    }
}

#[test]
fn a_boot_that_comes_to_no_script_is_told_of() {
    for (why, bootenv, steps, expected) in [
        ("its loader stops", "live", vec![bound(), loader()], 1),
        ("it has an address only", "live", vec![bound()], 1),
        ("what it boots is not there", "gone", vec![bound()], 1),
        ("it boots its disk", "local", vec![bound(), loader()], 0),
        ("it waits", "hold", vec![bound(), script("hold")], 0),
        ("it is held", "live", vec![bound(), script("hold")], 1),
        ("it is held for no DHCP", "live", vec![script("hold")], 1),
        ("no install is ordered", "deb", vec![bound(), loader()], 0),
        (
            "it boots",
            "live",
            vec![bound(), script("live"), kernel()],
            0,
        ),
    ] {
        let mut world = World::new();
        world.put(machine(bootenv));
        for step in steps {
            world.saw(A, step);
        }
        world.pass(900);
        assert_eq!(world.stalled(), expected, "{why}");
    }

    // An install is waited for before its attempt has begun.
    let mut world = World::new();
    world.order(3);
    world.saw(A, bound());
    world.pass(900);
    assert_eq!(world.stalled(), 1);
}

#[test]
fn firmware_that_begins_again_and_again_makes_no_progress() {
    let mut world = World::new();
    world.put(machine("live"));
    for _ in 0..10 {
        assert_eq!(world.stalled(), 0);
        world.saw(A, bound());
        world.saw(B, loader());
        world.pass(90);
    }
    assert_eq!(world.stalled(), 1);
    world.tell_stalled(A);
    world.pass(900);
    assert_eq!(world.stalled(), 0, "it was told");
    // Power-cycled, it is waited for again.
    world.saw(A, bound());
    world.pass(900);
    assert_eq!(world.stalled(), 1);
}

#[test]
fn what_a_machine_is_held_for_is_another_matter_than_its_boot() {
    let mut world = World::new();
    world.put(machine("live"));
    world.saw(A, bound());
    world.saw(A, script("hold"));
    world.pass(900);
    world.tell_stalled(A);
    assert_eq!(world.told, ["boot_stalled"]);
    // What was missing is there.
    world.saw(A, script("live"));
    world.pass(899);
    assert_eq!(world.stalled(), 0);
    world.pass(1);
    assert_eq!(world.stalled(), 1);
}

#[test]
fn a_machine_that_is_to_boot_something_else_by_now_is_not_waited_for() {
    // It is off.
    let mut world = World::new();
    world.put(machine("live"));
    world.saw(A, bound());
    world.put(machine("local"));
    world.pass(900);
    world.tell_stalled(A);
    assert_eq!(world.stalled(), 0, "nobody proposes it again");
    assert!(world.told.is_empty());
    // It boots its disk, of which no more is seen.
    world.put(machine("live"));
    world.saw(A, bound());
    world.put(machine("local"));
    world.saw(A, bound());
    world.pass(900);
    assert_eq!(world.stalled(), 0);
    // It boots something else.
    world.put(machine("live"));
    world.saw(A, bound());
    world.pass(600);
    world.put(machine("gone"));
    world.saw(A, bound());
    world.pass(600);
    assert_eq!(world.stalled(), 0);
    world.pass(300);
    world.tell_stalled(A);
    assert_eq!(world.told, ["boot_stalled"]);
}

#[test]
fn what_firmware_did_before_is_told_late_and_begins_nothing() {
    let mut world = World::new();
    world.put(machine("live"));
    let before = world.now;
    world.pass(1);
    world.saw(A, script("live"));
    world.saw(A, kernel());
    for step in [bound(), loader()] {
        world.saw_at(B, before, step);
    }
    world.pass(900);
    assert_eq!(world.stalled(), 0);
    // So long after, it is known to nobody what became of it.
    let mut world = World::new();
    world.put(machine("live"));
    let before = world.now;
    world.pass(900);
    world.saw_at(B, before, bound());
    assert_eq!(world.stalled(), 0);
}

#[test]
fn an_install_is_under_way_until_it_has_ended() {
    let mut world = World::new();
    let order = world.order(3);
    world.pass(10_000);
    assert_eq!(world.stalled(), 0, "not on yet");
    assert_eq!(world.boot(A), 1);
    world.pass(900);
    assert_eq!(
        world.state.stalled_boots(world.now).collect::<Vec<_>>(),
        [M1]
    );
    world.tell_stalled(B);
    assert_eq!(world.told, ["boot_stalled"]);
    // It was only slow.
    assert_eq!(world.report(order, 1, Status::Done), TokenUse::Used);
    world.pass(10_000);
    assert_eq!(world.stalled(), 0);
    let off = Settings {
        boot_stall_secs: 0,
        ..Settings::default()
    };
    world.put(Object::Settings(off));
    world.order(3);
    world.boot(A);
    world.pass(1_000_000);
    assert_eq!(world.stalled(), 0);
}

#[test]
fn people_are_told_what_failed() {
    let mut world = World::new();
    world.order(1);
    assert_eq!([world.boot(A), world.boot(A)], [1, 0]);
    let told = world
        .state
        .events_after(Revision(0))
        .unwrap()
        .find_map(|change| match &change.subject {
            Subject::Alert(alert) => Some(alert.trouble.clone()),
            _ => None,
        });
    let Some(Trouble::InstallFailed {
        bootenv,
        attempts,
        why,
        ..
    }) = told
    else {
        panic!("{told:?}");
    };
    assert_eq!((bootenv.as_str(), attempts), ("deb", 1));
    assert!(why.contains("once more after 1 of 1 attempts"), "{why}");
}
