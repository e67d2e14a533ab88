//! Artifacts are copied between nodes, and gossip is heard.

use std::time::Duration;

use futures::TryStreamExt;
use muster_storage::Command;
use muster_storage::command::PutMode;
use muster_storage::model::Object;

use crate::common::{Three, proposal, until};

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_spread_pulled_and_streamed() {
    let three = Three::start().await;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|i| i.to_le_bytes()[1]).collect();
    let mut writer = three.nodes[0].blobs().writer().unwrap();
    writer.write(&bytes).unwrap();
    let (sha, size) = writer.finish(None).unwrap();
    let streamed = three.nodes[1].fetch_blob(sha, 1000).await.unwrap();
    let pieces: Vec<bytes::Bytes> = streamed.try_collect().await.unwrap();
    assert!(pieces.concat() == bytes[1000..]);
    let holders = three.nodes[0].spread(sha, size).await.unwrap();
    assert!(holders.len() >= 2);
    for node in &three.nodes {
        until("all have it", || node.blobs().size(&sha) == Some(size)).await;
    }

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
