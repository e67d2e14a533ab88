//! Rules of installing machines, of locking them, and of what is seen of their boots.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::collections::BTreeMap;

use muster_storage::command::{PutMode, TokenUse};
use muster_storage::event::Subject;
use muster_storage::model::{
    Artifact, Attempt, Bootenv, FACTS_MAX, Install, InstallPhase, Machine, Object, ObjectKind,
    Seen, Settings, Sha256, Status, Step, Timeline, Trouble, Verdict,
};
use muster_storage::state::{BootClient, BootTarget};
use muster_storage::{
    Actor, Command, Effect, Entry, Mac, NodeId, Outcome, Proposal, Rejection, RequestId, Revision,
    State, Timestamp,
};
use uuid::Uuid;

const M1: Uuid = Uuid::from_u128(0x11);
const MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

/// Two replicas of a state, which are given the same.
struct World {
    state: State,
    other: State,
    index: u64,
    now: Timestamp,
    /// Labels of the troubles that people were told of.
    told: Vec<&'static str>,
}

impl World {
    /// Machine `m1` on its disk; bootenvs `deb`, which installs, and `live`, which does not.
    fn new() -> Self {
        let mut world = Self {
            state: State::default(),
            other: State::default(),
            index: 0,
            now: Timestamp(1_000_000_000),
            told: Vec::new(),
        };
        world.put(Object::Artifact(Artifact {
            path: "k".into(),
            sha256: Sha256([1; 32]),
            size: 1,
        }));
        for (name, installs) in [("deb", true), ("live", false)] {
            world.put(Object::Bootenv(Bootenv {
                name: name.into(),
                kernel: Some("k".into()),
                initrds: vec!["k".into()],
                installs,
                ..Bootenv::default()
            }));
        }
        world.put(machine("local"));
        world
    }

    fn propose(&mut self, command: Command) -> Result<Effect, Rejection> {
        self.batch(vec![command]).remove(0).result
    }

    /// All in one entry.
    fn batch(&mut self, commands: Vec<Command>) -> Vec<Outcome> {
        self.index += 1;
        let proposals = commands.into_iter().map(|command| Proposal {
            request: RequestId(Uuid::nil()),
            actor: Actor("tester".into()),
            if_match: None,
            remember: None,
            command,
        });
        let entry = Entry {
            at: self.now,
            proposals: proposals.collect(),
        };
        let revision = Revision::new(self.index, 0);
        let applied = self.state.apply(revision, &entry);
        self.other.apply(revision, &entry);
        assert_eq!(self.state.digest(), self.other.digest());
        for change in applied.iter().flat_map(|(_, changes)| changes) {
            if let Subject::Alert(alert) = &change.subject {
                self.told.push(alert.trouble.label());
            }
        }
        // What is read back from the disk is the same state.
        let rows = self.state.rows().unwrap();
        let rows = rows
            .into_iter()
            .filter_map(|row| Some((row.key, row.value?)));
        assert_eq!(State::load(rows).unwrap().digest(), self.state.digest());
        applied.into_iter().map(|(outcome, _)| outcome).collect()
    }

    fn put(&mut self, object: Object) {
        self.try_put(object).expect("put");
    }

    fn try_put(&mut self, object: Object) -> Result<Effect, Rejection> {
        let mode = PutMode::Apply;
        self.propose(Command::Put { object, mode })
    }

    fn pass(&mut self, secs: u64) {
        self.now = self.now.plus_secs(secs);
    }

    fn order(&mut self, attempts: u32) -> Revision {
        self.propose(order_of("deb", Some(attempts)))
            .expect("ordered");
        self.install().order
    }

    /// A node is about to serve the script.
    fn open(&mut self, node: NodeId) -> Install {
        let command = open_as(self.install(), node);
        match self.propose(command) {
            Ok(Effect::Install(install)) => *install,
            other => panic!("{other:?}"),
        }
    }

    fn saw(&mut self, node: NodeId, step: Step) {
        let at = self.now;
        self.saw_at(node, at, step);
    }

    fn saw_at(&mut self, node: NodeId, at: Timestamp, step: Step) {
        let machine = M1;
        let seen = vec![Seen { machine, at, step }];
        self.propose(Command::Saw { node, seen }).expect("noted");
    }

    /// A boot up to its kernel: the number of the attempt, 0 when it boots its disk.
    fn boot(&mut self, node: NodeId) -> u32 {
        self.pass(60);
        if matches!(self.target(), BootTarget::Local) {
            return 0;
        }
        let install = self.open(node);
        if install.phase != InstallPhase::Open {
            return 0;
        }
        self.saw(node, kernel());
        install.attempt
    }

