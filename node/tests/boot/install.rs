//! Installing a machine through the boot service, on a cluster of one.

use std::time::Duration;

use crate::support::{MAC, Site, UUID};
use muster_storage::Command;
use muster_storage::model::{Install, InstallPhase, Step};
use uuid::Uuid;

fn machine() -> Uuid {
    UUID.parse().unwrap()
}

/// Machine `m1` on its disk, and bootenv `deb`, which installs.
async fn site() -> Site {
    let site = Site::new().await;
    for path in ["deb/vmlinuz", "deb/initrd.img"] {
        site.artifact(path, path.as_bytes()).await;
    }
    for object in [
        r#"{"template": {"name": "seed", "contents": "token {{ machine.token }}\n"}}"#.to_owned(),
        r#"{"bootenv": {"name": "deb", "kernel": "deb/vmlinuz", "initrds": ["deb/initrd.img"],
            "kernel_args": "report={{ machine.url }}/report token={{ machine.token }}",
            "files": [{"path": "seed", "template": "seed"}], "installs": true}}"#
            .to_owned(),
        format!(r#"{{"machine": {{"name": "m1", "macs": ["{MAC}"], "uuid": "{UUID}"}}}}"#),
    ] {
        site.apply(&object).await;
    }
    site
}

async fn order(site: &Site, attempts: u32) {
    let command = Command::OrderInstall {
        machine: machine(),
        bootenv: "deb".into(),
        attempts: Some(attempts),
    };
    site.propose(command).await;
}

async fn script(site: &Site) -> String {
    site.get(&format!("/boot.ipxe?mac={MAC}")).await.ok_text()
}

fn install(site: &Site) -> Install {
    let found = |state: &muster_storage::State| state.install(machine()).cloned();
    site.cluster.read(found).unwrap()
}

fn token(script: &str) -> String {
    let found = script
        .split("token=")
        .nth(1)
        .unwrap_or_else(|| panic!("{script}"));
    found.split_whitespace().next().unwrap().to_owned()
}

/// Waits until it is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    waited.unwrap_or_else(|_| panic!("{what}"));
}

const REPORT: &str = "/machines/6ba7b810-9dad-11d1-80b4-00c04fd430c8/report";

#[tokio::test]
async fn what_installs_is_served_by_order_only() {
    let site = site().await;
    site.apply(&format!(
        r#"{{"machine": {{"name": "m1", "macs": ["{MAC}"], "uuid": "{UUID}", "bootenv": "deb"}}}}"#
    ))
    .await;
    let script = script(&site).await;
    assert!(script.contains("sanboot"), "{script}");
    assert!(script.contains("no install is ordered"), "{script}");
    assert!(!script.contains("vmlinuz"), "{script}");
}

#[tokio::test]
async fn script_is_served_when_its_attempt_is_committed() {
    let site = site().await;
    order(&site, 3).await;
    let script = script(&site).await;
    assert!(script.contains("kernel --name vmlinuz"), "{script}");
    let install = install(&site);
    assert_eq!((install.phase, install.attempt), (InstallPhase::Open, 1));
    let rule = "# bootenv of machine `m1`: `deb`, as test ordered: 1 of 3 attempts\n";
    assert!(script.contains(rule), "{script}");
    // Read again in the same boot.
    assert_eq!(token(&script), token(&self::script(&site).await));
}

#[tokio::test]
async fn token_is_in_what_the_machine_is_given() {
    let site = site().await;
    let path = format!("/machines/{UUID}/seed");
    site.propose(Command::OrderInstall {
        machine: machine(),
        bootenv: "deb".into(),
        attempts: None,
    })
    .await;
    let token = token(&script(&site).await);
    assert_eq!(site.get(&path).await.status, 403, "it is for the machine");
    let expected = format!("token {token}\n");
    for shown in [
        format!("{path}?token={token}"),
        format!("/machines/{UUID}/t/{token}/seed"),
    ] {
        assert_eq!(site.get(&shown).await.ok_text(), expected);
    }
    let bearer = format!("Authorization: Bearer {token}");
    let read = site.send("GET", &path, &[&bearer], b"").await;
    assert_eq!(read.ok_text(), expected);
}

#[tokio::test]
async fn machine_that_says_that_it_is_installed_boots_its_disk() {
    let site = site().await;
    order(&site, 3).await;
    let token = token(&script(&site).await);
    // Anybody can say so without a token.
    assert_eq!(site.get(&format!("{REPORT}?status=done")).await.status, 200);
    assert_eq!(install(&site).phase, InstallPhase::Open);

    let done = format!("{REPORT}?status=done&token={token}&disk=sda");
    let answer = site.get(&done).await;
    assert_eq!(answer.ok_text(), "committed\n");
    assert_eq!(site.report().await.unwrap(), "status=done&disk=sda");
    assert_eq!(install(&site).phase, InstallPhase::Installed);
    let bootenv = site
        .cluster
        .read(|state| state.machine("m1").unwrap().bootenv.clone());
    assert_eq!(bootenv, "local");
    let script = script(&site).await;
    assert!(script.contains("sanboot"), "{script}");
    // The answer was lost: it calls again.
    assert_eq!(site.get(&done).await.status, 200);
    let failed = format!("{REPORT}?status=failed&token={token}");
    assert_eq!(site.get(&failed).await.status, 409);
    assert_eq!(install(&site).phase, InstallPhase::Installed);
    assert_eq!(
        site.get(&format!("/machines/{UUID}/seed")).await.status,
        404
    );
}

