//! Which value a param has, what is sealed, and with which key.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use muster_storage::command::{Founding, PutMode};
use muster_storage::model::{
    Machine, Member, NodeId, Object, Octets, Param, Profile, Sealed, SealedKey, Sha256,
};
use muster_storage::state::{Kept, ParamValue};
use muster_storage::{
    Actor, Command, Entry, Mac, Proposal, Rejection, RequestId, Revision, State, Timestamp,
};
use serde_json::{Value, json};
use uuid::Uuid;

#[derive(Default)]
struct Log {
    state: State,
    index: u64,
}

impl Log {
    /// The code of the refusal, or `ok`.
    fn run(&mut self, command: Command) -> &'static str {
        self.index += 1;
        let entry = Entry {
            at: Timestamp(1_000_000),
            proposals: vec![Proposal {
                request: RequestId(Uuid::nil()),
                actor: Actor("tester".into()),
                if_match: None,
                remember: None,
                command,
            }],
        };
        let outcome = self
            .state
            .apply(Revision::new(self.index, 0), &entry)
            .pop()
            .unwrap();
        outcome
            .0
            .result
            .as_ref()
            .map_or_else(Rejection::code, |_| "ok")
    }

    fn put(&mut self, object: Object) -> &'static str {
        let mode = PutMode::Apply;
        self.run(Command::Put { object, mode })
    }
}

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, Value> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect()
}

fn sealed(key: u32) -> Sealed {
    Sealed {
        key,
        octets: Octets(vec![7]),
    }
}

fn with_sealed(names: &[&str]) -> BTreeMap<String, Sealed> {
    let names = names.iter();
    names.map(|name| ((*name).to_owned(), sealed(1))).collect()
}

fn machine(profiles: &[&str], params: &[(&str, &str)], sealed: &[&str]) -> Machine {
    let mut machine: Machine = serde_json::from_value(json!({
        "name": "m1", "macs": [Mac([2, 0, 0, 0, 0, 1])], "profiles": profiles,
    }))
    .unwrap();
    machine.params = texts(params);
    machine.sealed = with_sealed(sealed);
    machine
}

fn profile(name: &str, params: &[(&str, &str)], sealed: &[&str]) -> Object {
    Object::Profile(Profile {
        name: name.into(),
        params: texts(params),
        sealed: with_sealed(sealed),
        loaders: Default::default(),
        local_boot: None,
    })
}

fn param(name: &str, secure: bool) -> Param {
    Param {
        name: name.into(),
        schema: None,
        default: None,
        default_sealed: None,
        secure,
    }
}

#[test]
fn the_first_that_gives_a_value_wins() {
    let mut log = Log::default();
    let all = |from: &'static str, names: &[&'static str]| -> Vec<(&'static str, &'static str)> {
        names.iter().map(|name| (*name, from)).collect()
    };
    log.put(Object::Param(param("secret", true)));
    for object in [
        profile("a", &all("a", &["one", "two"]), &[]),
        profile("b", &all("b", &["one", "two", "three"]), &["secret"]),
        profile("global", &all("global", &["three", "four"]), &[]),
        Object::Param(Param {
            default: Some(json!("default")),
            ..param("four", false)
        }),
        Object::Param(Param {
            default: Some(json!("default")),
            ..param("five", false)
        }),
        Object::Param(Param {
            default_sealed: Some(sealed(1)),
            ..param("secret", true)
        }),
    ] {
        assert_eq!(log.put(object), "ok");
    }
    let m1 = machine(&["a", "missing", "b"], &[("one", "machine")], &[]);
    assert_eq!(log.put(Object::Machine(m1)), "ok");
    let shown = |found: ParamValue<'_>| {
        let value = match found.value {
            Kept::Plain(value) => value.clone(),
            Kept::Sealed(_) => json!("sealed"),
        };
        (value, found.from.to_string())
    };
    let params = |machine: Option<&Machine>| -> Vec<(String, (Value, String))> {
        let found = log.state.params(machine).into_iter();
        found
            .map(|(name, found)| (name.to_owned(), shown(found)))
            .collect()
    };
    let row =
        |name: &str, value: &str, from: &str| (name.to_owned(), (json!(value), from.to_owned()));
    assert_eq!(
        params(log.state.machine("m1")),
        [
            row("five", "default", "param five"),
            row("four", "global", "profile global"),
            row("one", "machine", "machine m1"),
            row("secret", "sealed", "profile b"),
            row("three", "b", "profile b"),
            row("two", "a", "profile a"),
        ]
    );
    assert_eq!(
        params(None),
        [
            row("five", "default", "param five"),
            row("four", "global", "profile global"),
            row("secret", "sealed", "param secret"),
            row("three", "global", "profile global"),
        ]
    );
}

