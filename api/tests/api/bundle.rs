//! Many objects at once, and what machines get of them.

use crate::common::Api;
use serde_json::{Value, json};

/// Every kind, what is named after what names it.
fn bundle() -> Value {
    json!([
        {"kind": "reservation", "address": "10.77.0.50", "machine": "m1"},
        {"kind": "machine", "name": "m1", "macs": ["52:54:00:00:00:50"], "bootenv": "lab",
         "profiles": ["a", "b"], "params": {"one": "machine"}},
        {"kind": "bootenv", "name": "lab", "kernel_args": "url={{ machine.url }}",
         "files": [{"path": "hello.cfg", "template": "hello.cfg"}]},
        {"kind": "template", "name": "hello.cfg", "contents": "{% include \"tail\" %}"},
        {"kind": "template", "name": "tail", "contents":
         "{{ params.one }} {{ params.two }} {{ params.three }} {{ params.four }} {{ params.five }}"},
        {"kind": "profile", "name": "a", "params": {"one": "a", "two": "a"}},
        {"kind": "profile", "name": "b", "params": {"one": "b", "two": "b", "three": "b"}},
        {"kind": "profile", "name": "global", "params": {"three": "global", "four": "global"}},
        {"kind": "param", "name": "five", "schema": {"type": "string"}, "default": "default"},
        {"kind": "subnet", "name": "lab", "cidr": "10.77.0.0/24", "pools": ["10.77.0.100-10.77.0.199"]},
        {"kind": "settings", "name": "cluster", "unknown_bootenv": "hold"},
    ])
}

