//! Who is let in, by what, and what everyone gets.

use crate::common::Api;
use axum::body::Body;
use axum::http::Request;
use base64::Engine as _;
use muster_api::auth::Peer;
use serde_json::json;

fn request(path: &str, credentials: Option<&str>, peer: Peer) -> Request<Body> {
    let mut request = Request::builder().uri(path);
    if let Some(credentials) = credentials {
        request = request.header("authorization", credentials);
    }
    let mut request = request.body(Body::empty()).unwrap();
    request.extensions_mut().insert(peer);
    request
}

fn basic(user: &str, password: &str) -> String {
    let pair = format!("{user}:{password}");
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(pair)
    )
}

async fn status(api: &Api, credentials: Option<&str>) -> u16 {
    let path = "/api/v1/machines";
    api.send(request(path, credentials, Peer::Remote))
        .await
        .status
        .as_u16()
}

#[tokio::test]
async fn health_is_open_and_all_else_is_not() {
    let api = Api::new().await;
    for path in ["/healthz", "/readyz"] {
        api.send(request(path, None, Peer::Remote))
            .await
            .expect(200);
    }
    for path in [
        "/metrics",
        "/openapi.json",
        "/api/v1/machines",
        "/api/v1/cluster",
        "/nonsense",
    ] {
        let answer = api.send(request(path, None, Peer::Remote)).await;
        assert!(answer.header("www-authenticate").starts_with("Basic"));
        assert_eq!(answer.problem(401).0, "unauthorized");
        let stranger = Peer::Local { uid: 12345 };
        api.send(request(path, None, stranger)).await.problem(401);
    }
    api.get("/metrics").await.expect(200);
    let document = api.get("/openapi.json").await.expect(200).json();
    assert!(document["paths"]["/api/v1/machines/{key}"]["patch"].is_object());
}

#[tokio::test]
async fn passwords_and_tokens_let_in_until_they_are_revoked() {
    let api = Api::new().await;
    api.post("/api/v1/users", &json!({"name": "eve", "password": "one"}))
        .await
        .expect(201);
    assert_eq!(status(&api, Some(&basic("eve", "one"))).await, 200);
    assert_eq!(status(&api, Some(&basic("eve", "one"))).await, 200);
    assert_eq!(status(&api, Some(&basic("eve", "two"))).await, 401);
    assert_eq!(status(&api, Some(&basic("nobody", "one"))).await, 401);
    api.put("/api/v1/users/eve/password", &json!({"password": "two"}))
        .await
        .expect(204);
    assert_eq!(status(&api, Some(&basic("eve", "one"))).await, 401);
    assert_eq!(status(&api, Some(&basic("eve", "two"))).await, 200);

    let listed = api.get("/api/v1/users").await.expect(200);
    assert!(!listed.text.contains("argon2"), "{}", listed.text);
    let changed = api
        .patch("/api/v1/users/eve", &json!({"password": "three"}))
        .await
        .expect(200);
    assert!(!changed.text.contains("three"));
    assert_eq!(status(&api, Some(&basic("eve", "three"))).await, 200);
    // What was read can be written back: the password stays.
    let eve = api.get("/api/v1/users/eve").await.json();
    api.put("/api/v1/users/eve", &eve).await.expect(200);
    assert_eq!(status(&api, Some(&basic("eve", "three"))).await, 200);

    let made = api
        .post("/api/v1/users/eve/tokens", &json!({"ttl_secs": 60}))
        .await
        .expect(201)
        .json();
    let bearer = format!("Bearer {}", made["token"].as_str().unwrap());
    assert_eq!(status(&api, Some(&bearer)).await, 200);
    assert_eq!(status(&api, Some("Bearer mst_nonsense")).await, 401);
    api.delete("/api/v1/users/eve/tokens").await.expect(204);
    assert_eq!(status(&api, Some(&bearer)).await, 401);
    api.post("/api/v1/users/nobody/tokens", &json!({"ttl_secs": 60}))
        .await
        .problem(404);
    api.delete("/api/v1/users/admin").await.problem(409);
}

#[tokio::test]
async fn a_token_ends_with_its_user() {
    let api = Api::new().await;
    api.post("/api/v1/users", &json!({"name": "eve", "password": "one"}))
        .await
        .expect(201);
    let made = api
        .post("/api/v1/users/eve/tokens", &json!({"ttl_secs": 60}))
        .await
        .expect(201)
        .json();
    let bearer = format!("Bearer {}", made["token"].as_str().unwrap());
    api.delete("/api/v1/users/eve").await.expect(204);
    assert_eq!(status(&api, Some(&bearer)).await, 401);
}
