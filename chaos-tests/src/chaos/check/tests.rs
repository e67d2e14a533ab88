//! Histories made by hand: one that is as it must be, and for each rule some that break it and
//! nothing else.

use std::collections::BTreeSet;

use muster_storage::linear::{Action, Condition, Told};

use super::*;

const SECOND: u64 = 1_000_000;
const ONE: &str = "02:00:00:00:00:01";
const TWO: &str = "02:00:00:00:00:02";
const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 8, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 8, 2);

fn exchange(mac: &str, at: u64, want: Want, said: Said, address: Ipv4Addr) -> Record {
    Record::Exchange(Exchange {
        start: at * SECOND,
        requested: at * SECOND,
        end: at * SECOND + 1000,
        mac: mac.to_owned(),
        relayed: false,
        want,
        said,
        address: Some(address),
        seconds: (said == Said::Ack).then_some(40),
        from: Some(NODE),
    })
}

fn bind(mac: &str, at: u64, address: Ipv4Addr) -> Record {
    exchange(mac, at, Want::Bind, Said::Ack, address)
}

fn call(at: u64, action: Action, told: Told, revision: u64) -> Record {
    Record::Call(Call {
        start: at * SECOND,
        end: at * SECOND + 1000,
        client: "api-0".to_owned(),
        node: "n1".to_owned(),
        key: "object-0-0".to_owned(),
        action,
        told,
        status: Some(200),
        revision: Some(revision),
    })
}

fn write(at: u64, value: u64, revision: u64) -> Record {
    call(
        at,
        Action::Write(Condition::Always, value),
        Told::Done,
        revision,
    )
}

fn read(at: u64, value: Option<u64>, revision: u64) -> Record {
    call(at, Action::Read(value), Told::Done, revision)
}

/// The first node is alone from the tenth second to the twentieth.
fn alone() -> Record {
    fault(None)
}

fn fault(trouble: Option<&str>) -> Record {
    Record::Fault(Fault {
        start: 9 * SECOND,
        struck: 10 * SECOND,
        healing: 20 * SECOND,
        end: 22 * SECOND,
        kind: "cut".to_owned(),
        what: "n1 cut off".to_owned(),
        alone: vec![NODE],
        alone_names: vec!["n1".to_owned()],
        trouble: trouble.map(str::to_owned),
    })
}

fn boot(up: bool) -> Record {
    Record::Boot(Boot {
        start: SECOND,
        end: 30 * SECOND,
        mac: ONE.to_owned(),
        model: "UEFI PXE".to_owned(),
        up,
        fall_backs: 0,
        next_entries: 0,
        setbacks: Vec::new(),
    })
}

/// The rules that a history breaks, with nothing to be asked at the end.
fn broken(records: Vec<Record>) -> BTreeSet<Rule> {
    let last = Last {
        at: 1000 * SECOND,
        ..Last::default()
    };
    rules(records, &last)
}

fn rules(records: Vec<Record>, last: &Last) -> BTreeSet<Rule> {
    let found = violations(&Parts::of(records), Some(last));
    assert!(found.iter().all(|one| !one.part.is_empty()), "{found:?}");
    found.into_iter().map(|one| one.rule).collect()
}

#[test]
fn what_may_be_is_accepted() {
    let unknown = call(11, Action::Write(Condition::Always, 3), Told::Unknown, 0);
    let table = [
        vec![],
        vec![write(1, 1, 100), read(2, Some(1), 100), boot(true)],
        // One ends, or is given back, before the other begins.
        vec![bind(ONE, 1, ADDRESS), bind(TWO, 42, ADDRESS)],
        vec![
            bind(ONE, 1, ADDRESS),
            exchange(ONE, 5, Want::Release, Said::Nothing, ADDRESS),
            bind(TWO, 6, ADDRESS),
        ],
        vec![
            bind(ONE, 1, ADDRESS),
            exchange(ONE, 20, Want::Renew, Said::Ack, ADDRESS),
            exchange(ONE, 25, Want::Release, Said::Nothing, ADDRESS),
            bind(TWO, 26, ADDRESS),
        ],
        // It has taken another, and is refused what it had.
        vec![
            bind(ONE, 1, ADDRESS),
            bind(ONE, 5, OTHER),
            bind(TWO, 6, ADDRESS),
        ],
        vec![
            bind(ONE, 1, ADDRESS),
            exchange(ONE, 45, Want::Reboot, Said::Nak, ADDRESS),
        ],
        // What it gave back is confirmed by a node that has not heard of it, and refused later.
        vec![
            bind(ONE, 1, ADDRESS),
            exchange(ONE, 5, Want::Decline, Said::Nothing, ADDRESS),
            bind(ONE, 6, ADDRESS),
            exchange(ONE, 12, Want::Rebind, Said::Nak, ADDRESS),
        ],
        // Alone, a node confirms, and tells nobody that a write is done.
        vec![
            alone(),
            bind(ONE, 1, ADDRESS),
            exchange(ONE, 12, Want::Rebind, Said::Ack, ADDRESS),
            write(1, 1, 100),
            unknown,
            read(21, Some(3), 101),
        ],
        // It was not alone any more, or not yet.
        vec![alone(), bind(ONE, 20, ADDRESS), bind(TWO, 9, OTHER)],
    ];
    for history in table {
        assert_eq!(broken(history.clone()), BTreeSet::new(), "{history:?}");
    }
}

