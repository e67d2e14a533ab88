//! The boot service over HTTP, on a cluster of one.

use crate::support::{Answer, MAC, Site, UUID, http};

#[tokio::test]
async fn known_machine_boots_its_bootenv() {
    let site = Site::new().await;
    let kernel = site.artifact("lab/vmlinuz", b"kernel").await;
    let initrd = site.artifact("lab/initrd.img", b"initrd").await;
    site.lab_machine().await;
    let script = site.get(&format!("/boot.ipxe?mac={MAC}")).await.ok_text();
    let url = &site.url;
    for line in [
        "# bootenv of machine `m1`: `lab`".to_owned(),
        format!(
            "initrd --name initrd.img --timeout 4000 {url}/artifacts/lab/initrd.img?sha256={initrd} && goto initrd-0 ||"
        ),
        format!(
            "kernel --name vmlinuz --timeout 4000 {url}/artifacts/lab/vmlinuz?sha256={kernel} console=ttyS0 report={url}/machines/{UUID}/report initrd=initrd.img && goto boot ||"
        ),
    ] {
        assert!(
            script.lines().any(|found| found == line),
            "no line {line:?} in\n{script}"
        );
    }
    assert!(script.contains("confirmed by a quorum"), "{script}");
}

#[tokio::test]
async fn unknown_machine_is_told_what_to_do() {
    let site = Site::new().await;
    let script = site.get("/boot.ipxe?mac=52-54-00-00-00-99").await.ok_text();
    assert!(script.starts_with("#!ipxe\n"), "{script}");
    assert!(
        script.contains("this machine waits. MAC 52:54:00:00:00:99, address 127.0.0.1"),
        "{script}"
    );
    assert!(
        script.contains("| muster machines create -f -\n"),
        "{script}"
    );
    assert!(script.contains("\nsleep 10 ||\n"), "{script}");
}

#[tokio::test]
async fn client_without_a_name_is_asked_for_it() {
    let site = Site::new().await;
    for path in ["/boot.ipxe", "/autoexec.ipxe", "/boot.ipxe?mac=nonsense"] {
        let script = site.get(path).await.ok_text();
        let expected = format!("{}/boot.ipxe?mac=${{netX/mac}} ||", site.url);
        assert!(script.contains(&expected), "{path}: {script}");
    }
}

#[tokio::test]
async fn client_is_known_by_its_lease() {
    let site = Site::new().await;
    site.lease("127.0.0.1", MAC).await;
    site.lab_machine().await;
    let script = site.get("/autoexec.ipxe").await.ok_text();
    assert!(script.contains("bootenv of machine `m1`"), "{script}");
}

#[tokio::test]
async fn machine_that_boots_its_disk_needs_no_network() {
    let site = Site::new().await;
    site.apply(&format!(
        r#"{{"machine": {{"name": "m1", "macs": ["{MAC}"]}}}}"#
    ))
    .await;
    let script = site.get(&format!("/boot.ipxe?mac={MAC}")).await.ok_text();
    assert!(
        script.contains("sanboot --no-describe --drive 0x80 ||\n"),
        "{script}"
    );
    assert!(!script.contains("http://"), "{script}");
}

#[tokio::test]
async fn what_is_missing_holds_the_machine_with_the_reason() {
    let site = Site::new().await;
    site.lab_machine().await;
    let script = site.get(&format!("/boot.ipxe?mac={MAC}")).await.ok_text();
    assert!(
        script.contains("artifact `lab/vmlinuz` has not been uploaded"),
        "{script}"
    );
    site.artifact("lab/vmlinuz", b"kernel").await;
    site.artifact("lab/initrd.img", b"initrd").await;
    site.apply(
        r#"{"bootenv": {"name": "lab", "kernel": "lab/vmlinuz", "kernel_args": "{{ no.such }}"}}"#,
    )
    .await;
    let script = site.get(&format!("/boot.ipxe?mac={MAC}")).await.ok_text();
    assert!(
        script.contains("muster: the kernel arguments: it cannot be rendered"),
        "{script}"
    );
}

