//! What is wrong with the cluster, as the node that was asked sees it.

use super::super::facts::{Cluster, Member, Node};
use super::{Finding, Severity, found};

/// Percent of a subnet's pool that are taken when it is nearly full.
const POOL_WARNING: u64 = 90;
/// Log entries by which a node may be behind while it works.
const LAG_WARNING: u64 = 10_000;
/// Findings of one rule; the rest is only counted.
pub(super) const MANY: usize = 10;

/// All of it; what nodes see of links says which subnets are served.
pub fn findings(cluster: &Cluster, nodes: &[Node]) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(quorum(cluster));
    findings.extend(members(cluster));
    findings.extend(versions(cluster));
    findings.extend(subnets(cluster, nodes));
    findings.extend(objects(cluster));
    findings.extend(artifacts(cluster));
    findings.extend(alerts(cluster));
    findings
}

fn quorum(cluster: &Cluster) -> Option<Finding> {
    if cluster.quorum {
        return None;
    }
    let dead: Vec<&str> = dead(cluster).map(|member| member.name.as_str()).collect();
    Some(found(
        Severity::Error,
        "quorum",
        "the node that was asked has no quorum behind it",
        "no new lease, no install and no change of any object until it has; committed leases are \
         confirmed to their end, and boot files are still served",
        match dead.as_slice() {
            [] => "see whether nodes reach each other on the peer port (8093): \
                   `muster cluster status` on each"
                .to_owned(),
            dead => format!(
                "start {} or their network; if a majority is lost for good, read \
                 docs/operate/backup.md before anything else",
                dead.join(", ")
            ),
        },
    ))
}

fn dead(cluster: &Cluster) -> impl Iterator<Item = &Member> {
    cluster.members.iter().filter(|member| !member.live)
}

fn members(cluster: &Cluster) -> Vec<Finding> {
    let mut findings = Vec::new();
    let voters = cluster.members.iter().filter(|it| it.voter);
    let voters: Vec<&Member> = voters.collect();
    for member in &cluster.members {
        let name = &member.name;
        let of = |finding: Finding| Finding {
            node: Some(name.clone()),
            ..finding
        };
        if let Some(fault) = &member.fault {
            findings.push(of(found(
                Severity::Error,
                "fault",
                fault,
                "the node takes no part, or what it says must be doubted",
                format!(
                    "read the log of `{name}`; `muster node check` on its stopped data directory"
                ),
            )));
        } else if !member.live {
            findings.push(of(found(
                Severity::Error,
                "peer",
                "peers do not hear the node",
                "one failure fewer is survived, and machines that know only this node wait for it",
                format!(
                    "see whether its process runs and port 8093 is reached; if it is gone for good: \
                     `muster cluster replace {name} NEW`"
                ),
            )));
        }
        if member.draining {
            findings.push(of(found(
                Severity::Warning,
                "draining",
                "the node is about to stop",
                "it leads no more and takes no new work until it is started again",
                "stop and start it, or finish what it was drained for",
            )));
        }
        if member.live && member.lag > LAG_WARNING {
            findings.push(of(found(
                Severity::Warning,
                "lag",
                format!("the node is {} log entries behind", member.lag),
                "it answers from an older state, and asks a quorum more often",
                "wait while the number falls; else look at its disk and its link",
            )));
        }
    }
    match voters.len() {
        0 => {}
        1 => findings.push(found(
            Severity::Warning,
            "voters",
            "the cluster has one voter",
            "when this node stops, nothing is served",
            "join two more: docs/operate/cluster.md",
        )),
        even if even % 2 == 0 => findings.push(found(
            Severity::Warning,
            "voters",
            format!("the cluster has {even} voters, an even number"),
            "as many failures are survived as with one voter less, and one more can fail",
            "join a node, or remove one",
        )),
        _ => {}
    }
    let live = voters.iter().filter(|it| it.live).count();
    if cluster.quorum && voters.len() > 1 && live <= voters.len() / 2 + 1 && live < voters.len() {
        findings.push(found(
            Severity::Error,
            "redundancy",
            format!("{live} of {} voters are live", voters.len()),
            "the next failure ends the quorum",
            "bring back the nodes that are down before touching any other",
        ));
    }
    findings
}

fn versions(cluster: &Cluster) -> Option<Finding> {
    let mut versions: Vec<&str> = cluster.members.iter().map(|it| &*it.version).collect();
    versions.sort_unstable();
    versions.dedup();
    (versions.len() > 1).then(|| {
        found(
            Severity::Note,
            "versions",
            format!("nodes are of different versions: {}", versions.join(", ")),
            "that is well during an upgrade; what the newer one can do more is not done until all \
             nodes can",
            "finish the upgrade",
        )
    })
}

