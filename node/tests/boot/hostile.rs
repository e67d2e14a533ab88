//! Requests that no firmware sends: they get an error or nothing, nobody else notices, and nothing
//! outside of the tree is read.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::tftp::{Client, Packet, serve};
use crate::support::{MAC, Site, UUID};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long a busy host may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ways out of a directory, as far as others have fallen for them.
fn escapes() -> Vec<String> {
    let mut paths = Vec::new();
    for up in [
        "../",
        "..\\",
        "..%2f",
        "..%5c",
        "%2e%2e/",
        "%2e%2e%2f",
        "%252e%252e/",
        "%252e%252e%252f",
        "..%252f",
        "..%c0%af",
        "%c0%ae%c0%ae/",
        "..;/",
        "....//",
        "..../",
        ".%00./",
        "..%00/",
        "\u{ff0e}\u{ff0e}/",
        "..\u{2215}",
        "..\u{ff0f}",
        "./../",
        "x/../../",
        "%5c..%5c",
        "C:\\..\\",
    ] {
        for depth in [1, 3, 12] {
            for start in [
                "",
                "/",
                "//",
                "artifacts/",
                "/artifacts/lab/",
                "machines/",
                "a/b/",
                "pxelinux.cfg/",
                "grub/",
            ] {
                paths.push(format!("{start}{}secret/key", up.repeat(depth)));
            }
        }
    }
    for file in [
        "/etc/passwd",
        "file:///etc/passwd",
        "/proc/self/environ",
        "~/.ssh/id_rsa",
        "secret/key",
    ] {
        paths.push(file.to_owned());
        paths.push(format!("//{file}"));
        paths.push(format!("/artifacts/{file}"));
    }
    paths.push(format!("/machines/{UUID}/../../secret/key"));
    paths.push("a".repeat(4000));
    paths.push("a/".repeat(2000));
    paths.push("../".repeat(1300));
    paths
}

#[tokio::test]
async fn no_path_leads_out_of_the_tree_by_http() {
    let site = Site::new().await;
    site.lab_machine().await;
    for path in escapes() {
        // As bytes: what firmware sends is encoded by nobody.
        let path = format!("/{}", path.replace(' ', "%20"));
        let answer = raw(
            &site,
            format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(),
        )
        .await;
        assert!(
            !contains(&answer, b"secret\n") && !contains(&answer, b"root:"),
            "{path}"
        );
        assert!(
            !answer.starts_with(b"HTTP/1.1 2"),
            "{path}: {}",
            text(&answer)
        );
        assert!(
            !answer.starts_with(b"HTTP/1.1 3"),
            "{path}: {}",
            text(&answer)
        );
    }
    assert_eq!(site.get("/undionly.kpxe").await.ok_text(), "loader");
}

#[tokio::test]
async fn no_path_leads_out_of_the_tree_by_tftp() {
    let site = Site::new().await;
    let server = serve(&site).await;
    site.lab_machine().await;
    for path in escapes() {
        let mut client = Client::new(server).await;
        client.request(1, &path, "").await;
        // What is longer than a packet can be is nothing that is answered.
        if let Some(answer) = client
            .receive_within(Duration::from_millis(if path.len() > 500 {
                50
            } else {
                5000
            }))
            .await
        {
            assert_eq!(answer, Packet::Error(1), "{path}");
        } else {
            assert!(
                path.len() > 500 || path.contains('\0'),
                "no answer to {path}"
            );
        }
    }
    assert_loader(server).await;
}

#[tokio::test]
async fn symbolic_links_are_what_the_operator_put_there() {
    let site = Site::new().await;
    // Only names at the top are files; a directory that is linked is none.
    std::os::unix::fs::symlink(site.dir.path().join("secret"), site.loaders().join("link"))
        .unwrap();
    for path in ["/link", "/link/key", "/link/../../secret/key"] {
        assert_eq!(site.get(path).await.status, 404, "{path}");
    }
}

