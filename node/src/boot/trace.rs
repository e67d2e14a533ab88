//! Which boot of a machine a step belongs to: an identity that every node comes to by itself, from what
//! all of them know ([ADR 16](../../../docs/adr/0016-a-boot-is-named-by-what-ended-the-one-before.md)).

use std::fmt;

use muster_storage::model::{Fact, LOCAL, Step, Timeline, Timestamp};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// A machine that was quiet for so long before it has a loader or a script boots anew, in milliseconds.
const QUIET_MILLIS: u64 = 10 * 60_000;

/// Names one boot of one machine, on all nodes (a trace id of W3C Trace Context).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

impl TraceId {
    /// The boot that `step`, done now, is part of.
    pub fn of(
        cluster: Uuid,
        machine: Uuid,
        timeline: Option<&Timeline>,
        step: &Step,
        now: Timestamp,
    ) -> Self {
        let facts = timeline.map_or(&[][..], |timeline| timeline.facts.as_slice());
        let ended = ended_before(facts, step, now).unwrap_or_default();
        let digest = Sha256::new()
            .chain_update(b"muster boot")
            .chain_update(cluster.as_bytes())
            .chain_update(machine.as_bytes())
            .chain_update(ended.0.to_be_bytes())
            .finalize();
        // A digest has more octets than that.
        Self(digest.first_chunk().copied().unwrap_or_default())
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Where in a boot a step can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Up to its script.
    Begin,
    /// From its kernel on, or its own disk: what begins after it is another boot.
    End,
    /// In either, or no step of the machine.
    Any,
}

fn part(step: &Step) -> Part {
    match step {
        Step::Script { boots, .. } if boots == LOCAL => Part::End,
        Step::Offered { .. } | Step::Bound { .. } | Step::Loader { .. } | Step::Script { .. } => {
            Part::Begin
        }
        Step::Kernel { .. } | Step::Initrd { .. } | Step::Reported => Part::End,
        Step::File { .. } | Step::Install { .. } | Step::Stalled => Part::Any,
    }
}

/// When the boot before this one was seen last. What nodes see in this boot does not change it, so
/// that it is no matter how much of that has come to this node yet.
fn ended_before(facts: &[Fact], step: &Step, now: Timestamp) -> Option<Timestamp> {
    let mut facts: Vec<&Fact> = facts
        .iter()
        .filter(|fact| part(&fact.step) != Part::Any)
        .collect();
    // Nodes write what they saw when they come to it.
    facts.sort_by_key(|fact| fact.at);
    let mut facts = facts.into_iter().rev();
    // The end of this boot may have begun, unless this step is of a beginning.
    let begins = matches!(
        step,
        Step::Offered { .. } | Step::Bound { .. } | Step::Loader { .. } | Step::Script { .. }
    );
    let mut next = facts.next();
    while next.is_some_and(|fact| !begins && part(&fact.step) == Part::End) {
        next = facts.next();
    }
    // From its kernel on, a machine may be quiet for as long as it likes.
    let mut later = begins.then_some(now);
    while let Some(fact) = next {
        let seen = fact.until.unwrap_or(fact.at);
        let quiet = later.is_some_and(|later| later.0.saturating_sub(seen.0) >= QUIET_MILLIS);
        if part(&fact.step) == Part::End || quiet {
            return Some(seen);
        }
        later = Some(fact.at);
        next = facts.next();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_storage::model::InstallPhase;

    const CLUSTER: Uuid = Uuid::from_u128(1);
    const MACHINE: Uuid = Uuid::from_u128(2);

    fn offered() -> Step {
        Step::Offered {
            address: [10, 0, 0, 5].into(),
        }
    }

    fn bound() -> Step {
        Step::Bound {
            address: [10, 0, 0, 5].into(),
        }
    }

    fn loader() -> Step {
        Step::Loader {
            name: "snponly.efi".to_owned(),
        }
    }

    fn script(boots: &str) -> Step {
        Step::Script {
            boots: boots.to_owned(),
            revision: Default::default(),
            attempt: None,
        }
    }

    fn kernel() -> Step {
        Step::Kernel {
            path: "k".to_owned(),
        }
    }

    fn initrd() -> Step {
        Step::Initrd {
            path: "i".to_owned(),
        }
    }

    fn file() -> Step {
        Step::File {
            path: "f".to_owned(),
        }
    }

    fn of(facts: &[(u64, Step)], step: &Step, now: u64) -> TraceId {
        let facts = facts.iter().map(|(at, step)| Fact {
            at: Timestamp(at * 1000),
            until: None,
            times: 1,
            node: None,
            step: step.clone(),
        });
        let timeline = Timeline {
            machine: MACHINE,
            facts: facts.collect(),
            under_way: None,
        };
        let now = Timestamp(now * 1000);
        TraceId::of(CLUSTER, MACHINE, Some(&timeline), step, now)
    }

    /// Boots in a row, each as (second, step).
    fn boots(each: &[&[(u64, Step)]]) {
        let mut before: Vec<(u64, Step)> = Vec::new();
        let mut names: Vec<TraceId> = Vec::new();
        for boot in each {
            let first = of(&before, &boot[0].1, boot[0].0);
            assert!(!names.contains(&first), "two boots have one name: {boot:?}");
            names.push(first);
            for known in 0..boot.len() {
                for (place, (at, step)) in boot.iter().enumerate().skip(known) {
                    // A node knows a beginning of what was seen of this boot; who is at its end knows
                    // that it has begun.
                    if known == 0 && place > 0 && part(step) != Part::Begin {
                        continue;
                    }
                    let facts = [&before[..], &boot[..known]].concat();
                    let name = of(&facts, step, *at);
                    assert_eq!(
                        name, first,
                        "{known} facts are known at {step:?} of {boot:?}"
                    );
                }
            }
            before.extend_from_slice(boot);
        }
    }

    #[test]
    fn a_boot_has_one_name_whatever_a_node_has_heard_of_it() {
        boots(&[
            &[
                (10, offered()),
                (11, bound()),
                (12, loader()),
                (13, offered()),
                (13, bound()),
                (14, script("debian")),
                (15, kernel()),
                (16, initrd()),
                (20, file()),
                // The installer takes its time.
                (2000, Step::Reported),
            ],
            &[
                (2010, offered()),
                (2011, bound()),
                (2012, loader()),
                (2014, script(LOCAL)),
            ],
            &[
                (2500, offered()),
                (2501, script("debian")),
                (2502, kernel()),
            ],
            // Its power was cut at once.
            &[
                (2510, offered()),
                (2511, loader()),
                (2512, file()),
                (2513, script("debian")),
            ],
        ]);
    }

    #[test]
    fn a_boot_that_came_to_nothing_ends_when_the_machine_is_quiet() {
        boots(&[
            &[
                (10, offered()),
                (12, loader()),
                (20, offered()),
                (22, loader()),
            ],
            &[
                (700, offered()),
                (702, loader()),
                (704, script("debian")),
                (705, kernel()),
            ],
        ]);
    }

    #[test]
    fn it_is_no_matter_who_wrote_first() {
        let told = [(15, kernel()), (20, Step::Reported), (16, initrd())];
        let in_order = [(15, kernel()), (16, initrd()), (20, Step::Reported)];
        let name = of(&in_order, &offered(), 60);
        assert_eq!(of(&told, &offered(), 60), name);
        assert_eq!(
            of(&told[..2], &offered(), 60),
            name,
            "the initrd is yet to be told of"
        );
    }

    #[test]
    fn what_people_and_the_cluster_do_is_no_part_of_a_boot() {
        let order = Step::Install {
            phase: InstallPhase::Armed,
            why: String::new(),
        };
        let facts = [(10, offered()), (12, script("debian")), (13, kernel())];
        let ordered = [&facts[..], &[(50, order)]].concat();
        assert_eq!(of(&facts, &offered(), 60), of(&ordered, &offered(), 60));
    }

    #[test]
    fn other_machines_and_clusters_have_other_names() {
        let name = |cluster, machine| TraceId::of(cluster, machine, None, &offered(), Timestamp(1));
        let own = name(CLUSTER, MACHINE);
        assert_ne!(own, name(MACHINE, MACHINE));
        assert_ne!(own, name(CLUSTER, CLUSTER));
        assert_eq!(own.to_string().len(), 32);
    }
}
