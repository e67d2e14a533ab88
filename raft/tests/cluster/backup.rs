//! A backup of a running cluster, and a new cluster made of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use muster_raft::{Backup, Cluster, Error, Inspection, Purpose, Start, restore};
use muster_storage::command::{Bind, Client, PutMode};
use muster_storage::model::{Artifact, JoinToken, Object, Sha256, Token};
use muster_storage::state::{Claim, Row};
use muster_storage::{Actor, Command, Mac, State, Timestamp};

use crate::common::{found, has, options, proposal, until, write};

const PASSPHRASE: &str = "correct horse";

async fn done(cluster: &Cluster, command: Command) {
    let outcome = cluster.propose(proposal(command)).await.unwrap();
    outcome.result.unwrap();
}

/// Objects, a lease, tokens and an artifact.
async fn fill(cluster: &Cluster) {
    let subnet = serde_json::json!({
        "name": "lab", "cidr": "10.0.0.0/24", "pools": ["10.0.0.100-10.0.0.199"]
    });
    let mode = PutMode::Create;
    let object = Object::Subnet(serde_json::from_value(subnet).unwrap());
    done(cluster, Command::Put { object, mode }).await;
    let client = Client {
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        client_id: None,
        boots: false,
        link: vec![[10, 0, 0, 1].into()],
        requested: None,
        lease_secs: None,
        hostname: None,
        relay: None,
        traits: Default::default(),
    };
    let offer = |state: &State| state.offer(&client, &|_| Claim::None, state.time());
    let bind = Command::Bind(Box::new(Bind {
        address: cluster.read(offer).unwrap().address,
        client: client.clone(),
        node: cluster.node_id(),
    }));
    done(cluster, bind).await;
    let mut blob = cluster.blobs().writer().unwrap();
    blob.write(b"kernel").unwrap();
    let (sha256, size) = blob.finish(None).unwrap();
    let path = "lab/vmlinuz".to_owned();
    let object = Object::Artifact(Artifact { path, sha256, size });
    done(cluster, Command::Put { object, mode }).await;
    let (hash, expires_at) = (Sha256([7; 32]), Timestamp(u64::MAX));
    let user = "admin".to_owned();
    done(
        cluster,
        Command::AddToken(Token {
            hash,
            user,
            expires_at,
        }),
    )
    .await;
    done(
        cluster,
        Command::AddJoinToken(JoinToken { hash, expires_at }),
    )
    .await;
    for number in 0..20 {
        write(cluster, &format!("p{number}")).await;
    }
}

async fn back_up(cluster: &Cluster, file: &Path, artifacts: bool) {
    let (cluster, out) = (cluster.clone(), File::create(file).unwrap());
    let written =
        tokio::task::spawn_blocking(move || cluster.backup(PASSPHRASE, artifacts, out).map(drop));
    written.await.unwrap().unwrap();
}