#[tokio::test]
async fn a_bundle_is_written_in_any_order_and_again() {
    let api = Api::new().await;
    let answer = api.apply(&bundle()).await.expect(200).json();
    assert_eq!(answer["items"].as_array().unwrap().len(), 11);
    let machine = api.get("/api/v1/machines/m1").await.json();
    assert_eq!(machine["available"], true, "{machine}");
    let reservation = api.get("/api/v1/reservations/10.77.0.50").await.json();
    assert_eq!(reservation["machine"], "m1");
    assert_eq!(reservation["available"], true);

    let again = api.apply(&bundle()).await.expect(200).json();
    assert!(
        again["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|item| item["created"] == false)
    );
    assert_eq!(
        api.get("/api/v1/machines/m1").await.json(),
        machine,
        "nothing changed"
    );
}

#[tokio::test]
async fn loaders_are_explained_by_who_chose_them_and_refused_where_they_cannot_be() {
    let api = Api::new().await;
    api.apply(&bundle()).await.expect(200);
    let profile = json!({"kind": "profile", "name": "global", "params": {"four": "global"},
        "local_boot": "exit",
        "loaders": {"bios": "pxelinux.0", "uefi-x64": "boot/grub.efi"}});
    api.apply(&json!([profile])).await.expect(200);
    let loaders = json!({"loaders": {"bios": "own.0"}});
    api.patch("/api/v1/machines/m1", &loaders).await.expect(200);
    let explained = api
        .get("/api/v1/boot/explain?mac=52:54:00:00:00:50")
        .await
        .expect(200)
        .json();
    assert_eq!(
        explained["loaders"],
        json!({"bios": {"loader": "own.0", "by": "machine `m1`"},
            "uefi-x64": {"loader": "boot/grub.efi", "by": "profile `global`"}})
    );
    assert_eq!(explained["local_boot"], "exit");
    let profile = api.get("/api/v1/profiles/global").await.json();
    assert_eq!(profile["available"], false);
    assert_eq!(
        profile["problems"][0],
        "loader of `uefi-x64`: artifact `boot/grub.efi` has not been uploaded"
    );
    for (loaders, expected) in [
        (json!({"bios": "http://10.0.0.1/x"}), "cannot load a URL"),
        (json!({"ipxe-x64": "ipxe.efi"}), "again and again"),
        (json!({"bios": "../x"}), "is no loader"),
        (json!({"uefi": "x"}), "unknown variant"),
    ] {
        let patch = json!({ "loaders": loaders });
        let (_, detail) = api.patch("/api/v1/machines/m1", &patch).await.problem(422);
        assert!(detail.contains(expected), "{detail}");
    }
}

#[tokio::test]
async fn params_come_from_machine_profiles_global_and_default_in_this_order() {
    let api = Api::new().await;
    api.apply(&bundle()).await.expect(200);
    let text = api
        .get("/api/v1/machines/m1/render?template=hello.cfg")
        .await
        .expect(200)
        .text;
    assert_eq!(text, "machine a b global default");
    assert_eq!(
        api.get("/api/v1/machines/m1/render?template=no")
            .await
            .problem(404)
            .0,
        "not_found"
    );
    let hold = api
        .get("/api/v1/boot/explain?mac=52:54:00:00:00:50")
        .await
        .expect(200)
        .json();
    assert_eq!(hold["reason"], "bootenv lab names no kernel");
    api.call("PUT", "/api/v1/artifacts/vmlinuz", &[], "bytes")
        .await
        .expect(201);
    api.patch("/api/v1/bootenvs/lab", &json!({"kernel": "vmlinuz"}))
        .await
        .expect(200);
    let explained = api
        .get("/api/v1/boot/explain?mac=52:54:00:00:00:50")
        .await
        .expect(200)
        .json();
    assert_eq!(explained["target"], "bootenv");
    let expected = format!(
        "/machines/{}",
        api.get("/api/v1/machines/m1").await.json()["uuid"]
            .as_str()
            .unwrap()
    );
    assert!(
        explained["kernel_args"]
            .as_str()
            .unwrap()
            .ends_with(&expected),
        "{explained}"
    );
    let unknown = api
        .get("/api/v1/boot/explain?mac=52:54:00:00:00:51")
        .await
        .expect(200)
        .json();
    assert_eq!(unknown["target"], "hold");
    assert_eq!(
        api.get("/api/v1/boot/explain?mac=x").await.problem(400).0,
        "malformed"
    );
}

#[tokio::test]
async fn one_bad_object_keeps_all_of_a_bundle_out() {
    let bad = [
        (
            json!({"kind": "machine", "name": "m2", "macs": ["52:54:00:00:00:50"]}),
            409,
            "`m1`",
        ),
        (
            json!({"kind": "template", "name": "t", "contents": "{{"}),
            422,
            "template `t`",
        ),
        (
            json!({"kind": "profile", "name": "p", "params": {"five": 5}}),
            422,
            "params.five",
        ),
        (
            json!({"kind": "subnet", "name": "s", "cidr": "10.77.0.0/16"}),
            409,
            "overlaps",
        ),
        (
            json!({"kind": "machine", "name": "m3", "mac": "x"}),
            422,
            "machine `m3`: unknown field `mac`",
        ),
        (json!({"kind": "artifact", "path": "x"}), 422, "upload"),
        (json!({"kind": "unicorn"}), 422, "unicorn"),
        (json!({"name": "x"}), 422, "kind: is missing"),
        (json!(7), 422, "object 12"),
    ];
    for (object, status, detail) in bad {
        let api = Api::new().await;
        let mut objects = bundle();
        objects.as_array_mut().unwrap().push(object.clone());
        let (_, text) = api.apply(&objects).await.problem(status);
        assert!(text.contains(detail), "{object}: {text}");
        assert_eq!(api.get("/api/v1/machines").await.json()["items"], json!([]));
        assert_eq!(api.get("/api/v1/subnets").await.json()["items"], json!([]));
    }
    let api = Api::new().await;
    assert_eq!(
        api.apply(&json!({"kind": "machine"})).await.problem(422).0,
        "invalid"
    );
}

#[tokio::test]
async fn a_template_that_becomes_bad_is_marked_and_the_rest_work() {
    let api = Api::new().await;
    api.apply(&bundle()).await.expect(200);
    api.post(
        "/api/v1/templates",
        &json!({"name": "other", "contents": "fine"}),
    )
    .await
    .expect(201);
    api.delete("/api/v1/templates/tail").await.expect(204);
    let bad = api.get("/api/v1/templates/hello.cfg").await.json();
    assert_eq!(bad["available"], false);
    assert!(
        bad["problems"][0].as_str().unwrap().contains("tail"),
        "{bad}"
    );
    for path in ["bootenvs/lab", "machines/m1"] {
        assert_eq!(
            api.get(&format!("/api/v1/{path}")).await.json()["available"],
            false,
            "{path}"
        );
    }
    assert_eq!(
        api.get("/api/v1/machines/m1/render?template=hello.cfg")
            .await
            .problem(422)
            .0,
        "template"
    );
    assert_eq!(
        api.get("/api/v1/machines/m1/render?template=other")
            .await
            .expect(200)
            .text,
        "fine"
    );
    // Mending it mends all.
    api.post(
        "/api/v1/templates",
        &json!({"name": "tail", "contents": "mended"}),
    )
    .await
    .expect(201);
    assert_eq!(
        api.get("/api/v1/machines/m1").await.json()["available"],
        true
    );
}

#[tokio::test]
async fn a_secret_in_a_bundle_is_put_back_as_it_was() {
    let api = Api::new().await;
    let profile = |value: &str| json!({"kind": "profile", "name": "p", "params": {"pw": value}});
    let param = json!({"kind": "param", "name": "pw", "secure": true});
    api.apply(&json!([param, profile("hush")]))
        .await
        .expect(200);
    let template = json!({"kind": "template", "name": "t", "contents": "{{ params.pw }}"});
    let machine = json!({"kind": "machine", "name": "m1", "macs": ["52:54:00:00:00:50"],
        "profiles": ["p"]});
    let answer = api
        .apply(&json!([profile("<secure>"), template, machine]))
        .await
        .expect(200)
        .json();
    assert_eq!(answer["items"].as_array().unwrap().len(), 3);
    let rendered = api.get("/api/v1/machines/m1/render?template=t").await;
    assert_eq!(rendered.expect(200).text, "hush");
}
