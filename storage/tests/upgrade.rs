//! From one schema to the next: not before every member supports it, and never back.

#![allow(clippy::expect_used)]

mod site;

use muster_storage::command::PutMode;
use muster_storage::model::{Member, Object, Seen, Settings, Step};
use muster_storage::schema::{self, Corrupt};
use muster_storage::{Command, Effect, NodeId, Rejection, Revision, State, Timestamp};
use serde_json::json;
use site::{Site, member};
use uuid::Uuid;

/// One that no binary of today knows.
const NEXT: u16 = schema::CURRENT + 1;

const HOUR: u64 = 3_600_000;

/// Of one member, which supports schemas up to this. An hour passes from command to command.
fn founded(max_schema: u16) -> Site {
    Site::founded(member(1, max_schema), HOUR)
}

fn join(site: &mut Site, last: u8, max_schema: u16) -> Result<NodeId, Rejection> {
    let member = Box::new(member(last, max_schema));
    match site.try_run(Command::AddMember {
        member,
        token: None,
    })? {
        Effect::Member(id) => Ok(id),
        other => unreachable!("{other:?}"),
    }
}

/// A node was started with a binary that supports schemas up to this.
fn restarted(site: &mut Site, id: NodeId, last: u8, max_schema: u16) -> Result<Effect, Rejection> {
    let member = Member {
        id,
        ..member(last, max_schema)
    };
    site.try_run(Command::UpdateMember(Box::new(member)))
}

fn refused(result: Result<impl std::fmt::Debug, Rejection>) -> String {
    match result {
        Err(Rejection::Conflict(why)) => why,
        other => format!("{other:?} is no refusal"),
    }
}

#[test]
fn the_schema_is_raised_only_when_every_member_supports_it() {
    let mut site = founded(1);
    let second = join(&mut site, 2, 1).expect("it joins");
    let raise = || Command::RaiseSchema { to: 2 };
    assert!(refused(site.try_run(raise())).contains("n1, n2"));
    restarted(&mut site, NodeId(1), 1, 2).expect("it is upgraded");
    assert_eq!(site.state.raisable_since(), None);
    let why = refused(site.try_run(raise()));
    assert!(why.contains("n2") && !why.contains("n1"), "{why}");
    assert_eq!(site.state.schema(), 1);

    // As long as it is not raised, any of them may be put back.
    restarted(&mut site, second, 2, 2).expect("it is upgraded");
    assert!(site.state.raisable_since().is_some());
    restarted(&mut site, second, 2, 1).expect("it is put back");
    assert_eq!(site.state.raisable_since(), None);
}

#[test]
fn the_cluster_goes_on_by_itself_when_the_settings_say_so() {
    let mut site = founded(1);
    restarted(&mut site, NodeId(1), 1, 2).expect("it is upgraded");
    let since = Timestamp(1_000_000 + 2 * HOUR);
    assert_eq!(site.state.raisable_since(), Some(since));
    assert_eq!(
        site.state.raise_due(),
        Some(Timestamp(since.0 + 24 * HOUR)),
        "a day later"
    );
    // Another restart does not put it off.
    restarted(&mut site, NodeId(1), 1, 2).expect("it is restarted");
    assert_eq!(site.state.raisable_since(), Some(since));
    let by_hand = Settings {
        finalize_after_secs: 0,
        ..Settings::default()
    };
    let put = Command::Put {
        object: Object::Settings(by_hand),
        mode: PutMode::Replace,
    };
    site.try_run(put).expect("it is set");
    assert_eq!(site.state.raise_due(), None);
}

#[test]
fn a_binary_that_does_not_know_the_schema_stops_where_it_is_raised() {
    let mut site = founded(1);
    restarted(&mut site, NodeId(1), 1, NEXT).expect("its record says so");
    site.state.take_rows().expect("rows until here");
    let raised = site.try_run(Command::RaiseSchema { to: NEXT });
    assert_eq!(raised, Ok(Effect::Done));
    let stopped = site.state.take_rows();
    assert!(
        matches!(stopped, Err(Corrupt::Newer { found, .. }) if found == NEXT),
        "{stopped:?}"
    );
}

