//! Artifacts are copied between nodes, and gossip is heard.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use futures::TryStreamExt;
use muster_raft::Cluster;
use muster_storage::Command;
use muster_storage::command::PutMode;
use muster_storage::model::Object;

use crate::common::{Three, proposal, until};

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_spread_pulled_and_streamed() {
    let mut three = Three::start().await;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|i| i.to_le_bytes()[1]).collect();
    let mut writer = three.nodes[0].blobs().writer().unwrap();
    writer.write(&bytes).unwrap();
    let (sha, size) = writer.finish(None).unwrap();
    let streamed = three.nodes[1].fetch_blob(sha, 1000).await.unwrap();
    let pieces: Vec<bytes::Bytes> = streamed.try_collect().await.unwrap();
    assert!(pieces.concat() == bytes[1000..]);
    // However many ask for it, it is pulled once, and read while it arrives.
    let mut one = three.nodes[1].arriving_blob(sha, size).unwrap();
    let mut other = three.nodes[1].arriving_blob(sha, size).unwrap();
    assert!(std::sync::Arc::ptr_eq(one.file(), other.file()));
    for (arriving, end) in [(&mut one, 10), (&mut other, bytes.len())] {
        arriving.wait(end as u64).await.unwrap();
        let mut read = vec![0; end];
        arriving.file().read_exact_at(&mut read, 0).unwrap();
        assert!(read == bytes[..end]);
    }
    let whole = || three.nodes[1].blobs().size(&sha) == Some(size);
    until("it is whole and in its place", whole).await;
    let holders = three.nodes[0].spread(sha, size).await.unwrap();
    assert!(holders.len() >= 2);
    for node in &three.nodes {
        until("all have it", || node.blobs().size(&sha) == Some(size)).await;
    }
    let holders = |node: &Cluster, sha| node.placement().holders(&sha).len();
    for node in &three.nodes {
        until("all know that all have it", || holders(node, sha) == 3).await;
    }
    three.nodes[2].stop().await;
    let path = three.nodes[1].blobs().path(&sha);
    three.nodes[1].blobs().remove(&sha).unwrap();
    assert!(!path.exists());
    until("another one knows that it is gone", || {
        three.nodes[0].placement().missing(&sha) == ["n1"]
    })
    .await;
    assert_eq!(
        holders(&three.nodes[0], sha),
        2,
        "the last word of one that is away"
    );
    three.restart(2, false).await;

    // What was committed while a node did not have it is pulled without being asked.
    let mut writer = three.nodes[2].blobs().writer().unwrap();
    writer.write(b"small").unwrap();
    let (sha, size) = writer.finish(None).unwrap();
    let artifact = serde_json::json!({ "path": "a/b", "sha256": sha, "size": size });
    let outcome = three.nodes[1]
        .propose(proposal(Command::Put {
            object: Object::Artifact(serde_json::from_value(artifact).unwrap()),
            mode: PutMode::Apply,
        }))
        .await
        .unwrap();
    outcome.result.unwrap();
    for node in &three.nodes {
        until("all pulled it", || node.blobs().size(&sha) == Some(size)).await;
    }
    assert!(
        three.nodes[0]
            .fetch_blob(muster_storage::model::Sha256([1; 32]), 0)
            .await
            .is_err()
    );

    let mut heard = three.nodes[2].gossips();
    let heard = async { heard.recv().await.unwrap() };
    let say = async {
        loop {
            three.nodes[0].gossip("hello".into());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (from, said) = tokio::select! { heard = heard => heard, () = say => unreachable!() };
    assert_eq!((from, &said[..]), (three.nodes[0].node_id(), &b"hello"[..]));
    three.stop().await;
}
