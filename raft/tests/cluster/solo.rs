//! A node alone, in memory.

use muster_raft::{Cluster, Error};
use muster_storage::model::ObjectKind;
use muster_storage::{Effect, Revision};

use crate::common::{put, until};

#[tokio::test]
async fn solo_proposes_reads_and_follows() {
    let cluster = Cluster::solo().await;
    let mut follow = cluster.follow(cluster.read(muster_storage::State::revision));
    let outcome = cluster.propose(put("a")).await.unwrap();
    assert!(matches!(
        outcome.result,
        Ok(Effect::Stored { created: true, .. })
    ));
    assert!(
        cluster
            .read_linear(|state| state.object(ObjectKind::Profile, "a").is_some())
            .await
            .unwrap()
    );
    let changes = loop {
        let changes = follow.next().await.unwrap();
        if changes
            .iter()
            .any(|change| change.revision == outcome.revision)
        {
            break changes;
        }
    };
    assert_eq!(changes.last().unwrap().subject.key(), "a");
    assert!(cluster.is_leader() && cluster.has_quorum());
    assert_eq!(
        cluster.vouched_by_all(),
        Some(Revision::new(outcome.revision.log_index(), 0))
    );
    until("it has caught up", || cluster.caught_up_once()).await;
    cluster.stop().await;
    assert!(matches!(
        cluster.propose(put("b")).await,
        Err(Error::Stopped(_))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_proposals_share_entries() {
    let cluster = Cluster::solo().await;
    let names: Vec<String> = (0..2000).map(|i| format!("p{i}")).collect();
    let outcomes =
        futures::future::join_all(names.iter().map(|name| cluster.propose(put(name)))).await;
    let mut revisions: Vec<u64> = outcomes
        .into_iter()
        .map(|o| o.unwrap().revision.0)
        .collect();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 2000);
    let entries = revisions.last().unwrap() / 256 - revisions[0] / 256;
    assert!(entries < 500, "2000 proposals took {entries} entries");
}
