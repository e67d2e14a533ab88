//! Who was removed is refused, also on connections that were made before.

use std::time::Duration;

use muster_storage::Actor;
use tonic::Code;

use super::REMOVED;
use crate::common::{found, options, until};
use crate::wire::proto;
use crate::{Cluster, Start};

#[tokio::test(flavor = "multi_thread")]
async fn an_established_connection_ends_with_the_membership() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let founder = Cluster::start(options(dirs[0].path(), "n0", found()))
        .await
        .unwrap();
    let token = founder
        .join_token(Duration::from_secs(60), Actor("test".into()))
        .await
        .unwrap();
    let start = Start::Join {
        peers: vec![format!("127.0.0.1:{}", founder.peer_port())],
        token,
    };
    let joined = Cluster::start(options(dirs[1].path(), "n1", start))
        .await
        .unwrap();
    until("both vote", || {
        let view = founder.inner.view();
        view.is_voter(joined.node_id().0)
    })
    .await;

    let founders_id = founder.node_id().0;
    let mut client = joined.inner.links.to(founders_id).unwrap().bulk;
    let ask = || proto::ReadIndexRequest {};
    client.read_index(ask()).await.unwrap();

    founder.remove("n1").await.unwrap();
    let refused = client.read_index(ask()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert_eq!(refused.message(), REMOVED);
    joined.stop().await;
    founder.stop().await;
}
