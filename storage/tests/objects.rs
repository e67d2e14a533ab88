//! Rules of the objects that people write.

#![allow(clippy::expect_used)]

use std::collections::BTreeMap;

use muster_storage::command::PutMode;
use muster_storage::model::{
    Bootenv, Machine, Object, ObjectKind, Octets, Profile, RenderedFile, Reservation, Sha256,
    Subnet, SubnetMode, Template, Token, User,
};
use muster_storage::{
    Actor, Command, Effect, Entry, Mac, Outcome, Proposal, Rejection, RequestId, Revision, State,
    Timestamp,
};
use serde_json::json;
use uuid::Uuid;

/// A state with the number of its next log entry.
#[derive(Default)]
struct Log {
    state: State,
    index: u64,
}

impl Log {
    fn propose(&mut self, if_match: Option<Revision>, command: Command) -> Outcome {
        self.batch(vec![(if_match, command)]).remove(0)
    }

    /// All in one entry.
    fn batch(&mut self, commands: Vec<(Option<Revision>, Command)>) -> Vec<Outcome> {
        self.index += 1;
        let proposals = commands.into_iter().map(|(if_match, command)| Proposal {
            request: RequestId(Uuid::nil()),
            actor: Actor("tester".into()),
            if_match,
            remember: None,
            command,
        });
        let entry = Entry {
            at: Timestamp(1_000_000 + self.index * 1000),
            proposals: proposals.collect(),
        };
        let outcomes = self.state.apply(Revision::new(self.index, 0), &entry);
        outcomes.into_iter().map(|(outcome, _)| outcome).collect()
    }

    fn put(&mut self, mode: PutMode, object: impl Thing) -> Result<Effect, Rejection> {
        let object = object.object();
        self.propose(None, Command::Put { object, mode }).result
    }

    fn apply(&mut self, object: impl Thing) {
        self.put(PutMode::Apply, object).expect("applied");
    }

    fn delete(&mut self, kind: ObjectKind, key: &str) -> Result<Effect, Rejection> {
        let key = key.into();
        self.propose(None, Command::Delete { kind, key }).result
    }

    fn revision_of(&self, kind: ObjectKind, key: &str) -> Option<Revision> {
        Some(self.state.object(kind, key)?.revision)
    }
}

/// An object, or a machine.
trait Thing {
    fn object(self) -> Object;
}

impl Thing for Object {
    fn object(self) -> Object {
        self
    }
}

impl Thing for Machine {
    fn object(self) -> Object {
        Object::Machine(self)
    }
}

fn machine(name: &str, last: u8) -> Machine {
    Machine {
        uuid: Uuid::nil(),
        name: name.into(),
        macs: vec![mac(last)],
        bootenv: "local".into(),
        profiles: Vec::new(),
        params: BTreeMap::new(),
        sealed: BTreeMap::new(),
        options: BTreeMap::new(),
        loaders: Default::default(),
        local_boot: None,
        labels: Default::default(),
    }
}

fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

fn template(name: &str, contents: &str) -> Object {
    Object::Template(Template {
        name: name.into(),
        contents: contents.into(),
    })
}

fn subnet(name: &str, cidr: &str, pools: &[&str]) -> Object {
    Object::Subnet(Box::new(Subnet {
        name: name.into(),
        cidr: cidr.parse().expect("a network"),
        pools: pools
            .iter()
            .map(|pool| pool.parse().expect("a pool"))
            .collect(),
        routers: Vec::new(),
        dns_servers: Vec::new(),
        domain_name: None,
        lease_secs: None,
        options: BTreeMap::new(),
        next_server: None,
        mode: SubnetMode::Full,
        matching: Default::default(),
        shared_network: None,
        rapid_commit: false,
        foreign_servers: Vec::new(),
        conflict_detection: Default::default(),
        classes: Vec::new(),
        loaders: Default::default(),
        router_advertisement: false,
    }))
}

/// The code of a rejection.
fn code(result: Result<Effect, Rejection>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(rejection) => rejection.code(),
    }
}