#[tokio::test]
async fn tokens_of_others_are_refused() {
    let site = site().await;
    site.apply(
        r#"{"machine": {"name": "m2", "macs": ["52:54:00:00:00:51"],
            "uuid": "6ba7b810-9dad-11d1-80b4-00c04fd430c9"}}"#,
    )
    .await;
    order(&site, 3).await;
    let token = token(&script(&site).await);
    let other = REPORT.replace("c8/", "c9/");
    assert_eq!(
        site.get(&format!("{other}?token={token}")).await.status,
        403
    );
    let next_attempt = token.replacen("_1_", "_2_", 1);
    for bad in [
        "",
        "x",
        "mmt_1_1_",
        &next_attempt,
        &token[..token.len() - 2],
    ] {
        let refused = site.get(&format!("{REPORT}?token={bad}")).await;
        assert_eq!(refused.status, 403, "{bad}");
    }
    let odd = site
        .get(&format!("{REPORT}?token={token}&status=maybe"))
        .await;
    assert_eq!(odd.status, 400);
    assert_eq!(install(&site).phase, InstallPhase::Open);
    assert!(site.report().await.is_none(), "none of it is kept");

    let bearer = format!("Authorization: Bearer {token}");
    let path = format!("{REPORT}?status=failed");
    let failed = site.send("POST", &path, &[&bearer], b"no disk").await;
    assert_eq!(failed.status, 200);
    assert_eq!(site.report().await.unwrap(), "no disk");
    assert_eq!(install(&site).phase, InstallPhase::Failed);
}

#[tokio::test]
async fn callback_after_the_order_was_taken_back_is_kept_and_changes_nothing() {
    let site = site().await;
    order(&site, 3).await;
    let token = token(&script(&site).await);
    site.propose(Command::CancelInstall { machine: machine() })
        .await;
    let late = site.get(&format!("{REPORT}?token={token}&late=1")).await;
    assert_eq!(late.status, 409);
    assert_eq!(site.report().await.unwrap(), "late=1");
    assert_eq!(install(&site).phase, InstallPhase::Cancelled);
}

#[tokio::test]
async fn without_a_quorum_nothing_is_installed() {
    let site = site().await;
    order(&site, 3).await;
    site.cluster.stop().await;
    let script = script(&site).await;
    assert!(script.contains("an install needs a quorum"), "{script}");
    assert!(script.contains("sleep 3 ||"), "{script}");
    assert!(!script.contains("vmlinuz"), "{script}");
    assert_eq!(install(&site).attempt, 0);
}

#[tokio::test]
async fn machine_that_never_says_so_boots_its_disk_in_the_end() {
    let site = site().await;
    // Artifacts do not say for whom they are: it is known by where it asked for its script from.
    order(&site, 2).await;
    let mut tokens = Vec::new();
    for attempt in 1..=2 {
        let script = script(&site).await;
        tokens.push(token(&script));
        for path in ["deb/initrd.img", "deb/vmlinuz"] {
            assert_eq!(install(&site).attempt, attempt);
            assert!(!install(&site).started, "{path}");
            site.get(&format!("/artifacts/{path}")).await.ok_text();
        }
        until("its kernel is noted", || install(&site).started).await;
    }
    assert_ne!(tokens[0], tokens[1]);
    let script = script(&site).await;
    assert!(script.contains("sanboot"), "{script}");
    assert_eq!(install(&site).phase, InstallPhase::Failed);
    let told = site.get(&format!("{REPORT}?token={}", tokens[1])).await;
    assert_eq!(told.status, 409);
}

#[tokio::test]
async fn what_a_machine_fetches_is_on_its_timeline() {
    let site = site().await;
    site.lease("127.0.0.1", MAC).await;
    site.get("/undionly.kpxe").await.ok_text();
    let facts = || {
        let facts = |state: &muster_storage::State| state.timeline(machine()).cloned();
        let facts = site.cluster.read(facts).map(|timeline| timeline.facts);
        facts.unwrap_or_default()
    };
    // What is noted within one millisecond has no order.
    until("the loader is noted", || !facts().is_empty()).await;
    order(&site, 3).await;
    let token = token(&script(&site).await);
    site.get("/artifacts/deb/initrd.img").await.ok_text();
    // A part is not the whole.
    let part = ["Range: bytes=0-3"];
    site.send("GET", "/artifacts/deb/vmlinuz", &part, b"").await;
    site.send("HEAD", "/artifacts/deb/vmlinuz", &[], b"").await;
    let seed = format!("/machines/{UUID}/t/{token}/seed");
    site.get(&seed).await.ok_text();
    site.get("/artifacts/deb/vmlinuz").await.ok_text();
    until("the kernel is noted", || {
        let mut facts = facts().into_iter();
        facts.any(|fact| matches!(fact.step, Step::Kernel { .. }))
    })
    .await;
    site.get(&format!("{REPORT}?token={token}")).await.ok_text();
    let mut facts = facts();
    facts.sort_by_key(|fact| fact.at);
    let steps: Vec<String> = facts
        .iter()
        .map(|fact| serde_json::to_string(&fact.step).unwrap())
        .map(|step| {
            step.split(['{', '"', ':'])
                .find(|word| !word.is_empty())
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(
        steps,
        [
            "loader", "script", "initrd", "file", "kernel", "reported", "install"
        ]
    );
    assert!(
        facts
            .iter()
            .all(|fact| fact.node == Some(site.cluster.node_id()))
    );
}
