//! The one handle on the cluster.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use muster_storage::backup::Header;
use muster_storage::blobs::Blobs;
use muster_storage::model::{JoinToken, Lease, Member, Sha256};
use muster_storage::{
    Actor, Command, NodeId, Outcome, Proposal, RequestId, Revision, State, Timestamp,
};
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

use crate::artifacts::{Arriving, ArtifactWriter, Kept, Placement, Upload, UploadNote};
use crate::ask::Answerer;
use crate::drain::Transfers;
use crate::follow::Follow;
use crate::inner::Inner;
use crate::keyring::Keyring;
use crate::options::Options;
use crate::status::{self, Peer, Status};
use crate::tls::{self, Token};
use crate::upgrade::Upgrade;
use crate::wire::proto::{self, manage_request::Order};
use crate::{
    Error, artifacts, ask, backup, clock, desk, drain, manage, promises, pulse, reads, renew,
    upgrade,
};

/// A node's membership in its cluster: read, propose, follow, and know the others.
///
/// Cheap to clone; all clones are the same node.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) inner: Arc<Inner>,
}

impl Cluster {
    /// Starts a node: resumes what its directory holds, or founds or joins a cluster.
    ///
    /// Joining waits until a member answers, however long that takes.
    ///
    /// # Errors
    /// When the token is refused, the directory cannot be used, or the port is taken.
    pub async fn start(options: Options) -> Result<Self, Error> {
        crate::start::start(options).await
    }