#[test]
fn create_wants_nothing_there_and_replace_wants_something() {
    let mut log = Log::default();
    let t = || template("t", "one");
    assert_eq!(code(log.put(PutMode::Replace, t())), "not_found");
    assert_eq!(code(log.put(PutMode::Create, t())), "ok");
    assert_eq!(code(log.put(PutMode::Create, t())), "exists");
    assert_eq!(code(log.put(PutMode::Replace, template("t", "two"))), "ok");
    assert_eq!(code(log.put(PutMode::Apply, template("t", "three"))), "ok");
    assert_eq!(code(log.put(PutMode::Apply, template("u", ""))), "ok");
    assert_eq!(code(log.delete(ObjectKind::Template, "t")), "ok");
    assert_eq!(code(log.delete(ObjectKind::Template, "t")), "not_found");
}

#[test]
fn if_match_holds_for_the_present_revision_only() {
    let mut log = Log::default();
    log.apply(template("t", "one"));
    let first = log.revision_of(ObjectKind::Template, "t");
    let replace = |text| Command::Put {
        object: template("t", text),
        mode: PutMode::Replace,
    };
    assert_eq!(code(log.propose(first, replace("two")).result), "ok");
    let second = log.revision_of(ObjectKind::Template, "t").expect("there");
    let stale = Err(Rejection::Stale { current: second });
    assert_eq!(log.propose(first, replace("three")).result, stale);
    let delete = |key: &str| Command::Delete {
        kind: ObjectKind::Template,
        key: key.into(),
    };
    assert_eq!(log.propose(first, delete("t")).result, stale);
    let absent = Rejection::Stale {
        current: Revision(0),
    };
    assert_eq!(log.propose(first, delete("none")).result, Err(absent));
    assert_eq!(code(log.propose(Some(second), delete("t")).result), "ok");
}

#[test]
fn two_writes_of_one_entry_have_two_revisions() {
    let mut log = Log::default();
    let put = |name| Command::Put {
        object: template(name, ""),
        mode: PutMode::Create,
    };
    let outcomes = log.batch(vec![(None, put("a")), (None, put("a")), (None, put("b"))]);
    let revisions: Vec<u64> = outcomes.iter().map(|outcome| outcome.revision.0).collect();
    assert_eq!(revisions, [256, 257, 258]);
    assert_eq!(
        outcomes[1].result.clone().map_err(|r| r.code()),
        Err("exists")
    );
    assert_eq!(
        log.revision_of(ObjectKind::Template, "b"),
        Some(Revision(258))
    );
    assert_eq!(
        log.state.revision(),
        Revision(258),
        "all of them have been applied"
    );
}

#[test]
fn writing_what_is_there_changes_nothing() {
    let mut log = Log::default();
    log.apply(machine("m1", 1));
    let before = log.revision_of(ObjectKind::Machine, "m1");
    let events = log.state.events_after(Revision(0)).expect("kept").count();
    let again = log.put(PutMode::Apply, machine("m1", 1)).expect("applied");
    assert!(matches!(again, Effect::Stored { created: false, .. }));
    assert_eq!(log.revision_of(ObjectKind::Machine, "m1"), before);
    assert_eq!(
        log.state.events_after(Revision(0)).expect("kept").count(),
        events
    );
}

#[test]
fn a_bundle_is_all_or_nothing() {
    let mut log = Log::default();
    log.apply(machine("m1", 1));
    let put = |object: Object| Command::Put {
        object,
        mode: PutMode::Apply,
    };
    let delete = Command::Delete {
        kind: ObjectKind::Machine,
        key: "m1".into(),
    };
    let objects = |state: &State| {
        let kinds = ObjectKind::ALL.into_iter();
        let all =
            kinds.flat_map(|kind| state.objects_after(kind, None).cloned().collect::<Vec<_>>());
        all.collect::<Vec<_>>()
    };
    let before = objects(&log.state);
    let bad = Command::Many(vec![
        delete,
        put(machine("m2", 1).object()),
        put(subnet("s", "10.0.0.0/24", &["10.0.0.10-10.0.0.20"])),
        put(template("t", "")),
        put(machine("m3", 1).object()),
    ]);
    assert_eq!(code(log.propose(None, bad).result), "conflict");
    assert_eq!(objects(&log.state), before);
    assert_eq!(
        log.state.machine_with_mac(mac(1)).map(|m| m.name.as_str()),
        Some("m1")
    );
    assert_eq!(log.state.pool_usage("s"), (0, 0));
    let nested = Command::Many(vec![Command::Many(Vec::new())]);
    assert_eq!(code(log.propose(None, nested).result), "invalid");
}