/// The rows that a new cluster must not change.
fn kept(state: &State) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let rows = state.rows().unwrap().into_iter();
    let rows = rows.filter_map(|row| Some((row.key, row.value?)));
    rows.filter(|(key, value)| {
        let (_, row) = Row::decode(key, value).unwrap();
        matches!(
            row,
            Row::Object(_) | Row::Lease(_) | Row::Report(_) | Row::Remembered(_)
        )
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_is_made_of_a_backup() {
    let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let file = dirs[3].path().join("backup");
    let old = Cluster::start(options(dirs[0].path(), "old", found()))
        .await
        .unwrap();
    fill(&old).await;
    let keyring = old.keyring().unwrap();
    let sealed = keyring.seal(Purpose::Params, b"hunter2", "here").unwrap();
    let proof = keyring.sign(Purpose::MachineTokens, b"m1").unwrap();
    let before = old.read(|state| (kept(state), state.revision(), state.digest()));
    back_up(&old, &file, true).await;
    write(&old, "too-late").await;
    let last = old.read(State::revision);

    let backup = Backup::check(&file, Some(PASSPHRASE)).unwrap();
    assert_eq!(backup.header.cluster_id, old.cluster_id());
    assert_eq!(
        (backup.header.revision, backup.header.digest),
        (before.1, before.2)
    );
    assert!(backup.artifacts.iter().all(|artifact| artifact.included));
    let why = restore(&file, dirs[1].path(), "battery staple", "new").err();
    assert!(matches!(why, Some(Error::Refused(_))), "{why:?}");
    let restored = restore(&file, dirs[1].path(), PASSPHRASE, "new").unwrap();
    assert!(restored.missing.is_empty());
    let again = restore(&file, dirs[1].path(), PASSPHRASE, "new").err();
    assert!(
        matches!(&again, Some(Error::Refused(why)) if why.contains("not empty")),
        "{again:?}"
    );
    let inspection = Inspection::open(dirs[1].path()).unwrap();
    assert_eq!(kept(inspection.state()), before.0);
    drop(inspection);

    // It is another cluster, under the same authority, and goes on above all that was ever written.
    let new = Cluster::start(options(dirs[1].path(), "new", Start::Resume))
        .await
        .unwrap();
    until("it leads itself", || new.has_quorum()).await;
    assert_ne!(new.cluster_id(), old.cluster_id());
    assert_eq!(new.ca_pem(), old.ca_pem());
    assert!(new.read(State::revision) > last);
    assert!(has(&new, "p19") && !has(&new, "too-late"));
    let tokens = new.read(|state| {
        let hash = Sha256([7; 32]);
        state.token(&hash, Timestamp(0)).is_some() || state.join_token(&hash).is_some()
    });
    assert!(!tokens, "a token may have been revoked since");
    let kernel = new.read(|state| match &state.artifact("lab/vmlinuz") {
        Some(artifact) => artifact.sha256,
        None => panic!("the artifact is not recorded"),
    });
    assert_eq!(fs::read(new.blobs().path(&kernel)).unwrap(), b"kernel");
    write(&new, "goes-on").await;
    old.stop().await;

    let start = Start::Join {
        peers: vec![format!("127.0.0.1:{}", new.peer_port())],
        token: new
            .join_token(Duration::from_secs(60), Actor("test".into()))
            .await
            .unwrap(),
    };
    let second = Cluster::start(options(dirs[2].path(), "second", start))
        .await
        .unwrap();
    until("both agree", || {
        let of = |node: &Cluster| node.read(|state| (state.revision(), state.digest()));
        of(&new) == of(&second) && second.status().nodes.len() == 2 && second.has_quorum()
    })
    .await;
    assert!(has(&second, "goes-on") && has(&second, "p0"));
    // What the old one sealed opens on every node of the new one; what it signed means nothing there.
    for node in [&new, &second] {
        let keyring = node.keyring().unwrap();
        let opened = keyring.open_sealed(Purpose::Params, &sealed, "here");
        assert_eq!(opened.unwrap(), b"hunter2");
        assert!(!keyring.verify(Purpose::MachineTokens, b"m1", &proof));
    }
    // And after a restart.
    second.stop().await;
    new.stop().await;
    let new = Cluster::start(options(dirs[1].path(), "new", Start::Resume))
        .await
        .unwrap();
    assert!(has(&new, "goes-on"));
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_makes_nothing() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let file = dirs[0].path().join("backup");
    let cluster = Cluster::solo().await;
    fill(&cluster).await;
    back_up(&cluster, &file, false).await;
    cluster.stop().await;
    let backup = Backup::check(&file, Some(PASSPHRASE)).unwrap();
    assert!(!backup.artifacts.is_empty());
    assert!(backup.artifacts.iter().all(|artifact| !artifact.included));

    let mut bytes = fs::read(&file).unwrap();
    let mut windows = bytes.windows(4);
    let at = windows.position(|window| window == b"\x10p19").or_else(|| {
        let mut windows = bytes.windows(3);
        windows.position(|window| window == b"p19")
    });
    bytes[at.unwrap() + 1] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let target = dirs[1].path().join("data");
    let why = restore(&file, &target, PASSPHRASE, "new").err().unwrap();
    assert!(why.to_string().contains("rows/000000"), "{why}");
    assert!(!target.exists());
}
