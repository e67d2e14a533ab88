use std::net::Ipv4Addr;

use super::super::facts::{
    Alert, Clock, Cluster, Disk, Host, Incomplete, Member, Node, Port, Process, Subnet,
    Unavailable, Unheard,
};
use super::cluster::MANY;
use super::*;
use crate::dhcp::facts::{Link, Links};
use crate::dhcp::foreign::Intruder;
use crate::dhcp::relays::Seen;

fn member(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        live: true,
        voter: true,
        version: "0.1.0".to_owned(),
        ..Member::default()
    }
}

fn node(name: &str) -> Node {
    Node {
        name: name.to_owned(),
        clock: Some(Clock {
            wall: 1_000_000,
            cluster: 1_000_100,
        }),
        certificate_days: Some(397),
        links: Links {
            serves: true,
            interfaces: vec![Link {
                name: "eth0".to_owned(),
                addresses: vec![Ipv4Addr::new(10, 77, 0, 1)],
            }],
            ..Links::default()
        },
        host: Host {
            disk: Some(Disk {
                size: 100 << 30,
                free: 50 << 30,
            }),
            open_files: Some(1 << 20),
            running: true,
            ..Host::default()
        },
        ..Node::default()
    }
}

/// Three nodes and nothing wrong.
fn site() -> Site {
    let names = ["a", "b", "c"];
    Site {
        cluster: Some(Cluster {
            quorum: true,
            leader: Some("a".to_owned()),
            members: names.map(member).to_vec(),
            subnets: vec![Subnet {
                name: "lab".to_owned(),
                pool: 100,
                taken: 10,
                servers: vec!["a".to_owned()],
            }],
            ..Cluster::default()
        }),
        nodes: names.map(node).to_vec(),
        unheard: Vec::new(),
    }
}

#[test]
fn a_site_in_order_has_nothing_to_tell() {
    assert_eq!(judge(&site()), []);
    // A node of another version that tells less is not accused of anything.
    assert_eq!(
        judge(&Site {
            nodes: vec![Node {
                host: Host {
                    running: true,
                    ..Host::default()
                },
                ..Node::default()
            }],
            ..Site::default()
        }),
        []
    );
}

/// What is changed, and what is found then: severity, check, node, and a word of the finding.
type Case = (
    fn(&mut Cluster, &mut Node),
    &'static [(Severity, &'static str, Option<&'static str>, &'static str)],
);