#[test]
fn no_secret_is_kept_in_clear() {
    let mut log = Log::default();
    let plain = || Object::Machine(machine(&[], &[("pw", "hush")], &[]));
    assert_eq!(log.put(plain()), "ok", "nothing says that it is a secret");
    assert_eq!(log.put(Object::Param(param("pw", true))), "in_use");
    let hidden = || Object::Machine(machine(&[], &[], &["pw"]));
    let both = Command::Many(vec![
        Command::Put {
            object: hidden(),
            mode: PutMode::Replace,
        },
        Command::Put {
            object: Object::Param(param("pw", true)),
            mode: PutMode::Create,
        },
    ]);
    assert_eq!(log.run(both), "ok");
    for refused in [
        plain(),
        profile("p", &[("pw", "hush")], &[]),
        profile("p", &[("a", "b")], &["a"]),
        Object::Param(Param {
            default: Some(json!("hush")),
            ..param("pw", true)
        }),
        Object::Param(Param {
            default: Some(json!("hush")),
            ..param("other", true)
        }),
    ] {
        assert_eq!(log.put(refused.clone()), "invalid", "{refused:?}");
    }
    // Not by taking the declaration away, either.
    assert_eq!(log.put(Object::Param(param("pw", false))), "in_use");
    let default = Object::Param(Param {
        default_sealed: Some(sealed(1)),
        ..param("pw", true)
    });
    assert_eq!(log.put(default), "ok");
    log.put(Object::Machine(machine(&[], &[], &[])));
    assert_eq!(log.put(Object::Param(param("pw", false))), "in_use");
    assert_eq!(log.put(Object::Param(param("pw", true))), "ok");
    assert_eq!(log.put(Object::Param(param("pw", false))), "ok");
}

#[test]
fn a_key_goes_when_nothing_is_sealed_with_it() {
    let mut log = Log::default();
    let key = |id| SealedKey {
        id,
        key: Octets(vec![1]),
    };
    assert_eq!(log.run(Command::AddKey(key(1))), "conflict", "no cluster");
    let found = Command::Found(Box::new(Founding {
        cluster_id: Uuid::nil(),
        ca_pem: String::new(),
        ca_key_sealed: Octets::default(),
        keyring: vec![key(1)],
        admin_password_hash: String::new(),
        member: Member {
            id: NodeId(1),
            name: "n1".into(),
            address: [127, 0, 0, 1].into(),
            peer_port: 1,
            api_port: 2,
            boot_port: 3,
            version: String::new(),
            min_schema: 1,
            max_schema: 1,
            key_hash: Sha256([0; 32]),
            identifiers: Vec::new(),
        },
    }));
    assert_eq!(log.run(found), "ok");
    log.put(Object::Param(param("pw", true)));
    log.put(Object::Machine(machine(&[], &[], &["pw"])));
    for (id, expected) in [(1, "conflict"), (3, "conflict"), (2, "ok"), (2, "conflict")] {
        assert_eq!(log.run(Command::AddKey(key(id))), expected, "{id}");
    }
    assert_eq!(log.run(Command::DropKeys { below: 2 }), "conflict");
    assert_eq!(log.state.sealed_below(2).count(), 1);
    let mut anew = machine(&[], &[], &[]);
    anew.sealed = BTreeMap::from([("pw".to_owned(), sealed(2))]);
    assert_eq!(log.put(Object::Machine(anew)), "ok");
    assert_eq!(log.run(Command::DropKeys { below: 3 }), "conflict", "none");
    assert_eq!(log.run(Command::DropKeys { below: 2 }), "ok");
    let left: Vec<u32> = log
        .state
        .cluster()
        .unwrap()
        .keyring
        .iter()
        .map(|k| k.id)
        .collect();
    assert_eq!(left, [2]);
}
