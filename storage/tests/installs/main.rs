//! Rules of installing machines, of locking them, and of what is seen of their boots.

#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::collections::BTreeMap;

use muster_storage::command::{PutMode, TokenUse};
use muster_storage::event::Subject;
use muster_storage::model::{
    Artifact, Attempt, Bootenv, FACTS_MAX, Install, InstallPhase, Machine, Object, ObjectKind,
    Seen, Settings, Sha256, Status, Step, Timeline, Trouble, Verdict,
};
use muster_storage::schema;
use muster_storage::state::{BootClient, BootTarget};
use muster_storage::{
    Actor, Command, Effect, Entry, Mac, NodeId, Outcome, Proposal, Rejection, RequestId, Revision,
    State, Timestamp,
};
use uuid::Uuid;

mod locks;
mod orders;
mod timeline;

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
    /// At the newest schema: machine `m1` on its disk; bootenvs `deb`, which installs, and `live`,
    /// which does not.
    fn new() -> Self {
        let mut world = Self {
            state: State::default(),
            other: State::default(),
            index: 0,
            now: Timestamp(1_000_000_000),
            told: Vec::new(),
        };
        let to = schema::CURRENT;
        world.propose(Command::RaiseSchema { to }).expect("raised");
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

    /// Boots that people are to be told of.
    fn stalled(&self) -> usize {
        self.state.stalled_boots(self.now).count()
    }

    /// A node found that the boot of `m1` has stalled.
    fn tell_stalled(&mut self, node: NodeId) {
        let machine = M1;
        self.propose(Command::BootStalled { machine, node })
            .expect("told");
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
