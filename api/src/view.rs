//! The JSON form of what the cluster remembers.
//!
//! An object is read as it was written, with `kind`, `revision`, `created_at`, `updated_at`,
//! `available` and `problems` added, and with secrets taken out.

use std::sync::Arc;

use muster_raft::{Cluster, Placement};
use muster_storage::event::{Change, Subject};
use muster_storage::model::{
    Alert, Fact, Install, Lease, Lock, Member, NodeId, Object, ObjectKind, Record, Sha256, Trouble,
};
use muster_storage::{Revision, State, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::input::{Declared, Schemas};
use crate::template::{Compiled, Sources};

/// Members that the cluster adds; ignored when they are sent back.
pub const ADDED: &[&str] = &[
    "revision",
    "created_at",
    "updated_at",
    "available",
    "problems",
    "holders",
    "missing",
    TRIAL,
];

/// What came of trying out a write, in the answer to it.
pub const TRIAL: &str = "trial";

/// Adds what else is wrong with an object.
pub fn add_problems(object: &mut Value, problems: Vec<String>) {
    if problems.is_empty() {
        return;
    }
    object["available"] = false.into();
    if let Some(known) = object.get_mut("problems").and_then(Value::as_array_mut) {
        known.extend(problems.into_iter().map(Value::from));
    }
}

/// An object's own fields, as it is kept.
fn fields(object: &Object) -> Map<String, Value> {
    fn map<T: Serialize>(value: &T) -> Map<String, Value> {
        match serde_json::to_value(value) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        }
    }
    match object {
        Object::Subnet(o) => map(o),
        Object::Reservation(o) => map(o),
        Object::Template(o) => map(o),
        Object::Bootenv(o) => map(o),
        Object::Machine(o) => map(o),
        Object::Profile(o) => map(o),
        Object::Param(o) => map(o),
        Object::Settings(o) => map(o),
        Object::Artifact(o) => map(o),
        Object::User(o) => map(o),
    }
}

/// An object's fields without its secrets.
pub fn public_fields(state: &State, object: &Object) -> Map<String, Value> {
    let public = object.clone().without_secrets(|name| state.is_secure(name));
    let mut map = fields(&public);
    match object {
        Object::User(_) => {
            map.remove("password_hash");
        }
        Object::Reservation(reservation) => {
            let machine = reservation
                .machine
                .and_then(|uuid| state.machine_with_uuid(uuid));
            if let Some(machine) = machine {
                map.insert("machine".to_owned(), machine.name.clone().into());
            }
        }
        Object::Machine(_)
        | Object::Profile(_)
        | Object::Param(_)
        | Object::Subnet(_)
        | Object::Template(_)
        | Object::Bootenv(_)
        | Object::Settings(_)
        | Object::Artifact(_) => {}
    }
    map
}

/// What tells which objects work.
pub struct Checks {
    templates: Arc<Compiled>,
    schemas: Arc<Schemas>,
}

impl Checks {
    /// Those of a state, as far as objects of this kind need them.
    pub fn of(cluster: &Cluster, kind: ObjectKind) -> Self {
        let (sources, declared) = cluster.read(|state| match kind {
            ObjectKind::Template | ObjectKind::Bootenv => (Sources::of(state), Declared::default()),
            ObjectKind::Machine => (Sources::of(state), Declared::of(state)),
            ObjectKind::Profile => (Sources::default(), Declared::of(state)),
            _ => Default::default(),
        });
        Self {
            templates: sources.compiled(),
            schemas: declared.schemas(),
        }
    }
}

/// An object as it was written by a revision, and is no more.
pub fn written(state: &State, object: &Object, revision: Revision) -> Value {
    let mut map = public_fields(state, object);
    // One that the cluster chose is not in what was sent.
    if matches!(object, Object::Machine(machine) if machine.uuid.is_nil()) {
        map.remove("uuid");
    }
    map.insert("kind".to_owned(), object.kind().singular().into());
    map.insert("revision".to_owned(), revision.0.into());
    Value::Object(map)
}

/// An object with all that the cluster adds. `checks` are those of about the same state.
pub fn object(state: &State, checks: &Checks, record: &Record<Object>) -> Value {
    let mut map = public_fields(state, &record.object);
    let problems = problems(state, checks, &record.object);
    map.insert("kind".to_owned(), record.object.kind().singular().into());
    add_record(&mut map, record);
    map.insert("available".to_owned(), problems.is_empty().into());
    map.insert("problems".to_owned(), problems.into());
    if let Object::Machine(machine) = &record.object {
        let install = state.install(machine.uuid).map(|it| install(state, it));
        let lock = state.lock(machine.uuid).map(|it| lock(state, it));
        let added = [(INSTALL, install), (LOCKED, lock)];
        let added = added
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        map.extend(added.map(|(name, value)| (name.to_owned(), value)));
    }
    Value::Object(map)
}