#[test]
fn each_rule_is_broken_by_what_breaks_it() {
    let refused = exchange(ONE, 12, Want::Rebind, Said::Nak, ADDRESS);
    let table = [
        // Two at a time; the second after a release by another; by a renewal.
        (
            Rule::OneOwner,
            vec![bind(ONE, 1, ADDRESS), bind(TWO, 40, ADDRESS)],
        ),
        (
            Rule::OneOwner,
            vec![
                bind(ONE, 1, ADDRESS),
                bind(TWO, 2, OTHER),
                exchange(TWO, 3, Want::Release, Said::Nothing, OTHER),
                bind(TWO, 4, ADDRESS),
            ],
        ),
        (
            Rule::OneOwner,
            vec![
                bind(ONE, 1, ADDRESS),
                exchange(ONE, 30, Want::Renew, Said::Ack, ADDRESS),
                bind(TWO, 50, ADDRESS),
            ],
        ),
        // Refused what it has; moved by a renewal.
        (
            Rule::LeaseKept,
            vec![bind(ONE, 1, ADDRESS), refused.clone()],
        ),
        (
            Rule::LeaseKept,
            vec![
                bind(ONE, 1, ADDRESS),
                exchange(ONE, 5, Want::Release, Said::Nothing, ADDRESS),
                bind(ONE, 90, ADDRESS),
                exchange(ONE, 92, Want::Rebind, Said::Nak, ADDRESS),
            ],
        ),
        (
            Rule::LeaseKept,
            vec![
                bind(ONE, 1, ADDRESS),
                exchange(ONE, 5, Want::Renew, Said::Ack, OTHER),
            ],
        ),
        // A stale read; an acknowledged write that is gone; one that nobody made.
        (
            Rule::Linearizable,
            vec![write(1, 1, 100), write(2, 2, 101), read(3, Some(1), 101)],
        ),
        (
            Rule::Linearizable,
            vec![write(1, 1, 100), read(3, None, 101)],
        ),
        (Rule::Linearizable, vec![read(3, Some(9), 101)]),
        // A read of a state that is older than one that was shown.
        (Rule::Fresh, vec![write(1, 1, 100), read(2, Some(1), 99)]),
        // Alone: a new lease, a refusal, a write, a read.
        (Rule::Minority, vec![alone(), bind(ONE, 12, ADDRESS)]),
        (
            Rule::Minority,
            vec![alone(), exchange(ONE, 12, Want::Reboot, Said::Nak, ADDRESS)],
        ),
        (Rule::Minority, vec![alone(), write(12, 1, 100)]),
        (Rule::Minority, vec![alone(), read(12, None, 100)]),
        (Rule::NobodyGivesUp, vec![boot(false)]),
        (
            Rule::NobodyGivesUp,
            vec![exchange(ONE, 1, Want::Bind, Said::Nothing, ADDRESS)],
        ),
        (Rule::Heals, vec![fault(Some("n1 ended"))]),
    ];
    for (rule, history) in table {
        assert_eq!(
            broken(history.clone()),
            BTreeSet::from([rule]),
            "{history:?}"
        );
    }
}

#[test]
fn a_lease_that_is_not_there_at_the_end_is_lost() {
    let history = || vec![bind(ONE, 1, ADDRESS), bind(TWO, 2, OTHER)];
    let owners = |one: &str, other: &str| Last {
        at: 20 * SECOND,
        bound: BTreeMap::from([(ADDRESS, one.to_owned()), (OTHER, other.to_owned())]),
    };
    assert_eq!(rules(history(), &owners(ONE, TWO)), BTreeSet::new());
    let lost = BTreeSet::from([Rule::LeaseKept]);
    assert_eq!(rules(history(), &owners(TWO, TWO)), lost);
    assert_eq!(rules(history(), &owners(ONE, ONE)), lost);
    // What has ended may be gone.
    let mut late = owners(TWO, ONE);
    late.at = 60 * SECOND;
    assert_eq!(rules(history(), &late), BTreeSet::new());
}
