//! Keys and certificates that change while the cluster runs.

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::Cluster;
use crate::common::{Three, has, until, write};
use crate::wire::proto;

#[test]
fn a_certificate_is_renewed_at_two_thirds_of_its_life() {
    let now = Timestamp(1_800_000_000_000);
    for (left, due) in [
        (Some(LIFE), false),
        (Some(LIFE / 3), false),
        (Some(LIFE / 3 - 1), true),
        (Some(0), true),
        (None, true),
    ] {
        let until = left.map(|left| Timestamp(now.0 + left));
        assert_eq!(is_due(until, now), due, "{left:?}");
    }
    // It ended while the node was off.
    assert!(is_due(Some(Timestamp(0)), now));
}

/// The certificate that a client of the API is shown, which it verifies by its own clock.
async fn shown_to_clients(cluster: &Cluster) -> Vec<u8> {
    let mut roots = RootCertStore::empty();
    let ca_pem = cluster.ca_pem();
    let authority = CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from("localhost").unwrap();
    let (client, server) = tokio::join!(
        TlsConnector::from(Arc::new(config)).connect(name, near),
        TlsAcceptor::from(cluster.api_tls()).accept(far),
    );
    server.unwrap();
    let client = client.unwrap();
    let chain = client.get_ref().1.peer_certificates().unwrap();
    assert_eq!(chain.len(), 2);
    chain[0].to_vec()
}

fn recorded(node: &Cluster, of: &Cluster) -> Sha256 {
    node.read(|state| state.member(of.node_id()).unwrap().key_hash)
}

