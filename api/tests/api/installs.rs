//! Installing machines, locking them, and how they boot.

use crate::common::Api;
use axum::http::StatusCode;
use muster_api::machine_token::{self, Grant};
use muster_storage::model::{Attempt, Seen, Step};
use muster_storage::{Command, Revision, State, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

const MAC: &str = "52:54:00:00:00:50";

async fn site() -> Api {
    let api = Api::new().await;
    let sha256 = "ab".repeat(32);
    let artifact = serde_json::from_value(json!({
        "artifact": {"path": "deb/vmlinuz", "sha256": sha256, "size": 1}
    }));
    let put = Command::Put {
        object: artifact.unwrap(),
        mode: muster_storage::command::PutMode::Apply,
    };
    api.propose(put).await;
    let objects = json!([
        {"kind": "bootenv", "name": "deb", "kernel": "deb/vmlinuz", "installs": true,
         "kernel_args": "token={{ machine.token }}"},
        {"kind": "bootenv", "name": "live"},
        {"kind": "template", "name": "seed", "contents": "{{ machine.token }}"},
        {"kind": "machine", "name": "m1", "macs": [MAC]},
    ]);
    api.apply(&objects).await.expect(200);
    api
}

async fn machine(api: &Api) -> Value {
    api.get("/api/v1/machines/m1").await.expect(200).json()
}

const INSTALL: &str = "/api/v1/machines/m1/install";
const LOCK: &str = "/api/v1/machines/m1/lock";

#[tokio::test]
async fn an_install_is_ordered_shown_and_cancelled() {
    let api = site().await;
    let (code, _) = api.get(INSTALL).await.problem(404);
    assert_eq!(code, "not_found");
    let order = json!({"bootenv": "deb", "attempts": 2});
    let ordered = api.post(INSTALL, &order).await.expect(201).json();
    assert_eq!(ordered["phase"], "armed");
    assert_eq!(
        (&ordered["attempt"], &ordered["attempts"]),
        (&json!(0), &json!(2))
    );
    assert_eq!(ordered["ordered_by"], "admin");
    // By UUID and MAC as well.
    let by_mac = format!("/api/v1/machines/{MAC}/install");
    assert_eq!(api.get(&by_mac).await.expect(200).json(), ordered);
    let shown = machine(&api).await;
    assert_eq!(shown["bootenv"], "deb");
    assert_eq!(shown["install"], ordered);
    // What was read can be written back.
    api.put("/api/v1/machines/m1", &shown).await.expect(200);
    assert_eq!(machine(&api).await["install"]["phase"], "armed");

    let (code, detail) = api.post(INSTALL, &order).await.problem(409);
    assert_eq!(code, "conflict");
    assert!(detail.contains("muster machines cancel m1"), "{detail}");
    api.delete(INSTALL).await.expect(204);
    assert_eq!(machine(&api).await["install"]["phase"], "cancelled");
    assert_eq!(machine(&api).await["bootenv"], "local");
    api.delete(INSTALL).await.problem(409);
}

#[tokio::test]
async fn what_cannot_be_ordered() {
    let api = site().await;
    for (order, status, code) in [
        (json!({"bootenv": "none"}), 404, "not_found"),
        (json!({"bootenv": "live"}), 422, "invalid"),
        (json!({"bootenv": "deb", "attempts": 0}), 422, "invalid"),
        (json!({"bootenv": "deb", "attempts": -1}), 422, "invalid"),
        (json!({"bootenv": "deb", "tries": 1}), 422, "unknown_field"),
    ] {
        let (found, detail) = api.post(INSTALL, &order).await.problem(status);
        assert_eq!(found, code, "{detail}");
    }
    let nobody = "/api/v1/machines/m9/install";
    let order = json!({"bootenv": "deb"});
    api.post(nobody, &order).await.problem(404);
}

#[tokio::test]
async fn a_locked_machine_cannot_be_changed() {
    let api = site().await;
    let why = json!({"reason": "holds the database"});
    let lock = api.put(LOCK, &why).await.expect(200).json();
    assert_eq!(
        (&lock["reason"], &lock["by"]),
        (&why["reason"], &json!("admin"))
    );
    assert_eq!(machine(&api).await["locked"], lock);
    let explained = api.get(&format!("/api/v1/boot/explain?mac={MAC}")).await;
    assert_eq!(explained.expect(200).json()["locked"], lock);
    for refused in [
        api.patch("/api/v1/machines/m1", &json!({"params": {"a": 1}}))
            .await,
        api.delete("/api/v1/machines/m1").await,
        api.post(INSTALL, &json!({"bootenv": "deb"})).await,
    ] {
        let (code, detail) = refused.problem(423);
        assert_eq!(code, "locked");
        assert!(detail.contains("holds the database"), "{detail}");
    }
    let same = machine(&api).await;
    api.put("/api/v1/machines/m1", &same).await.expect(200);
    api.delete(LOCK).await.expect(204);
    assert!(machine(&api).await.get("locked").is_none());
    api.patch("/api/v1/machines/m1", &json!({"params": {"a": 1}}))
        .await
        .expect(200);
    // It is no field that one writes.
    let (code, _) = api
        .patch("/api/v1/machines/m1", &json!({"locked": true}))
        .await
        .problem(422);
    assert_eq!(code, "unknown_field");
}

#[tokio::test]
async fn tokens_are_for_machines_alone() {
    let api = site().await;
    let order = api.post(INSTALL, &json!({"bootenv": "deb"})).await;
    let order = Revision(order.expect(201).json()["order"].as_u64().unwrap());
    let node = api.cluster.node_id();
    let uuid = api.cluster.read(|state| state.machine("m1").unwrap().uuid);
    let attempt = |number| Attempt { order, number };
    let open = Command::OpenAttempt {
        machine: uuid,
        read: attempt(0),
        started: false,
        node,
    };
    api.propose(open).await;
    let keyring = api.cluster.keyring().unwrap();
    let now = api.cluster.now();
    let issue = || {
        let issue = |state: &State| machine_token::issue(state, &keyring, uuid, now);
        api.cluster.read(issue).unwrap()
    };
    let read = |token: &str| machine_token::read(&keyring, uuid, token);
    let token = issue();
    assert!(machine_token::is_good(&api.cluster, uuid, &token));
    assert_eq!(read(&token), Some(Grant::Install(attempt(1))));
    let next = machine_token::text(&keyring, uuid, Grant::Install(attempt(2))).unwrap();
    assert!(read(&next).is_some());
    assert!(!machine_token::is_good(&api.cluster, uuid, &next));

    let explained = api.get(&format!("/api/v1/boot/explain?mac={MAC}")).await;
    let explained = explained.expect(200).json();
    assert_eq!(explained["target"], "install");
    assert_eq!(explained["kernel_args"], "token=<token>");
    assert_eq!(explained["install"]["attempt"], 1);
    let rendered = api.get("/api/v1/machines/m1/render?template=seed").await;
    assert_eq!(rendered.expect(200).text, "<token>");

    api.delete(INSTALL).await.expect(204);
    assert!(!machine_token::is_good(&api.cluster, uuid, &token));

    let token = issue();
    let Some(Grant::Boot(until)) = read(&token) else {
        panic!("{token}");
    };
    assert!(now.plus_secs(24 * 3600) <= until && until <= now.plus_secs(25 * 3600));
    assert!(machine_token::is_good(&api.cluster, uuid, &token));
    assert_eq!(machine_token::read(&keyring, Uuid::nil(), &token), None);
    let longer = token.replacen(&until.0.to_string(), &until.plus_secs(1).0.to_string(), 1);
    assert_eq!(read(&longer), None);
    let over = machine_token::text(&keyring, uuid, Grant::Boot(now)).unwrap();
    assert!(read(&over).is_some() && !machine_token::is_good(&api.cluster, uuid, &over));
}

#[tokio::test]
async fn what_was_seen_is_shown_in_the_order_of_time() {
    let api = site().await;
    let uuid = api.cluster.read(|state| state.machine("m1").unwrap().uuid);
    let node = api.cluster.node_id();
    let now = api.cluster.now();
    for (ago, step) in [
        (1000, Step::Kernel { path: "k".into() }),
        (
            5000,
            Step::Offered {
                address: [10, 77, 0, 50].into(),
            },
        ),
    ] {
        let seen = vec![Seen {
            machine: uuid,
            at: Timestamp(now.0 - ago),
            step,
        }];
        api.propose(Command::Saw { node, seen }).await;
    }
    let page = api
        .get("/api/v1/machines/m1/timeline")
        .await
        .expect(200)
        .json();
    let facts: Vec<_> = page["items"].as_array().unwrap().iter().collect();
    assert_eq!(facts.len(), 2, "{page:#}");
    assert_eq!(
        (&facts[0]["fact"], &facts[0]["address"]),
        (&json!("offered"), &json!("10.77.0.50"))
    );
    assert_eq!(
        (&facts[1]["fact"], &facts[1]["path"]),
        (&json!("kernel"), &json!("k"))
    );
    assert!(facts[0]["node"].is_string(), "{page:#}");
    let nobody = api.get("/api/v1/machines/m9/timeline").await;
    assert_eq!(nobody.status, StatusCode::NOT_FOUND);
}