    fn report(&mut self, order: Revision, number: u32, status: Status) -> TokenUse {
        let attempt = Attempt { order, number };
        let report = Command::Report {
            machine: M1,
            body: "said".into(),
            verdict: Some(Verdict { attempt, status }),
            node: Some(A),
        };
        match self.propose(report) {
            Ok(Effect::Reported(token)) => token,
            other => panic!("{other:?}"),
        }
    }

    fn install(&self) -> &Install {
        self.state.install(M1).expect("an order")
    }

    fn bootenv(&self) -> &str {
        &self.state.machine("m1").expect("there").bootenv
    }

    fn target(&self) -> BootTarget<'_> {
        self.state.boot_plan(&BootClient { mac: MAC }).target
    }

    fn rule(&self) -> String {
        self.state.boot_plan(&BootClient { mac: MAC }).rule
    }

    fn timeline(&self) -> &Timeline {
        self.state.timeline(M1).expect("facts")
    }
}

fn machine(bootenv: &str) -> Object {
    Object::Machine(Machine {
        uuid: M1,
        macs: vec![MAC],
        bootenv: bootenv.into(),
        ..machine_named("m1")
    })
}

fn machine_named(name: &str) -> Machine {
    serde_json::from_value(serde_json::json!({"name": name, "macs": ["52:54:00:00:00:99"]}))
        .expect("a machine")
}

/// A node that read this is about to serve a script.
fn open_as(read: &Install, node: NodeId) -> Command {
    Command::OpenAttempt {
        machine: M1,
        read: read.present(),
        started: read.started,
        node,
    }
}

fn order_of(bootenv: &str, attempts: Option<u32>) -> Command {
    Command::OrderInstall {
        machine: M1,
        bootenv: bootenv.into(),
        attempts,
    }
}

fn lock(reason: &str) -> Command {
    Command::LockMachine {
        machine: M1,
        reason: reason.into(),
    }
}

const UNLOCK: Command = Command::UnlockMachine { machine: M1 };
const CANCEL: Command = Command::CancelInstall { machine: M1 };

fn kernel() -> Step {
    Step::Kernel { path: "k".into() }
}

fn code(result: Result<Effect, Rejection>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(rejection) => rejection.code(),
    }
}

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
    let stalled = |world: &World| world.state.stalled_boots(world.now).count();
    let tell = |world: &mut World| {
        let (machine, node) = (M1, A);
        world
            .propose(Command::BootStalled { machine, node })
            .unwrap();
    };
    let mut world = World::new();
    // What waits or boots its disk is not under way.
    for boots in ["hold", "local"] {
        world.saw(A, script(boots));
        world.pass(STALL);
        assert_eq!(stalled(&world), 0, "{boots}");
    }
    world.saw(A, script("live"));
    world.pass(STALL - 1);
    assert_eq!(stalled(&world), 0);
    tell(&mut world);
    assert!(world.told.is_empty(), "too early");
    // Reading the script again is no progress, an initrd is.
    world.saw(B, script("live"));
    world.pass(1);
    assert_eq!(stalled(&world), 1);
    world.saw(B, Step::Initrd { path: "k".into() });
    assert_eq!(stalled(&world), 0);
    world.pass(STALL);
    assert_eq!(stalled(&world), 1);
    tell(&mut world);
    tell(&mut world);
    assert_eq!(world.told, ["boot_stalled"]);
    assert_eq!(stalled(&world), 0);
    world.saw(B, script("live"));
    world.pass(STALL);
    assert_eq!(stalled(&world), 0, "it was told");
    // Power-cycled, it comes to its kernel, and is out of sight.
    world.saw(
        A,
        Step::Bound {
            address: [10, 77, 0, 50].into(),
        },
    );
    world.saw(A, script("live"));
    world.saw(A, kernel());
    world.pass(STALL);
    assert_eq!(stalled(&world), 0);
    assert_eq!(world.told.len(), 1);
}

#[test]
fn an_install_is_under_way_until_it_has_ended() {
    let mut world = World::new();
    let order = world.order(3);
    world.pass(10_000);
    assert_eq!(
        world.state.stalled_boots(world.now).count(),
        0,
        "not on yet"
    );
    assert_eq!(world.boot(A), 1);
    world.pass(900);
    assert_eq!(
        world.state.stalled_boots(world.now).collect::<Vec<_>>(),
        [M1]
    );
    world
        .propose(Command::BootStalled {
            machine: M1,
            node: B,
        })
        .unwrap();
    assert_eq!(world.told, ["boot_stalled"]);
    // It was only slow.
    assert_eq!(world.report(order, 1, Status::Done), TokenUse::Used);
    world.pass(10_000);
    assert_eq!(world.state.stalled_boots(world.now).count(), 0);
    let off = Settings {
        boot_stall_secs: 0,
        ..Settings::default()
    };
    world.put(Object::Settings(off));
    world.order(3);
    world.boot(A);
    world.pass(1_000_000);
    assert_eq!(world.state.stalled_boots(world.now).count(), 0);
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
