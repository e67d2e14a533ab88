//! What a machine is told about itself, and to whom else: on a cluster of one.

use crate::support::{MAC, Site, UUID};
use muster_raft::Purpose;
use muster_storage::{Command, State};
use serde_json::{Value, json};

const OTHER: &str = "52:54:00:00:00:51";

/// Machine `m1`, which boots `live`; its param `pw` is a secret.
async fn site() -> Site {
    let site = Site::new().await;
    site.artifact("live/vmlinuz", b"kernel").await;
    let keyring = site.cluster.keyring().unwrap();
    let sealed = keyring.seal(Purpose::Params, br#""hunter2""#, "machine m1 param pw");
    let files = ["open", "secret", "instead", "maybe"];
    let files = files.map(|name| json!({"path": name, "template": name}));
    for object in [
        json!({"param": {"name": "pw", "secure": true}}),
        json!({"template": {"name": "open", "contents": "for {{ machine.name }}"}}),
        json!({"template": {"name": "secret", "contents": "pw {{ params.pw }}"}}),
        json!({"template": {"name": "instead", "contents": "pw {{ params.pw | default(value='none') }}"}}),
        json!({"template": {"name": "maybe", "contents": "{% if machine.token %}token {{ machine.token }}{% endif %}"}}),
        json!({"template": {"name": "own", "contents": "told {{ params.pw }}"}}),
        json!({"bootenv": {"name": "live", "kernel": "live/vmlinuz",
            "kernel_args": "ds=nocloud;s={{ machine.url }}/t/{{ machine.token }}/ token={{ machine.token }}",
            "files": files}}),
        json!({"bootenv": {"name": "told", "kernel": "live/vmlinuz",
            "files": [{"path": "user-data", "template": "own"}]}}),
        json!({"machine": {"name": "m1", "macs": [MAC], "uuid": UUID, "bootenv": "live",
            "params": {"rack": 7, "ssh_authorized_keys": ["ssh-ed25519 AAAA admin"]},
            "sealed": {"pw": sealed.unwrap()}}}),
    ] {
        site.apply(&object.to_string()).await;
    }
    site
}

/// The token in what the machine boots, asked for from 127.0.0.1.
async fn token(site: &Site) -> Option<String> {
    let script = site.get(&format!("/boot.ipxe?mac={MAC}")).await.ok_text();
    let found = script.split("token=").nth(1)?;
    Some(found.split_whitespace().next().unwrap().to_owned())
}

fn path(token: &str, name: &str) -> String {
    format!("/machines/{UUID}/t/{token}/{name}")
}

#[tokio::test]
async fn machine_reads_what_it_is_told_with_its_token_only() {
    let site = site().await;
    let token = token(&site).await.unwrap();
    let yaml = |text: &str| serde_yaml_ng::from_str::<Value>(text).unwrap();
    for name in [
        "meta-data",
        "user-data",
        "vendor-data",
        "network-config",
        "ignition.json",
        "params.json",
    ] {
        let open = site.get(&format!("/machines/{UUID}/{name}")).await;
        assert_eq!(open.status, 403, "{name}");
        for bad in ["x", "mbt_1_2", &token[..token.len() - 2]] {
            let refused = site.get(&path(bad, name)).await;
            assert_eq!(refused.status, 403, "{name} {bad}");
        }
        let text = site.get(&path(&token, name)).await.ok_text();
        let value = yaml(&text);
        match name {
            "meta-data" => assert_eq!(value, json!({"instance-id": UUID, "local-hostname": "m1"})),
            "user-data" => {
                assert!(text.starts_with("#cloud-config\n"), "{text}");
                let keys = json!(["ssh-ed25519 AAAA admin"]);
                assert_eq!(value["ssh_authorized_keys"], keys);
            }
            "vendor-data" => assert!(text.starts_with("#cloud-config\n"), "{text}"),
            "network-config" => {
                let card = &value["ethernets"]["card0"];
                assert_eq!(card["match"]["macaddress"], MAC);
            }
            "ignition.json" => assert_eq!(value["ignition"]["version"], "3.3.0"),
            _ => {
                assert_eq!(value["pw"], "hunter2");
                assert_eq!(value["rack"], 7);
            }
        }
    }
    assert_eq!(site.get(&path(&token, "nothing")).await.status, 404);
    // What a bootenv has of that name comes first, and is for the machine alone as well.
    site.apply(&format!(
        r#"{{"machine": {{"name": "m1", "macs": ["{MAC}"], "uuid": "{UUID}", "bootenv": "told",
            "params": {{"rack": 7}}}}}}"#
    ))
    .await;
    let told = format!("/machines/{UUID}/user-data");
    assert_eq!(site.get(&told).await.status, 403);
}

#[tokio::test]
async fn files_with_secrets_are_for_the_machine() {
    let site = site().await;
    let token = token(&site).await.unwrap();
    for (name, open, private) in [
        ("open", Some("for m1"), "for m1"),
        ("secret", None, "pw hunter2"),
        // It could be rendered for everybody, but not as its author meant it.
        ("instead", None, "pw hunter2"),
        ("maybe", None, "token "),
    ] {
        let answer = site.get(&format!("/machines/{UUID}/{name}")).await;
        match open {
            Some(text) => assert_eq!(answer.ok_text(), text),
            None => assert_eq!(answer.status, 403, "{name}"),
        }
        let text = site.get(&path(&token, name)).await.ok_text();
        assert!(text.starts_with(private), "{text}");
    }
}

