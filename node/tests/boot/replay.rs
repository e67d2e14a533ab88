//! What real firmware and loaders asked for, captured on a wire, sent again octet by octet.

use std::time::Duration;

use crate::support::tftp::serve;
use crate::support::{Site, pcap, write};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

const CAPTURES: [&str; 8] = [
    "bios-ipxe.pcap",
    "bios-pxelinux.pcap",
    "bios-undionly.pcap",
    "linux.pcap",
    "uefi-http4.pcap",
    "uefi-http6.pcap",
    "uefi-pxe4.pcap",
    "uefi-pxe6.pcap",
];

/// The machine of the captures, which boots the files that their server had at the top.
async fn site() -> Site {
    let site = Site::new().await;
    for name in ["snponly.efi", "pxelinux.0"] {
        write(&site.loaders(), name, "loader");
    }
    for name in ["ldlinux.c32", "vmlinuz", "initrd.img"] {
        site.artifact(name, b"octets").await;
    }
    site.apply(r#"{"bootenv": {"name": "lab", "kernel": "vmlinuz", "initrds": ["initrd.img"]}}"#)
        .await;
    site.apply(
        r#"{"machine": {"name": "m1", "macs": ["52:54:00:77:00:01"], "bootenv": "lab",
            "uuid": "00112233-4455-6677-8899-525400770001"}}"#,
    )
    .await;
    site
}

#[tokio::test]
async fn every_file_that_was_asked_for_by_tftp_is_given_or_refused() {
    let site = site().await;
    let server = serve(&site).await;
    let mut asked = Vec::new();
    for capture in CAPTURES {
        for request in pcap::datagrams(capture, 69) {
            let name = request[2..].split(|octet| *octet == 0).next().unwrap();
            let name = String::from_utf8(name.to_vec()).unwrap();
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.send_to(&request, server).await.unwrap();
            let mut answer = [0; 2000];
            let received = timeout(Duration::from_secs(5), socket.recv_from(&mut answer));
            received.await.expect("an answer").unwrap();
            let given = match answer[..4] {
                // The options that were asked for.
                [0, 6, ..] => true,
                [0, 5, 0, 1] => false,
                _ => panic!("{name}: {:?}", &answer[..4]),
            };
            // The kernel of a machine whose address is not leased here: those are other names.
            let expected = !name.contains("pxelinux.cfg/0A") && name != "pxelinux.cfg/0";
            assert_eq!(given, expected, "{capture}: {name}");
            asked.push(name);
        }
    }
    for name in [
        "snponly.efi",
        "pxelinux.0",
        "ldlinux.c32",
        "pxelinux.cfg/33221100-5544-7766-8899-525400770001",
        "pxelinux.cfg/01-52-54-00-77-00-01",
        "pxelinux.cfg/0A4D006E",
        "pxelinux.cfg/default",
    ] {
        assert!(asked.iter().any(|it| it == name), "nobody asked for {name}");
    }
}

#[tokio::test]
async fn every_url_that_was_asked_for_is_given_or_refused() {
    let site = site().await;
    let mut asked = 0;
    for capture in CAPTURES {
        for head in pcap::heads(capture) {
            let text = String::from_utf8(head.clone()).unwrap();
            let mut stream = TcpStream::connect(site.address).await.unwrap();
            stream.write_all(&head).await.unwrap();
            // Behind it one more, after which the server closes the connection if it has not yet.
            let last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            stream.write_all(last).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            if !text.contains("Connection: close") {
                let (first, _) = answer.rsplit_once("HTTP/1.1 404 ").unwrap();
                answer.truncate(first.len());
            }
            let path = text.split(' ').nth(1).unwrap();
            // Callbacks went to another port, and scripts for IPv6 had a name of their own.
            let expected = match path.starts_with("/report") || path == "/boot6.ipxe" {
                true => "HTTP/1.1 404 ",
                false => "HTTP/1.1 200 ",
            };
            assert!(answer.starts_with(expected), "{capture}: {text}{answer}");
            assert!(answer.contains("content-length: "), "{answer}");
            if text.contains("UefiHttpBoot") {
                assert!(
                    answer.contains("content-type: application/efi\r\n"),
                    "{answer}"
                );
                let (_, body) = answer.split_once("\r\n\r\n").unwrap();
                assert_eq!(body.is_empty(), text.starts_with("HEAD "), "{answer}");
            }
            asked += 1;
        }
    }
    assert!(asked > 20, "{asked}");
}
