//! Garbage on every port: random octets, real messages that were bent, and paths that nobody would
//! ask for. Nothing ends, what is refused is counted, and clients are served as before.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::content;
use muster_chaos::dhcp::{Client, Port, encode};
use muster_chaos::lab::{Host, wait_until};
use muster_chaos::wire::{Datagram, EVERYBODY, Wire};

use crate::{MAC, PATIENCE, curl, tell};

/// Datagrams to each port.
const DATAGRAMS: u32 = 3000;

#[test]
fn garbage_harms_nobody() -> Result<()> {
    let cluster = Cluster::found(3)?;
    tell(&cluster, || {
        content::install(&cluster, &[("m1", MAC, "blue")])?;
        let host = cluster.lab().host("fuzz", Some([10, 77, 0, 20].into()))?;
        let mut random = Random(0x4d75_7374_6572);
        let counters = ["muster_dhcp_dropped_total", "muster_tftp_transfers_total"];
        let before = counted(&cluster, &counters)?;
        datagrams(&cluster, &host, &mut random)?;
        grown(&counters, &before, &counted(&cluster, &counters)?)?;
        tftp_refusals(&cluster, &host)?;
        let counters = [
            "muster_boot_requests_total",
            "muster_http_malformed_total{service=\"boot\"}",
            "muster_http_malformed_total{service=\"api\"}",
        ];
        let before = counted(&cluster, &counters)?;
        requests(&cluster, &host, &mut random)?;
        grown(&counters, &before, &counted(&cluster, &counters)?)?;
        serves(&cluster)
    })
}

/// What TFTP refuses is counted by its reason.
fn tftp_refusals(cluster: &Cluster, host: &Host) -> Result<()> {
    let node = cluster.node(0);
    for (request, result) in [
        (b"\x00\x02x\x00octet\x00", "denied"),
        (b"\x00\x01x\x00octet\x00", "not_found"),
    ] {
        let counter = format!("muster_tftp_transfers_total{{result=\"{result}\"}}");
        let before = node.metric(&counter)?;
        let socket = host.inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        socket.send_to(request, (node.address(), 69))?;
        wait_until("a refusal to be counted", PATIENCE, || {
            Ok((node.metric(&counter)? > before).then_some(()))
        })?;
    }
    Ok(())
}

/// Nodes run and answer clients as ever.
fn serves(cluster: &Cluster) -> Result<()> {
    let clients = cluster.lab().host("clients", None)?;
    Port::direct(&clients)?.bind(&Client::numbered(1, 1).pxe())?;
    let host = cluster.lab().host("client", Some([10, 77, 0, 21].into()))?;
    for node in cluster.nodes() {
        ensure!(node.is_running(), "{} has ended", node.name());
        let log = node.log();
        ensure!(
            !log.contains("panicked"),
            "{} has panicked:\n{log}",
            node.name()
        );
        let script = curl(
            &host,
            &[&format!("{}/boot.ipxe?mac={MAC}", node.boot_url())],
        )?;
        ensure!(script.contains("lab/vmlinuz"), "{script}");
        let loader = format!("tftp://{}/undionly.kpxe", node.address());
        curl(&host, &["--output", "/dev/null", &loader])?;
        ensure!(
            node.get("/readyz")?.0 == 200,
            "{} is not ready",
            node.name()
        );
    }
    Ok(())
}

fn grown(counters: &[&str], before: &[f64], after: &[f64]) -> Result<()> {
    for (name, (before, after)) in counters.iter().zip(before.iter().zip(after)) {
        println!("{name}: {before} to {after}");
        ensure!(after > before, "{name} does not grow");
    }
    Ok(())
}

fn counted(cluster: &Cluster, names: &[&str]) -> Result<Vec<f64>> {
    let sum = |name: &&str| cluster.nodes().iter().map(|node| node.metric(name)).sum();
    names.iter().map(sum).collect()
}

