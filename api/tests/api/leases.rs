//! The story of a lease, as far as the cluster remembers it.

use crate::common::Api;
use muster_storage::command::{Bind, Client};
use muster_storage::{Command, Mac};
use serde_json::{Value, json};

const MAC: &str = "52:54:00:00:00:50";

fn client() -> Client {
    Client {
        mac: Some(Mac([0x52, 0x54, 0, 0, 0, 0x50])),
        client_id: None,
        boots: false,
        link: vec![[10, 77, 0, 1].into()],
        requested: None,
        lease_secs: None,
        hostname: None,
        relay: None,
        traits: Default::default(),
    }
}

#[tokio::test]
async fn a_lease_has_a_story() {
    let api = Api::new().await;
    let objects = json!([
        {"kind": "subnet", "name": "lab", "cidr": "10.77.0.0/24",
         "pools": ["10.77.0.100-10.77.0.109"]},
        {"kind": "machine", "name": "m1", "macs": [MAC]},
        {"kind": "reservation", "address": "10.77.0.50", "machine": "m1"},
    ]);
    api.apply(&objects).await.expect(200);
    let address = [10, 77, 0, 50].into();
    let bind = Bind {
        client: client(),
        address,
        node: api.cluster.node_id(),
    };
    api.propose(Command::Bind(Box::new(bind))).await;
    let release = Command::Release {
        client: Box::new(client()),
        address,
        sent: None,
    };
    api.propose(release).await;

    for key in ["10.77.0.50", MAC] {
        let story = api.get(&format!("/api/v1/leases/{key}/why")).await;
        let story = story.expect(200).json();
        assert_eq!(story["leases"][0]["rule"], "reservation", "{story:#}");
        assert_eq!(story["leases"][0]["state"], "released");
        assert_eq!(story["reservations"][0]["machine"], "m1");
        let steps: Vec<&Value> = story["history"].as_array().unwrap().iter().collect();
        let told: Vec<_> = steps
            .iter()
            .map(|step| {
                [
                    &step["what"],
                    &step["address"],
                    &step["machine"],
                    &step["rule"],
                ]
            })
            .collect();
        let [address, machine, rule] = [json!("10.77.0.50"), json!("m1"), json!("reservation")];
        assert_eq!(
            told,
            [
                [&json!("bound"), &address, &machine, &rule],
                [&json!("released"), &address, &machine, &rule],
            ]
        );
        assert_eq!(steps[0]["actor"], "node:n1");
        assert!(story["history_since"].is_string(), "{story:#}");
    }
    let nobody = api.get("/api/v1/leases/10.77.0.101/why").await.expect(200);
    assert_eq!(nobody.json()["history"], json!([]));
    let (code, _) = api.get("/api/v1/leases/m1/why").await.problem(400);
    assert_eq!(code, "malformed");
}
