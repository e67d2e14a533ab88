//! What follows from what is known: each rule says what is wrong, what that means, and what to do next.

use serde::{Deserialize, Serialize};

use super::facts::{Cluster, Host, Member, Node, Process, Site, Unheard};

/// Wall clocks that are off by more than this are worth a look, in milliseconds.
const CLOCK_WARNING: u64 = 2000;
/// And by more than this wrong: certificates and logs are misread.
const CLOCK_ERROR: u64 = 60_000;
/// Days that a certificate has left when it has not been renewed although it was due long ago: nodes
/// renew theirs with 132 days left.
const CERTIFICATE_WARNING: i64 = 100;
/// And when it is about to end.
const CERTIFICATE_ERROR: i64 = 14;
/// Octets of a disk below which a node takes no part any more.
const DISK_ERROR: u64 = 64 << 20;
/// And below which somebody has to make room.
const DISK_WARNING: u64 = 1 << 30;
/// Percent of a subnet's pool that are taken when it is nearly full.
const POOL_WARNING: u64 = 90;
/// Log entries by which a node may be behind while it works.
const LAG_WARNING: u64 = 10_000;
/// Open files that a busy node needs.
const FILES_MIN: u64 = 32_768;
/// Findings of one rule; the rest is only counted.
const MANY: usize = 10;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Machines are not served, or soon will not be.
    Error,
    /// It works, and less can go wrong than should be able to.
    Warning,
    /// Worth knowing.
    Note,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at: `quorum`, `disk`, `relays` …; stable, for programs.
    pub check: String,
    /// On which node; absent when it concerns the cluster.
    pub node: Option<String>,
    /// What is wrong.
    pub finding: String,
    /// What that means.
    pub meaning: String,
    /// What to do next.
    pub next: String,
}

/// All that is wrong, the worst first.
pub fn judge(site: &Site) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(cluster) = &site.cluster {
        findings.extend(quorum(cluster));
        findings.extend(members(cluster));
        findings.extend(versions(cluster));
        findings.extend(subnets(cluster, &site.nodes));
        findings.extend(objects(cluster));
        findings.extend(artifacts(cluster));
        findings.extend(alerts(cluster));
    }
    findings.extend(site.unheard.iter().map(unheard));
    for node in &site.nodes {
        let mut own = Vec::new();
        own.extend(clock(node));
        own.extend(certificate(node));
        own.extend(disk(&node.host));
        own.extend(data(&node.host));
        own.extend(settings(&node.host));
        own.extend(ports(&node.host));
        own.extend(loaders(node));
        own.extend(files(&node.host));
        own.extend(links(node));
        for finding in &mut own {
            finding.node = Some(node.name.clone()).filter(|name| !name.is_empty());
        }
        findings.extend(own);
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}