/// What is added to a machine that was ordered to be installed.
pub const INSTALL: &str = "install";

/// What is added to a machine that is locked.
pub const LOCKED: &str = "locked";

/// An order to install a machine.
pub fn install(state: &State, install: &Install) -> Value {
    let served = install.served.as_ref();
    let ended = install.ended.as_ref();
    json!({
        "machine": machine_name(state, install.machine),
        "uuid": install.machine,
        "order": install.order.0,
        "bootenv": install.bootenv,
        "phase": install.phase,
        "attempt": install.attempt,
        "attempts": install.attempts,
        "started": install.started,
        "ordered_at": time(install.ordered_at),
        "ordered_by": install.ordered_by.0,
        "served_at": served.map(|served| time(served.at)),
        "served_by": served.map(|served| node_name(state, served.node)),
        "ended_at": ended.map(|ended| time(ended.at)),
        "why": ended.map(|ended| ended.why.clone()),
    })
}

/// What keeps a machine as it is.
pub fn lock(state: &State, lock: &Lock) -> Value {
    json!({
        "machine": machine_name(state, lock.machine),
        "uuid": lock.machine,
        "reason": lock.reason,
        "at": time(lock.at),
        "by": lock.by.0,
    })
}

/// A fact of how a machine boots: a word for it, and what belongs to it.
pub fn fact(state: &State, fact: &Fact) -> Value {
    let mut map = match serde_json::to_value(&fact.step) {
        Ok(Value::Object(step)) => step.into_iter().fold(Map::new(), |mut map, (word, more)| {
            map.insert("fact".to_owned(), word.into());
            map.extend(more.as_object().cloned().unwrap_or_default());
            map
        }),
        Ok(word) => Map::from_iter([("fact".to_owned(), word)]),
        Err(_) => Map::new(),
    };
    map.insert("at".to_owned(), time(fact.at));
    map.insert("times".to_owned(), fact.times.into());
    map.insert("until".to_owned(), fact.until.map(time).into());
    let node = fact.node.map(|node| node_name(state, node));
    map.insert("node".to_owned(), node.into());
    Value::Object(map)
}

/// A machine's name, or its number when it is gone.
fn machine_name(state: &State, machine: Uuid) -> String {
    let found = state.machine_with_uuid(machine);
    found.map_or_else(|| machine.to_string(), |machine| machine.name.clone())
}

/// A node's name, or its number when it is gone.
fn node_name(state: &State, node: NodeId) -> String {
    let found = state.member(node);
    found.map_or_else(|| node.to_string(), |member| member.name.clone())
}

/// An artifact's view, with the nodes that hold it and those that are known to lack it.
pub fn placed(mut view: Value, object: &Object, placement: &Placement) -> Value {
    if let (Object::Artifact(artifact), Value::Object(map)) = (object, &mut view) {
        let holders = placement.holders(&artifact.sha256);
        let missing = placement.missing(&artifact.sha256);
        map.insert("holders".to_owned(), holders.into());
        map.insert("missing".to_owned(), missing.into());
    }
    view
}

fn add_record<T>(map: &mut Map<String, Value>, record: &Record<T>) {
    map.insert("revision".to_owned(), record.revision.0.into());
    map.insert("created_at".to_owned(), time(record.created_at));
    map.insert("updated_at".to_owned(), time(record.updated_at));
}

/// Why an object cannot be used now.
fn problems(state: &State, checks: &Checks, object: &Object) -> Vec<String> {
    let templates = &checks.templates;
    let mut problems = state.problems(object);
    problems.extend(checks.schemas.problems(object));
    let bootenv = match object {
        Object::Template(template) => {
            problems.extend(templates.problem(&template.name).map(ToString::to_string));
            None
        }
        Object::Bootenv(bootenv) => Some(bootenv),
        Object::Machine(machine) => state.bootenv(&machine.bootenv),
        Object::Subnet(_)
        | Object::Reservation(_)
        | Object::Profile(_)
        | Object::Param(_)
        | Object::Settings(_)
        | Object::Artifact(_)
        | Object::User(_) => None,
    };
    if let Some(bootenv) = bootenv {
        let bad = bootenv
            .files
            .iter()
            .filter_map(|file| templates.problem(&file.template));
        problems.extend(bad.map(ToString::to_string));
    }
    problems
}