    /// Reads this node's state as it is. `f` must be short: entries wait for it.
    pub fn read<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        self.inner.memory.read(f)
    }

    /// Reads this node's state, not older than the call: confirmed by a quorum.
    ///
    /// # Errors
    /// When no leader confirms in time.
    pub async fn read_linear<T>(&self, f: impl FnOnce(&State) -> T) -> Result<T, Error> {
        reads::barrier(&self.inner).await?;
        Ok(self.read(f))
    }

    /// Proposes a write. Returns what became of it once it is committed by a quorum; this node may
    /// apply it a moment later, see [`Cluster::applied`].
    ///
    /// # Errors
    /// [`Error::Timeout`] leaves open whether the write was made; after all others it was not.
    pub async fn propose(&self, proposal: Proposal) -> Result<Outcome, Error> {
        desk::propose(&self.inner, proposal).await
    }

    /// Resolves when this node has applied a revision.
    pub async fn applied(&self, revision: Revision) {
        self.inner.wait_applied(revision.log_index()).await;
    }

    /// Follows what changes after a revision.
    pub fn follow(&self, after: Revision) -> Follow {
        Follow::new(Arc::clone(&self.inner.memory), after)
    }

    /// This node's number.
    pub fn node_id(&self) -> NodeId {
        self.inner.id
    }

    /// This node's name.
    pub fn node_name(&self) -> &str {
        &self.inner.options.node_name
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> Uuid {
        self.inner.cluster_id
    }

    /// The leader, as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.leader()
    }

    /// Whether this node leads.
    pub fn is_leader(&self) -> bool {
        self.inner.view().leading
    }

    /// Whether this node is, or lately heard from, a leader with a quorum.
    pub fn has_quorum(&self) -> bool {
        self.inner.has_quorum()
    }

    /// Waits through an election: true when there is a quorum, false when there has been none for
    /// longer than an election takes.
    pub async fn outlast_election(&self) -> bool {
        desk::outlast_election(&self.inner).await
    }

    /// Why this node has stopped taking part, if it has: a failed disk, for example.
    pub fn fault(&self) -> Option<String> {
        self.inner.fault()
    }

    /// Why nothing that this node says can be trusted: its state is not that of the others.
    pub fn diverged(&self) -> Option<String> {
        self.inner.diverged.borrow().clone()
    }

    /// Resolves with the reason when this node finds that its state is not that of the others.
    pub async fn diverges(&self) -> String {
        let mut diverged = self.inner.diverged.subscribe();
        loop {
            if let Some(why) = diverged.borrow_and_update().clone() {
                return why;
            }
            if diverged.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether this node has once since its start been as far as a leader's commit.
    pub fn caught_up_once(&self) -> bool {
        self.inner.caught_up.load(Ordering::Acquire)
    }

    /// The state of the cluster as this node sees it.
    pub fn status(&self) -> Status {
        status::of(&self.inner)
    }

    /// All members with what is needed to reach them; this node is flagged.
    pub fn peers(&self) -> Vec<Peer> {
        let members: Vec<Member> = self.read(|state| state.members().cloned().collect());
        members
            .into_iter()
            .map(|member| Peer {
                own: member.id == self.inner.id,
                draining: match member.id == self.inner.id {
                    true => self.is_draining(),
                    false => self.inner.board.is_draining(member.id.0),
                },
                live: member.id == self.inner.id || self.inner.board.is_live(member.id.0),
                id: member.id,
                name: member.name,
                address: member.address,
                peer_port: member.peer_port,
                api_port: member.api_port,
                boot_port: member.boot_port,
                identifiers: member.identifiers,
            })
            .collect()
    }

    /// Holds the ids of the live peers that take new work: those that are about to stop do not.
    pub fn serving(&self) -> watch::Receiver<Vec<u64>> {
        self.inner.board.serving()
    }

    /// The transfers that run on this node, which its services count.
    pub fn transfers(&self) -> &Transfers {
        &self.inner.transfers
    }

    /// Notes that this node confirms `lease` to its client for `secs` more, without a write. To be
    /// called in the very [`Cluster::read`] that said so: no entry must come between.
    pub fn promise(&self, lease: &Lease, secs: u32) {
        let boot = self.inner.memory.host().boot();
        self.inner.promises.give(lease, secs, boot);
    }

    /// Notes that the client of `lease` told this node, so long ago, that it has no use for it any more.
    pub fn end_promise(&self, lease: &Lease, ago: Duration) {
        // A part of a millisecond counts as a whole one: in doubt it was said before.
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        let ago = ago.saturating_add(1);
        let when = self.inner.memory.host().boot().saturating_sub(ago);
        self.inner.promises.end(lease, when);
    }

    /// The revision up to which every member has applied all that clients gave back, and vouches that
    /// none of it is in a client's hands by its word; absent while a member has not said.
    pub fn vouched_by_all(&self) -> Option<Revision> {
        let own = promises::vouched(&self.inner);
        self.inner
            .members()
            .into_iter()
            .filter(|id| *id != self.inner.id)
            .try_fold(own, |least, id| {
                let contact = self.inner.board.contact(id.0)?;
                let status = &contact.status;
                Some(least.min(Revision(status.vouched.unwrap_or(status.revision))))
            })
    }

    /// The cluster's time, by which leases and tokens end; this node's own clock until it has heard
    /// what the time is.
    pub fn now(&self) -> Timestamp {
        clock::present(&self.inner.memory)
    }

    /// What the cluster's time is to be corrected to: a majority of the nodes' clocks agree that it
    /// is behind.
    pub fn time_behind(&self) -> Option<Timestamp> {
        clock::behind(&self.inner)
    }

    /// Makes a join token that lets nodes in for `ttl`.
    ///
    /// # Errors
    /// When it cannot be committed.
    pub async fn join_token(&self, ttl: Duration, actor: Actor) -> Result<String, Error> {
        let token = Token::generate(tls::pin(&self.inner.ca_pem)?);
        let start = self.now();
        let outcome = self
            .propose(Proposal {
                request: RequestId(Uuid::new_v4()),
                actor,
                if_match: None,
                remember: None,
                command: Command::AddJoinToken(JoinToken {
                    hash: Token::hash(&token.secret),
                    expires_at: start.plus_secs(ttl.as_secs()),
                }),
            })
            .await?;
        match outcome.result {
            Ok(_) => Ok(token.to_string()),
            Err(rejection) => Err(Error::Refused(rejection.to_string())),
        }
    }

    /// Removes a node, by name or number, for good.
    ///
    /// # Errors
    /// When there is no such node, or the rest would have no majority.
    pub async fn remove(&self, node: &str) -> Result<(), Error> {
        let id = self.find(node)?;
        manage::order(&self.inner, Order::Remove(id.0)).await
    }

    /// Puts a node that has joined in the place of one that does not answer any more: waits until
    /// the new one votes, then removes the dead one for good. Nodes are given by name or number. The
    /// same order again goes on from where the last one ended, and does nothing when all is done.
    ///
    /// # Errors
    /// [`Error::NotYet`] while the new node is catching up; nothing was removed then. Refused when
    /// there is no such dead node, when it answers, when the new one has not joined or is not live,
    /// or when the rest would have no majority.
    pub async fn replace(&self, dead: &str, new: &str) -> Result<(), Error> {
        reads::barrier(&self.inner).await?;
        let new = self.find(new).map_err(|_| manage::not_joined(new))?;
        let dead = match self.find(dead) {
            Ok(dead) => dead,
            Err(unknown) => self
                .read(|state| manage::removed(state, dead))
                .ok_or(unknown)?,
        };
        let (dead, new) = (dead.0, new.0);
        manage::order(&self.inner, Order::Replace(proto::Replace { dead, new })).await
    }

    /// Hands leadership to a node, or to whichever is furthest.
    ///
    /// # Errors
    /// When that node cannot lead.
    pub async fn transfer(&self, to: Option<NodeId>) -> Result<(), Error> {
        manage::order(&self.inner, Order::TransferTo(to.map_or(0, |id| id.0))).await
    }

    /// Finds a member by name or number.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, node: &str) -> Result<NodeId, Error> {
        let number = node.parse().ok().map(NodeId);
        self.read(|state| {
            let named = state.member_named(node);
            let numbered = || number.and_then(|id| state.member(id));
            named.or_else(numbered).map(|member| member.id)
        })
        .ok_or_else(|| Error::NoSuchNode(node.to_owned()))
    }

    /// Makes a node, this one or another, ready to be stopped: it hands leadership over if it has
    /// it, and is draining from then on, until it is started again.
    ///
    /// # Errors
    /// When the node is no member or not live, when another one is draining, or when the others
    /// would be no majority without it.
    pub async fn drain(&self, node: NodeId) -> Result<(), Error> {
        drain::order(&self.inner, node).await
    }

    /// How far an upgrade to this version is, or to the newest that any node has.
    pub fn upgrade(&self, to: Option<String>) -> Upgrade {
        upgrade::of(&self.inner, to)
    }

    /// Goes on to the newest schema that all nodes support, if there is a newer one. The schema that
    /// the cluster behaves as from then on; binaries that do not know it cannot be started again.
    ///
    /// # Errors
    /// When a node is not live, and without a quorum.
    pub async fn finalize(&self, actor: Actor) -> Result<u16, Error> {
        upgrade::finalize(&self.inner, actor).await
    }

    /// Why it is not sure which binaries the members have, when it is not.
    pub fn binaries_unsure(&self) -> Option<String> {
        upgrade::unsure(&self.status())
    }

    /// Has a node, or all of them one after the other, take a new key with a new certificate.
    /// Connections go on, or are made anew at once.
    ///
    /// # Errors
    /// When a node is no member or not live, or without a quorum; [`Error::NotYet`] when it has the
    /// new key but the others are yet to take note of it, which they will.
    pub async fn renew_certificates(&self, node: Option<NodeId>) -> Result<(), Error> {
        match node {
            Some(node) => renew::order(&self.inner, node).await,
            None => renew::order_all(&self.inner).await,
        }
    }

    /// Whether a restart would do nothing for this node: its Raft comes to what it is asked within
    /// this time, or the node says why not. One without a quorum or with a full disk answers.
    pub async fn answers(&self, within: Duration) -> bool {
        self.inner.answers(within).await
    }

    /// Makes this node ready to be stopped, as far as that is possible.
    pub async fn prepare_to_stop(&self) {
        drain::prepare_to_stop(&self.inner).await;
    }

    /// Whether this node is about to stop, and wants no new work.
    pub fn is_draining(&self) -> bool {
        *self.inner.draining.borrow()
    }

    /// Stops. Does not hand leadership over: see [`Cluster::prepare_to_stop`].
    pub async fn stop(&self) {
        // Goes on also when whoever waits for it loses patience.
        let cluster = self.clone();
        let stopping = tokio::spawn(async move {
            cluster
                .inner
                .stopped
                .get_or_init(|| cluster.inner.shut_down())
                .await;
        });
        if let Err(error) = stopping.await {
            tracing::warn!(%error, "the stop was cut short");
        }
    }

    /// The server side of the API's TLS: this node's certificate, no client certificates.
    pub fn api_tls(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.inner.api_tls)
    }

    /// The keys of the cluster's secrets.
    ///
    /// # Errors
    /// When this node does not hold the key that opens them.
    pub fn keyring(&self) -> Result<Keyring, Error> {
        Keyring::of(&self.inner)
    }

    /// Adds a key to the cluster's keyring: what is sealed from now on is sealed with it. Its number.
    ///
    /// # Errors
    /// When it cannot be committed, or others add one as well.
    pub async fn add_key(&self, actor: Actor) -> Result<u32, Error> {
        let sealer = self.inner.sealer.as_ref();
        let sealer = sealer.ok_or_else(|| Error::Refused("this node has no keyring".to_owned()))?;
        let key = self.keyring()?.next_key(sealer)?;
        let id = key.id;
        let outcome = self
            .propose(Proposal {
                request: RequestId(Uuid::new_v4()),
                actor,
                if_match: None,
                remember: None,
                command: Command::AddKey(key),
            })
            .await?;
        self.applied(outcome.revision).await;
        match outcome.result {
            Ok(_) => Ok(id),
            Err(rejection) => Err(Error::Refused(rejection.to_string())),
        }
    }

    /// Certificate of the cluster's authority.
    pub fn ca_pem(&self) -> String {
        self.inner.ca_pem.clone()
    }

    /// Tells all reachable peers something small, at once and without any promise.
    pub fn gossip(&self, message: Bytes) {
        if message.len() <= pulse::GOSSIP_MAX {
            // There may be no peer.
            let _ = self.inner.gossip_out.send(message);
        }
    }

    /// Has `answerer` answer what services of peers ask this node from now on.
    pub fn answer_with(&self, answerer: Answerer) {
        *self.inner.answerer() = Some(answerer);
    }

    /// Asks the services of a node, this one or another; what question and answer say is theirs. The
    /// answer must fit a message of the peer link.
    ///
    /// # Errors
    /// Refused when the node is not live, is of a version that cannot answer, or says why it does not;
    /// [`Error::Timeout`] when it does not answer in time.
    pub async fn ask(&self, node: NodeId, question: Bytes) -> Result<Bytes, Error> {
        ask::ask(&self.inner, node, question).await
    }

    /// When this node's certificate ends, if this process made it. It is renewed well before.
    pub async fn certificate_end(&self) -> Option<Timestamp> {
        self.inner.credentials.end().await
    }

    /// Refuses when writes would come to a halt without a node that now go on, as for draining it.
    ///
    /// # Errors
    /// When it is so, and when another node is draining.
    pub async fn check_spare(&self) -> Result<(), Error> {
        drain::check_spare(&self.inner).await
    }

    /// What peers gossip from now on.
    pub fn gossips(&self) -> broadcast::Receiver<(NodeId, Bytes)> {
        self.inner.gossip_in.subscribe()
    }

    /// The artifacts' bytes on this node.
    pub fn blobs(&self) -> &Blobs {
        &self.inner.blobs
    }

    /// Begins an artifact of `size` octets on this node, or of more.
    ///
    /// # Errors
    /// Of kind `StorageFull` when the disk has no room for it; else when the disk fails.
    pub fn artifact_writer(&self, size: u64) -> io::Result<ArtifactWriter> {
        ArtifactWriter::begin(&self.inner, size)
    }

    /// Has an artifact, whole on this node, copied to the others. Resolves with its holders once
    /// they are a quorum.
    ///
    /// # Errors
    /// [`Error::NoRoom`] when the disks of too many nodes are too full for it; refused when fewer than
    /// a quorum can hold it for other reasons.
    pub async fn spread(&self, sha: Sha256, size: u64) -> Result<Vec<NodeId>, Error> {
        artifacts::spread(&self.inner, sha, size).await
    }

    /// Writes a backup of what this node has applied, with the bytes of all artifacts if they are
    /// wanted. Blocks for as long as `out` does.
    ///
    /// # Errors
    /// When something cannot be read or written, or the passphrase is too short; what was written
    /// until then is no backup.
    pub fn backup(
        &self,
        passphrase: &str,
        artifacts: bool,
        out: impl io::Write,
    ) -> Result<Header, Error> {
        backup::write(&self.inner, passphrase, artifacts, out)
    }

    /// Keeps an artifact's bytes on this node although nothing names them, for as long as what is
    /// returned lives.
    pub fn keep_blob(&self, sha: Sha256) -> Kept {
        self.inner.keep.keep(sha)
    }

    /// Whether an artifact's bytes are needed on this node although nothing names them.
    pub fn keeps_blob(&self, sha: &Sha256) -> bool {
        self.inner.keep.has(sha)
    }

    /// Begins an upload that may come in parts. Blocks.
    ///
    /// # Errors
    /// Of kind `StorageFull` when the disk has no room for it; `ResourceBusy` when there are too
    /// many; else when the disk fails.
    pub fn begin_upload(&self, note: UploadNote) -> io::Result<Uuid> {
        self.inner.uploads.begin(note, self.wall())
    }

    /// Removes damaged files that were put aside longer ago than `age`. Blocks.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn clear_aside_blobs(&self, age: Duration) -> io::Result<()> {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let before = Timestamp(self.wall().0.saturating_sub(age));
        self.inner.blobs.clear_aside(before)
    }

    /// This node's wall clock, by which its file system counts.
    fn wall(&self) -> Timestamp {
        Timestamp(self.inner.memory.clock().wall())
    }

    /// Takes an upload of this actor over from whoever writes it now; absent when there is none.
    pub async fn take_upload(&self, id: Uuid, actor: &str) -> Option<Upload> {
        self.inner.uploads.take(id, actor).await
    }

    /// Forgets an upload and what there is of it. Blocks.
    ///
    /// # Errors
    /// When the disk fails; it is forgotten all the same.
    pub fn remove_upload(&self, id: Uuid) -> io::Result<()> {
        self.inner.uploads.remove(id)
    }

    /// Gives up the uploads that nobody went on with for long. Blocks.
    pub fn clear_uploads(&self) {
        self.inner.uploads.clear(self.wall());
    }

    /// Which node holds which artifact, as far as this node knows.
    pub fn placement(&self) -> Placement {
        Placement::of(&self.inner)
    }

    /// An artifact of `size` octets that this node lacks, as it arrives from peers; it is pulled once
    /// for however many ask.
    ///
    /// # Errors
    /// When it cannot be stored now: the disk has no room, or too many are being pulled.
    pub fn arriving_blob(&self, sha: Sha256, size: u64) -> io::Result<Arriving> {
        artifacts::join(&self.inner, sha, size, None)
    }

    /// Streams an artifact that this node lacks from peers that have it.
    ///
    /// # Errors
    /// When no live peer has it.
    pub async fn fetch_blob(
        &self,
        sha: Sha256,
        offset: u64,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, Error> {
        artifacts::fetch(&self.inner, sha, offset).await
    }

    /// What peers and machines reach of this node.
    pub fn advertise(&self) -> IpAddr {
        self.inner.options.advertise
    }

    /// Where this node's peer link listens.
    pub fn peer_port(&self) -> u16 {
        self.inner.options.peer_port
    }
}