#[test]
fn a_binary_that_is_too_old_or_too_new_is_no_member() {
    // All of its members support it from the start.
    let mut site = founded(schema::CURRENT);
    assert_eq!(site.state.schema(), schema::CURRENT);
    let old = refused(join(&mut site, 2, schema::CURRENT - 1));
    assert!(old.contains("install a newer one"), "{old}");
    let new = Box::new(Member {
        min_schema: NEXT,
        ..member(3, NEXT)
    });
    let new = refused(site.try_run(Command::AddMember {
        member: new,
        token: None,
    }));
    assert!(new.contains("in between"), "{new}");
    let back = refused(restarted(&mut site, NodeId(1), 1, schema::CURRENT - 1));
    assert!(back.contains("this cluster is at"), "{back}");
}

#[test]
fn state_of_a_newer_schema_is_not_loaded() {
    let mut site = founded(schema::CURRENT);
    let rows = site.state.take_rows().expect("its rows");
    let rows = rows.into_iter().filter_map(|row| {
        let mut value = row.value?;
        if row.key == [0] {
            let stamp = value.get_mut(..2).expect("a schema of two octets");
            stamp.copy_from_slice(&NEXT.to_be_bytes());
        }
        Some((row.key, value))
    });
    let loaded = State::load(rows);
    assert!(
        matches!(loaded, Err(Corrupt::Newer { found, .. }) if found == NEXT),
        "{:?}",
        loaded.err()
    );
}

const MACHINE: Uuid = Uuid::from_u128(0x11);

/// Facts by node, second and step, in the order in which they are written; how many boots are under way
/// after them.
fn under_way(schema: u16, facts: &[(u64, u64, Step)]) -> usize {
    let mut site = founded(schema);
    let machine = json!({"uuid": MACHINE, "name": "m1", "macs": ["52:54:00:00:00:50"],
        "bootenv": "live"});
    site.run(Command::Put {
        object: Object::Machine(serde_json::from_value(machine).expect("a machine")),
        mode: PutMode::Create,
    });
    for (node, second, step) in facts {
        site.run(Command::Saw {
            node: NodeId(*node),
            seen: vec![Seen {
                machine: MACHINE,
                at: Timestamp(second * 1000),
                step: step.clone(),
            }],
        });
    }
    let far = Timestamp(1_000_000 + 1000 * HOUR);
    site.state.stalled_boots(far).count()
}

fn bound() -> Step {
    Step::Bound {
        address: [10, 77, 0, 50].into(),
    }
}

fn script(boots: &str) -> Step {
    Step::Script {
        boots: boots.into(),
        revision: Revision(0),
        attempt: None,
    }
}

#[test]
fn from_schema_2_on_boots_are_watched_from_their_beginning_and_by_nothing_late() {
    let kernel = || Step::Kernel { path: "k".into() };
    for (why, facts, old, new) in [
        (
            "in time",
            vec![(1, 10, script("live")), (2, 20, script("local"))],
            0,
            0,
        ),
        (
            "a disk's boot before",
            vec![(1, 30, script("live")), (2, 20, script("local"))],
            0,
            1,
        ),
        (
            "another before",
            vec![(1, 30, script("live")), (2, 20, script("other"))],
            1,
            1,
        ),
        (
            "a kernel before",
            vec![(1, 30, script("live")), (2, 20, kernel())],
            0,
            1,
        ),
        (
            "a kernel by a slower clock",
            vec![(1, 30, script("live")), (2, 29, kernel())],
            0,
            0,
        ),
        (
            "a script after its kernel",
            vec![(1, 30, kernel()), (2, 29, script("live"))],
            1,
            0,
        ),
        (
            "the next boot",
            vec![(1, 30, kernel()), (2, 40, script("live"))],
            1,
            1,
        ),
        ("no script yet", vec![(1, 1 << 30, bound())], 0, 1),
        // Seconds of days to come.
        (
            "a clock that was wrong",
            vec![(1, 1 << 30, script("live")), (2, 1 << 31, script("local"))],
            0,
            0,
        ),
    ] {
        assert_eq!(under_way(1, &facts), old, "{why}, as 0.1.0 does");
        assert_eq!(under_way(2, &facts), new, "{why}");
    }
}
