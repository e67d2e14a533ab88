//! Files that machines boot: uploaded as streams, known by path.

use std::io;

use crate::common::Api;
use axum::body::Body;
use futures::stream;
use serde_json::json;
use sha2::Digest as _;

const PATH: &str = "/api/v1/artifacts/lab/vmlinuz";

#[tokio::test]
async fn an_upload_is_kept_under_its_path_and_digest() {
    let api = Api::new().await;
    let bytes = vec![7u8; 3 << 20];
    let digest = hex::encode(sha2::Sha256::digest(&bytes));
    let pieces: Vec<io::Result<Vec<u8>>> =
        bytes.chunks(1000).map(|piece| Ok(piece.to_vec())).collect();
    let body = Body::from_stream(stream::iter(pieces));
    let kept = api.call("PUT", PATH, &[], body).await.expect(201).json();
    assert_eq!(kept["path"], "lab/vmlinuz");
    assert_eq!(kept["sha256"], digest);
    assert_eq!(kept["size"], bytes.len());
    let sha256 = digest.parse().unwrap();
    let stored = std::fs::read(api.cluster.blobs().path(&sha256)).unwrap();
    assert_eq!(stored, bytes);

    let mut listed = api.get("/api/v1/artifacts").await.json();
    assert_eq!(listed["items"].take(), json!([kept]));
    let again = format!("{PATH}?sha256={digest}");
    api.call("PUT", &again, &[], bytes).await.expect(200);
    let other = api.call("PUT", &again, &[], "other").await;
    assert_eq!(other.problem(422).0, "invalid");
    assert_eq!(api.get(PATH).await.json()["sha256"], digest);
    api.delete(PATH).await.expect(204);
    api.get(PATH).await.problem(404);
}

#[tokio::test]
async fn an_upload_that_breaks_leaves_nothing() {
    let api = Api::new().await;
    let pieces = vec![Ok(b"half of it".to_vec()), Err(io::Error::other("cut"))];
    let body = Body::from_stream(stream::iter(pieces));
    assert_eq!(
        api.call("PUT", PATH, &[], body).await.problem(400).0,
        "malformed"
    );
    api.get(PATH).await.problem(404);
    assert_eq!(api.cluster.blobs().list().unwrap(), []);
}

#[tokio::test]
async fn paths_that_lead_elsewhere_are_refused() {
    let api = Api::new().await;
    for path in ["a/../b", "a//b", "..", "a%20b", "a/", "%2e%2e/x"] {
        let answer = api
            .call("PUT", &format!("/api/v1/artifacts/{path}"), &[], "x")
            .await;
        assert_eq!(answer.problem(422).0, "invalid", "{path}");
    }
    let user = api
        .get("/api/v1/artifacts?limit=1")
        .await
        .expect(200)
        .json();
    assert_eq!(user["items"], json!([]));
}
