//! Replacing a node, through the API of a node that need not lead.

use crate::common::Api;
use crate::nodes::{Three, sees_dead, until, voters};
use serde_json::json;

const REPLACE: &str = "/api/v1/cluster/replace";

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_replaced_through_a_follower() {
    let mut three = Three::start().await;
    let leader = three.leader();
    let [leader, dead, follower] = [0, 1, 2].map(|i| three.nodes[(leader + i) % 3].clone());
    let asked = Api::on(follower);
    let was = dead.node_name();
    let order = |new: &str| json!({"dead": was, "new": new});
    let (code, why) = asked.post(REPLACE, &order("n3")).await.problem(409);
    assert_eq!(code, "conflict");
    assert!(why.contains("muster cluster join-token"), "{why}");
    let new = three.join().await;
    let (code, why) = asked.post(REPLACE, &order("n3")).await.problem(409);
    assert_eq!(code, "conflict");
    assert!(
        why.contains(&format!("muster cluster drain {was}")),
        "{why}"
    );

    dead.stop().await;
    until("it is seen to be dead", || {
        sees_dead(&leader, dead.node_id())
    })
    .await;
    until("the new one votes", || voters(&leader) == 4).await;
    asked.post(REPLACE, &order("n3")).await.expect(204);
    asked.post(REPLACE, &order("n3")).await.expect(204);
    let nobody = json!({"dead": "nobody", "new": "n3"});
    asked.post(REPLACE, &nobody).await.problem(404);
    until("it has the place", || {
        let nodes = three.nodes[new].status().nodes;
        nodes.len() == 3 && nodes.iter().all(|node| node.name != was)
    })
    .await;
    three.stop().await;
}
