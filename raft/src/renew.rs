//! What a node proves with who it is, and how that is renewed.
//!
//! Every member can open the authority's sealed key, so a node makes its certificates itself: at each
//! start, and well before one ends. On order it takes a new key as well. The old key vouches for the
//! new one, so peers take it before and after they apply the record that has it; at no moment is
//! there a key that only some of them take. See ADR 10.

use std::sync::Arc;
use std::time::Duration;

use muster_storage::model::Sha256;
use muster_storage::{NodeId, Timestamp};
use tokio::sync::{Mutex, watch};

use crate::answer::{self, Excuses};
use crate::identity::Files;
use crate::inner::Inner;
use crate::peer::PeerClient;
use crate::start::names;
use crate::store::Memory;
use crate::tls::{
    Authority, Certificate, CertificateHolder, Credential, LIFE, Names, NodeKey, Sealer,
    Succession, peer_name,
};
use crate::wire::proto;
use crate::{Error, clock};

/// For the record with the new key to be applied here; less than whoever gave the order waits.
const NOTED: Duration = Duration::from_secs(8);
/// Between two looks whether the certificate ends soon.
const LOOK: Duration = Duration::from_secs(10);

/// What this node proves with who it is.
pub struct Credentials {
    /// Absent in memory.
    files: Option<Files>,
    own: Mutex<Credential>,
    holder: Arc<CertificateHolder>,
    key_hash: watch::Sender<Sha256>,
}

impl Credentials {
    /// Keeps and shows a credential.
    pub fn new(files: Option<&Files>, own: Credential) -> Result<Self, Error> {
        note_end(own.certificate.until);
        Ok(Self {
            files: files.cloned(),
            holder: CertificateHolder::new(&own)?,
            key_hash: watch::Sender::new(own.key.hash()),
            own: Mutex::new(own),
        })
    }

    /// What new connections show.
    pub fn holder(&self) -> &Arc<CertificateHolder> {
        &self.holder
    }

    /// Hash of the present public key.
    pub fn key_hash(&self) -> Sha256 {
        *self.key_hash.borrow()
    }

    /// When the present certificate ends; absent when this process did not make it.
    pub async fn end(&self) -> Option<Timestamp> {
        self.own.lock().await.certificate.until
    }

    /// Hears of new keys.
    pub fn key_changes(&self) -> watch::Receiver<Sha256> {
        self.key_hash.subscribe()
    }
}

fn note_end(until: Option<Timestamp>) {
    if let Some(until) = until {
        metrics::gauge!("muster_raft_certificate_expiry_timestamp_seconds")
            .set((until.0 / 1000) as f64);
    }
}

/// Whether a certificate has less than a third of its life before it, or was made who knows when.
fn is_due(until: Option<Timestamp>, now: Timestamp) -> bool {
    until.is_none_or(|until| until.0 < now.0.saturating_add(LIFE / 3))
}

