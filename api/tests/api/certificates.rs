//! New keys and certificates, ordered through the API.

use crate::common::Api;
use crate::nodes::{Three, until};
use muster_raft::Cluster;
use muster_storage::model::Sha256;
use serde_json::json;

const RENEW: &str = "/api/v1/cluster/renew-certificates";

fn key(seen_by: &Cluster, node: &Cluster) -> Sha256 {
    seen_by.read(|state| state.member(node.node_id()).unwrap().key_hash)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_or_all_of_them_are_renewed_through_any() {
    let three = Three::start().await;
    let leader = three.leader();
    let [leader, one, other] = [0, 1, 2].map(|i| three.nodes[(leader + i) % 3].clone());
    let api = Api::on(other.clone());
    let (code, _) = api
        .post(RENEW, &json!({"node": "nobody"}))
        .await
        .problem(404);
    assert_eq!(code, "not_found");

    let before = [&leader, &one].map(|node| key(&leader, node));
    let order = json!({"node": one.node_name()});
    api.post(RENEW, &order).await.expect(204);
    until("one has a new key", || key(&leader, &one) != before[1]).await;
    assert_eq!(key(&leader, &leader), before[0]);

    let before = [&leader, &one, &other].map(|node| key(&leader, node));
    api.post(RENEW, &json!({})).await.expect(204);
    for (node, before) in [&leader, &one, &other].into_iter().zip(before) {
        until("each has a new key", || key(&leader, node) != before).await;
    }
    three.stop().await;
}
