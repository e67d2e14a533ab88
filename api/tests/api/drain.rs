//! Draining, through the API of a node that need not be the one that is drained.

use crate::common::Api;
use crate::nodes::{Three, until};
use serde_json::json;

const DRAIN: &str = "/api/v1/cluster/drain";

#[tokio::test]
async fn a_node_alone_is_drained_at_once() {
    let api = Api::new().await;
    api.post(DRAIN, &json!({"node": "nobody"}))
        .await
        .problem(404);
    api.get("/readyz").await.expect(200);
    api.post(DRAIN, &json!({})).await.expect(204);
    api.get("/readyz").await.problem(503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_is_drained_through_another_node() {
    let three = Three::start().await;
    let leader = three.leader();
    let [drained, asked, other] = [0, 1, 2].map(|i| Api::on(three.nodes[(leader + i) % 3].clone()));
    for api in [&drained, &asked, &other] {
        api.get("/readyz").await.expect(200);
    }
    let name = drained.cluster.node_name();
    asked
        .post(DRAIN, &json!({ "node": name }))
        .await
        .expect(204);
    let (code, why) = drained.get("/readyz").await.problem(503);
    assert_eq!(code, "not_ready");
    assert!(why.contains("about to stop"), "{why}");
    assert!(!drained.cluster.is_leader());
    for api in [&asked, &other] {
        until("it follows the new leader", || api.cluster.has_quorum()).await;
        api.get("/readyz").await.expect(200);
    }

    // Seen by all, and reason enough not to drain another.
    until("it is seen to drain", || {
        let nodes = asked.cluster.status().nodes;
        nodes.iter().any(|node| node.name == name && node.draining)
    })
    .await;
    let status = asked.get("/api/v1/cluster").await.expect(200).json();
    for node in status["nodes"].as_array().unwrap() {
        assert_eq!(node["draining"], node["name"] == name, "{node}");
    }
    let second = json!({ "node": other.cluster.node_name() });
    let (code, why) = asked.post(DRAIN, &second).await.problem(409);
    assert_eq!(code, "conflict");
    assert!(why.contains(&format!("node `{name}` is draining")), "{why}");

    drained.cluster.stop().await;
    until("it is seen to be gone", || {
        let nodes = asked.cluster.status().nodes;
        nodes.iter().any(|node| node.name == name && !node.live)
    })
    .await;
    let (code, why) = asked
        .post(DRAIN, &json!({ "node": name }))
        .await
        .problem(409);
    assert_eq!(code, "conflict");
    assert!(why.contains("not live"), "{why}");
    three.stop().await;
}
