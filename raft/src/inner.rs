//! What all parts of a node share.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use muster_storage::NodeId;
use muster_storage::blobs::Blobs;
use muster_storage::model::Member;
use openraft::ReadPolicy;
use openraft::errors::Fatal;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::artifacts::{Holdings, Keep, Pulls, Uploads};
use crate::ask::Answerer;
use crate::board::Board;
use crate::desk::Desk;
use crate::disk::Disk;
use crate::drain::Transfers;
use crate::options::Options;
use crate::peer::Links;
use crate::promises::Promises;
use crate::renew::Credentials;
use crate::start::Open;
use crate::store::{Memory, Progress, note_end};
use crate::tls::Sealer;
use crate::types::Raft;
use crate::view::View;
use crate::{Error, reads};

/// For snapshots that are being made, when the node stops.
const JOBS: Duration = Duration::from_secs(10);

/// What all parts of a node share.
pub struct Inner {
    pub id: NodeId,
    pub cluster_id: Uuid,
    pub options: Options,
    pub ca_pem: String,
    /// What this node proves with who it is.
    pub credentials: Credentials,
    /// Absent in memory.
    pub sealer: Option<Sealer>,
    pub api_tls: Arc<rustls::ServerConfig>,
    pub raft: Raft,
    pub engine: Open,
    /// The stop, once it has begun: everyone who asks for it waits for the same one.
    pub stopped: tokio::sync::OnceCell<()>,
    pub memory: Arc<Memory>,
    /// What is known of its disk.
    pub disk: Disk,
    pub progress: watch::Receiver<Progress>,
    /// What was promised to clients without a write.
    pub promises: Promises,
    pub view: watch::Receiver<Arc<View>>,
    pub links: Arc<Links>,
    pub board: Board,
    pub desk: Desk,
    pub reads: mpsc::Sender<reads::Waiter>,
    pub blobs: Blobs,
    pub pulls: Pulls,
    pub holdings: Holdings,
    pub keep: Keep,
    pub uploads: Uploads,
    pub gossip_out: broadcast::Sender<Bytes>,
    pub gossip_in: broadcast::Sender<(NodeId, Bytes)>,
    /// Wakes the keeper of the membership.
    pub tend: Notify,
    pub caught_up: AtomicBool,
    /// Held while the voters change and while leadership is handed over: a leader that left in the
    /// midst of a change would leave it half done.
    pub handover: tokio::sync::Mutex<()>,
    /// Held while this node is being drained, from before it asks whether another one is.
    pub claim: tokio::sync::Mutex<()>,
    /// Whether this node is about to stop.
    pub draining: watch::Sender<bool>,
    /// What would be lost by a stop.
    pub transfers: Transfers,
    /// Who answers what services of peers ask.
    pub answerer: Mutex<Option<Answerer>>,
    /// Why this node does not belong to the cluster any more.
    pub out: OnceLock<String>,
    /// Why nothing that this node says can be trusted.
    pub diverged: watch::Sender<Option<String>>,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    /// Goes with a node in memory.
    pub _scratch: Option<tempfile::TempDir>,
}

impl Inner {
    /// What Raft last reported. Not a borrow: of two held at a time the second would wait for whoever
    /// writes the view, and that one for the first.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Runs a task until the node stops.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Who answers what services of peers ask, if somebody does already.
    pub fn answerer(&self) -> MutexGuard<'_, Option<Answerer>> {
        self.answerer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses when this node does not take part any more.
    pub fn check_running(&self) -> Result<(), Error> {
        match self.fault() {
            Some(fault) => Err(Error::Stopped(fault)),
            None => Ok(()),
        }
    }

    /// Why this node has stopped taking part.
    pub fn fault(&self) -> Option<String> {
        let diverged = self.diverged.borrow().clone();
        diverged
            .or_else(|| self.out.get().cloned())
            .or_else(|| self.view().fault.clone())
            .or_else(|| self.disk.fault())
    }

    /// The cluster told this node that it does not belong any more.
    pub fn cast_out(&self, why: String) {
        // Told once already.
        let _ = self.out.set(why);
    }

    /// Whether this node leads, and else who does, as far as can be known: a node that the leader
    /// does not reach yet hears of it from its peers.
    pub fn leadership(&self) -> (bool, Option<u64>) {
        let view = self.view();
        if view.leading {
            return (true, None);
        }
        let followed = view
            .leader
            .filter(|leader| *leader != self.id.0 && !self.board.is_dead(*leader));
        let claims = || {
            let live = self.board.live().borrow().clone();
            live.into_iter().find(|peer| {
                self.board
                    .contact(*peer)
                    .is_some_and(|contact| contact.status.quorum)
            })
        };
        (false, followed.or_else(claims))
    }

