//! A minute of chaos: one fault of each kind that a cluster of three gets over in seconds, under mixed
//! load, and then everything that was seen is checked. `make chaos` does it for longer, by a seed.

use std::time::Duration;

use anyhow::{Result, ensure};
use muster_chaos::chaos::plan::{Blow, Kind, Step, Who};
use muster_chaos::chaos::{self, Options};

/// Kind, whom it befalls, in which way, for how many seconds.
const STEPS: [(Kind, &[Who], u8, u64); 11] = [
    (Kind::Kill, &[Who::Leader], 0, 3),
    (Kind::Pause, &[Who::Leader], 0, 3),
    (Kind::Split, &[Who::Leader], 0, 4),
    (Kind::OneWay, &[Who::Leader], 0, 3),
    (Kind::Partial, &[Who::Follower(0), Who::Leader], 0, 3),
    (Kind::Kill, &[Who::Leader, Who::Follower(1)], 0, 3),
    (Kind::DiskSlow, &[Who::Leader], 0, 3),
    (Kind::Clock, &[Who::Leader], 0, 4),
    (
        Kind::Power,
        &[Who::Leader, Who::Follower(0), Who::Follower(1)],
        0,
        1,
    ),
    (Kind::Storm, &[Who::Follower(0)], 1, 0),
    (Kind::Member, &[Who::Follower(1)], 0, 0),
];

#[test]
fn a_minute_of_chaos_breaks_no_promise() -> Result<()> {
    let steps = STEPS.map(|(kind, who, way, seconds)| Step {
        rest: Duration::from_millis(500),
        blow: Blow {
            kind,
            who: who.to_vec(),
            way,
            jump: -600_000,
        },
        lasts: Duration::from_secs(seconds),
    });
    let scratch = tempfile::tempdir()?;
    let report = chaos::run(&Options {
        seed: 1,
        nodes: 3,
        steps: steps.to_vec(),
        other: None,
        report: scratch.path().to_owned(),
    })?;
    println!("{report}");
    ensure!(report.good(), "{report}");
    for what in [
        "DHCP: bind",
        "DHCP, relayed: bind",
        "API: change",
        "API: get",
    ] {
        ensure!(report.operations.contains_key(what), "no {what}\n{report}");
    }
    Ok(())
}