/// Requests that are none, or say more than they may: each gets an error or nothing.
#[tokio::test]
async fn odd_tftp_requests_hurt_nobody() {
    let site = Site::new().await;
    let server = serve(&site).await;
    let rrq = |rest: &[u8]| [b"\0\x01", rest].concat();
    let options = |count: usize| {
        let mut packet = rrq(b"undionly.kpxe\0octet\0");
        for number in 0..count {
            packet.extend(format!("option{number}\0{number}\0").into_bytes());
        }
        packet
    };
    let silent: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"\0".to_vec(),
        b"\0\x01".to_vec(),
        rrq(b"undionly.kpxe"),
        rrq(b"undionly.kpxe\0octet"),
        rrq(b"undionly.kpxe\0\0"),
        rrq(b"undionly.kpxe\0binary\0"),
        rrq(b"undionly.kpxe\0octet\0blksize\0"),
        rrq(b"undionly.kpxe\0octet\0blksize\x001468"),
        rrq(b"\xff\xfe\0octet\0"),
        b"\0\x03\0\x01data".to_vec(),
        b"\0\x04\0\x01".to_vec(),
        b"\0\x05\0\x01no\0".to_vec(),
        b"\0\x06blksize\x001468\0".to_vec(),
        b"\0\x09x\0octet\0".to_vec(),
        b"\xff\xffx\0octet\0".to_vec(),
        options(2000),
    ];
    for packet in &silent {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(packet, server).await.unwrap();
        let mut buffer = [0; 2000];
        let answer = timeout(Duration::from_millis(20), socket.recv_from(&mut buffer)).await;
        assert!(answer.is_err(), "{packet:?}");
    }
    // What can be understood is answered, and only with what was understood.
    let mut asked: Vec<(Vec<u8>, u8)> = vec![
        (options(100), 3),
        (rrq(b"undionly.kpxe\0OCTET\0"), 3),
        (rrq(b"undionly.kpxe\0netascii\0"), 3),
        (rrq(b"undionly.kpxe\0octet\0blksize\x001\0"), 3),
        (rrq(b"undionly.kpxe\0octet\0blksize\0-1\0tsize\0x\0"), 3),
        (rrq(b"undionly.kpxe\0octet\0windowsize\x000\0"), 3),
        (rrq(b"undionly.kpxe\0octet\0timeout\0999\0"), 3),
        (
            rrq(b"undionly.kpxe\0octet\0tsize\x0018446744073709551615\0"),
            3,
        ),
        (b"\0\x02undionly.kpxe\0octet\0".to_vec(), 5),
    ];
    asked.push((rrq(&[&b"x".repeat(400)[..], b"\0octet\0"].concat()), 5));
    for (packet, code) in asked {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&packet, server).await.unwrap();
        let mut buffer = [0; 2000];
        let answer = timeout(Duration::from_secs(5), socket.recv_from(&mut buffer)).await;
        answer.expect("an answer").unwrap();
        assert_eq!(buffer[1], code, "{packet:?}");
    }
    assert_loader(server).await;
}

/// Transfers that are begun and left are as many as one client may have, and hold up nobody else.
#[tokio::test]
async fn transfers_that_are_left_open_hold_up_nobody() {
    let site = Site::new().await;
    let server = serve(&site).await;
    let mut left = Vec::new();
    for _ in 0..200 {
        let mut client = Client::new(server).await;
        client
            .request(1, "undionly.kpxe", "blksize 8 windowsize 65535 tsize 0")
            .await;
        left.push(client);
    }
    let busy = left.pop().unwrap();
    drop(busy);
    // Another address of this host is another client.
    let other = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    other
        .send_to(b"\0\x01undionly.kpxe\0octet\0", server)
        .await
        .unwrap();
    let mut buffer = [0; 2000];
    let answer = timeout(Duration::from_secs(5), other.recv_from(&mut buffer)).await;
    let (length, _) = answer.expect("an answer").unwrap();
    assert_eq!(&buffer[..length], b"\0\x03\0\x01loader");
}

