//! The boot tree over TFTP, on a cluster of one.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::tftp::{Client, Packet, serve};
use crate::support::{MAC, Site, UUID};
use muster_node::tftp;
use proptest::prelude::*;
use tokio::net::UdpSocket;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

const NONE: fn(usize) -> bool = |_| false;

#[tokio::test]
async fn paths_are_those_of_http() {
    let site = Site::new().await;
    let server = serve(&site).await;
    site.lab_machine().await;
    let pinned = site.artifact("lab/vmlinuz", b"kernel").await;
    site.artifact("lab/initrd.img", b"initrd").await;
    site.lease("127.0.0.1", MAC).await;
    for (path, expected) in [
        ("undionly.kpxe", "loader"),
        ("/undionly.kpxe", "loader"),
        ("//undionly.kpxe", "loader"),
        ("\\undionly.kpxe", "loader"),
        ("artifacts/lab/vmlinuz", "kernel"),
        ("\\artifacts\\lab\\vmlinuz", "kernel"),
        (&format!("/artifacts/lab/vmlinuz?sha256={pinned}"), "kernel"),
        (
            &format!("/machines/{UUID}/hello.cfg"),
            "hello m1 color blue\n",
        ),
    ] {
        let mut client = Client::new(server).await;
        let read = client.read(path, "", NONE).await;
        assert_eq!(read, Ok(expected.as_bytes().to_vec()), "{path}");
    }
    for path in ["boot.ipxe", "/autoexec.ipxe"] {
        let mut client = Client::new(server).await;
        let script = client.read(path, "blksize 1432 tsize 0", NONE).await;
        let script = String::from_utf8(script.unwrap()).unwrap();
        assert!(script.contains("bootenv of machine `m1`"), "{script}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_refused_at_once() {
    let site = Site::new().await;
    let server = serve(&site).await;
    let report = format!("/machines/{UUID}/report");
    for path in [
        "revocations_sku.efi",
        "shim_certificate_0.efi",
        "grub/x86_64-efi/command.lst",
        "pxelinux.cfg/33221100-5544-7766-8899-525400770001",
        "pxelinux.cfg/7F00000",
        "../secret/key",
        "secret/key",
        "",
        "/",
        "subdir",
        report.as_str(),
    ] {
        let mut client = Client::new(server).await;
        let asked = Instant::now();
        client.request(1, path, "tsize 0 blksize 1468").await;
        assert_eq!(client.receive().await, Packet::Error(1), "{path}");
        assert!(asked.elapsed() < Duration::from_millis(500), "{path}");
    }
}

#[tokio::test]
async fn nothing_is_written() {
    let site = Site::new().await;
    let server = serve(&site).await;
    let mut client = Client::new(server).await;
    client.request(2, "undionly.kpxe", "").await;
    assert_eq!(client.receive().await, Packet::Error(2));
    let mut client = Client::new(server).await;
    let read = client.read("undionly.kpxe", "", NONE).await;
    assert_eq!(read, Ok(b"loader".to_vec()));
}

#[tokio::test]
async fn options_are_taken_within_bounds() {
    let site = Site::new().await;
    let server = serve(&site).await;
    for (asked, granted) in [
        ("blksize 1468 tsize 0", "blksize 1468 tsize 6"),
        (
            "tsize 0 blksize 65464 windowsize 1000",
            "blksize 1468 tsize 6 windowsize 64",
        ),
        ("blksize 512 timeout 3", "blksize 512 timeout 3"),
        ("unknown 1 blksize 600", "blksize 600"),
    ] {
        let mut client = Client::new(server).await;
        client.request(1, "undionly.kpxe", asked).await;
        let Packet::Options(options) = client.receive().await else {
            panic!("no options for {asked}");
        };
        let words: Vec<String> = options
            .into_iter()
            .map(|(k, v)| format!("{k} {v}"))
            .collect();
        assert_eq!(words.join(" "), granted, "{asked}");
        client.acknowledge(0).await;
        assert_eq!(client.receive().await, Packet::Data(1, b"loader".to_vec()));
        client.acknowledge(1).await;
    }
}

#[tokio::test]
async fn every_length_arrives_whole() {
    let site = Site::new().await;
    let server = serve(&site).await;
    for length in [0, 1, 511, 512, 513, 1024, 5000, 300_000] {
        let bytes = pattern(length);
        site.artifact("file", &bytes).await;
        for options in ["", "blksize 1468", "blksize 1468 windowsize 4 tsize 0"] {
            let mut client = Client::new(server).await;
            let read = client.read("artifacts/file", options, NONE).await;
            assert!(
                read == Ok(bytes.clone()),
                "{length} octets with {options:?}"
            );
        }
    }
}

#[tokio::test]
async fn block_numbers_may_roll_over() {
    let site = Site::new().await;
    let server = serve(&site).await;
    let bytes = pattern(600_000);
    site.artifact("file", &bytes).await;
    let mut client = Client::new(server).await;
    let options = "blksize 8 windowsize 16";
    let read = client.read("artifacts/file", options, NONE).await;
    assert!(read == Ok(bytes));
}

#[tokio::test]
async fn lost_packets_are_sent_again() {
    let site = Site::new().await;
    let server = serve(&site).await;
    let bytes = pattern(30_000);
    site.artifact("file", &bytes).await;
    for options in ["blksize 1468", "blksize 1468 windowsize 8"] {
        let mut client = Client::new(server).await;
        let lost = |number| number == 0 || number % 11 == 5;
        let read = client.read("artifacts/file", options, lost).await;
        assert!(read == Ok(bytes.clone()), "{options}");
    }
}

/// OVMF asks for the size, refuses the transfer, and asks again from its next port.
#[tokio::test]
async fn size_probe_does_not_hinder_the_transfer() {
    let site = Site::new().await;
    let server = serve(&site).await;
    let bytes = pattern(170_000);
    site.artifact("file", &bytes).await;
    let mut probe = Client::new(server).await;
    let options = "tsize 0 blksize 1468 windowsize 4";
    probe.request(1, "artifacts/file", options).await;
    assert!(matches!(probe.receive().await, Packet::Options(_)));
    probe.abort().await;
    let mut client = Client::new(server).await;
    let read = client
        .read("artifacts/file", "blksize 1468 windowsize 4", NONE)
        .await;
    assert!(read == Ok(bytes));
}

/// A client that was reset may ask from the port that it had before.
#[tokio::test]
async fn client_that_fell_silent_may_come_back_on_its_port() {
    let site = Site::new().await;
    let server = serve(&site).await;
    site.artifact("file", &pattern(5000)).await;
    let mut client = Client::new(server).await;
    client.request(1, "artifacts/file", "blksize 1468").await;
    assert!(matches!(client.receive().await, Packet::Options(_)));
    let silent = Instant::now();
    loop {
        client.request(1, "undionly.kpxe", "").await;
        let answer = client.receive_within(Duration::from_millis(500)).await;
        if answer == Some(Packet::Data(1, b"loader".to_vec())) {
            break;
        }
        // OVMF asks six times within 28 s.
        assert!(silent.elapsed() < Duration::from_secs(20));
    }
    client.acknowledge(1).await;
}

#[tokio::test]
async fn many_clients_are_served_at_a_time() {
    let site = Site::new().await;
    let server = serve(&site).await;
    let bytes = pattern(100_000);
    site.artifact("file", &bytes).await;
    let transfers = (0..24).map(|_| {
        let bytes = bytes.clone();
        tokio::spawn(async move {
            let mut client = Client::new(server).await;
            let read = client.read("artifacts/file", "blksize 1432", NONE).await;
            assert!(read == Ok(bytes));
        })
    });
    for transfer in transfers.collect::<Vec<_>>() {
        transfer.await.unwrap();
    }
}

#[tokio::test]
async fn one_client_cannot_take_all_places() {
    let site = Site::new().await;
    let server = serve(&site).await;
    site.artifact("file", &pattern(5000)).await;
    let mut silent = Vec::new();
    let mut refused = 0;
    for _ in 0..40 {
        let mut client = Client::new(server).await;
        client.request(1, "artifacts/file", "").await;
        match client.receive().await {
            Packet::Error(0) => refused += 1,
            _ => silent.push(client),
        }
    }
    assert!(refused > 0);
    assert!(silent.len() <= 32);
}

#[tokio::test]
async fn port_that_is_taken_is_an_error() {
    let site = Site::new().await;
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let options = tftp::Options {
        tftp_port: taken.local_addr().unwrap().port(),
        boot_port: 8091,
        advertise: IpAddr::V4(Ipv4Addr::LOCALHOST),
        loader_dir: site.loaders(),
        recorder: site.recorder.clone(),
    };
    let served = tftp::serve(site.cluster.clone(), options, site.stop.clone()).await;
    assert!(matches!(served, Err(tftp::Error::Listen { .. })));
}

/// The clients that people have; `deploy/setup.sh` installs them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_clients_read_files() {
    let site = Site::new().await;
    let server = serve(&site).await;
    let bytes = pattern(300_001);
    site.artifact("lab/file", &bytes).await;
    let port = server.port().to_string();
    let target = site.dir.path().join("fetched");
    let file = target.to_str().unwrap();
    let url = format!("tftp://{server}//artifacts/lab/file");
    let remote = "artifacts/lab/file";
    let octet = ["-m", "octet", "127.0.0.1", &port, "-c", "get", remote, file];
    for (program, arguments) in [
        ("tftp", &octet[..]),
        (
            "atftp",
            &[
                "-g",
                "-r",
                remote,
                "-l",
                file,
                "--option",
                "blksize 1400",
                "127.0.0.1",
                &port,
            ],
        ),
        (
            "atftp",
            &[
                "-g",
                "-r",
                remote,
                "-l",
                file,
                "--option",
                "windowsize 8",
                "127.0.0.1",
                &port,
            ],
        ),
        ("curl", &["-s", "-o", file, &url]),
    ] {
        let mut command = Command::new(program);
        command.args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = output.await.unwrap().expect(program);
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {output:?}"
        );
        assert!(
            std::fs::read(&target).unwrap() == bytes,
            "{program} {arguments:?}"
        );
        std::fs::remove_file(&target).unwrap();
    }
}

