//! One line in the log for each change of a lease, on the node that had it made.

use muster_raft::Cluster;
use muster_storage::event::Subject;
use muster_storage::model::Lease;
use muster_storage::{Change, State};

/// Writes down what happens to leases, for ever.
pub async fn keep(cluster: Cluster) {
    let own = format!("node:{}", cluster.node_name());
    let mut follow = cluster.follow(cluster.read(State::revision));
    loop {
        match follow.next().await {
            Ok(changes) => {
                for change in changes {
                    if let Subject::Lease(lease) = &change.subject
                        && is_ours(&change.actor.0, &own, cluster.is_leader())
                    {
                        write(&cluster, &change, lease);
                    }
                }
            }
            Err(gone) => {
                // What was left out is in no log; the leases themselves are as they are.
                tracing::warn!(%gone, "changes of leases came faster than they could be logged");
                follow = cluster.follow(cluster.read(State::revision));
            }
        }
    }
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