/// The two can talk, in both directions, on connections that are made from now on: those that were
/// made by the certificates of before break, and calls on them with them.
async fn talk(a: &Cluster, b: &Cluster) {
    for (from, to) in [(a, b), (b, a)] {
        let id = to.node_id().0;
        until("it reaches the other", || !from.inner.board.is_dead(id)).await;
        let mut call = from.inner.links.to(id).unwrap().bulk;
        let mut last = None;
        let answered = async {
            while let Err(status) = call.read_index(proto::ReadIndexRequest {}).await {
                last = Some(status);
                tokio::task::yield_now().await;
            }
        };
        let answered = tokio::time::timeout(Duration::from_secs(30), answered).await;
        assert!(answered.is_ok(), "node {id} gives no answer: {last:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_take_new_keys_while_the_cluster_goes_on() {
    let mut three = Three::start().await;
    let leader = three.leader();
    let before: Vec<Sha256> = three
        .nodes
        .iter()
        .map(|node| recorded(node, node))
        .collect();
    let shown = shown_to_clients(&three.nodes[leader]).await;
    let asked = three.nodes[(leader + 1) % 3].clone();
    asked.renew_certificates(None).await.unwrap();
    for (node, before) in three.nodes.iter().zip(&before) {
        for other in &three.nodes {
            until("the new key is known", || {
                recorded(other, node) != *before
                    && recorded(other, node) == node.inner.credentials.key_hash()
            })
            .await;
        }
        write(node, &format!("by-{}", node.node_name())).await;
    }
    assert_ne!(shown_to_clients(&three.nodes[leader]).await, shown);
    let [a, b, c] = &three.nodes[..] else {
        unreachable!("three of them");
    };
    talk(a, b).await;
    talk(b, c).await;
    talk(c, a).await;
    // It is the new key that a start finds, and that the others expect.
    let [back, other, gone] = [0, 1, 2].map(|i| (leader + i) % 3);
    let key = recorded(&asked, &three.nodes[back]);
    three.nodes[back].stop().await;
    three.restart(back, true).await;
    assert_eq!(three.nodes[back].inner.credentials.key_hash(), key);
    until("it is back", || three.nodes[back].caught_up_once()).await;
    three.nodes[gone].stop().await;
    write(&three.nodes[other], "by-two").await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_takes_keys_that_it_has_not_heard_of() {
    let mut three = Three::start().await;
    let leader = three.leader();
    let [leader, away, other] = [0, 1, 2].map(|i| (leader + i) % 3);
    three.nodes[away].stop().await;
    for node in [leader, other, leader] {
        let id = three.nodes[node].node_id();
        three.nodes[other]
            .renew_certificates(Some(id))
            .await
            .unwrap();
    }
    write(&three.nodes[leader], "while-away").await;
    // Elsewhere, so that it must make itself known to those whose keys it does not know.
    three.restart(away, false).await;
    let back = three.nodes[away].clone();
    until("it has caught up", || has(&back, "while-away")).await;
    for node in [leader, other] {
        let node = &three.nodes[node];
        until("it knows the keys", || {
            recorded(&back, node) == node.inner.credentials.key_hash()
        })
        .await;
        talk(&back, node).await;
    }
    three.stop().await;
}

/// Has a node show a certificate, on connections that it makes from now on.
fn show(cluster: &Cluster, own: &Credential) {
    cluster.inner.credentials.holder.replace(own).unwrap();
}

fn authority(cluster: &Cluster) -> Authority {
    let sealer = cluster.inner.sealer.as_ref().unwrap();
    Authority::of(&cluster.inner.memory, sealer)
        .unwrap()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_does_not_follow_from_the_members_own_is_refused() {
    let three = Three::start().await;
    let leader = three.leader();
    let [leader, node] = [0, 1].map(|i| &three.nodes[(leader + i) % 3]);
    let inner = &node.inner;
    let key = NodeKey::generate().unwrap();
    let names = names(inner.cluster_id, inner.id.0, &inner.options);
    let now = clock::present(&inner.memory);
    let forged = Credential {
        certificate: authority(node).sign(&names, &key.0, now).unwrap(),
        key,
        ca_pem: inner.ca_pem.clone(),
        succession: Succession::default(),
    };
    show(node, &forged);
    let refusal = refused_for(node, leader, "key is not the member's").await;
    assert_eq!(refusal.code(), tonic::Code::PermissionDenied, "{refusal:?}");
    // Nor does anyone who dials it take it for the member.
    let own = leader.inner.credentials.own.lock().await;
    show(leader, &own);
    refused_for(leader, node, "does not have the member's key").await;
    drop(own);
    three.stop().await;
}

/// Calls until a connection that was made before has ended, and the call is refused for this reason.
async fn refused_for(from: &Cluster, to: &Cluster, reason: &str) -> tonic::Status {
    let mut call = from.inner.links.to(to.node_id().0).unwrap().bulk;
    let refused = async {
        loop {
            let answer = call.read_index(proto::ReadIndexRequest {}).await;
            if let Err(status) = answer
                && crate::peer::root_cause(&status).contains(reason)
            {
                return status;
            }
            tokio::task::yield_now().await;
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(30), refused).await;
    refused.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_whose_certificates_have_ended_go_on() {
    let mut three = Three::start().await;
    for node in &three.nodes {
        let inner = &node.inner;
        let names = names(inner.cluster_id, inner.id.0, &inner.options);
        let mut own = inner.credentials.own.lock().await;
        let ended = authority(node).certify(&names, &own.key.0, Timestamp(1_577_836_800_000));
        own.certificate = ended.unwrap();
        show(node, &own);
    }
    let [a, b, c] = &three.nodes[..] else {
        unreachable!("three of them");
    };
    talk(a, b).await;
    talk(b, c).await;
    talk(c, a).await;
    write(a, "with-ended-certificates").await;
    // It comes back, and the others still show theirs.
    let away = (three.leader() + 1) % 3;
    three.nodes[away].stop().await;
    write(&three.nodes[three.leader()], "while-away").await;
    three.restart(away, true).await;
    let back = three.nodes[away].clone();
    until("it is back", || has(&back, "while-away")).await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_soon_is_renewed_with_the_same_key() {
    let three = Three::start().await;
    let node = &three.nodes[0];
    let inner = &node.inner;
    let key = inner.credentials.key_hash();
    let later = |share: u64| Timestamp(clock::present(&inner.memory).0 + LIFE / 100 * share);
    // The founder's first one was made before there was a state to tell the time.
    renew_if_due(inner, later(0)).await.unwrap();
    let file = three.dirs[0].path().join("node.crt");
    let stored = std::fs::read_to_string(&file).unwrap();
    let shown = shown_to_clients(node).await;
    renew_if_due(inner, later(60)).await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), stored);
    renew_if_due(inner, later(70)).await.unwrap();
    assert_ne!(std::fs::read_to_string(&file).unwrap(), stored);
    assert_ne!(shown_to_clients(node).await, shown);
    assert_eq!(inner.credentials.key_hash(), key);
    write(node, "renewed").await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_taken_that_could_not_be_made_known() {
    let three = Three::start().await;
    let leader = three.leader();
    let [leader, dead, other] = [0, 1, 2].map(|i| &three.nodes[(leader + i) % 3]);
    dead.stop().await;
    until("it is seen to be dead", || {
        leader.inner.board.is_dead(dead.node_id().0)
    })
    .await;
    let all = leader.renew_certificates(None).await;
    assert!(
        matches!(&all, Err(Error::Refused(why)) if why.contains("not live")),
        "{all:?}"
    );
    other.stop().await;
    until("there is no quorum", || !leader.has_quorum()).await;
    let key = leader.inner.credentials.key_hash();
    let alone = leader.renew_certificates(Some(leader.node_id())).await;
    assert!(matches!(alone, Err(Error::NoLeader)), "{alone:?}");
    assert_eq!(leader.inner.credentials.key_hash(), key);
    three.stop().await;
}
