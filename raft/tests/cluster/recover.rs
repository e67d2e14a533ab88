//! The last resort: one survivor of a lost majority goes on alone.

use std::time::Duration;

use muster_raft::{Cluster, Error, Purpose, Start, Survivor};
use muster_storage::{Actor, State};

use crate::common::{Three, has, options, until, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_survivor_goes_on_and_the_lost_ones_do_not_come_back() {
    let mut three = Three::start().await;
    let leader = three.leader();
    let (survivor, lost) = ((leader + 1) % 3, (leader + 2) % 3);
    write(&three.nodes[leader], "before").await;
    three.agree().await;
    let keyring = three.nodes[leader].keyring().unwrap();
    let sealed = keyring.seal(Purpose::Params, b"hunter2", "here").unwrap();
    let (cluster_id, last) = (
        three.nodes[survivor].cluster_id(),
        three.nodes[survivor].read(State::revision),
    );
    let dir = three.dirs[survivor].path().to_owned();
    let running = Survivor::open(&dir).err();
    assert!(
        matches!(&running, Some(Error::Io { doing, .. }) if doing.contains("still running")),
        "{running:?}"
    );
    three.stop().await;

    let found = Survivor::open(&dir).unwrap();
    let loss = found.loss().unwrap();
    assert_eq!((loss.cluster_id, loss.revision), (cluster_id, last));
    assert!(loss.last.1 >= last.log_index());
    let given_up: Vec<&str> = loss.given_up.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(given_up.len(), 2);
    assert!(!given_up.contains(&format!("n{survivor}").as_str()));
    let (refounded, aside) = found.recover().unwrap();
    assert!(aside.join("node.json").exists() && aside.join("log").exists());

    three.restart(survivor, true).await;
    let recovered = three.nodes[survivor].clone();
    until("it leads itself", || recovered.has_quorum()).await;
    assert_eq!(recovered.cluster_id(), refounded.cluster_id);
    assert!(recovered.read(State::revision) > last);
    assert!(has(&recovered, "before"));
    write(&recovered, "after").await;

    // One that was lost comes back, and is told.
    three.restart(lost, true).await;
    let old = &three.nodes[lost];
    until("it knows", || old.fault().is_some()).await;
    let why = old.fault().unwrap();
    assert!(why.contains(&refounded.cluster_id.to_string()), "{why}");
    assert!(why.contains("join anew") && !old.has_quorum(), "{why}");
    three.nodes[lost].stop().await;

    // Fresh nodes join.
    let start = Start::Join {
        peers: vec![format!("127.0.0.1:{}", recovered.peer_port())],
        token: recovered
            .join_token(Duration::from_secs(60), Actor("test".into()))
            .await
            .unwrap(),
    };
    for i in [leader, lost] {
        three.dirs[i] = tempfile::tempdir().unwrap();
        let options = options(three.dirs[i].path(), &format!("n{i}"), start.clone());
        three.nodes[i] = Cluster::start(options).await.unwrap();
    }
    three.agree().await;
    for node in &three.nodes {
        until("all vote", || {
            node.status().nodes.len() == 3 && node.has_quorum()
        })
        .await;
        assert!(has(node, "before") && has(node, "after"));
        let keyring = node.keyring().unwrap();
        let opened = keyring.open_sealed(Purpose::Params, &sealed, "here");
        assert_eq!(opened.unwrap(), b"hunter2");
    }
    three.stop().await;
}
