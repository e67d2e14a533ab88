//! A node whose disk is gone, and the one that takes its place.

use muster_raft::{Cluster, Error};

use crate::common::{Three, sees_dead, until, voters, write};

/// Gives the order again for as long as the new node is catching up.
async fn replace(asked: &Cluster, dead: &Cluster, new: &Cluster) {
    loop {
        match asked.replace(dead.node_name(), new.node_name()).await {
            Ok(()) => return,
            Err(Error::NotYet(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// All see three voters, without the dead one.
async fn settled(nodes: &[&Cluster], dead: &Cluster) {
    for node in nodes {
        until("all others vote", || {
            let nodes = node.status().nodes;
            let gone = nodes.iter().all(|node| node.id != dead.node_id());
            gone && nodes.len() == 3 && voters(node) == 3
        })
        .await;
    }
}

async fn seen_by_all(nodes: &[&Cluster], dead: &Cluster) {
    for node in nodes {
        until("it is seen to be dead", || sees_dead(node, dead.node_id())).await;
    }
}

/// A leader, a node that is dead, another one that is not, and one that has just joined.
async fn three_and_one_more() -> (Three, [Cluster; 4]) {
    let mut three = Three::start().await;
    let leader = three.leader();
    let [leader, dead, other] = [0, 1, 2].map(|i| three.nodes[(leader + i) % 3].clone());
    dead.stop().await;
    seen_by_all(&[&leader, &other], &dead).await;
    let new = three.join().await;
    let new = three.nodes[new].clone();
    (three, [leader, dead, other, new])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_takes_the_place_of_a_dead_one() {
    let (three, [leader, dead, asked, new]) = three_and_one_more().await;
    // Two of three live: the new one counts before the dead one goes.
    replace(&asked, &dead, &new).await;
    settled(&[&leader, &asked, &new], &dead).await;
    write(&new, "replaced").await;
    // Done is done, whoever is asked, by name and by number.
    replace(&leader, &dead, &new).await;
    asked.applied(leader.status().revision).await;
    let by_number = dead.node_id().to_string();
    asked.replace(&by_number, new.node_name()).await.unwrap();
    let unknown = asked.replace("n9", new.node_name()).await;
    assert!(matches!(unknown, Err(Error::NoSuchNode(_))), "{unknown:?}");
    // The third of three may now be away.
    asked.stop().await;
    write(&leader, "with-the-new-one").await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_leader_finishes_what_one_began() {
    let (three, [leader, dead, asked, new]) = three_and_one_more().await;
    tokio::join!(replace(&new, &dead, &new), async {
        // There may be a change of the voters to wait for.
        while leader.is_leader() {
            let _ = leader.transfer(None).await;
        }
    });
    settled(&[&leader, &asked, &new], &dead).await;
    write(&leader, "replaced").await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_would_harm_is_refused() {
    let mut three = Three::start().await;
    let leader = three.leader();
    let [leader, dead, asked] = [0, 1, 2].map(|i| three.nodes[(leader + i) % 3].clone());
    let new = three.join().await;
    let new = three.nodes[new].clone();
    until("the new one votes", || voters(&leader) == 4).await;
    let refused = async |dead: &str, new: &str, words: &str| {
        let refused = asked.replace(dead, new).await;
        assert!(
            matches!(&refused, Err(Error::Refused(why)) if why.contains(words)),
            "{refused:?}"
        );
    };
    let (was, is) = (dead.node_name(), new.node_name());
    refused(was, is, "answers").await;
    refused(was, "n9", "join-token").await;
    refused(was, was, "itself").await;
    new.stop().await;
    seen_by_all(&[&leader, &asked], &new).await;
    refused(was, is, "answers").await;
    refused(is, was, "before").await;
    dead.stop().await;
    // Two of four.
    until("there is no quorum", || !leader.has_quorum()).await;
    let alone = asked.replace(was, is).await;
    assert!(
        matches!(&alone, Err(Error::NoLeader | Error::Timeout)),
        "{alone:?}"
    );
    three.stop().await;
}