fn found(
    severity: Severity,
    check: &str,
    finding: impl Into<String>,
    meaning: &str,
    next: impl Into<String>,
) -> Finding {
    Finding {
        severity,
        check: check.to_owned(),
        node: None,
        finding: finding.into(),
        meaning: meaning.to_owned(),
        next: next.into(),
    }
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

fn unheard(unheard: &Unheard) -> Finding {
    Finding {
        node: Some(unheard.node.clone()),
        ..found(
            Severity::Warning,
            "unheard",
            format!("nothing could be asked of the node: {}", unheard.why),
            "its disk, clock, ports and links were not looked at",
            "run `muster doctor` on it",
        )
    }
}

fn clock(node: &Node) -> Option<Finding> {
    let clock = node.clock?;
    let off = clock.wall.abs_diff(clock.cluster);
    let severity = match off {
        off if off > CLOCK_ERROR => Severity::Error,
        off if off > CLOCK_WARNING => Severity::Warning,
        _ => return None,
    };
    let (seconds, side) = match clock.wall > clock.cluster {
        true => (off / 1000, "ahead of"),
        false => (off / 1000, "behind"),
    };
    Some(found(
        severity,
        "clock",
        format!("the clock is {seconds} s {side} the cluster's time"),
        "leases do not depend on it, but certificates, logs and what machines are told of the time do",
        "see that a time service runs (`timedatectl`, `chronyc tracking`)",
    ))
}

fn certificate(node: &Node) -> Option<Finding> {
    let days = node.certificate_days?;
    let severity = match days {
        days if days < CERTIFICATE_ERROR => Severity::Error,
        days if days < CERTIFICATE_WARNING => Severity::Warning,
        _ => return None,
    };
    Some(found(
        severity,
        "certificate",
        format!("the certificate ends in {days} days"),
        "nodes renew theirs by themselves well before; when it ends, clients refuse the node",
        "`muster cluster renew-certificates NODE`, and read its log for what kept it",
    ))
}

fn disk(host: &Host) -> Option<Finding> {
    let disk = host.disk?;
    let severity = match disk.free {
        free if free < DISK_ERROR => Severity::Error,
        free if free < DISK_WARNING || free < disk.size / 20 => Severity::Warning,
        _ => return None,
    };
    Some(found(
        severity,
        "disk",
        format!(
            "{} MiB of {} MiB are free on the disk of {}",
            disk.free >> 20,
            disk.size >> 20,
            host.data_dir.display()
        ),
        "below 48 MiB the node takes no part any more; artifacts are refused long before",
        "make room: remove artifacts that are not used any more, or what else is on that disk",
    ))
}

fn data(host: &Host) -> Vec<Finding> {
    let problems = host.data_problems.iter().map(|problem| {
        found(
            Severity::Error,
            "data",
            problem,
            "the node cannot work with its data directory",
            "correct the path (--data-dir), its owner or its mode; `muster node check` verifies what it holds",
        )
    });
    let exposed = host.data_exposed.then(|| {
        found(
            Severity::Warning,
            "data",
            format!("others may read files in {}", host.data_dir.display()),
            "it holds keys and password hashes",
            format!("chmod -R go= {}", host.data_dir.display()),
        )
    });
    problems.chain(exposed).collect()
}

fn settings(host: &Host) -> Vec<Finding> {
    let problems = host.settings_problems.iter().map(|problem| {
        found(
            Severity::Error,
            "settings",
            problem,
            "with these settings the node does not start",
            "correct the flags or the MUSTER_* variables of its service",
        )
    });
    let stopped = (!host.running).then(|| {
        found(
            Severity::Error,
            "process",
            format!("no node answers on {}", host.data_dir.join("muster.sock").display()),
            "this machine serves nothing",
            "start it, and read its log when it ends: `systemctl status muster`, `journalctl -u muster`",
        )
    });
    problems.chain(stopped).collect()
}

fn ports(host: &Host) -> Vec<Finding> {
    let taken = host.ports.iter().filter(|port| !port.others.is_empty());
    let taken = taken.map(|port| {
        let who: Vec<String> = port.others.iter().map(named).collect();
        found(
            Severity::Error,
            "ports",
            format!(
                "{} port {} ({}) is taken by {}",
                port.protocol.to_uppercase(),
                port.port,
                port.service,
                who.join(", ")
            ),
            "what arrives there goes to that process instead of the node, or to both",
            "stop that process and keep it from being started, or give the node another port",
        )
    });
    taken.collect()
}

fn named(process: &Process) -> String {
    match (&process.name, process.pid) {
        (Some(name), Some(pid)) => format!("{name} (process {pid})"),
        _ => format!("a process of user {}", process.uid),
    }
}

fn loaders(node: &Node) -> Vec<Finding> {
    let host = &node.host;
    let dir = host.loader_dir.display();
    let next = "apt install ipxe, or name another directory (--loader-dir); not needed where all machines \
                are given loaders that are artifacts";
    let unreadable = host.loader_problem.iter().map(|problem| {
        found(
            Severity::Warning,
            "loaders",
            problem,
            "firmware that asks this node for iPXE gets nothing, unless another node or an artifact has it",
            next,
        )
    });
    let missing = host.loaders_missing.iter().map(|name| {
        found(
            Severity::Warning,
            "loaders",
            format!("{dir} lacks {name}"),
            "firmware that is sent to it gets nothing from this node",
            next,
        )
    });
    unreadable.chain(missing).collect()
}

fn files(host: &Host) -> Option<Finding> {
    let files = host.open_files.filter(|files| *files < FILES_MIN)?;
    Some(found(
        Severity::Warning,
        "files",
        format!("only {files} files may be open at a time"),
        "many machines that boot at once may find no connection",
        "raise the limit: LimitNOFILE= in the unit, or `ulimit -Hn`",
    ))
}

fn links(node: &Node) -> Vec<Finding> {
    let links = &node.links;
    let mut findings = Vec::new();
    for name in &links.absent {
        findings.push(found(
            Severity::Error,
            "interfaces",
            format!(
                "interface `{name}` is to be served and is down, without an address, or not there"
            ),
            "its clients are not served by this node",
            "`ip addr`; correct --dhcp-interfaces if it has another name now",
        ));
    }
    if links.serves && links.interfaces.is_empty() && links.absent.is_empty() {
        findings.push(found(
            Severity::Error,
            "interfaces",
            "no interface is up with an IPv4 address",
            "this node serves no DHCP",
            "`ip addr`",
        ));
    }
    for relay in links.relays.iter().filter(|relay| relay.subnet.is_none()) {
        findings.push(found(
            Severity::Warning,
            "relays",
            format!(
                "relay {} forwarded {} packets, the last {} s ago, and no subnet has its address",
                relay.giaddr, relay.packets, relay.secs_ago
            ),
            "its clients get no answer",
            "create a subnet whose `cidr` holds this address, or take the nodes off that relay",
        ));
    }
    for intruder in &links.intruders {
        findings.push(found(
            Severity::Error,
            "rogue-dhcp",
            format!(
                "DHCP server {} answers on subnet `{}`, seen {} s ago",
                intruder.server, intruder.subnet, intruder.secs_ago
            ),
            "machines that take its offers do not boot from here, and may get addresses twice",
            "find its MAC (`ip neigh`, the switches) and stop it, or name it in the subnet's \
             foreign_servers if it may be there",
        ));
    }
    for problem in &links.deaf {
        findings.push(found(
            Severity::Warning,
            "rogue-dhcp",
            format!("other servers cannot be looked for: {problem}"),
            "only those are seen that clients choose",
            "give the node the right to send frames (CAP_NET_RAW)",
        ));
    }
    findings
}

#[cfg(test)]
mod tests;