#[tokio::test]
async fn token_is_told_to_the_address_of_the_machine_only() {
    let site = site().await;
    assert!(token(&site).await.is_some(), "others give out addresses");
    site.lease("127.0.0.2", MAC).await;
    assert_eq!(token(&site).await, None, "nobody was given it");
    let script = site.get(&format!("/boot.ipxe?mac={MAC}")).await.ok_text();
    assert!(script.contains("machine.token"), "it says why: {script}");
    site.lease("127.0.0.1", OTHER).await;
    assert_eq!(token(&site).await, None, "somebody else has it");
    for object in [
        json!({"bootenv": {"name": "bare", "kernel": "live/vmlinuz",
            "kernel_args": "token={{ machine.token }}"}}),
        json!({"machine": {"name": "m1", "macs": [MAC, OTHER], "uuid": UUID, "bootenv": "bare"}}),
    ] {
        site.apply(&object.to_string()).await;
    }
    assert!(token(&site).await.is_some(), "it has it by its other card");
}

#[tokio::test]
async fn machine_is_asked_for_from_its_networks_and_with_a_lease_from_nowhere_else() {
    let site = site().await;
    assert!(
        token(&site).await.is_some(),
        "others give out all addresses"
    );
    let far = json!({"subnet": {"name": "far", "cidr": "10.9.0.0/24",
        "pools": ["10.9.0.5-10.9.0.9"]}});
    site.apply(&far.to_string()).await;
    assert_eq!(token(&site).await, None, "a network that nobody told of");
    for mode in ["proxy", "reserved-only", "off"] {
        let near = json!({"subnet": {"name": "near", "cidr": "127.0.0.0/24", "mode": mode}});
        site.apply(&near.to_string()).await;
        assert!(token(&site).await.is_some(), "{mode}: others give them out");
    }
    site.lease_in("10.9.0.5", MAC).await;
    assert_eq!(token(&site).await, None);
}

#[tokio::test]
async fn address_that_is_kept_for_the_machine_is_its_own() {
    let site = site().await;
    site.lease("127.0.0.2", OTHER).await;
    assert_eq!(token(&site).await, None);
    let kept = json!({"reservation": {"address": "127.0.0.1", "machine": UUID}});
    site.apply(&kept.to_string()).await;
    assert!(token(&site).await.is_some());
}

#[tokio::test]
async fn token_of_a_boot_tells_nothing_of_an_install() {
    let site = site().await;
    let boot = token(&site).await.unwrap();
    let file = path(&boot, "given");
    for object in [
        json!({"template": {"name": "given", "contents": "{{ machine.token }}"}}),
        json!({"bootenv": {"name": "installer", "kernel": "live/vmlinuz", "installs": true,
            "kernel_args": "token={{ machine.token }}",
            "files": [{"path": "given", "template": "given"}]}}),
    ] {
        site.apply(&object.to_string()).await;
    }
    site.propose(Command::OrderInstall {
        machine: UUID.parse().unwrap(),
        bootenv: "installer".into(),
        attempts: None,
    })
    .await;
    assert_eq!(site.get(&file).await.ok_text(), boot, "what was shown");
    let install = token(&site).await.unwrap();
    assert!(install.starts_with("mmt_"), "{install}");
    assert_eq!(site.get(&file).await.status, 403);
    assert_eq!(site.get(&path(&install, "given")).await.ok_text(), install);
}

#[tokio::test]
async fn install_waits_for_an_address_of_the_machine() {
    let site = site().await;
    site.apply(
        &json!({"bootenv": {"name": "installer", "kernel": "live/vmlinuz", "installs": true}})
            .to_string(),
    )
    .await;
    site.lease("127.0.0.1", OTHER).await;
    site.propose(Command::OrderInstall {
        machine: UUID.parse().unwrap(),
        bootenv: "installer".into(),
        attempts: None,
    })
    .await;
    let script = site.get(&format!("/boot.ipxe?mac={MAC}")).await.ok_text();
    assert!(
        script.contains("127.0.0.1 is not an address of this machine"),
        "{script}"
    );
    assert!(script.contains("\nifconf -c dhcp ||\n:wait\n"), "{script}");
    let attempts = |state: &State| state.install(UUID.parse().unwrap()).unwrap().attempt;
    assert_eq!(site.cluster.read(attempts), 0, "none is used up");
}

#[tokio::test]
async fn report_with_the_token_of_a_boot_is_kept_and_ends_nothing() {
    let site = site().await;
    let token = token(&site).await.unwrap();
    let reported = site.get(&path(&token, "report?up=1")).await;
    assert_eq!(reported.status, 200);
    assert_eq!(site.report().await.unwrap(), "up=1");
    assert_eq!(site.get(&path("mbt_1_2", "report")).await.status, 403);
}
