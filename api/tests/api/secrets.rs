//! Secure params: sealed wherever they are kept, hidden wherever they are read, there when they are
//! rendered.

use crate::common::Api;
use serde_json::{Value, json};

const M1: &str = "/api/v1/machines/m1";

/// What the cluster keeps, history included, as it is stored.
fn kept(api: &Api) -> Vec<u8> {
    let rows = api.cluster.read(muster_storage::State::rows).unwrap();
    let rows = rows.into_iter();
    rows.flat_map(|row| [row.key, row.value.unwrap_or_default()].concat())
        .collect()
}

fn holds(api: &Api, text: &str) -> bool {
    let kept = kept(api);
    let mut windows = kept.windows(text.len());
    windows.any(|window| window == text.as_bytes())
}

async fn rendered(api: &Api, contents: &str) -> String {
    let body = json!({"contents": contents});
    api.put("/api/v1/templates/t", &body).await;
    let text = api.get("/api/v1/machines/m1/render?template=t").await;
    text.expect(200).text
}

fn machine(params: Value) -> Value {
    json!({"name": "m1", "macs": ["52:54:00:00:00:50"], "params": params})
}

async fn revision(api: &Api) -> Value {
    api.get(M1).await.expect(200).json()["revision"].clone()
}

#[tokio::test]
async fn a_secret_is_sealed_wherever_it_stands() {
    let api = Api::new().await;
    let objects = json!([
        {"kind": "param", "name": "pw", "secure": true, "default": "of-all-s3cret"},
        {"kind": "param", "name": "pin", "secure": true, "schema": {"type": "integer"}},
        {"kind": "profile", "name": "p", "params": {"pw": "profile-s3cret", "a": 1}},
        {"kind": "machine", "name": "m1", "macs": ["52:54:00:00:00:50"], "profiles": ["p"],
         "params": {"pin": 471147114711_i64}},
    ]);
    api.apply(&objects).await.expect(200);
    for secret in ["s3cret", "471147114711"] {
        assert!(!holds(&api, secret), "{secret}");
    }
    assert_eq!(
        rendered(&api, "{{ params.pw }} {{ params.pin + 1 }} {{ params.a }}").await,
        "profile-s3cret 471147114712 1"
    );
    // Read, edit, write: also what was not edited is there still.
    let mut read = api.get(M1).await.json();
    assert_eq!(read["params"], json!({"pin": "<secure>"}));
    read["params"]["b"] = json!(2);
    api.put(M1, &read).await.expect(200);
    let mut read = api.get("/api/v1/profiles/p").await.json();
    assert_eq!(read["params"], json!({"a": 1, "pw": "<secure>"}));
    read["params"]["a"] = json!(3);
    api.put("/api/v1/profiles/p", &read).await.expect(200);
    let read = api.get("/api/v1/params/pw").await.json();
    assert_eq!(read["default"], "<secure>");
    api.put("/api/v1/params/pw", &read).await.expect(200);
    let patch = json!({"params": {"pw": "own-s3cret"}});
    api.patch(M1, &patch).await.expect(200);
    assert_eq!(
        rendered(
            &api,
            "{{ params.pw }} {{ params.pin }} {{ params.a }}{{ params.b }}"
        )
        .await,
        "own-s3cret 471147114711 32"
    );
    api.patch(M1, &json!({"params": {"pw": null}}))
        .await
        .expect(200);
    api.patch("/api/v1/profiles/p", &json!({"params": {"pw": null}}))
        .await
        .expect(200);
    assert_eq!(rendered(&api, "{{ params.pw }}").await, "of-all-s3cret");
    let history = ["Accept: application/json"];
    let history = api.call("GET", "/api/v1/events", &history, "").await.text;
    for text in [history, String::from_utf8_lossy(&kept(&api)).into_owned()] {
        assert!(!text.contains("s3cret") && !text.contains("471147114711"));
    }
}

#[tokio::test]
async fn a_secret_is_checked_before_it_is_sealed_and_the_refusal_does_not_tell_it() {
    let api = Api::new().await;
    let param = json!({"name": "pin", "secure": true, "schema": {"type": "integer"}});
    api.post("/api/v1/params", &param).await.expect(201);
    let bad = machine(json!({"pin": "s3cret"}));
    let answer = api.post("/api/v1/machines", &bad).await.expect(422);
    assert!(!answer.text.contains("s3cret"), "{}", answer.text);
    assert!(answer.text.contains("params.pin"), "{}", answer.text);
    // What stands for a secret is none.
    let nothing = machine(json!({"pin": "<secure>"}));
    api.post("/api/v1/machines", &nothing).await.problem(422);
    // What is sealed cannot be brought in from outside.
    let mut sealed = machine(json!({}));
    sealed["sealed"] = json!({"pin": {"key": 1, "octets": "00"}});
    let (code, _) = api.post("/api/v1/machines", &sealed).await.problem(422);
    assert_eq!(code, "unknown_field");
}

#[tokio::test]
async fn the_same_secret_is_no_change() {
    let api = Api::new().await;
    let bundle = json!([
        {"kind": "param", "name": "pw", "secure": true, "default": "s3cret"},
        {"kind": "machine", "name": "m1", "macs": ["52:54:00:00:00:50"], "params": {"pw": "s3cret"}},
    ]);
    api.apply(&bundle).await.expect(200);
    let before = revision(&api).await;
    api.apply(&bundle).await.expect(200);
    assert_eq!(revision(&api).await, before);
    api.patch(M1, &json!({"params": {"pw": "0ther"}}))
        .await
        .expect(200);
    assert_ne!(revision(&api).await, before);
}

