//! Objects over REST: what is created, read, changed and deleted, and what is refused.

use crate::common::Api;
use serde_json::json;

const M1: &str = "/api/v1/machines/m1";

#[tokio::test]
async fn a_machine_is_created_read_changed_and_deleted() {
    let api = Api::new().await;
    let body = json!({"name": "m1", "macs": ["52-54-00-00-00-50"]});
    let created = api.post("/api/v1/machines", &body).await.expect(201).json();
    assert_eq!(created["kind"], "machine");
    assert_eq!(created["macs"], json!(["52:54:00:00:00:50"]));
    assert_eq!(created["bootenv"], "local");
    assert_eq!(created["available"], true);
    let uuid = created["uuid"].as_str().unwrap();

    for key in ["m1", uuid, "52:54:00:00:00:50"] {
        let read = api
            .get(&format!("/api/v1/machines/{key}"))
            .await
            .expect(200);
        assert_eq!(read.json(), created);
        assert_eq!(read.header("etag"), format!("\"{}\"", created["revision"]));
        assert_eq!(read.header("muster-node"), api.cluster.node_name());
        assert_eq!(read.header("muster-leader"), api.cluster.node_name());
        assert!(
            read.header("muster-revision").parse::<u64>().unwrap()
                >= created["revision"].as_u64().unwrap()
        );
    }
    let patched = api
        .patch(M1, &json!({"params": {"color": "blue", "n": 1}}))
        .await
        .expect(200)
        .json();
    assert_eq!(patched["params"], json!({"color": "blue", "n": 1}));
    let patched = api
        .patch(M1, &json!({"params": {"n": null}}))
        .await
        .expect(200)
        .json();
    assert_eq!(patched["params"], json!({"color": "blue"}));
    assert_eq!(patched["created_at"], created["created_at"]);

    let listed = api.get("/api/v1/machines").await.expect(200).json();
    assert_eq!(listed["items"], json!([patched]));
    assert_eq!(listed["next"], json!(null));

    api.delete(&format!("/api/v1/machines/{uuid}"))
        .await
        .expect(204);
    assert_eq!(api.get(M1).await.problem(404).0, "not_found");
    assert_eq!(api.delete(M1).await.problem(404).0, "not_found");
}

#[tokio::test]
async fn what_was_read_can_be_written_back() {
    let api = Api::new().await;
    api.post(
        "/api/v1/machines",
        &json!({"name": "m1", "macs": ["52:54:00:00:00:50"]}),
    )
    .await
    .expect(201);
    let read = api.get(M1).await.json();
    let written = api.put(M1, &read).await.expect(200).json();
    assert_eq!(written, read, "writing what is there is no change");
}

#[tokio::test]
async fn pages_follow_each_other() {
    let api = Api::new().await;
    for n in 0..5 {
        let body = json!({"name": format!("t{n}"), "contents": ""});
        api.post("/api/v1/templates", &body).await.expect(201);
    }
    let mut names = Vec::new();
    let mut path = "/api/v1/templates?limit=2".to_owned();
    loop {
        let page = api.get(&path).await.expect(200).json();
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["name"].clone()),
        );
        match page["next"].as_str() {
            Some(next) => path = format!("/api/v1/templates?limit=2&after={next}"),
            None => break,
        }
    }
    assert_eq!(names, ["t0", "t1", "t2", "t3", "t4"]);
}

