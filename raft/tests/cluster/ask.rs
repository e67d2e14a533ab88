//! Services ask those of other nodes.

use std::sync::Arc;

use bytes::Bytes;
use muster_raft::{Cluster, Error};

use crate::common::{Three, sees_dead, until};

/// Has a node answer each question with its name, and refuse an empty one.
fn answers(node: &Cluster) {
    let name = node.node_name().to_owned();
    node.answer_with(Arc::new(move |question: Bytes| {
        let name = name.clone();
        Box::pin(async move {
            match question.is_empty() {
                true => Err("nothing was asked".to_owned()),
                false => Ok(Bytes::from([name.as_bytes(), &question].concat())),
            }
        })
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_answers_whichever_asks_and_says_why_it_does_not() {
    let three = Three::start().await;
    let [a, b, c] = [0, 1, 2].map(|i| three.nodes[i].clone());
    let refused = |answer: Result<Bytes, Error>, reason: &str| {
        let said = matches!(&answer, Err(Error::Refused(why)) if why.contains(reason));
        assert!(said, "{answer:?}");
    };
    refused(a.ask(b.node_id(), Bytes::new()).await, "still starting");
    for node in [&a, &b] {
        answers(node);
    }
    for asked in [&a, &b] {
        let answer = a.ask(asked.node_id(), "?".into()).await.unwrap();
        assert_eq!(answer, format!("{}?", asked.node_name()));
        refused(
            a.ask(asked.node_id(), Bytes::new()).await,
            "nothing was asked",
        );
    }
    // Of two that want to fail at the same time one gets leave.
    a.check_spare().await.unwrap();
    let second = b.check_spare().await.map(|()| Bytes::new());
    refused(second, "two nodes must not be drained at once");
    c.stop().await;
    until("it is missed", || {
        sees_dead(&a, c.node_id()) && sees_dead(&b, c.node_id())
    })
    .await;
    refused(a.ask(c.node_id(), "?".into()).await, "is not live");
    let nobody = a.ask(muster_storage::NodeId(4711), "?".into()).await;
    assert!(matches!(nobody, Err(Error::NoSuchNode(_))), "{nobody:?}");
    // Two of three are left: none of them can be spared.
    refused(b.check_spare().await.map(|()| Bytes::new()), "voters");
    three.stop().await;
}