#[tokio::test]
async fn what_becomes_secure_is_sealed_with_all_its_values() {
    let api = Api::new().await;
    let objects = json!([
        {"kind": "profile", "name": "p", "params": {"pw": "s3cret", "a": 1}},
        {"kind": "machine", "name": "m1", "macs": ["52:54:00:00:00:50"], "params": {"pw": "s3cret"}},
    ]);
    api.apply(&objects).await.expect(200);
    let param = json!({"name": "pw", "secure": true});
    api.post("/api/v1/params", &param).await.expect(201);
    assert_eq!(api.get(M1).await.json()["params"]["pw"], "<secure>");
    let profile = api.get("/api/v1/profiles/p").await.json();
    assert_eq!(profile["params"], json!({"a": 1, "pw": "<secure>"}));
    assert_eq!(rendered(&api, "{{ params.pw }}").await, "s3cret");
    let clear = api.cluster.read(|state| {
        let machine = state.machine("m1").unwrap().params.contains_key("pw");
        machine || state.profile("p").unwrap().params.contains_key("pw")
    });
    assert!(!clear);
}

#[tokio::test]
async fn each_param_says_where_it_is_from() {
    let api = Api::new().await;
    let objects = json!([
        {"kind": "param", "name": "color", "schema": {"type": "string"}, "default": "green"},
        {"kind": "param", "name": "pw", "secure": true},
        {"kind": "profile", "name": "p", "params": {"size": {"x": 1}, "pw": "s3cret"}},
        {"kind": "profile", "name": "global", "params": {"size": 2, "site": "b"}},
        {"kind": "machine", "name": "m1", "macs": ["52:54:00:00:00:50"], "profiles": ["p"],
         "params": {"own": 1}},
    ]);
    api.apply(&objects).await.expect(200);
    let answer = api
        .get("/api/v1/machines/m1/params")
        .await
        .expect(200)
        .json();
    let rows = answer["items"].as_array().unwrap().iter();
    let rows = rows.map(|row| {
        (
            row["name"].clone(),
            row["value"].clone(),
            row["from"].clone(),
        )
    });
    let expected = [
        ("color", json!("green"), "default"),
        ("own", json!(1), "machine m1"),
        ("pw", json!("<secure>"), "profile p"),
        ("site", json!("b"), "profile global"),
        ("size", json!({"x": 1}), "profile p"),
    ];
    let expected = expected.map(|(name, value, from)| (json!(name), value, json!(from)));
    assert_eq!(rows.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_new_key_seals_all_anew() {
    let api = Api::new().await;
    let objects = json!([
        {"kind": "param", "name": "pw", "secure": true, "default": "s3cret"},
        {"kind": "profile", "name": "p", "params": {"pw": "s3cret"}},
        {"kind": "machine", "name": "m1", "macs": ["52:54:00:00:00:50"], "params": {"pw": "own"}},
    ]);
    api.apply(&objects).await.expect(200);
    // A lock keeps the machine as it is, and that it stays.
    let lock = format!("{M1}/lock");
    api.put(&lock, &json!({"reason": "in use"}))
        .await
        .expect(200);
    let answer = api.post("/api/v1/cluster/rotate-keys", &json!({})).await;
    assert_eq!(answer.expect(200).json(), json!({"key": 2, "sealed": 3}));
    let other = json!({"params": {"pw": "other"}});
    api.patch(M1, &other).await.problem(423);
    api.delete(&lock).await.expect(204);
    let left = api.cluster.read(|state| {
        let keys = state.cluster().unwrap().keyring.iter();
        (
            keys.map(|key| key.id).collect::<Vec<_>>(),
            state.sealed_below(2).count(),
        )
    });
    assert_eq!(left, (vec![2], 0));
    assert_eq!(rendered(&api, "{{ params.pw }}").await, "own");
    api.patch(M1, &json!({"params": {"pw": null}}))
        .await
        .expect(200);
    assert_eq!(rendered(&api, "{{ params.pw }}").await, "s3cret");
}

#[tokio::test]
async fn a_schema_that_values_do_not_fit_is_refused_by_name() {
    let api = Api::new().await;
    let objects = json!([
        {"kind": "param", "name": "pw", "secure": true},
        {"kind": "machine", "name": "m1", "macs": ["52:54:00:00:00:50"],
         "params": {"color": "blue", "pw": "s3cret"}},
        {"kind": "machine", "name": "m2", "macs": ["52:54:00:00:00:51"], "params": {"color": 7}},
    ]);
    api.apply(&objects).await.expect(200);
    let color = json!({"name": "color", "schema": {"type": "integer"}});
    let (_, detail) = api.post("/api/v1/params", &color).await.problem(422);
    assert!(
        detail.contains("machine `m1`") && !detail.contains("m2"),
        "{detail}"
    );
    let pw = json!({"secure": true, "schema": {"type": "integer"}});
    let (_, detail) = api.put("/api/v1/params/pw", &pw).await.problem(422);
    assert!(
        detail.contains("machine `m1`") && !detail.contains("s3cret"),
        "{detail}"
    );
    api.post("/api/v1/params?force=true", &color)
        .await
        .expect(201);
    let read = api.get(M1).await.json();
    assert_eq!(read["available"], false);
    assert!(
        read["problems"][0]
            .as_str()
            .unwrap()
            .contains("params.color"),
        "{read}"
    );
    assert_eq!(
        api.get("/api/v1/machines/m2").await.json()["available"],
        true
    );
}