#[tokio::test]
async fn refusals_say_what_is_wrong() {
    let api = Api::new().await;
    api.post(
        "/api/v1/machines",
        &json!({"name": "m1", "macs": ["52:54:00:00:00:50"]}),
    )
    .await
    .expect(201);
    // (path, body, status, code, part of the detail)
    let table = [
        (
            "machines",
            json!({"name": "m2", "macs": ["52:54:00:00:00:51"], "colour": 1}),
            422,
            "unknown_field",
            "`colour`",
        ),
        (
            "machines",
            json!({"name": "m2"}),
            422,
            "invalid",
            "macs: is missing",
        ),
        (
            "machines",
            json!({"name": "m2", "macs": ["5254"]}),
            422,
            "invalid",
            "macs[0]: `5254` is not a MAC address",
        ),
        (
            "machines",
            json!({"name": "m2", "macs": []}),
            422,
            "invalid",
            "at least one",
        ),
        (
            "machines",
            json!({"name": "m1", "macs": ["52:54:00:00:00:51"]}),
            409,
            "exists",
            "`m1`",
        ),
        (
            "machines",
            json!({"name": "m2", "macs": ["52:54:00:00:00:50"]}),
            409,
            "conflict",
            "`m1`",
        ),
        (
            "machines",
            json!({"kind": "subnet", "name": "m2"}),
            422,
            "invalid",
            "kind: is subnet",
        ),
        ("machines", json!([]), 422, "invalid", "object"),
        (
            "bootenvs",
            json!({"name": "b", "files": [{"path": "x", "templat": "y"}]}),
            422,
            "unknown_field",
            "`files[0].templat`",
        ),
        (
            "subnets",
            json!({"name": "s", "cidr": "10.0.0.1/24"}),
            422,
            "invalid",
            "10.0.0.0/24",
        ),
        (
            "subnets",
            json!({"name": "s", "cidr": "10.0.0.0/24", "mode": "loud"}),
            422,
            "invalid",
            "mode: ",
        ),
        (
            "reservations",
            json!({"address": "10.0.0.9", "machine": "nobody"}),
            422,
            "invalid",
            "`nobody`",
        ),
        (
            "users",
            json!({"name": "u"}),
            422,
            "invalid",
            "password: is missing",
        ),
        (
            "users",
            json!({"name": "u", "password_hash": "x"}),
            422,
            "unknown_field",
            "`password_hash`",
        ),
        (
            "templates",
            json!({"name": "t", "contents": "one\n{{ two "}),
            422,
            "template",
            "line 2",
        ),
        (
            "templates",
            json!({"name": "t", "contents": "{{ 1 | nosuch }}"}),
            422,
            "template",
            "nosuch",
        ),
        (
            "templates",
            json!({"name": "t", "contents": "{% include \"no\" %}"}),
            422,
            "template",
            "no",
        ),
        (
            "params",
            json!({"name": "p", "schema": {"type": "nosuch"}}),
            422,
            "invalid",
            "JSON Schema",
        ),
        (
            "params",
            json!({"name": "p", "schema": {"type": "string"}, "default": 1}),
            422,
            "invalid",
            "default",
        ),
    ];
    for (resource, body, status, code, detail) in table {
        let (got, text) = api
            .post(&format!("/api/v1/{resource}"), &body)
            .await
            .problem(status);
        assert_eq!(got, code, "{resource} {body}: {text}");
        assert!(text.contains(detail), "{resource} {body}: {text}");
    }
    assert_eq!(
        api.call("POST", "/api/v1/machines", &[], "{")
            .await
            .problem(400)
            .0,
        "malformed"
    );
    assert_eq!(
        api.get("/api/v1/nonsense").await.problem(404).0,
        "not_found"
    );
    assert_eq!(
        api.call("PUT", "/api/v1/machines", &[], "{}")
            .await
            .problem(405)
            .0,
        "method_not_allowed"
    );
    assert_eq!(
        api.post("/api/v1/artifacts", &json!({}))
            .await
            .problem(405)
            .0,
        "method_not_allowed"
    );
    assert_eq!(
        api.put(M1, &json!({"name": "m2", "macs": []}))
            .await
            .problem(422)
            .1,
        "name: is not `m1`; objects cannot be renamed"
    );
}

