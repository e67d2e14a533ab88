//! Uploads that go on where they broke off.

use std::io;

use crate::common::{Answer, Api};
use axum::body::Body;
use axum::http::Request;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::stream;
use muster_api::auth::Peer;
use muster_raft::Cluster;
use serde_json::json;
use sha2::Digest as _;

const UPLOADS: &str = "/api/v1/uploads";
const TUS: &str = "Tus-Resumable: 1.0.0";
const OCTETS: &str = "Content-Type: application/offset+octet-stream";

fn digest(bytes: &[u8]) -> String {
    hex::encode(sha2::Sha256::digest(bytes))
}

fn metadata(path: &str, sha256: &str) -> String {
    let (path, sha256) = (STANDARD.encode(path), STANDARD.encode(sha256));
    format!("Upload-Metadata: path {path},sha256 {sha256}")
}

async fn begin(api: &Api, path: &str, bytes: &[u8]) -> Answer {
    let length = format!("Upload-Length: {}", bytes.len());
    let metadata = metadata(path, &digest(bytes));
    api.call("POST", UPLOADS, &[TUS, &length, &metadata], Body::empty())
        .await
}

/// Where an upload is that was begun.
async fn begun(api: &Api, path: &str, bytes: &[u8]) -> String {
    let answer = begin(api, path, bytes).await.expect(201);
    answer.header("location").to_owned()
}

async fn append(api: &Api, upload: &str, offset: usize, body: impl Into<Body>) -> Answer {
    let offset = format!("Upload-Offset: {offset}");
    api.call("PATCH", upload, &[TUS, OCTETS, &offset], body)
        .await
}

async fn offset(api: &Api, upload: &str) -> Answer {
    api.call("HEAD", upload, &[TUS], Body::empty()).await
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off_and_becomes_an_artifact() {
    let api = Api::new().await;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let upload = begun(&api, "lab/vmlinuz", &bytes).await;
    let pieces = vec![
        Ok(bytes[..1_000_000].to_vec()),
        Err(io::Error::other("cut")),
    ];
    let broken = append(&api, &upload, 0, Body::from_stream(stream::iter(pieces))).await;
    assert_eq!(broken.problem(400).0, "malformed");
    let at = offset(&api, &upload).await.expect(200);
    assert_eq!(
        (at.header("upload-offset"), at.header("upload-length")),
        ("1000000", "3000000")
    );
    assert!(at.header("upload-expires").ends_with(" GMT"));
    assert_eq!(at.header("cache-control"), "no-store");
    let (code, _) = append(&api, &upload, 5, "x").await.problem(409);
    assert_eq!(code, "conflict");
    let part = append(
        &api,
        &upload,
        1_000_000,
        bytes[1_000_000..2_000_000].to_vec(),
    )
    .await;
    assert_eq!(part.expect(204).header("upload-offset"), "2000000");
    api.get("/api/v1/artifacts/lab/vmlinuz").await.problem(404);
    append(&api, &upload, 2_000_000, bytes[2_000_000..].to_vec())
        .await
        .expect(204);
    let kept = api.get("/api/v1/artifacts/lab/vmlinuz").await.json();
    assert_eq!(kept["sha256"], digest(&bytes));
    assert_eq!(kept["holders"], json!(["solo"]));
    let stored = api.cluster.blobs().path(&digest(&bytes).parse().unwrap());
    assert!(std::fs::read(stored).unwrap() == bytes);
    offset(&api, &upload).await.expect(404);
}

#[tokio::test]
async fn an_upload_outlives_its_node() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::on(Cluster::solo_in(dir.path()).await);
    let upload = begun(&api, "a", b"abcdef").await;
    append(&api, &upload, 0, "abc").await.expect(204);
    api.cluster.stop().await;
    let api = Api::on(Cluster::solo_in(dir.path()).await);
    let at = offset(&api, &upload).await.expect(200);
    assert_eq!(at.header("upload-offset"), "3");
    append(&api, &upload, 3, "def").await.expect(204);
    let kept = api.get("/api/v1/artifacts/a").await.json();
    assert_eq!(kept["sha256"], digest(b"abcdef"));
}

#[tokio::test]
async fn other_bytes_than_announced_are_never_an_artifact() {
    let api = Api::new().await;
    let upload = begun(&api, "a", b"abc").await;
    assert_eq!(
        append(&api, &upload, 0, "abcd").await.problem(413).0,
        "too_large"
    );
    // Without a length, more than announced is seen when it comes.
    let endless = stream::repeat_with(|| Ok::<_, io::Error>("x"));
    let endless = append(&api, &upload, 0, Body::from_stream(endless)).await;
    assert_eq!(endless.problem(413).0, "too_large");
    let at = offset(&api, &upload).await.expect(200);
    assert_eq!(at.header("upload-offset"), "3");
    let wrong = append(&api, &upload, 3, "").await;
    assert_eq!(wrong.problem(422).0, "invalid");
    offset(&api, &upload).await.expect(404);
    api.get("/api/v1/artifacts/a").await.problem(404);
    assert!(api.cluster.blobs().list().unwrap().is_empty());
    assert!(api.cluster.blobs().partials().unwrap().is_empty());
}

