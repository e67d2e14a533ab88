//! What is wrong on one node.

use super::super::facts::{Host, Node, Process, Unheard};
use super::{Finding, Severity, found};

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
/// Open files that a busy node needs.
const FILES_MIN: u64 = 32_768;

/// All of it.
pub fn findings(node: &Node) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(clock(node));
    findings.extend(certificate(node));
    findings.extend(disk(&node.host));
    findings.extend(data(&node.host));
    findings.extend(settings(&node.host));
    findings.extend(ports(&node.host));
    findings.extend(loaders(node));
    findings.extend(files(&node.host));
    findings.extend(links(node));
    for finding in &mut findings {
        finding.node = Some(node.name.clone()).filter(|name| !name.is_empty());
    }
    findings
}

/// A node that says nothing of itself.
pub fn unheard(unheard: &Unheard) -> Finding {
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
