//! A backup through the API: for whom, and with what.

use crate::common::Api;
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt as _;
use muster_api::auth::Peer;
use muster_raft::Backup;
use serde_json::json;
use tower::ServiceExt as _;

const PATH: &str = "/api/v1/cluster/backup";
/// `correct horse`.
const PASSPHRASE: &str = "muster-passphrase: Y29ycmVjdCBob3JzZQ==";

#[tokio::test]
async fn only_the_administrator_gets_one_and_only_with_a_passphrase() {
    let api = Api::new().await;
    let ask = async |headers: &[&str]| api.call("GET", PATH, headers, Body::empty()).await;
    assert_eq!(ask(&[]).await.problem(422).0, "invalid");
    ask(&["muster-passphrase: ?"]).await.problem(422);
    // `short`.
    let (_, why) = ask(&["muster-passphrase: c2hvcnQ="]).await.problem(422);
    assert!(why.contains("fewer than"), "{why}");
    ask(&[PASSPHRASE]).await.expect(200);

    let user = json!({"kind": "user", "name": "eve", "password": "long enough"});
    api.apply(&json!([user])).await.expect(200);
    let token = api
        .post("/api/v1/users/eve/tokens", &json!({"ttl_secs": 60}))
        .await
        .expect(201)
        .json();
    let bearer = format!("authorization: Bearer {}", token["token"].as_str().unwrap());
    let (code, _) = ask(&[PASSPHRASE, &bearer]).await.problem(403);
    assert_eq!(code, "forbidden");
}

#[tokio::test]
async fn what_is_sent_is_a_whole_backup_of_what_was_answered_before() {
    let api = Api::new().await;
    let profile = json!({"kind": "profile", "name": "kept"});
    api.apply(&json!([profile])).await.expect(200);
    let (name, value) = PASSPHRASE.split_once(": ").unwrap();
    let request = Request::builder().uri(PATH).header(name, value);
    let mut request = request.body(Body::empty()).unwrap();
    request.extensions_mut().insert(Peer::Local { uid: 0 });
    let response = api.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/x-tar");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &body).unwrap();
    let backup = Backup::check(file.path(), Some("correct horse")).unwrap();
    assert_eq!(backup.header.cluster_id, api.cluster.cluster_id());
    let now = api.cluster.read(|state| (state.revision(), state.digest()));
    assert_eq!((backup.header.revision, backup.header.digest), now);
}