fn subnets(cluster: &Cluster, nodes: &[Node]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for subnet in &cluster.subnets {
        let name = &subnet.name;
        if subnet.pool > 0 && subnet.taken >= subnet.pool {
            findings.push(found(
                Severity::Error,
                "pools",
                format!("subnet `{name}` has no free address of {}", subnet.pool),
                "new clients get no answer",
                format!("add a pool to `{name}`, or shorten its leases; `muster leases list`"),
            ));
        } else if subnet.pool > 0
            && subnet.taken.saturating_mul(100) >= subnet.pool.saturating_mul(POOL_WARNING)
        {
            findings.push(found(
                Severity::Warning,
                "pools",
                format!(
                    "subnet `{name}` has {} free addresses of {}",
                    subnet.pool.saturating_sub(subnet.taken),
                    subnet.pool
                ),
                "soon new clients get no answer",
                format!("add a pool to `{name}`, or shorten its leases"),
            ));
        }
        let relays = nodes.iter().flat_map(|node| &node.links.relays);
        let relayed = relays
            .filter_map(|relay| relay.subnet.as_ref())
            .any(|it| it == name);
        if subnet.servers.is_empty() && !relayed {
            findings.push(found(
                Severity::Warning,
                "relays",
                format!("nobody was heard from subnet `{name}`"),
                "no node has an address on it, and no relay has forwarded anything from it since the \
                 nodes were started",
                format!(
                    "let the router of `{name}` forward DHCP to all nodes (ip helper-address), or \
                     give the nodes an interface there"
                ),
            ));
        }
    }
    findings
}

fn objects(cluster: &Cluster) -> Vec<Finding> {
    let listed = cluster.unavailable.iter().take(MANY).map(|object| {
        let (kind, key) = (&object.kind, &object.key);
        found(
            Severity::Warning,
            "objects",
            format!("{kind} `{key}`: {}", object.problems.join("; ")),
            "the object is not used until that is mended; everything else is",
            format!("`muster {kind}s get {key}` says what is missing"),
        )
    });
    let more = cluster.unavailable.len().saturating_sub(MANY);
    let counted = (more > 0).then(|| {
        found(
            Severity::Warning,
            "objects",
            format!("{more} more objects are not available"),
            "they are not used until their problems are mended",
            "list them: `muster machines list -o json`, and so on, with `available: false`",
        )
    });
    listed.chain(counted).collect()
}

fn artifacts(cluster: &Cluster) -> Vec<Finding> {
    let listed = cluster.incomplete.iter().take(MANY).map(|artifact| {
        let path = &artifact.path;
        let missing = artifact.missing.join(", ");
        match artifact.holders.is_empty() {
            true => found(
                Severity::Error,
                "artifacts",
                format!("no node that answers holds `{path}`"),
                "machines that boot it wait in vain",
                format!("bring back a node that had it, or upload it again: `muster artifacts upload FILE --path {path}`"),
            ),
            false => found(
                Severity::Note,
                "artifacts",
                format!("`{path}` is not on {missing} yet"),
                "these nodes fetch it from others when they are asked for it",
                "wait; if it stays so, look at the disks of these nodes",
            ),
        }
    });
    let more = cluster.incomplete.len().saturating_sub(MANY);
    let counted = (more > 0).then(|| {
        found(
            Severity::Note,
            "artifacts",
            format!("{more} more artifacts are not on all nodes"),
            "nodes fetch them from each other",
            "see `holders` in `muster artifacts list -o json`",
        )
    });
    listed.chain(counted).collect()
}

fn alerts(cluster: &Cluster) -> Vec<Finding> {
    let listed = cluster.alerts.iter().take(MANY).map(|alert| {
        let (meaning, next) = match alert.kind.as_str() {
            "foreign_server" => (
                "a client took the offer of a server that is none of ours",
                "find it by its MAC on the switches and stop it, or name it in the subnet's \
                 foreign_servers",
            ),
            "address_in_use" => (
                "somebody uses an address that was not given to it; the address is quarantined",
                "find who has it, and give it a reservation or an address outside of the pools",
            ),
            "minority" => (
                "for that time nothing new was promised or written there",
                "look at the network between the nodes at that time",
            ),
            "install_failed" => (
                "the machine boots its disk",
                "`muster machines timeline NAME`, then order the install again",
            ),
            "boot_stalled" => (
                "the machine began to boot and was not seen since",
                "`muster machines timeline NAME`, and its console",
            ),
            "artifact_damaged" => (
                "the file was put aside and fetched anew",
                "look at the disk of that node: a file does not change by itself",
            ),
            _ => ("a node told people to look into it", "`muster events list`"),
        };
        found(
            Severity::Warning,
            "alerts",
            format!("{} at {}: {}", alert.kind, alert.at, alert.about),
            meaning,
            next,
        )
    });
    listed.collect()
}
