//! Labels of machines, which came with schema 2: what they may be, and how they are written down.

#![allow(clippy::expect_used)]

mod site;

use std::collections::BTreeMap;

use muster_storage::command::PutMode;
use muster_storage::model::Object;
use muster_storage::{Command, Entry, Rejection, Revision, Timestamp, schema};
use serde_json::json;
use site::Site;
use uuid::Uuid;

const MACHINE: Uuid = Uuid::from_u128(0x11);

/// A cluster at a schema.
fn at(schema: u16) -> Site {
    Site::founded(site::member(1, schema), 1000)
}

fn labels(site: &Site) -> Vec<(&str, &str)> {
    let machine = site.state.machine("m1").expect("it is there");
    let labels = machine.labels.iter();
    labels
        .map(|(name, value)| (&name[..], &value[..]))
        .collect()
}

/// Always of the same bytes.
fn entry(command: Command) -> Entry {
    site::entry(Timestamp(1_800_000_000_000), command)
}

fn put(labels: &[(&str, &str)]) -> Command {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    let machine = json!({
        "uuid": MACHINE, "name": "m1", "macs": ["52:54:00:00:00:50"], "labels": labels,
    });
    Command::Put {
        object: Object::Machine(serde_json::from_value(machine).expect("a machine")),
        mode: PutMode::Apply,
    }
}

fn label(set: &[(&str, &str)], remove: &[&str]) -> Command {
    let text = |text: &&str| (*text).to_owned();
    Command::LabelMachine {
        machine: MACHINE,
        set: set
            .iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect(),
        remove: remove.iter().map(text).collect(),
    }
}

#[test]
fn labels_are_set_and_removed_one_by_one() {
    let mut site = at(2);
    site.try_run(put(&[("rack", "r12"), ("owner", "db")]))
        .expect("put");
    site.try_run(label(&[("rack", "r13"), ("u", "7")], &["owner", "none"]))
        .expect("labelled");
    assert_eq!(labels(&site), [("rack", "r13"), ("u", "7")]);
    let before = site.state.digest();
    site.index += 1;
    let again = site.state.clone().apply(
        Revision::new(site.index, 0),
        &entry(label(&[("u", "7")], &[])),
    );
    let changed: usize = again.iter().map(|(_, changes)| changes.len()).sum();
    assert_eq!(changed, 0, "what is so already is no change");
    assert_eq!(site.state.digest(), before);
}

#[test]
fn labels_fit_a_screen_and_a_url() {
    let mut site = at(2);
    site.try_run(put(&[])).expect("put");
    let long = "x".repeat(256);
    let many: Vec<String> = (0..65).map(|number| format!("l{number}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (&name[..], "")).collect();
    for (command, field) in [
        (label(&[("", "v")], &[]), "labels."),
        (label(&[("a b", "v")], &[]), "labels.a b"),
        (label(&[(&long, "v")], &[]), "labels.xxx"),
        (label(&[("a", &long)], &[]), "labels.a"),
        (label(&[("a", "two\nlines")], &[]), "labels.a"),
        (label(&[("a", "b")], &["a"]), "remove"),
        (label(&many, &[]), "labels"),
        (put(&many), "labels"),
    ] {
        let refused = site.try_run(command);
        assert!(
            matches!(&refused, Err(Rejection::Invalid { field: wrong, .. }) if wrong.starts_with(field)),
            "{refused:?} for {field}"
        );
    }
    assert_eq!(labels(&site), []);
}

#[test]
fn a_cluster_at_schema_1_has_no_labels() {
    let mut site = at(1);
    site.try_run(put(&[])).expect("a machine without any");
    for command in [
        put(&[("rack", "r12")]),
        label(&[("rack", "r12")], &[]),
        Command::Many(vec![put(&[("rack", "r12")])]),
    ] {
        let refused = site.try_run(command);
        assert!(
            matches!(&refused, Err(Rejection::Conflict(why)) if why.contains("finalize")),
            "{refused:?}"
        );
    }
    assert_eq!(labels(&site), []);
}

/// What does not have labels is written as ever, so that older binaries read it.
#[test]
fn only_what_has_labels_is_written_as_schema_2() {
    let stamp = |command| {
        let bytes = schema::encode_entry(&entry(command)).expect("encode");
        u16::from_be_bytes(*bytes.first_chunk().expect("two octets"))
    };
    assert_eq!(stamp(put(&[])), 1);
    assert_eq!(stamp(Command::RaiseSchema { to: 2 }), 1);
    assert_eq!(stamp(put(&[("rack", "r12")])), 2);
    assert_eq!(stamp(label(&[], &["rack"])), 2);
    let mut site = at(2);
    site.try_run(put(&[("rack", "r12")])).expect("put");
    site.try_run(label(&[], &["rack"])).expect("labelled");
    let rows = site.state.rows().expect("rows");
    let machines = rows
        .iter()
        .filter(|row| row.key.starts_with(b"\x06machine"));
    let stamps: Vec<&[u8]> = machines
        .filter_map(|row| row.value.as_deref()?.get(..2))
        .collect();
    assert_eq!(stamps, [[0, 1]], "it has none any more");
}