fn datagrams(cluster: &Cluster, host: &Host, random: &mut Random) -> Result<()> {
    let clients = cluster.lab().host("bent", None)?;
    let wire = Wire::open(&clients)?;
    let dhcp = encode(&Client::numbered(0, 0).pxe().discover())?;
    let tftp = b"\x00\x01undionly.kpxe\x00octet\x00blksize\x001432\x00tsize\x000\x00".to_vec();
    let socket = host.inside(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    for number in 0..DATAGRAMS {
        for (port, good) in [(67, &dhcp), (4011, &dhcp), (69, &tftp)] {
            let bytes = match number % 3 {
                0 => random.octets(1400),
                1 => random.bend(good),
                _ => good[..random.below(good.len())].to_vec(),
            };
            for node in cluster.nodes() {
                // A closed port would be told by the next send.
                socket.send_to(&bytes, (node.address(), port))?;
            }
            if port != 69 && number % 10 == 0 {
                wire.send(&Datagram {
                    macs: ([2, 0, 0, 0, 0, 1], EVERYBODY),
                    from: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
                    to: SocketAddrV4::new(Ipv4Addr::BROADCAST, port),
                    payload: bytes,
                })?;
            }
        }
        if number % 50 == 0 {
            // Faster than a socket's buffer is emptied, garbage would only be lost.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

fn requests(cluster: &Cluster, host: &Host, random: &mut Random) -> Result<()> {
    let mut heads: Vec<Vec<u8>> = [
        "GET / HTTP/1.1",
        "GET /../../../../etc/passwd HTTP/1.1",
        "GET //boot.ipxe HTTP/1.1",
        "GET /artifacts/..%2f..%2fadmin-password HTTP/1.1",
        "GET /artifacts/%00 HTTP/1.1",
        "GET /machines/nobody/report HTTP/1.1",
        "GET /boot.ipxe?mac=%ff%fe HTTP/1.1",
        "GET /boot.ipxe?mac=zz:zz HTTP/1.1",
        "DELETE /boot.ipxe HTTP/1.1",
        "GET x HTTP/9.9",
        "POST /machines/00000000-0000-0000-0000-000000000000/report HTTP/1.1",
        "GET /artifacts/lab/vmlinuz?sha256=zz HTTP/1.1",
        "PRI * HTTP/2.0",
    ]
    .map(|line| format!("{line}\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes())
    .to_vec();
    let long = format!(
        "GET /{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "a".repeat(200_000)
    );
    heads.push(long.into_bytes());
    for range in [
        "bytes=9-1",
        "bytes=-",
        "bytes=0-99999999999999999999",
        "lines=1-2",
        "bytes=0-0,5-5",
    ] {
        heads.push(
            format!("GET /artifacts/lab/vmlinuz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRange: {range}\r\n\r\n")
                .into_bytes(),
        );
    }
    for _ in 0..100 {
        let good = heads[random.below(13)].clone();
        heads.push(random.bend(&good));
    }
    heads.extend((0..100).map(|_| random.octets(600)));
    for (number, head) in heads.iter().enumerate() {
        let node = cluster.node(number % 3);
        for port in [8091, 8092] {
            ask(host, (node.address(), port), head)?;
        }
        // The same over the socket, where no TLS stands before it.
        if let Ok(text) = std::str::from_utf8(head)
            && let Some(path) = text.split(' ').nth(1)
            && path.starts_with('/')
        {
            let status = node.get(&path.replace(['\r', '\n'], ""))?.0;
            ensure!(
                (400..500).contains(&status),
                "{path} is {status} by the API"
            );
        }
    }
    Ok(())
}

/// Sends octets and reads until the server has had enough of it; what it says does not matter.
fn ask(host: &Host, to: (Ipv4Addr, u16), octets: &[u8]) -> Result<()> {
    host.inside(|| {
        let mut stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        // A server may close before it has read all.
        let _ = stream.write_all(octets);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.take(65_536).read_to_end(&mut Vec::new());
        Ok(())
    })
}

/// SplitMix64: the same garbage every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn octets(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next() as u8).collect()
    }

    /// A message with some octets changed, removed or put in.
    fn bend(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bent = good.to_vec();
        for _ in 0..=self.below(8) {
            let at = self.below(bent.len());
            match self.below(3) {
                0 if !bent.is_empty() => bent[at] = self.next() as u8,
                1 if !bent.is_empty() => drop(bent.remove(at)),
                _ => bent.insert(at, self.next() as u8),
            }
        }
        bent
    }
}