#[test]
fn a_bundle_can_rest_on_what_was_read() {
    let mut log = Log::default();
    log.apply(machine("m1", 1));
    let read = log.state.revision();
    let put = |name: &str, revision: Revision| {
        Command::Many(vec![
            Command::Expect {
                kind: ObjectKind::Machine,
                key: "m1".into(),
                revision,
            },
            Command::Put {
                object: template(name, ""),
                mode: PutMode::Create,
            },
        ])
    };
    assert_eq!(
        code(log.propose(None, put("a", Revision(read.0 - 1))).result),
        "stale"
    );
    assert!(log.propose(None, put("a", read)).result.is_ok());
    assert!(log.state.object(ObjectKind::Template, "a").is_some());
}

#[test]
fn what_was_rolled_back_leaves_the_digest_of_what_was_never_tried() {
    let (mut tried, mut untried) = (Log::default(), Log::default());
    for log in [&mut tried, &mut untried] {
        log.apply(machine("m1", 1));
    }
    let bad = Command::Many(vec![
        Command::Put {
            object: template("t", ""),
            mode: PutMode::Create,
        },
        Command::Delete {
            kind: ObjectKind::Template,
            key: "none".into(),
        },
    ]);
    tried.propose(None, bad);
    let refused = Command::Delete {
        kind: ObjectKind::Template,
        key: "none".into(),
    };
    untried.propose(None, refused);
    assert_eq!(tried.state.digest(), untried.state.digest());
}

#[test]
fn machines_own_their_macs_uuids_and_names() {
    let mut log = Log::default();
    log.apply(machine("m1", 1));
    let uuid = log.state.machine("m1").expect("there").uuid;
    assert!(!uuid.is_nil());
    for key in [
        "m1",
        &uuid.to_string(),
        "52:54:00:00:00:01",
        "52-54-00-00-00-01",
    ] {
        assert_eq!(log.state.machine(key).map(|m| m.uuid), Some(uuid), "{key}");
    }
    let with_uuid = |mut it: Machine, uuid| {
        it.uuid = uuid;
        it
    };
    let with_macs = |mut it: Machine, macs: &[u8]| {
        it.macs = macs.iter().map(|last| mac(*last)).collect();
        it
    };
    // What is refused, and how.
    for (object, expected) in [
        (machine("m2", 1), "conflict"),
        (with_uuid(machine("m2", 2), uuid), "conflict"),
        (with_uuid(machine("m1", 1), Uuid::from_u128(7)), "conflict"),
        (with_macs(machine("m2", 2), &[]), "invalid"),
        (with_macs(machine("m2", 2), &[2, 1]), "conflict"),
        (machine("52:54:00:00:00:99", 2), "invalid"),
        (machine("525400000099", 2), "invalid"),
        (machine(&Uuid::from_u128(9).to_string(), 2), "invalid"),
        (machine("a/b", 2), "invalid"),
        (machine("", 2), "invalid"),
        (machine("a b", 2), "invalid"),
        (machine("..", 2), "invalid"),
    ] {
        let name = object.name.clone();
        assert_eq!(code(log.put(PutMode::Apply, object)), expected, "{name}");
    }
    // A MAC that a machine gives up is free for another.
    log.apply(with_macs(machine("m1", 1), &[3]));
    log.apply(machine("m2", 1));
    assert_eq!(
        log.state.machine_with_mac(mac(1)).map(|m| m.name.as_str()),
        Some("m2")
    );
}

#[test]
fn the_same_log_gives_the_same_uuid() {
    let (mut a, mut b) = (Log::default(), Log::default());
    a.apply(machine("m1", 1));
    b.apply(machine("m1", 1));
    assert_eq!(a.state.machine("m1"), b.state.machine("m1"));
    assert_eq!(a.state.digest(), b.state.digest());
}