#[tokio::test]
async fn a_revision_guards_against_lost_updates() {
    let api = Api::new().await;
    let body = json!({"name": "m1", "macs": ["52:54:00:00:00:50"]});
    let first = api.post("/api/v1/machines", &body).await.expect(201);
    let tag = format!("If-Match: {}", first.header("etag"));
    let changes = json!({"params": {"a": 1}}).to_string();
    api.call("PATCH", M1, &[&tag], changes.clone())
        .await
        .expect(200);
    for method in ["PATCH", "PUT"] {
        let body = if method == "PUT" {
            body.to_string()
        } else {
            changes.clone()
        };
        assert_eq!(
            api.call(method, M1, &[&tag], body).await.problem(412).0,
            "stale"
        );
    }
    assert_eq!(
        api.call("DELETE", M1, &[&tag], "").await.problem(412).0,
        "stale"
    );
    assert_eq!(
        api.call("PUT", M1, &["If-None-Match: *"], body.to_string())
            .await
            .problem(409)
            .0,
        "exists"
    );
    let current = api.get(M1).await;
    let tag = format!("If-None-Match: {}", current.header("etag"));
    api.call("GET", M1, &[&tag], "").await.expect(304);
    let none = "/api/v1/templates/none";
    assert_eq!(
        api.call("PUT", none, &["If-Match: *"], "{\"contents\":\"\"}")
            .await
            .problem(404)
            .0,
        "not_found"
    );
    assert_eq!(
        api.call("PUT", none, &["If-Match: x"], "{}")
            .await
            .problem(412)
            .0,
        "stale"
    );
    let now = current.header("etag");
    for tags in ["\"x\"".to_owned(), format!("W/{now}")] {
        let tags = format!("If-Match: {tags}");
        api.call("DELETE", M1, &[&tags], "").await.problem(412);
    }
    let listed = format!("If-Match: \"other\", \"1\", {now}");
    api.call("PATCH", M1, &[&listed], "{\"params\":{\"b\":1}}")
        .await
        .expect(200);
    api.call("PATCH", M1, &[&listed], "{\"params\":{\"c\":2}}")
        .await
        .problem(412);
    api.call("PUT", M1, &["If-None-Match: \"x\", *"], body.to_string())
        .await
        .problem(409);
    api.call("PUT", none, &[], "{\"contents\":\"\"}")
        .await
        .expect(201);
    api.call("PUT", none, &[], "{\"contents\":\"x\"}")
        .await
        .expect(200);
}