/// Heads that are too long, too many, contradict themselves, or are two requests in one.
#[tokio::test]
async fn odd_http_heads_hurt_nobody() {
    let site = Site::new().await;
    site.lab_machine().await;
    let report = format!("/machines/{UUID}/report");
    let get = |more: &str| format!("GET /undionly.kpxe HTTP/1.1\r\nHost: a\r\n{more}\r\n");
    let post =
        |more: &str, body: &str| format!("POST {report} HTTP/1.1\r\nHost: a\r\n{more}\r\n{body}");
    for (request, allowed) in [
        // Giants.
        (
            get(&format!("X: {}\r\n", "y".repeat(200_000))),
            &[431, 400][..],
        ),
        (get(&"X: y\r\n".repeat(1000)), &[431, 400]),
        (
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "z".repeat(200_000)),
            &[414, 431, 400],
        ),
        // Which of two lengths counts must not be left to chance (RFC 9112 §6.3).
        (
            post("Content-Length: 3\r\nContent-Length: 30\r\n", "abc"),
            &[400],
        ),
        (post("Content-Length: -1\r\n", "abc"), &[400]),
        (
            post("Content-Length: 99999999999999999999999\r\n", "abc"),
            &[400],
        ),
        (
            post("Transfer-Encoding: chunked\r\n", "zzz\r\nabc\r\n0\r\n\r\n"),
            &[400, 413],
        ),
        (post("Transfer-Encoding: gzip\r\n", "abc"), &[400, 501]),
        (
            post("Content-Length: 4611686018427387904\r\n", "abc"),
            &[413, 408, 400],
        ),
        // No field, no name, no version, another protocol.
        (get("Bad Name: x\r\n"), &[400]),
        (get("X\r\n"), &[400]),
        ("GET /undionly.kpxe\r\n\r\n".to_owned(), &[400]),
        (
            "GET /undionly.kpxe HTTP/3.0\r\n\r\n".to_owned(),
            &[400, 505],
        ),
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            &[0, 400, 505],
        ),
        (
            "CONNECT 10.0.0.1:22 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            &[404, 405, 400],
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            &[404, 405, 400],
        ),
        (
            "TRACE /undionly.kpxe HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            &[405],
        ),
        // Nobody is asked on behalf of others.
        (
            "GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            &[404],
        ),
        // Ranges that are none give all, or the error that says so (RFC 9110 §14.2).
        (get("Range: bytes=0-18446744073709551616\r\n"), &[200]),
        (get("Range: bytes=-18446744073709551615\r\n"), &[206]),
        (
            get(&format!("Range: bytes={}\r\n", "0-0,".repeat(2000))),
            &[200],
        ),
        (get("Range: bytes=6-\r\n"), &[416]),
        (get("Range: bytes=5-4\r\n"), &[200]),
        (get("Range: \u{e9}\r\n"), &[200, 400]),
    ] {
        let answer = raw(&site, request.as_bytes()).await;
        let status: u16 = text(&answer)
            .split(' ')
            .nth(1)
            .and_then(|it| it.parse().ok())
            .unwrap_or(0);
        // A connection that is closed says enough.
        let closed = answer.is_empty() && request.len() > 60_000;
        assert!(
            closed || allowed.contains(&status),
            "{status} to {:?}",
            &request[..request.len().min(200)]
        );
        assert_eq!(
            answer
                .windows(9)
                .filter(|it| it == b"HTTP/1.1 ")
                .count()
                .max(1),
            1,
            "{request:.200}"
        );
    }
    assert_eq!(site.report().await, None, "nothing was reported");
    assert_eq!(site.get("/undionly.kpxe").await.ok_text(), "loader");
}

/// Two framings of one request: what follows the first is never taken for a request of its own.
#[tokio::test]
async fn nothing_is_smuggled_behind_a_body() {
    let site = Site::new().await;
    site.lab_machine().await;
    let report = format!("/machines/{UUID}/report");
    let hidden = format!("GET {report}?smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    let both = format!(
        "POST {report} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
        hidden.len() + 5
    );
    let _ = raw(&site, both.as_bytes()).await;
    let reported = site.report().await;
    assert!(
        reported
            .as_deref()
            .is_none_or(|body| !body.contains("smuggled")),
        "{reported:?}"
    );
    for field in [
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding\t: chunked",
    ] {
        let request =
            format!("POST {report} HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n0\r\n\r\n{hidden}");
        let _ = raw(&site, request.as_bytes()).await;
    }
    let reported = site.report().await;
    assert!(
        reported
            .as_deref()
            .is_none_or(|body| !body.contains("smuggled")),
        "{reported:?}"
    );
}