#[tokio::test]
async fn a_lying_length_takes_nothing() {
    let api = Api::new().await;
    for (path, length, code, status) in [
        ("a", "18446744073709551615", "too_large", 413),
        ("a", "-1", "malformed", 400),
        ("a", "many", "malformed", 400),
        ("../a", "1", "invalid", 422),
        ("/etc/passwd", "1", "invalid", 422),
        ("a\0b", "1", "invalid", 422),
        ("", "1", "invalid", 422),
        // More than any disk has, and not more than one may have.
        ("a", "68719476735", "no_space", 507),
    ] {
        let length = format!("Upload-Length: {length}");
        let metadata = metadata(path, &digest(b"x"));
        let headers = [TUS, length.as_str(), metadata.as_str()];
        let refused = api.call("POST", UPLOADS, &headers, Body::empty()).await;
        if code == "no_space" && refused.status == 201 {
            continue;
        }
        assert_eq!(refused.problem(status).0, code, "{path:?} {length}");
    }
    for headers in [
        &["Upload-Length: 1", metadata("a", "x").as_str()][..],
        &[TUS, "Upload-Length: 1"],
        &[
            TUS,
            "Upload-Length: 1",
            "Upload-Metadata: path !!!,sha256 !!!",
        ],
        &[TUS, "Upload-Length: 1", "Upload-Metadata: path"],
    ] {
        let refused = api.call("POST", UPLOADS, headers, Body::empty()).await;
        assert_eq!(refused.problem(400).0, "malformed", "{headers:?}");
    }
    let no_digest = metadata("a", "12");
    let refused = api
        .call(
            "POST",
            UPLOADS,
            &[TUS, "Upload-Length: 1", &no_digest],
            Body::empty(),
        )
        .await;
    assert_eq!(refused.problem(422).0, "invalid");
    for id in [
        "none",
        "..",
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "%2e%2e",
    ] {
        let path = format!("{UPLOADS}/{id}");
        assert!(offset(&api, &path).await.status.is_client_error(), "{id}");
        let refused = append(&api, &path, 0, "x").await;
        assert!(refused.status.is_client_error(), "{id}");
    }
}

#[tokio::test]
async fn uploads_are_bounded_in_number_and_may_be_given_up() {
    let api = Api::new().await;
    let mut uploads = Vec::new();
    let refused = loop {
        let answer = begin(&api, "a", b"abc").await;
        match answer.status.as_u16() {
            201 => uploads.push(answer.header("location").to_owned()),
            _ => break answer,
        }
        assert!(uploads.len() <= 1000);
    };
    assert_eq!(refused.problem(503).0, "unavailable");
    let one = uploads.pop().unwrap();
    api.call("DELETE", &one, &[TUS], Body::empty())
        .await
        .expect(204);
    offset(&api, &one).await.expect(404);
    begin(&api, "a", b"abc").await.expect(201);
}

#[tokio::test]
async fn an_upload_is_its_users_own() {
    let api = Api::new().await;
    api.post(
        "/api/v1/users",
        &json!({"name": "eve", "password": "a long password"}),
    )
    .await
    .expect(201);
    let upload = begun(&api, "a", b"abc").await;
    let credentials = STANDARD.encode("eve:a long password");
    let mut request = Request::builder()
        .method("HEAD")
        .uri(&upload)
        .header("Tus-Resumable", "1.0.0")
        .header("Authorization", format!("Basic {credentials}"))
        .body(Body::empty())
        .unwrap();
    request.extensions_mut().insert(Peer::Remote);
    api.send(request).await.expect(404);
    offset(&api, &upload).await.expect(200);
}

#[tokio::test]
async fn who_asks_last_goes_on() {
    let api = Api::new().await;
    let upload = begun(&api, "a", b"abc").await;
    // A connection that is gone without a word.
    let (first, silent) = (stream::iter([Ok::<_, io::Error>("a")]), stream::pending());
    let body = Body::from_stream(futures::StreamExt::chain(first, silent));
    let silent = append(&api, &upload, 0, body);
    let other = async {
        loop {
            let at = offset(&api, &upload).await.expect(200);
            if at.header("upload-offset") == "1" {
                break;
            }
        }
        append(&api, &upload, 1, "bc").await.expect(204);
    };
    let (silent, ()) = tokio::join!(silent, other);
    assert_eq!(silent.problem(409).0, "conflict");
    api.get("/api/v1/artifacts/a").await.expect(200);
}

#[tokio::test]
async fn what_is_spoken_is_told() {
    let api = Api::new().await;
    let told = api.call("OPTIONS", UPLOADS, &[], Body::empty()).await;
    let told = told.expect(204);
    assert_eq!(told.header("tus-version"), "1.0.0");
    assert_eq!(
        told.header("tus-extension"),
        "creation,termination,expiration"
    );
    assert_eq!(told.header("tus-max-size"), (64u64 << 30).to_string());
}

#[tokio::test]
async fn the_quota_refuses_before_bytes_are_taken() {
    let api = Api::new().await;
    let settings = json!({"artifacts": {"quota_bytes": 10, "max_bytes": 8}});
    api.patch("/api/v1/settings/cluster", &settings)
        .await
        .expect(200);
    let endless = || {
        let drops = stream::repeat_with(|| Ok::<_, io::Error>("x"));
        Body::from_stream(drops)
    };
    let put = |path: &str, body: Body| {
        let path = format!("/api/v1/artifacts/{path}");
        let api = &api;
        async move { api.call("PUT", &path, &[], body).await }
    };
    assert_eq!(
        put("a", "123456789".into()).await.problem(413).0,
        "too_large"
    );
    assert_eq!(put("a", endless()).await.problem(413).0, "too_large");
    put("a", "12345678".into()).await.expect(201);
    assert_eq!(put("b", "123".into()).await.problem(507).0, "quota");
    assert_eq!(put("b", endless()).await.problem(507).0, "quota");
    assert_eq!(begin(&api, "b", b"123").await.problem(507).0, "quota");
    put("b", "12".into()).await.expect(201);
    put("a", "1234".into()).await.expect(200);
    assert_eq!(api.cluster.blobs().partials().unwrap(), []);
}
