//! What a machine is told about itself when its bootenv has no file of that name: cloud-init's
//! NoCloud data source (`meta-data`, `user-data`, `vendor-data`, `network-config`), Ignition
//! (`ignition.json`), and its params (`params.json`).

use muster_storage::State;
use muster_storage::model::Machine;
use serde_json::{Map, Value, json};

/// The files that there are.
pub const NAMES: [&str; 6] = [
    "meta-data",
    "user-data",
    "vendor-data",
    "network-config",
    "ignition.json",
    "params.json",
];

/// Param with the SSH keys of whoever may log in: a list of texts, or a text of lines.
const SSH_KEYS: &str = "ssh_authorized_keys";

/// The text of that name; none where there is none. YAML is written as JSON, which it contains.
pub fn text(
    state: &State,
    machine: &Machine,
    params: &Map<String, Value>,
    name: &str,
) -> Option<String> {
    let cloud_config = |value: Value| format!("#cloud-config\n{value:#}\n");
    Some(match name {
        "meta-data" => document(&json!({
            "instance-id": machine.uuid,
            "local-hostname": host_name(machine),
        })),
        "user-data" => {
            let mut user = json!({"hostname": host_name(machine)});
            if let Some(domain) = domain(state, machine) {
                user["fqdn"] = format!("{}.{domain}", host_name(machine)).into();
            }
            let keys = ssh_keys(params);
            if !keys.is_empty() {
                user[SSH_KEYS] = keys.into();
            }
            cloud_config(user)
        }
        "vendor-data" => cloud_config(json!({})),
        "network-config" => document(&network(machine)),
        "ignition.json" => document(&ignition(machine, ssh_keys(params))),
        "params.json" => document(&Value::Object(params.clone())),
        _ => return None,
    })
}

fn document(value: &Value) -> String {
    format!("{value:#}\n")
}

/// A machine may be named by its whole domain name.
fn host_name(machine: &Machine) -> &str {
    let first = machine.name.split('.').next();
    first.unwrap_or(&machine.name)
}

/// Of its own name, else of the network that it leases an address of.
fn domain(state: &State, machine: &Machine) -> Option<String> {
    if let Some((_, domain)) = machine.name.split_once('.') {
        return Some(domain.to_owned());
    }
    let mut leases = state.bound_leases(machine);
    leases.find_map(|lease| state.subnet(&lease.subnet)?.domain_name.clone())
}

/// DHCP on every card, which answers for addresses, routes and name servers.
fn network(machine: &Machine) -> Value {
    let cards = machine.macs.iter().enumerate().map(|(position, mac)| {
        let card = json!({
            "match": {"macaddress": mac.to_string()},
            "dhcp4": true,
            "dhcp-identifier": "mac",
            // Not all of them need a cable.
            "optional": position > 0,
        });
        (format!("card{position}"), card)
    });
    json!({"version": 2, "ethernets": cards.collect::<Map<_, _>>()})
}

fn ignition(machine: &Machine, keys: Vec<String>) -> Value {
    let mut config = json!({
        "ignition": {"version": "3.3.0"},
        "storage": {"files": [{
            "path": "/etc/hostname",
            "mode": 0o644,
            "overwrite": true,
            "contents": {"source": format!("data:,{}", host_name(machine))},
        }]},
    });
    if !keys.is_empty() {
        config["passwd"] = json!({"users": [{"name": "core", "sshAuthorizedKeys": keys}]});
    }
    config
}

fn ssh_keys(params: &Map<String, Value>) -> Vec<String> {
    let line = |text: &str| Some(text.trim().to_owned()).filter(|line| !line.is_empty());
    match params.get(SSH_KEYS) {
        Some(Value::Array(keys)) => keys
            .iter()
            .filter_map(Value::as_str)
            .filter_map(line)
            .collect(),
        Some(Value::String(keys)) => keys.lines().filter_map(line).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn machine(name: &str) -> Machine {
        serde_json::from_value(json!({
            "name": name, "uuid": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
            "macs": ["52:54:00:00:00:50", "52:54:00:00:00:51"],
        }))
        .unwrap()
    }

    fn parsed(name: &str, params: &Value, path: &str) -> Value {
        let params = params.as_object().unwrap();
        let text = text(&State::default(), &machine(name), params, path).unwrap();
        serde_yaml_ng::from_str(&text).unwrap()
    }

    #[test]
    fn a_machine_is_told_its_name_its_keys_and_its_network() {
        let none = json!({});
        let meta = parsed("m1", &none, "meta-data");
        assert_eq!(meta["instance-id"], "6ba7b810-9dad-11d1-80b4-00c04fd430c8");
        assert_eq!(meta["local-hostname"], "m1");
        assert_eq!(parsed("m1", &none, "user-data"), json!({"hostname": "m1"}));
        let user = parsed("m1.lab.example", &none, "user-data");
        assert_eq!(user, json!({"hostname": "m1", "fqdn": "m1.lab.example"}));
        for keys in [
            json!(["ssh-ed25519 a", " b "]),
            json!("ssh-ed25519 a\n\nb\n"),
        ] {
            let params = json!({SSH_KEYS: keys});
            let expected = json!(["ssh-ed25519 a", "b"]);
            assert_eq!(parsed("m1", &params, "user-data")[SSH_KEYS], expected);
            let ignition = parsed("m1", &params, "ignition.json");
            assert_eq!(
                ignition["passwd"]["users"][0]["sshAuthorizedKeys"],
                expected
            );
        }
        let network = parsed("m1", &none, "network-config");
        let card = &network["ethernets"]["card1"];
        assert_eq!(card["match"]["macaddress"], "52:54:00:00:00:51");
        let params = json!({"a": {"b": 1}});
        assert_eq!(parsed("m1", &params, "params.json"), params);
        assert_eq!(parsed("m1", &none, "vendor-data"), json!({}));
    }

    #[test]
    fn user_and_vendor_data_say_what_they_are() {
        for name in ["user-data", "vendor-data"] {
            let text = text(&State::default(), &machine("m1"), &Map::new(), name).unwrap();
            assert!(text.starts_with("#cloud-config\n"), "{text}");
        }
        for (name, there) in NAMES
            .iter()
            .map(|name| (*name, true))
            .chain([("other", false)])
        {
            let text = text(&State::default(), &machine("m1"), &Map::new(), name);
            assert_eq!(text.is_some(), there, "{name}");
        }
    }
}
