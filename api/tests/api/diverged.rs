//! A node whose state is not that of the others answers nothing any more, and says why.

use crate::common::Api;
use crate::nodes::{Three, put, until};
use muster_api::{App, rest};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_differs_only_says_that_it_does() {
    let three = Three::start().await;
    let leader = three.leader();
    let wrong = &three.nodes[(leader + 1) % 3];
    wrong.diverge(put("only-here"));
    let why = wrong.diverges().await;

    let mut api = Api::on(wrong.clone());
    let app = App::new(wrong.clone(), || "# metrics\n".to_owned(), api.stop.clone());
    api.router = rest::out_of_service(app, why);
    let health = api.get("/healthz").await.expect(200).json();
    assert!(health["fault"].as_str().unwrap().contains("state differs"));
    for path in ["/readyz", "/api/v1/profiles", "/api/v1/cluster"] {
        let (code, why) = api.get(path).await.problem(503);
        assert_eq!(code, "not_ready");
        assert!(why.contains("join anew"), "{why}");
    }
    api.get("/metrics").await.expect(200);

    let other = Api::on(three.nodes[leader].clone());
    let name = wrong.node_name();
    until("the others show it", || {
        let nodes = other.cluster.status().nodes;
        nodes.iter().any(|node| node.name == name && !node.live)
    })
    .await;
    let status = other.get("/api/v1/cluster").await.expect(200).json();
    let nodes = status["nodes"].as_array().unwrap();
    let shown = nodes.iter().find(|node| node["name"] == name).unwrap();
    assert!(shown["fault"].as_str().unwrap().contains("state differs"));
    other.get("/readyz").await.expect(200);
    three.stop().await;
}