/// Datagrams that look like TFTP more often than chance would have it.
fn datagram() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::collection::vec("[ -~]{0,12}", 0..8);
    let request = (0u8..8, words, any::<bool>()).prop_map(|(code, words, ended)| {
        let mut packet = vec![0, code];
        packet.extend(words.join("\0").into_bytes());
        packet.extend(ended.then_some(0));
        packet
    });
    let options = ("(blksize|tsize|timeout|windowsize)", "[0-9]{0,20}");
    let options = prop::collection::vec(options, 0..4).prop_map(|options| {
        let mut packet = b"\0\x01undionly.kpxe\0octet\0".to_vec();
        for (name, value) in options {
            packet.extend(format!("{name}\0{value}\0").into_bytes());
        }
        packet
    });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..600), request, options]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn garbage_never_stops_the_service(datagrams in prop::collection::vec(datagram(), 1..60)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let site = Site::new().await;
            let server = serve(&site).await;
            let socket = UdpSocket::bind("127.0.0.2:0").await.unwrap();
            for datagram in &datagrams {
                socket.send_to(datagram, server).await.unwrap();
            }
            let mut client = Client::new(server).await;
            let read = client.read("undionly.kpxe", "blksize 1468", NONE).await;
            assert_eq!(read, Ok(b"loader".to_vec()));
        });
    }
}