#[test]
fn what_is_named_can_be_missing_but_not_removed() {
    let mut log = Log::default();
    log.apply(Machine {
        bootenv: "b".into(),
        profiles: vec!["p".into()],
        ..machine("m1", 1)
    });
    let problems = |log: &Log, kind, key| {
        let record = log.state.object(kind, key).expect("there");
        log.state.problems(&record.object)
    };
    let of_machine = ["bootenv `b` does not exist", "profile `p` does not exist"];
    assert_eq!(problems(&log, ObjectKind::Machine, "m1"), of_machine);
    log.apply(Object::Profile(Profile {
        name: "p".into(),
        params: BTreeMap::new(),
        loaders: Default::default(),
        local_boot: None,
        sealed: BTreeMap::new(),
    }));
    log.apply(Object::Bootenv(Bootenv {
        name: "b".into(),
        kernel: None,
        initrds: Vec::new(),
        kernel_args: String::new(),
        files: vec![RenderedFile {
            path: "f".into(),
            template: "t".into(),
        }],
        installs: false,
    }));
    assert_eq!(
        problems(&log, ObjectKind::Bootenv, "b"),
        ["template `t` does not exist"]
    );
    log.apply(template("t", ""));
    assert!(problems(&log, ObjectKind::Machine, "m1").is_empty());
    for (kind, key, by) in [
        (ObjectKind::Bootenv, "b", "machine `m1`"),
        (ObjectKind::Profile, "p", "machine `m1`"),
        (ObjectKind::Template, "t", "bootenv `b`"),
    ] {
        match log.delete(kind, key) {
            Err(Rejection::InUse { by: named, .. }) => assert_eq!(named, by),
            other => panic!("{kind}: {other:?}"),
        }
    }
    log.delete(ObjectKind::Machine, "m1").expect("deleted");
    log.delete(ObjectKind::Bootenv, "b").expect("deleted");
    log.delete(ObjectKind::Template, "t").expect("deleted");
}

#[test]
fn subnets_do_not_overlap_and_hold_their_pools() {
    let mut log = Log::default();
    log.apply(subnet("a", "10.0.0.0/24", &["10.0.0.10-10.0.0.20"]));
    for (cidr, pools, expected) in [
        ("10.0.0.0/16", &[][..], "conflict"),
        ("10.0.0.128/25", &[], "conflict"),
        ("10.0.0.0/24", &[], "conflict"),
        ("10.0.1.1/24", &[], "invalid"),
        ("10.0.1.0/24", &["10.0.2.1-10.0.2.9"], "invalid"),
        ("10.0.1.0/24", &["10.0.1.0-10.0.1.9"], "invalid"),
        ("10.0.1.0/24", &["10.0.1.9-10.0.1.255"], "invalid"),
        (
            "10.0.1.0/24",
            &["10.0.1.1-10.0.1.9", "10.0.1.9-10.0.1.19"],
            "invalid",
        ),
        (
            "10.0.1.0/24",
            &["10.0.1.1-10.0.1.19", "10.0.1.5-10.0.1.9"],
            "invalid",
        ),
        (
            "10.0.1.0/24",
            &["10.0.1.5-10.0.1.9", "10.0.1.1-10.0.1.19"],
            "invalid",
        ),
        (
            "10.0.1.0/24",
            &["10.0.1.1-10.0.1.9", "10.0.1.10-10.0.1.19"],
            "ok",
        ),
        ("10.0.2.0/31", &["10.0.2.0-10.0.2.1"], "ok"),
    ] {
        let name = format!("s{}", cidr.replace(['.', '/'], "-"));
        assert_eq!(
            code(log.put(PutMode::Apply, subnet(&name, cidr, pools))),
            expected,
            "{cidr} {pools:?}"
        );
    }
    // Nor by growing.
    let grown = subnet("a", "10.0.0.0/16", &[]);
    assert_eq!(code(log.put(PutMode::Apply, grown)), "conflict");
}