#[tokio::test]
async fn secure_params_are_hidden_and_survive_editing() {
    let api = Api::new().await;
    api.post(
        "/api/v1/params",
        &json!({"name": "root-password", "secure": true}),
    )
    .await
    .expect(201);
    let body = json!({"name": "m1", "macs": ["52:54:00:00:00:50"], "params": {"root-password": "s3cret", "a": 1}});
    let created = api.post("/api/v1/machines", &body).await.expect(201);
    assert!(!created.text.contains("s3cret"));
    let mut read = api.get(M1).await.json();
    assert_eq!(read["params"]["root-password"], "<secure>");
    read["params"]["a"] = json!(2);
    api.put(M1, &read).await.expect(200);
    api.patch(M1, &json!({"params": {"b": 3}}))
        .await
        .expect(200);
    api.post(
        "/api/v1/templates",
        &json!({"name": "t", "contents": "{{ params | json }}"}),
    )
    .await
    .expect(201);
    let text = api
        .get("/api/v1/machines/m1/render?template=t")
        .await
        .expect(200)
        .text;
    assert_eq!(text, r#"{"a":2,"b":3,"root-password":"s3cret"}"#);

    // What hides the value stays for as long as the value.
    let param = "/api/v1/params/root-password";
    let open = json!({"secure": false});
    for refused in [api.delete(param).await, api.put(param, &open).await] {
        let (code, detail) = refused.problem(409);
        assert_eq!(code, "in_use");
        assert!(detail.contains("machine `m1`"), "{detail}");
    }
    api.patch(M1, &json!({"params": {"root-password": null}}))
        .await
        .expect(200);
    api.put(param, &json!({"secure": true, "default": "hush"}))
        .await
        .expect(200);
    api.patch(param, &open).await.problem(409);
    api.delete(param).await.expect(204);
}

#[tokio::test]
async fn what_takes_the_place_of_callbacks_is_refused() {
    let api = Api::new().await;
    let body = json!({"name": "b", "files": [{"path": "report", "template": "t"}]});
    let refused = api.post("/api/v1/bootenvs", &body).await.problem(422);
    assert!(refused.1.contains("files[0].path"), "{}", refused.1);
}

#[tokio::test]
async fn templates_leave_room_for_others() {
    let api = Api::new().await;
    let put = async |name: &str, octets: usize| {
        let body = json!({"name": name, "contents": "a".repeat(octets)});
        api.put(&format!("/api/v1/templates/{name}"), &body).await
    };
    let (_, detail) = put("t", (1 << 20) + 1).await.problem(422);
    assert!(detail.contains("template `t` has 1048577"), "{detail}");
    for number in 0..8 {
        put(&format!("t{number}"), 1 << 20).await.expect(201);
    }
    let (_, detail) = put("t", 1).await.problem(422);
    assert!(detail.contains("8388609 octets together"), "{detail}");
    // One that becomes shorter makes room.
    put("t3", (1 << 20) - 1).await.expect(200);
    put("t", 1).await.expect(201);
}

/// Of a subnet, of a class of it, of a machine.
#[tokio::test]
async fn options_can_be_sent() {
    let api = Api::new().await;
    let with = |option: &str, value: serde_json::Value| {
        let options = json!({option: value});
        let subnet = json!({"name": "lab", "cidr": "10.77.0.0/24", "options": options});
        let class = json!({
            "name": "lab", "cidr": "10.77.0.0/24", "classes": [{"name": "a", "options": options}],
        });
        let machine = json!({"name": "m1", "macs": ["52:54:00:00:00:50"], "options": options});
        [
            ("/api/v1/subnets/lab", "options", subnet),
            ("/api/v1/subnets/lab", "classes[0].options", class),
            ("/api/v1/machines/m1", "options", machine),
        ]
    };
    for (option, value) in [
        ("26", json!(9000)),
        ("ip-forwarding", json!(true)),
        ("42", json!("10.77.0.1")),
        ("42", json!("{{ node.address }}")),
        ("224", json!("0x0aff")),
    ] {
        for (path, _, body) in with(option, value) {
            let answer = api.put(path, &body).await;
            assert!(answer.status.is_success(), "{body}: {}", answer.text);
        }
    }
    for (option, value) in [
        ("42", json!("host")),
        ("26", json!(70000)),
        ("ntp", json!("10.77.0.1")),
        ("54", json!("10.77.0.1")),
        ("224", json!("0x0")),
    ] {
        for (path, place, body) in with(option, value) {
            let answer = api.put(path, &body).await;
            let (_, detail) = answer.problem(422);
            let named = format!("{place}.{option}");
            assert!(detail.contains(&named), "{named}: {detail}");
        }
    }
}

#[tokio::test]
async fn params_fit_their_schema() {
    let api = Api::new().await;
    api.post("/api/v1/params", &json!({"name": "disk", "schema": {"type": "object", "properties": {"size": {"type": "integer"}}}})).await.expect(201);
    let machine = |size| json!({"name": "m1", "macs": ["52:54:00:00:00:50"], "params": {"disk": {"size": size}}});
    let (code, detail) = api
        .post("/api/v1/machines", &machine(json!("big")))
        .await
        .problem(422);
    assert_eq!(code, "invalid");
    assert!(detail.starts_with("params.disk/size: "), "{detail}");
    api.post("/api/v1/machines", &machine(json!(7)))
        .await
        .expect(201);
    let profile = json!({"name": "p", "params": {"disk": 1}});
    assert_eq!(
        api.post("/api/v1/profiles", &profile).await.problem(422).0,
        "invalid"
    );
}

#[tokio::test]
async fn dangling_references_mark_the_object_and_nothing_else() {
    let api = Api::new().await;
    let body =
        json!({"name": "m1", "macs": ["52:54:00:00:00:50"], "bootenv": "b", "profiles": ["p"]});
    let created = api.post("/api/v1/machines", &body).await.expect(201).json();
    assert_eq!(created["available"], false);
    assert_eq!(
        created["problems"],
        json!(["bootenv `b` does not exist", "profile `p` does not exist"])
    );
    api.post("/api/v1/profiles", &json!({"name": "p"}))
        .await
        .expect(201);
    api.post("/api/v1/bootenvs", &json!({"name": "b"}))
        .await
        .expect(201);
    assert_eq!(api.get(M1).await.json()["available"], true);
    let (code, detail) = api.delete("/api/v1/profiles/p").await.problem(409);
    assert_eq!(code, "in_use");
    assert!(detail.contains("machine `m1`"), "{detail}");
}