#[test]
fn each_fact_leads_to_its_finding() {
    use Severity::{Error, Note, Warning};
    let cases: &[Case] = &[
        (
            |cluster, _| cluster.quorum = false,
            &[(Error, "quorum", None, "no quorum")],
        ),
        (
            |cluster, _| cluster.members[2].live = false,
            &[
                (Error, "peer", Some("c"), "do not hear"),
                (Error, "redundancy", None, "2 of 3"),
            ],
        ),
        (
            |cluster, _| cluster.members[1].fault = Some("its disk is full".to_owned()),
            &[(Error, "fault", Some("b"), "its disk is full")],
        ),
        (
            |cluster, _| cluster.members[1].draining = true,
            &[(Warning, "draining", Some("b"), "about to stop")],
        ),
        (
            |cluster, _| cluster.members[1].lag = 1_000_000,
            &[(Warning, "lag", Some("b"), "1000000")],
        ),
        (
            |cluster, _| cluster.members.truncate(2),
            &[(Warning, "voters", None, "even")],
        ),
        (
            |cluster, _| cluster.members.truncate(1),
            &[(Warning, "voters", None, "one voter")],
        ),
        (
            |cluster, _| cluster.members[2].version = "0.2.0".to_owned(),
            &[(Note, "versions", None, "0.1.0, 0.2.0")],
        ),
        (
            |cluster, _| cluster.subnets[0].taken = 91,
            &[(Warning, "pools", None, "9 free addresses of 100")],
        ),
        (
            |cluster, _| cluster.subnets[0].taken = 100,
            &[(Error, "pools", None, "no free address")],
        ),
        (
            |cluster, _| cluster.subnets[0].servers.clear(),
            &[(Warning, "relays", None, "`lab`")],
        ),
        (
            |cluster, node| {
                cluster.subnets[0].servers.clear();
                node.links.relays = vec![relay(Some("lab"))];
            },
            &[],
        ),
        (
            |_, node| node.links.relays = vec![relay(None)],
            &[(Warning, "relays", Some("a"), "10.78.0.1")],
        ),
        (
            |cluster, _| {
                cluster.unavailable = vec![Unavailable {
                    kind: "bootenv".to_owned(),
                    key: "lab".to_owned(),
                    problems: vec!["artifact `k` is missing".to_owned()],
                }];
            },
            &[(Warning, "objects", None, "artifact `k` is missing")],
        ),
        (
            |cluster, _| cluster.unavailable = vec![Unavailable::default(); MANY + 7],
            &[(Warning, "objects", None, ""); MANY + 1],
        ),
        (
            |cluster, _| cluster.incomplete = vec![incomplete(&["a"])],
            &[(Note, "artifacts", None, "not on c")],
        ),
        (
            |cluster, _| cluster.incomplete = vec![incomplete(&[])],
            &[(Error, "artifacts", None, "no node that answers")],
        ),
        (
            |cluster, _| {
                cluster.alerts = vec![Alert {
                    at: "now".to_owned(),
                    kind: "minority".to_owned(),
                    about: "{}".to_owned(),
                }];
            },
            &[(Warning, "alerts", None, "minority at now")],
        ),
        (
            |_, node| node.clock = Some(clocks(5000)),
            &[(Warning, "clock", Some("a"), "5 s ahead")],
        ),
        (
            |_, node| node.clock = Some(clocks(-90_000)),
            &[(Error, "clock", Some("a"), "90 s behind")],
        ),
        (
            |_, node| node.certificate_days = Some(99),
            &[(Warning, "certificate", Some("a"), "99 days")],
        ),
        (
            |_, node| node.certificate_days = Some(-1),
            &[(Error, "certificate", Some("a"), "-1 days")],
        ),
        (
            |_, node| node.host.disk = Some(free(900 << 20)),
            &[(Warning, "disk", Some("a"), "900 MiB")],
        ),
        (
            |_, node| node.host.disk = Some(free(10 << 20)),
            &[(Error, "disk", Some("a"), "10 MiB")],
        ),
        (
            |_, node| node.host.data_problems = vec!["/d is no directory".to_owned()],
            &[(Error, "data", Some("a"), "no directory")],
        ),
        (
            |_, node| node.host.data_exposed = true,
            &[(Warning, "data", Some("a"), "others may read")],
        ),
        (
            |_, node| node.host.settings_problems = vec!["give --advertise".to_owned()],
            &[(Error, "settings", Some("a"), "--advertise")],
        ),
        (
            |_, node| node.host.running = false,
            &[(Error, "process", Some("a"), "no node answers")],
        ),
        (
            |_, node| node.host.ports = vec![taken(Some("dnsmasq"))],
            &[(
                Error,
                "ports",
                Some("a"),
                "UDP port 67 (DHCP) is taken by dnsmasq (process 7)",
            )],
        ),
        (
            |_, node| node.host.ports = vec![taken(None)],
            &[(Error, "ports", Some("a"), "a process of user 100")],
        ),
        (
            |_, node| node.host.loader_problem = Some("/x cannot be read".to_owned()),
            &[(Warning, "loaders", Some("a"), "/x")],
        ),
        (
            |_, node| node.host.loaders_missing = vec!["snponly.efi".to_owned()],
            &[(Warning, "loaders", Some("a"), "snponly.efi")],
        ),
        (
            |_, node| node.host.open_files = Some(1024),
            &[(Warning, "files", Some("a"), "1024")],
        ),
        (
            |_, node| node.links.absent = vec!["eth9".to_owned()],
            &[(Error, "interfaces", Some("a"), "eth9")],
        ),
        (
            |_, node| node.links.interfaces.clear(),
            &[(Error, "interfaces", Some("a"), "no interface")],
        ),
        (
            |_, node| {
                node.links.intruders = vec![Intruder {
                    server: Ipv4Addr::new(10, 77, 0, 9),
                    subnet: "lab".to_owned(),
                    secs_ago: 3,
                }];
            },
            &[(Error, "rogue-dhcp", Some("a"), "10.77.0.9")],
        ),
        (
            |_, node| node.links.deaf = vec!["eth0: no right".to_owned()],
            &[(Warning, "rogue-dhcp", Some("a"), "eth0: no right")],
        ),
    ];
    for (change, expected) in cases {
        let mut site = site();
        let mut cluster = site.cluster.take().unwrap_or_default();
        change(&mut cluster, &mut site.nodes[0]);
        site.cluster = Some(cluster);
        let findings = judge(&site);
        assert_eq!(findings.len(), expected.len(), "{findings:#?}");
        for (found, (severity, check, node, word)) in findings.iter().zip(*expected) {
            let seen = (found.severity, &*found.check, found.node.as_deref());
            assert_eq!(seen, (*severity, *check, *node), "{found:#?}");
            assert!(found.finding.contains(word), "{found:#?}");
            assert!(!found.meaning.is_empty() && !found.next.is_empty());
        }
    }
}

#[test]
fn a_node_that_says_nothing_is_told_of() {
    let mut site = site();
    site.unheard = vec![Unheard {
        node: "c".to_owned(),
        why: "not live".to_owned(),
    }];
    let findings = judge(&site);
    assert_eq!(findings.len(), 1);
    assert!(findings[0].finding.contains("not live"), "{findings:?}");
}

fn relay(subnet: Option<&str>) -> Seen {
    Seen {
        giaddr: Ipv4Addr::new(10, 78, 0, 1),
        subnet: subnet.map(str::to_owned),
        packets: 4,
        secs_ago: 5,
    }
}

fn incomplete(holders: &[&str]) -> Incomplete {
    Incomplete {
        path: "k".to_owned(),
        missing: vec!["c".to_owned()],
        holders: holders.iter().map(|it| (*it).to_owned()).collect(),
    }
}

fn clocks(ahead: i64) -> Clock {
    Clock {
        wall: 1_000_000_u64.saturating_add_signed(ahead),
        cluster: 1_000_000,
    }
}

fn free(free: u64) -> Disk {
    Disk {
        size: 100 << 30,
        free,
    }
}

fn taken(name: Option<&str>) -> Port {
    Port {
        service: "DHCP".to_owned(),
        protocol: "udp".to_owned(),
        port: 67,
        others: vec![Process {
            pid: name.map(|_| 7),
            name: name.map(str::to_owned),
            uid: 100,
        }],
    }
}