/// A lease, with the names of its node and machine.
pub fn lease(state: &State, record: &Record<Lease>) -> Value {
    let lease = &record.object;
    let mut map = Map::new();
    let mut add = |name: &str, value: Value| map.insert(name.to_owned(), value);
    let machine = lease.machine.map(|uuid| machine_name(state, uuid));
    let node = node_name(state, lease.node);
    add("kind", "lease".into());
    add("address", lease.address.to_string().into());
    add("subnet", lease.subnet.clone().into());
    add("mac", lease.mac.map(|mac| mac.to_string()).into());
    add(
        "client_id",
        lease.client_id.as_ref().map(ToString::to_string).into(),
    );
    add("hostname", lease.hostname.clone().into());
    add("machine", machine.into());
    add("state", lease.state.to_string().into());
    add("bound_at", time(lease.bound_at));
    add("promised_until", time(lease.promised_until));
    add("expires_at", time(lease.expires_at));
    add("held_until", time(lease.held_until));
    add("free", lease.free.into());
    add("node", node.into());
    add("rule", lease.rule.to_string().into());
    add_record(&mut map, record);
    Value::Object(map)
}

/// A node as the replicated record has it.
pub fn member(record: &Record<Member>) -> Map<String, Value> {
    let member = &record.object;
    let mut map = member_fields(member);
    map.insert("kind".to_owned(), "node".into());
    add_record(&mut map, record);
    map
}

fn member_fields(member: &Member) -> Map<String, Value> {
    match json!({
        "id": member.id.0,
        "name": member.name,
        "address": member.address,
        "peer_port": member.peer_port,
        "api_port": member.api_port,
        "boot_port": member.boot_port,
        "version": member.version,
        "min_schema": member.min_schema,
        "max_schema": member.max_schema,
        "identifiers": member.identifiers,
    }) {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// A change as an event.
pub fn change(state: &State, change: &Change) -> Value {
    let object = match &change.subject {
        Subject::Object(object) => Value::Object(public_fields(state, object)),
        Subject::Lease(it) => lease(
            state,
            &Record {
                revision: change.revision,
                created_at: it.bound_at,
                updated_at: change.at,
                object: it.clone(),
            },
        ),
        Subject::Member(member) => Value::Object(member_fields(member)),
        Subject::Alert(it) => alert(state, it),
        Subject::Schema(number) => json!({"schema": number}),
        Subject::Install(it) => install(state, it),
        Subject::Lock(it) => lock(state, it),
        Subject::Report(report) => {
            let machine = state
                .machine_with_uuid(report.machine)
                .map(|m| m.name.clone());
            json!({"machine": machine, "uuid": report.machine, "at": time(report.at), "body": report.body})
        }
    };
    json!({
        "revision": change.revision.0,
        "at": time(change.at),
        "actor": change.actor.0,
        "action": change.action,
        "kind": change.subject.kind(),
        "key": change.subject.key(),
        "object": object,
    })
}

fn alert(state: &State, alert: &Alert) -> Value {
    let node = node_name(state, alert.node);
    match &alert.trouble {
        Trouble::ForeignServer {
            subnet,
            server,
            client,
        } => json!({"node": node, "subnet": subnet, "server": server, "client": client}),
        Trouble::AddressInUse {
            subnet,
            address,
            by,
        } => json!({"node": node, "subnet": subnet, "address": address, "by": by}),
        Trouble::Minority { since, until } => {
            json!({"node": node, "since": time(*since), "until": time(*until)})
        }
        Trouble::InstallFailed {
            machine,
            bootenv,
            attempts,
            why,
        } => {
            let name = machine_name(state, *machine);
            json!({"node": node, "machine": name, "uuid": machine, "bootenv": bootenv,
                "attempts": attempts, "why": why})
        }
        Trouble::BootStalled {
            machine,
            bootenv,
            since,
        } => {
            let name = machine_name(state, *machine);
            json!({"node": node, "machine": name, "uuid": machine, "bootenv": bootenv,
                "since": time(*since)})
        }
        Trouble::ArtifactDamaged { sha256, problem } => {
            json!({"node": node, "sha256": sha256, "paths": paths(state, *sha256), "problem": problem})
        }
    }
}

/// Paths of the artifacts that have these bytes now.
fn paths(state: &State, sha256: Sha256) -> Vec<&str> {
    let artifacts = state.objects_after(ObjectKind::Artifact, None);
    let paths = artifacts.filter_map(|record| match &record.object {
        Object::Artifact(artifact) if artifact.sha256 == sha256 => Some(artifact.path.as_str()),
        _ => None,
    });
    paths.collect()
}

/// RFC 3339, UTC.
pub fn time(time: Timestamp) -> Value {
    time.to_string().into()
}
