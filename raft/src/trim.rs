//! Keeps the log short in octets: openraft counts entries, and an entry may be large.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;

use crate::inner::Inner;
use crate::store::Size;

const LOOK: Duration = Duration::from_secs(1);
/// For a snapshot to be made.
const PATIENCE: Duration = Duration::from_secs(600);

/// Snapshots and cuts the log whenever it has grown by the limit.
pub async fn run(inner: Arc<Inner>, size: Arc<Size>) {
    let limit = inner.options.limits.bytes;
    loop {
        tokio::time::sleep(LOOK).await;
        metrics::gauge!("muster_raft_log_grown_bytes").set(size.bytes() as f64);
        if size.bytes() < limit {
            continue;
        }
        let keep = size.entries_in(limit / 4);
        let applied = inner.progress.borrow().applied;
        if inner.raft.trigger().snapshot().await.is_err() {
            return;
        }
        let made = async {
            let mut metrics = inner.raft.metrics();
            loop {
                let snapshot = metrics.borrow_watched().snapshot.map_or(0, |id| id.index());
                if snapshot >= applied || metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, made).await.is_err() {
            tracing::warn!("the snapshot that is to make the log shorter takes long");
            continue;
        }
        size.reset();
        let cut = applied.saturating_sub(keep);
        tracing::info!(index = cut, "cutting the log");
        if cut > 0 && inner.raft.trigger().purge_log(cut).await.is_err() {
            return;
        }
    }
}
