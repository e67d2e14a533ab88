//! Who has a port, as the kernel tells in `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::facts::{Port, Process};

/// A service and where it listens.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// What it is.
    pub service: &'static str,
    /// `udp` or `tcp`.
    pub protocol: &'static str,
    /// The port.
    pub port: u16,
}

/// A socket that waits for peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listening {
    port: u16,
    uid: u32,
    inode: u64,
}

/// Who has each port, beside this process and those that it began.
pub fn look(wanted: &[Wanted]) -> Vec<Port> {
    let listed = |protocol: &str| {
        let names = [protocol.to_owned(), format!("{protocol}6")];
        let texts = names
            .iter()
            .filter_map(|name| fs::read_to_string(format!("/proc/self/net/{name}")).ok());
        texts
            .flat_map(|text| listening(&text, protocol == "udp"))
            .collect::<Vec<_>>()
    };
    let sockets: BTreeMap<&str, Vec<Listening>> = ["udp", "tcp"]
        .into_iter()
        .map(|protocol| (protocol, listed(protocol)))
        .collect();
    let on = |wanted: &Wanted| {
        let sockets = sockets.get(wanted.protocol).into_iter().flatten();
        let port = wanted.port;
        sockets
            .filter(move |it| it.port == port)
            .copied()
            .collect::<Vec<_>>()
    };
    let inodes: BTreeSet<u64> = wanted.iter().flat_map(on).map(|it| it.inode).collect();
    let owners = owners(&inodes);
    let own = i32::try_from(std::process::id()).ok();
    wanted
        .iter()
        .map(|wanted| {
            let others: BTreeSet<Process> = on(wanted)
                .into_iter()
                .map(|socket| {
                    let owner = owners.get(&socket.inode);
                    Process {
                        pid: owner.map(|(pid, _)| *pid),
                        name: owner.map(|(_, name)| name.clone()),
                        uid: socket.uid,
                    }
                })
                .filter(|process| process.pid.is_none() || process.pid != own)
                .collect();
            Port {
                service: wanted.service.to_owned(),
                protocol: wanted.protocol.to_owned(),
                port: wanted.port,
                others: others.into_iter().collect(),
            }
        })
        .collect()
}

/// Sockets in a table of `/proc/net`: of UDP those that are bound, of TCP those that listen.
fn listening(table: &str, datagrams: bool) -> Vec<Listening> {
    // 07 is TCP_CLOSE, which an unconnected socket of UDP is in; 0A is TCP_LISTEN.
    let state = if datagrams { "07" } else { "0A" };
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, port) = fields.get(1)?.rsplit_once(':')?;
        let found = Listening {
            port: u16::from_str_radix(port, 16).ok()?,
            uid: fields.get(7)?.parse().ok()?,
            inode: fields.get(9)?.parse().ok()?,
        };
        (*fields.get(3)? == state).then_some(found)
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// The processes that have these sockets open, as far as this one may look.
fn owners(inodes: &BTreeSet<u64>) -> BTreeMap<u64, (i32, String)> {
    let mut found = BTreeMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let files = fs::read_dir(process.path().join("fd"));
        for file in files.into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(file.path()) else {
                continue;
            };
            let inode = target
                .to_str()
                .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'))
                .and_then(|inode| inode.parse().ok());
            if let Some(inode) = inode.filter(|inode| inodes.contains(inode)) {
                let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                found.insert(inode, (pid, name.trim_end().to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_wait_are_told_from_those_that_do_not() {
        let udp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n \
            1: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 4711 2 0000000000000000 0\n \
            2: 0100007F:0045 0200007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 0\n";
        let found = Listening {
            port: 67,
            uid: 1000,
            inode: 4711,
        };
        assert_eq!(listening(udp, true), [found]);
        let tcp = "  sl  local_address rem_address   st\n \
            0: 00000000000000000000000000000000:1F9C 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0\n";
        let found = Listening {
            port: 8092,
            uid: 0,
            inode: 12,
        };
        assert_eq!(listening(tcp, false), [found]);
        for damaged in ["", "x\n", "h\n1: 2\n", "h\n 1: a:zz b 07 c d e f g h\n"] {
            assert_eq!(listening(damaged, true), []);
        }
    }

    #[test]
    fn a_port_of_this_process_is_nobody_elses() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0");
        let port = socket
            .as_ref()
            .map(|it| it.local_addr().map(|it| it.port()));
        let Ok(Ok(port)) = port else {
            panic!("no port")
        };
        let wanted = Wanted {
            service: "test",
            protocol: "udp",
            port,
        };
        assert_eq!(look(&[wanted])[0].others, []);
    }
}