#[tokio::test]
async fn files_are_rendered_for_their_machine() {
    let site = Site::new().await;
    site.lab_machine().await;
    let answer = site.get(&format!("/machines/{UUID}/hello.cfg")).await;
    assert_eq!(answer.ok_text(), "hello m1 color blue\n");
    assert_eq!(
        site.get(&format!("/machines/{UUID}/other.cfg"))
            .await
            .status,
        404
    );
    let other = "6ba7b810-9dad-11d1-80b4-00c04fd430c9";
    assert_eq!(
        site.get(&format!("/machines/{other}/hello.cfg"))
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn artifacts_have_exact_lengths_and_ranges() {
    let site = Site::new().await;
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let sha256 = site.artifact("big/file", &bytes).await;
    let path = "/artifacts/big/file";
    let answer = site.get(path).await;
    assert_eq!(
        (answer.status, answer.header("content-length")),
        (200, "1000000")
    );
    assert_eq!(answer.header("etag"), format!("\"{sha256}\""));
    assert_eq!(answer.header("accept-ranges"), "bytes");
    assert!(answer.body == bytes);
    let head = site.send("HEAD", path, &[], b"").await;
    assert_eq!(
        (head.status, head.header("content-length"), head.body.len()),
        (200, "1000000", 0)
    );
    let part = site.send("GET", path, &["Range: bytes=10-19"], b"").await;
    assert_eq!(
        (part.status, part.header("content-range")),
        (206, "bytes 10-19/1000000")
    );
    assert_eq!(part.body, bytes[10..20]);
    let tail = site.send("GET", path, &["Range: bytes=-7"], b"").await;
    assert_eq!(tail.body, bytes[999_993..]);
    let beyond = site
        .send("GET", path, &["Range: bytes=1000000-"], b"")
        .await;
    assert_eq!(
        (beyond.status, beyond.header("content-range")),
        (416, "bytes */1000000")
    );
    let etag = format!("If-None-Match: \"{sha256}\"");
    assert_eq!(site.send("GET", path, &[&etag], b"").await.status, 304);
}

#[tokio::test]
async fn pinned_artifact_is_those_bytes_or_nothing() {
    let site = Site::new().await;
    let first = site.artifact("kernel", b"first").await;
    let second = site.artifact("kernel", b"second").await;
    assert_eq!(site.get("/artifacts/kernel").await.ok_text(), "second");
    assert_eq!(
        site.get(&format!("/artifacts/kernel?sha256={first}"))
            .await
            .ok_text(),
        "first"
    );
    assert_eq!(
        site.get(&format!("/artifacts/kernel?sha256={second}"))
            .await
            .ok_text(),
        "second"
    );
    let neither = "ab".repeat(32);
    assert_eq!(
        site.get(&format!("/artifacts/kernel?sha256={neither}"))
            .await
            .status,
        404
    );
    assert_eq!(site.get("/artifacts/kernel?sha256=12").await.status, 404);
    assert_eq!(site.get("/artifacts/none").await.status, 404);
}

#[tokio::test]
async fn report_is_answered_when_it_is_committed() {
    let site = Site::new().await;
    site.lab_machine().await;
    let path = format!("/machines/{UUID}/report");
    let answer = site.send("POST", &path, &[], b"up \xff").await;
    assert_eq!(answer.ok_text(), "committed\n");
    assert_eq!(site.report().await.unwrap(), "up \u{fffd}");
    assert_eq!(site.get(&format!("{path}?state=done")).await.status, 200);
    assert_eq!(site.report().await.unwrap(), "state=done");
    let longest = vec![b'x'; 64 * 1024];
    assert_eq!(site.send("POST", &path, &[], &longest).await.status, 200);
    assert_eq!(
        site.send("POST", &path, &[], &[&longest[..], b"y"].concat())
            .await
            .status,
        413
    );
    let unknown = "/machines/6ba7b810-9dad-11d1-80b4-00c04fd430c9/report";
    assert_eq!(site.send("POST", unknown, &[], b"x").await.status, 404);
    assert_eq!(site.send("DELETE", &path, &[], b"").await.status, 405);
}

#[tokio::test]
async fn loaders_are_served_and_nothing_beside_them() {
    let site = Site::new().await;
    let head = site.send("HEAD", "/undionly.kpxe", &[], b"").await;
    assert_eq!((head.status, head.header("content-length")), (200, "6"));
    assert_eq!(site.get("/undionly.kpxe").await.ok_text(), "loader");
    for path in [
        "/secret/key",
        "/../secret",
        "/%2e%2e/secret",
        "/none.efi",
        "/subdir",
        "/",
        "/.hidden",
    ] {
        assert_eq!(site.get(path).await.status, 404, "{path}");
    }
    assert_eq!(
        site.send("POST", "/undionly.kpxe", &[], b"x").await.status,
        405
    );
}

#[tokio::test]
async fn connection_is_kept_for_the_next_request() {
    let site = Site::new().await;
    let mut connection = http::Connection::open(site.address).await;
    for _ in 0..3 {
        let answer: Answer = connection.send("GET", "/undionly.kpxe", &[], b"").await;
        assert_eq!(answer.ok_text(), "loader");
    }
}

#[tokio::test]
async fn garbage_costs_only_its_own_connection() {
    use tokio::io::AsyncWriteExt as _;
    let site = Site::new().await;
    for garbage in [
        &b"\x00\xff\x16\x03\x01"[..],
        b"GET\r\n\r\n",
        b"GET /%ff HTTP/9.9\r\n\r\n",
        &[b'A'; 100_000],
    ] {
        let mut stream = tokio::net::TcpStream::connect(site.address).await.unwrap();
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        assert_eq!(site.get("/undionly.kpxe").await.ok_text(), "loader");
    }
}

#[tokio::test]
async fn stopping_lets_a_transfer_end() {
    let site = Site::new().await;
    let bytes = vec![7; 20_000_000];
    site.artifact("big", &bytes).await;
    let mut connection = http::Connection::open(site.address).await;
    connection.begin("GET", "/artifacts/big", &[], b"").await;
    connection.begun().await;
    site.stop.cancel();
    let answer = connection.answer("GET").await;
    assert_eq!(answer.body.len(), bytes.len());
    site.ended().await;
}

#[tokio::test]
async fn requests_sent_at_once_are_answered_in_their_order() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let site = Site::new().await;
    // Longer than what a chunk stands for, and not a multiple of it.
    let long: Vec<u8> = (0..1_500_001u32).map(|n| (n % 251) as u8).collect();
    site.artifact("long", &long).await;
    site.artifact("short", b"short").await;
    site.artifact("empty", b"").await;
    let mut stream = tokio::net::TcpStream::connect(site.address).await.unwrap();
    let request = |method: &str, path: &str, more: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: node\r\n{more}\r\n")
    };
    let requests = [
        request("GET", "/artifacts/long", ""),
        request("HEAD", "/artifacts/long", ""),
        request("GET", "/artifacts/empty", ""),
        request("GET", "/artifacts/none", ""),
        request("GET", "/artifacts/short", ""),
        request("GET", "/artifacts/long", "Range: bytes=700000-1300000\r\n"),
        request("GET", "/undionly.kpxe", "Connection: close\r\n"),
    ];
    stream
        .write_all(requests.concat().as_bytes())
        .await
        .unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    let mut rest = &all[..];
    for (status, body) in [
        ("200", Some(&long[..])),
        ("200", None),
        ("200", Some(b"")),
        ("404", Some(b"there is no artifact `none`\n")),
        ("200", Some(b"short")),
        ("206", Some(&long[700_000..=1_300_000])),
        ("200", Some(b"loader")),
    ] {
        let end = rest.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
        let (head, after) = rest.split_at(end);
        let head = std::str::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
        let length = body.map_or(long.len(), <[u8]>::len);
        assert!(
            head.contains(&format!("content-length: {length}\r")),
            "{head}"
        );
        let (sent, after) = after.split_at(body.map_or(0, <[u8]>::len));
        assert!(
            sent == body.unwrap_or_default(),
            "another body after {head}"
        );
        rest = after;
    }
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_file_that_is_cut_short_costs_only_its_own_connection() {
    use tokio::io::AsyncReadExt as _;
    let site = Site::new().await;
    let path = site.loaders().join("image");
    let image = std::fs::File::create(&path).unwrap();
    // More than all buffers on the way hold; a hole, so it costs nothing.
    image.set_len(256 << 20).unwrap();
    let mut connection = http::Connection::open(site.address).await;
    connection.begin("GET", "/image", &[], b"").await;
    connection.begun().await;
    image.set_len(1 << 20).unwrap();
    let mut got = Vec::new();
    let ended = connection.0.read_to_end(&mut got).await;
    assert!(ended.is_err() || got.len() < 256 << 20);
    assert_eq!(site.get("/undionly.kpxe").await.ok_text(), "loader");
}

/// Machines that pull a file at once, half of them slow.
const MACHINES: usize = 64;

#[tokio::test]
async fn machines_that_pull_one_file_at_once_each_get_their_share() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::AsyncReadExt as _;
    const SIZE: usize = 8 << 20;
    let site = Site::new().await;
    let file = vec![7; SIZE];
    site.artifact("initrd.img", &file).await;
    let got: Arc<Vec<AtomicUsize>> = Arc::new((0..MACHINES).map(|_| AtomicUsize::new(0)).collect());
    let all_begun = Arc::new(tokio::sync::Barrier::new(MACHINES));
    let (first, mut done) = tokio::sync::watch::channel(None);
    let mut machines = tokio::task::JoinSet::new();
    for machine in 0..MACHINES {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        // What waits in the kernel is not had.
        socket.set_recv_buffer_size(32 * 1024).unwrap();
        let stream = socket.connect(site.address).await.unwrap();
        let mut connection = http::Connection(tokio::io::BufStream::new(stream));
        let all_begun = Arc::clone(&all_begun);
        let (got, first, mut done) = (Arc::clone(&got), first.clone(), done.clone());
        connection
            .begin("GET", "/artifacts/initrd.img", &[], b"")
            .await;
        machines.spawn(async move {
            let slow = machine % 2 == 1;
            all_begun.wait().await;
            if slow {
                // It takes nothing until another one has all.
                done.wait_for(Option::is_some).await.unwrap();
            }
            let mut buffer = vec![0; 64 * 1024];
            let mut head = 0;
            loop {
                let length = connection.0.read(&mut buffer).await.unwrap();
                if head == 0 {
                    head = buffer.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
                }
                let all = got[machine].fetch_add(length, Ordering::Relaxed) + length;
                if all == head + SIZE {
                    break;
                }
            }
            first.send_if_modified(|shares| {
                let is_first = shares.is_none();
                if is_first {
                    let now = got.iter().map(|octets| octets.load(Ordering::Relaxed));
                    *shares = Some(now.collect::<Vec<usize>>());
                }
                is_first
            });
        });
    }
    let shares = done
        .wait_for(Option::is_some)
        .await
        .unwrap()
        .clone()
        .unwrap();
    let least = shares.iter().step_by(2).min().unwrap();
    println!("when the first had all {SIZE} octets the last of its kind had {least}");
    assert!(*least >= SIZE / 4, "{shares:?}");
    // Nor do the slow ones lose anything.
    while let Some(machine) = machines.join_next().await {
        machine.unwrap();
    }
}