    /// The leader, as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        match self.leadership() {
            (true, _) => Some(self.id),
            (false, leader) => leader.map(NodeId),
        }
    }

    /// As leader: the index through which a read must have been applied.
    pub async fn own_read_index(&self) -> Option<u64> {
        let linearizer = self
            .raft
            .get_read_linearizer(ReadPolicy::ReadIndex)
            .await
            .ok()?;
        Some(linearizer.read_log_id().index())
    }

    /// Waits until an entry is applied here; false when the node stops.
    pub async fn wait_applied(&self, index: u64) -> bool {
        let mut progress = self.progress.clone();
        let reached = progress.wait_for(|progress| progress.applied >= index);
        reached.await.is_ok()
    }

    /// Present members by the state, with those that only Raft knows yet.
    pub fn members(&self) -> Vec<NodeId> {
        let mut members: Vec<NodeId> = self
            .memory
            .read(|state| state.members().map(|member| member.id).collect());
        if members.is_empty() {
            members.extend(self.view().nodes.keys().map(|id| NodeId(*id)));
        }
        members
    }

    /// This node's record as it should be.
    pub fn as_member(&self) -> Member {
        Member {
            id: self.id,
            name: self.options.node_name.clone(),
            address: self.options.advertise,
            peer_port: self.options.peer_port,
            api_port: self.options.api_port,
            boot_port: self.options.boot_port,
            version: self.options.version.clone(),
            min_schema: muster_storage::schema::OLDEST,
            max_schema: muster_storage::schema::CURRENT,
            key_hash: self.credentials.key_hash(),
            identifiers: Vec::new(),
        }
    }

    pub fn has_quorum(&self) -> bool {
        if self.fault().is_some() {
            return false;
        }
        let view = self.view();
        if view.leading {
            return view.leads_quorum(self.id.0);
        }
        let (_, leader) = self.leadership();
        leader
            .and_then(|leader| self.board.contact(leader))
            .is_some_and(|contact| contact.live() && contact.status.quorum)
    }

    /// Whether Raft comes to what it is asked within this time. Where it does not, or has stopped,
    /// for a reason that this node gives and that a restart does not mend, that counts as an answer.
    pub async fn answers(&self, within: Duration) -> bool {
        let asked = self.raft.with_raft_state(|_| ());
        match tokio::time::timeout(within, asked).await {
            Ok(Err(Fatal::Panicked)) => false,
            Ok(_) => true,
            Err(_) => self.fault().is_some(),
        }
    }

    /// Ends everything that this node does, and lets go of its disk.
    pub async fn shut_down(&self) {
        self.stop.cancel();
        // It knows this node in turn.
        self.answerer().take();
        self.disk.close();
        let ended_well = self.raft.shutdown().await;
        if let Err(error) = &ended_well {
            tracing::warn!(%error, "raft did not end well");
        }
        self.tasks.close();
        let ended = tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await;
        if ended.is_err() {
            tracing::warn!("some tasks did not end");
        }
        // Snapshots have stores of their own open, and must not be at work when the process ends.
        let jobs = self.memory.jobs();
        jobs.close();
        if tokio::time::timeout(JOBS, jobs.wait()).await.is_err() {
            tracing::warn!("a snapshot did not end");
        }
        if ended_well.is_ok()
            && let Err(error) = note_end(&self.engine.0)
        {
            tracing::warn!(%error, "cannot note how the log ends");
        }
        // Handles to this node may live on; its disk is free for another start.
        self.engine.0.close();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::Cluster;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_raft_that_hangs_does_not_answer_and_one_that_was_stopped_does() {
        const LONG: Duration = Duration::from_secs(60);
        let cluster = Cluster::solo().await;
        assert!(cluster.answers(LONG).await);

        let (go_on, held) = std::sync::mpsc::channel::<()>();
        let raft = cluster.inner.raft.clone();
        let hung = tokio::spawn(async move {
            raft.with_raft_state(move |_| {
                let _ = held.recv();
            })
            .await
        });
        while cluster.answers(Duration::from_millis(100)).await {}
        drop(go_on);
        hung.await.unwrap().unwrap();
        assert!(cluster.answers(LONG).await);

        cluster.stop().await;
        assert!(cluster.answers(LONG).await);
    }
}
