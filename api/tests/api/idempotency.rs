//! Requests that are sent again.

use crate::common::Api;
use serde_json::json;

const T: &str = "/api/v1/templates/t";
const KEY: &str = "Idempotency-Key: abc";

#[tokio::test]
async fn what_is_sent_again_is_done_once() {
    let api = Api::new().await;
    let body = json!({"name": "t", "contents": "one"}).to_string();
    for _ in 0..2 {
        api.call("POST", "/api/v1/templates", &[KEY], body.clone())
            .await
            .expect(201);
    }
    let patch = |contents: &str| json!({"contents": contents}).to_string();
    let second = "Idempotency-Key: def";
    api.call("PATCH", T, &[second], patch("two"))
        .await
        .expect(200);
    api.call("PATCH", T, &[], patch("three")).await.expect(200);
    api.call("PATCH", T, &[second], patch("two"))
        .await
        .expect(200);
    assert_eq!(api.get(T).await.json()["contents"], "three");
    let third = "Idempotency-Key: ghi";
    for _ in 0..2 {
        api.call("DELETE", T, &[third], "").await.expect(204);
    }
    api.call("DELETE", T, &["Idempotency-Key: jkl"], "")
        .await
        .problem(404);
}

#[tokio::test]
async fn a_key_is_for_one_request() {
    let api = Api::new().await;
    let body = |contents: &str| json!({"contents": contents}).to_string();
    api.call("PUT", T, &[KEY], body("one")).await.expect(201);
    for (method, path, body) in [
        ("PUT", T, body("two")),
        ("PUT", "/api/v1/templates/u", body("one")),
        ("DELETE", T, String::new()),
    ] {
        let (code, _) = api.call(method, path, &[KEY], body).await.problem(422);
        assert_eq!(code, "key_reused");
    }
    assert_eq!(api.get(T).await.json()["contents"], "one");
    let (code, _) = api
        .call("PUT", T, &["Idempotency-Key: "], body("two"))
        .await
        .problem(400);
    assert_eq!(code, "malformed");
}

#[tokio::test]
async fn what_was_refused_may_be_sent_again() {
    let api = Api::new().await;
    api.call("DELETE", T, &[KEY], "").await.problem(404);
    api.put(T, &json!({"contents": "one"})).await.expect(201);
    api.call("DELETE", T, &[KEY], "").await.expect(204);
}

#[tokio::test]
async fn what_was_created_is_answered_so_when_it_is_gone_again() {
    let api = Api::new().await;
    for (resource, key, body, fields) in [
        (
            "templates",
            KEY,
            json!({"name": "t", "contents": "one"}),
            &["kind", "name", "contents", "revision"][..],
        ),
        (
            "machines",
            "Idempotency-Key: def",
            json!({"name": "m", "macs": ["52:54:00:00:00:50"]}),
            &["kind", "name", "macs", "revision"],
        ),
    ] {
        let path = format!("/api/v1/{resource}");
        let one = format!("{path}/{}", body["name"].as_str().unwrap());
        let key = [key];
        let create = || api.call("POST", &path, &key, body.to_string());
        let first = create().await.expect(201).json();
        api.call("DELETE", &one, &[], "").await.expect(204);
        let again = create().await.expect(201).json();
        for field in fields {
            assert_eq!(again[field], first[field], "{field}");
        }
        // The cluster chose it, and it is not known any more.
        assert_eq!(again["uuid"], json!(null));
        api.get(&one).await.problem(404);
    }
}
