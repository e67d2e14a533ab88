//! What is written down and counted of changes: each by one node, the one that had it made.

use metrics::{counter, describe_counter};
use muster_raft::Cluster;
use muster_storage::event::Subject;
use muster_storage::model::{Alert, Install, InstallPhase, Lease, Trouble};
use muster_storage::{Change, State};

const INSTALLS: &str = "muster_installs_total";
const ALERTS: &str = "muster_alerts_total";

/// How an install ends.
const OUTCOMES: [InstallPhase; 3] = [
    InstallPhase::Installed,
    InstallPhase::Failed,
    InstallPhase::Cancelled,
];

/// Says what is counted, and begins each count at 0: what first appears at 1 has not grown in the eyes
/// of an alert.
pub fn describe() {
    describe_counter!(
        INSTALLS,
        "Orders to install a machine that ended, by outcome: installed, failed, cancelled; each counted on one node"
    );
    describe_counter!(
        ALERTS,
        "Troubles that this node told people of by an event `alert`, by trouble: foreign_server, address_in_use, minority, install_failed, boot_stalled, artifact_damaged"
    );
    for outcome in OUTCOMES {
        counter!(INSTALLS, "outcome" => outcome.to_string()).increment(0);
    }
    for trouble in Trouble::LABELS {
        counter!(ALERTS, "trouble" => trouble).increment(0);
    }
}

/// Writes a line for each change of a lease, and counts installs and alerts, for ever.
pub async fn keep(cluster: Cluster) {
    let own = format!("node:{}", cluster.node_name());
    let mut follow = cluster.follow(cluster.read(State::revision));
    loop {
        match follow.next().await {
            Ok(changes) => {
                for change in changes {
                    let ours = || is_ours(&change.actor.0, &own, cluster.is_leader());
                    match &change.subject {
                        Subject::Lease(lease) if ours() => write(&cluster, &change, lease),
                        Subject::Install(install) if ours() => count_install(install),
                        Subject::Alert(alert) if alert.node == cluster.node_id() => {
                            count_alert(alert);
                        }
                        _ => {}
                    }
                }
            }
            Err(gone) => {
                // What was left out is in no log; the leases themselves are as they are.
                tracing::warn!(error = %gone, "changes came faster than they could be logged");
                follow = cluster.follow(cluster.read(State::revision));
            }
        }
    }
}

fn count_install(install: &Install) {
    if !install.is_active() {
        counter!(INSTALLS, "outcome" => install.phase.to_string()).increment(1);
    }
}

fn count_alert(alert: &Alert) {
    counter!(ALERTS, "trouble" => alert.trouble.label()).increment(1);
}

/// Whether this node writes down a change: one that it proposed, or as leader one that a person did.
fn is_ours(actor: &str, own: &str, leads: bool) -> bool {
    actor == own || (leads && !actor.starts_with("node:"))
}

fn write(cluster: &Cluster, change: &Change, lease: &Lease) {
    let (machine, node) = cluster.read(|state| {
        let machine = lease.machine.and_then(|uuid| state.machine_with_uuid(uuid));
        let node = state.member(lease.node);
        (
            machine.map(|machine| machine.name.clone()),
            node.map(|node| node.name.clone()),
        )
    });
    tracing::info!(
        target: "muster::leases",
        revision = change.revision.0,
        address = %lease.address,
        subnet = lease.subnet,
        client = %lease.client,
        mac = lease.mac.map(tracing::field::display),
        machine,
        node,
        rule = %lease.rule,
        until = %lease.promised_until,
        actor = change.actor.0,
        "lease {}",
        change.action.of_lease(lease),
    );
}

#[cfg(test)]
mod tests {
    use super::is_ours;

    #[test]
    fn each_change_is_written_down_by_one_node() {
        let cases = [
            ("node:n1", false, true),
            ("node:n1", true, true),
            ("node:n2", false, false),
            ("node:n2", true, false),
            ("admin", true, true),
            ("admin", false, false),
        ];
        for (actor, leads, ours) in cases {
            assert_eq!(is_ours(actor, "node:n1", leads), ours, "{actor} {leads}");
        }
    }
}