#[test]
fn classes_have_names_and_pools_of_their_own() {
    let mut log = Log::default();
    let rows = [
        (
            json!([{"name": "a", "pools": ["10.0.0.20-10.0.0.29"]}, {"name": "b"}]),
            "ok",
        ),
        (json!([{"name": "a"}, {"name": "a"}]), "invalid"),
        (json!([{"name": ""}]), "invalid"),
        (json!([{"name": "a", "lease_secs": 0}]), "invalid"),
        (
            json!([{"name": "a", "pools": ["10.0.0.15-10.0.0.29"]}]),
            "invalid",
        ),
        (
            json!([{"name": "a", "pools": ["10.0.1.1-10.0.1.9"]}]),
            "invalid",
        ),
    ];
    for (classes, expected) in rows {
        let Object::Subnet(mut lab) = subnet("lab", "10.0.0.0/24", &["10.0.0.10-10.0.0.19"]) else {
            panic!("a subnet");
        };
        lab.classes = serde_json::from_value(classes.clone()).expect("classes");
        let outcome = log.put(PutMode::Apply, Object::Subnet(lab));
        assert_eq!(code(outcome), expected, "{classes}");
    }
}

#[test]
fn a_reservation_has_one_owner() {
    let mut log = Log::default();
    let reservation = |mac, client_id, machine| {
        Object::Reservation(Reservation {
            address: [10, 0, 0, 9].into(),
            mac,
            client_id,
            machine,
            uuid: None,
            circuit_id: None,
            remote_id: None,
        })
    };
    let by = |mut owner: serde_json::Value| {
        owner["address"] = json!("10.0.0.9");
        Object::Reservation(serde_json::from_value(owner).expect("a reservation"))
    };
    for (object, expected) in [
        (reservation(None, None, None), "invalid"),
        (
            reservation(Some(mac(1)), Some(Octets(vec![1])), None),
            "invalid",
        ),
        (
            reservation(Some(mac(1)), None, Some(Uuid::nil())),
            "invalid",
        ),
        (reservation(Some(mac(1)), None, None), "ok"),
        (by(json!({"uuid": Uuid::nil()})), "ok"),
        (by(json!({"circuit_id": "Gi1/0/1"})), "ok"),
        (
            by(json!({"circuit_id": "Gi1/0/1", "remote_id": "0x00ff"})),
            "ok",
        ),
        (
            by(json!({"uuid": Uuid::nil(), "remote_id": "leaf1"})),
            "invalid",
        ),
    ] {
        assert_eq!(code(log.put(PutMode::Apply, object)), expected);
    }
}

#[test]
fn tokens_end_with_their_user() {
    let mut log = Log::default();
    let user = || {
        Object::User(User {
            name: "eve".into(),
            password_hash: String::new(),
        })
    };
    let token = Token {
        hash: Sha256([7; 32]),
        user: "eve".into(),
        expires_at: Timestamp(u64::MAX),
    };
    let add = Command::AddToken(token.clone());
    assert_eq!(code(log.propose(None, add.clone()).result), "not_found");
    log.apply(user());
    log.propose(None, add).result.expect("added");
    assert!(log.state.token(&token.hash, Timestamp(0)).is_some());
    log.delete(ObjectKind::User, "eve").expect("deleted");
    log.apply(user());
    assert!(log.state.token(&token.hash, Timestamp(0)).is_none());
    for name in ["a/b", "a:b", ""] {
        let bad = Object::User(User {
            name: name.into(),
            password_hash: String::new(),
        });
        assert_eq!(code(log.put(PutMode::Create, bad)), "invalid", "{name}");
    }
}

#[test]
fn state_loaded_from_its_rows_is_the_same() {
    let mut log = Log::default();
    log.apply(subnet("a", "10.0.0.0/24", &["10.0.0.10-10.0.0.20"]));
    for last in 1..9 {
        log.apply(machine(&format!("m{last}"), last));
    }
    log.delete(ObjectKind::Machine, "m3").expect("deleted");
    log.apply(machine("m4", 44));
    let rows = log.state.rows().expect("rows");
    let pairs = rows
        .into_iter()
        .filter_map(|row| Some((row.key, row.value?)));
    let loaded = State::load(pairs).expect("loaded");
    assert_eq!(loaded.digest(), log.state.digest());
    assert_eq!(loaded.revision(), log.state.revision());
    assert_eq!(loaded.time(), log.state.time());
    assert_eq!(
        loaded.rows().expect("rows"),
        log.state.rows().expect("rows")
    );
    assert_eq!(loaded.machine("52:54:00:00:00:2c"), log.state.machine("m4"));
    assert_eq!(loaded.pool_usage("a"), log.state.pool_usage("a"));
}