/// Makes a new certificate well before the present one ends.
pub async fn run(inner: Arc<Inner>) {
    loop {
        let now = clock::present(&inner.memory);
        if let Err(error) = renew_if_due(&inner, now).await {
            tracing::warn!(%error, "this node's certificate is not renewed");
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn renew_if_due(inner: &Inner, now: Timestamp) -> Result<(), Error> {
    let credentials = &inner.credentials;
    let mut own = credentials.own.lock().await;
    if !is_due(own.certificate.until, now) {
        return Ok(());
    }
    // Before it has the state a node cannot make one, and shows the one that it was given.
    let Some(certificate) = certify_own(inner, &own.key, now)? else {
        return Ok(());
    };
    if let Some(files) = &credentials.files {
        files.set_node_certificate(&certificate.pem)?;
    }
    tracing::info!(until = ?certificate.until.map(|until| until.to_string()), "renewed the certificate");
    note_end(certificate.until);
    own.certificate = certificate;
    credentials.holder.renew(&own)
}

/// A certificate for a node's present name and address; absent before it has the state.
pub fn certify(
    memory: &Memory,
    sealer: Option<&Sealer>,
    names: &Names<'_>,
    key: &NodeKey,
    now: Timestamp,
) -> Result<Option<Certificate>, Error> {
    let authority = sealer.map(|sealer| Authority::of(memory, sealer));
    let authority = authority.transpose()?.flatten();
    authority
        .map(|authority| authority.sign(names, &key.0, now))
        .transpose()
}

fn certify_own(inner: &Inner, key: &NodeKey, now: Timestamp) -> Result<Option<Certificate>, Error> {
    let names = names(inner.cluster_id, inner.id.0, &inner.options);
    certify(&inner.memory, inner.sealer.as_ref(), &names, key, now)
}

const EXCUSES: Excuses = Excuses {
    not_live: "; when it comes back, order it again",
    old_version: "takes no new key; upgrade it first",
};

/// Has a node, this one or another, take a new key.
pub async fn order(inner: &Arc<Inner>, node: NodeId) -> Result<(), Error> {
    let ask = |mut peer: PeerClient| async move { peer.renew(proto::RenewRequest {}).await };
    answer::order(inner, node, &EXCUSES, carry_out(inner), ask).await
}

/// Has all nodes take new keys, one after the other.
pub async fn order_all(inner: &Arc<Inner>) -> Result<(), Error> {
    let members: Vec<(NodeId, String)> = inner.memory.read(|state| {
        let members = state.members();
        members
            .map(|member| (member.id, member.name.clone()))
            .collect()
    });
    let live = |id: NodeId| id == inner.id || inner.board.is_live(id.0);
    if let Some((_, name)) = members.iter().find(|(id, _)| !live(*id)) {
        return Err(Error::Refused(format!(
            "node `{name}` is not live, and nothing was done; name the nodes that are to be renewed, \
             or bring it back first"
        )));
    }
    for (id, _) in members {
        order(inner, id).await?;
    }
    Ok(())
}

/// Answers a peer that wants this node to take a new key.
pub async fn serve(inner: &Arc<Inner>) -> proto::OrderReply {
    answer::reply(carry_out(inner)).await
}

/// Takes a new key, and waits until the record of this node has it.
async fn carry_out(inner: &Arc<Inner>) -> Result<(), Error> {
    inner.check_running()?;
    if !inner.has_quorum() {
        return Err(Error::NoLeader);
    }
    let key = take_new_key(inner).await?;
    let mut progress = inner.progress.clone();
    let recorded = progress.wait_for(|_| {
        let member = |state: &muster_storage::State| {
            state
                .member(inner.id)
                .is_some_and(|own| own.key_hash == key)
        };
        inner.memory.read(member)
    });
    match tokio::time::timeout(NOTED, recorded).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(Error::NotYet(
            "the node has its new key, but the cluster has not noted it yet; it will as soon as it \
             can write"
                .into(),
        )),
    }
}

/// Takes a new key into use. What vouches for it is on disk first, then the key: after a crash the
/// node has the one or the other, and its peers take either.
async fn take_new_key(inner: &Inner) -> Result<Sha256, Error> {
    let credentials = &inner.credentials;
    let mut own = credentials.own.lock().await;
    let key = NodeKey::generate()?;
    let name = peer_name(inner.cluster_id, inner.id.0);
    let succession = own.succession.extend(&name, &own.key, &key)?;
    let certificate =
        certify_own(inner, &key, clock::present(&inner.memory))?.ok_or_else(|| {
            Error::Refused("this node has no state yet to make a certificate with".into())
        })?;
    if let Some(files) = &credentials.files {
        files.set_succession(&succession.text())?;
        files.set_node_key(&key.pem())?;
        files.set_node_certificate(&certificate.pem)?;
    }
    note_end(certificate.until);
    let hash = key.hash();
    *own = Credential {
        key,
        certificate,
        succession,
        ca_pem: own.ca_pem.clone(),
    };
    credentials.holder.replace(&own)?;
    credentials.key_hash.send_replace(hash);
    tracing::info!("took a new key");
    Ok(hash)
}

/// How this node's key follows from earlier ones, as far as that is known.
pub fn stored_succession(files: &Files, key: &NodeKey) -> Succession {
    let stored = files.succession();
    let parsed = stored.and_then(|text| Succession::parse(&text, key.hash().0));
    parsed.unwrap_or_else(|error| {
        // Peers that expect the present key do not ask for it.
        tracing::warn!(%error, "how this node's key follows from earlier ones is not known");
        Succession::default()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
