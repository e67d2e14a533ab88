//! How a node stops without being missed.

use std::time::Duration;

use muster_raft::Cluster;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::services::Services;

/// How long a node takes to stop at most: then it just ends.
const DRAIN: Duration = Duration::from_secs(10);

/// How long transfers that run may take of that.
const WIND_DOWN: Duration = Duration::from_secs(5);

/// Ends all services: nothing that they say can be trusted. The API is left to say why.
pub(super) async fn step_out(stopping: &CancellationToken, services: &mut Services) {
    stopping.cancel();
    if tokio::time::timeout(WIND_DOWN, services.finish())
        .await
        .is_err()
    {
        tracing::warn!("some services did not end in time");
    }
}

/// Drains the node; what has not ended after [`DRAIN`] is left.
pub(super) async fn drain(
    cluster: &Cluster,
    stopping: &CancellationToken,
    services: Services,
    api: Api,
) {
    let left = leave(cluster, stopping, services, api);
    if tokio::time::timeout(DRAIN, left).await.is_err() {
        tracing::warn!("the node did not drain in time");
    }
}

/// Hands over what others can do, lets end what has begun, and leaves.
async fn leave(cluster: &Cluster, stopping: &CancellationToken, mut services: Services, api: Api) {
    tracing::info!("draining");
    cluster.prepare_to_stop().await;
    stopping.cancel();
    let wound_down = async {
        tokio::join!(services.finish(), api.finish());
    };
    if tokio::time::timeout(WIND_DOWN, wound_down).await.is_err() {
        tracing::warn!("some transfers did not end in time");
    }
    cluster.stop().await;
    tracing::info!("stopped");
}