/// Clients that send a head one octet at a time, and never end, take nothing from others.
#[tokio::test]
async fn slow_heads_hold_up_nobody() {
    let site = Site::new().await;
    let mut slow = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        stream
            .write_all(b"GET /undionly.kpxe HTTP/1.1\r\nX: ")
            .await
            .unwrap();
        slow.push(stream);
    }
    for stream in &mut slow {
        stream.write_all(b"y").await.unwrap();
        assert_eq!(site.get("/undionly.kpxe").await.ok_text(), "loader");
    }
}

/// What comes back for these octets until the server closes, or has nothing more to say.
async fn raw(site: &Site, request: &[u8]) -> Vec<u8> {
    let stream = TcpStream::connect(site.address).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    // A server may refuse before it has read everything.
    let _ = writing.write_all(request).await;
    let mut answer = Vec::new();
    if !request.starts_with(b"POST ") {
        let begun = timeout(PATIENCE, reading.read_buf(&mut answer)).await;
        let _ = begun.expect("an answer, or an end");
    }
    // No more comes, of bodies neither.
    let _ = writing.shutdown().await;
    let read = timeout(PATIENCE, reading.read_to_end(&mut answer)).await;
    let began = &request[..request.len().min(200)];
    assert!(read.is_ok(), "no end of {:?}", text(began));
    answer
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

fn contains(octets: &[u8], part: &[u8]) -> bool {
    octets.windows(part.len()).any(|it| it == part)
}

async fn assert_loader(server: SocketAddr) {
    let mut client = Client::new(server).await;
    let read = client
        .read("undionly.kpxe", "blksize 1468", |_| false)
        .await;
    assert_eq!(read, Ok(b"loader".to_vec()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever a path is, what it means stays below its root, and is understood the same way with
    /// slashes before it or in the other direction.
    #[test]
    fn paths_mean_nothing_outside(
        path in "(artifacts|machines|pxelinux\\.cfg|grub|x)?(/|\\\\|%2f|\\.\\.|\\.|%2e|%00|%|grub\\.cfg|-01-|default|[a-fA-F0-9]{1,8}|\u{e9}|[ -~]){0,12}"
    ) {
        use muster_node::boot::Target;
        let inside = |path: &str| {
            !path.is_empty()
                && !path.starts_with('/')
                && path.split('/').all(|it| !matches!(it, "" | "." | ".."))
                && !path.contains(|c: char| c.is_control() || c == '\\')
        };
        let target = Target::parse(&path, None);
        match &target {
            Some(Target::Artifact { path, .. } | Target::File { path, .. }) => prop_assert!(inside(path)),
            Some(Target::Loader { name }) => {
                prop_assert!(inside(name) && !name.starts_with('.'));
            }
            _ => {}
        }
        prop_assert_eq!(&target, &Target::parse(&format!("//{path}"), None));
        prop_assert_eq!(&target, &Target::parse(&path.replace('/', "\\"), None));
    }
}

#[tokio::test]
async fn macs_and_names_that_are_none_are_harmless() {
    let site = Site::new().await;
    site.lease("127.0.0.1", MAC).await;
    for path in [
        "/boot.ipxe?mac=%00",
        "/boot.ipxe?mac=../../x",
        "/boot.ipxe?mac=${x}",
        "/boot.ipxe?mac=$(x)",
        "/pxelinux.cfg/01-..-..-..-..-..-..",
        "/pxelinux.cfg/01-%0a",
        "/grub/grub.cfg-01-$x",
        "/grub/grub.cfg-%24x",
    ] {
        let answer = site.get(path).await;
        assert!(matches!(answer.status, 200 | 404), "{path}");
        let body = text(&answer.body);
        assert!(
            !body.contains("${x}") && !body.contains("$(x)") && !body.contains("../"),
            "{path}: {body}"
        );
    }
}
