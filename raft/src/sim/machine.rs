//! The machine that one life of a node runs on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::chance::Chance;
use super::mutant::Mutant;
use super::net::{Line, Net, Wire};
use super::oracle::Oracle;
use crate::peer::Gate;
use crate::store::{SyncWorker, Waiter};
use crate::tls::PeerCertificate;

/// When the simulated world begins, in milliseconds since 1970.
const BEGINNING: u64 = 1_700_000_000_000;

/// See the module.
pub struct Machine {
    pub node: u64,
    pub net: Arc<Net>,
    pub chance: Arc<Chance>,
    pub oracle: Arc<Oracle>,
    /// Ends with this life.
    pub dead: CancellationToken,
    /// What the wall clock is wrong by, in milliseconds.
    pub skew: Arc<AtomicI64>,
    pub certificate: PeerCertificate,
    pub mutant: Option<Mutant>,
}

impl Machine {
    /// Milliseconds since the beginning.
    pub fn boot(&self) -> u64 {
        u64::try_from(self.oracle.now().as_millis()).unwrap_or(u64::MAX)
    }

    /// The wall clock, as wrong as it is.
    pub fn wall(&self) -> u64 {
        let skew = self.skew.load(Ordering::Relaxed);
        BEGINNING
            .saturating_add(self.boot())
            .saturating_add_signed(skew)
    }

    /// Work that takes a while.
    pub async fn blocking<T>(&self, job: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        sleep(self.chance.millis(0..5)).await;
        if self.dead.is_cancelled() {
            return Err(io::Error::other("the machine has lost its power"));
        }
        job()
    }

    /// Syncs one batch after the other; each takes the time of a disk.
    pub fn spawn_syncer(
        self: &Arc<Self>,
        mut worker: SyncWorker,
        mut waiters: UnboundedReceiver<Waiter>,
    ) {
        let machine = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(first) = waiters.recv().await {
                let batch = SyncWorker::gather(first, &mut waiters);
                let slow = machine.chance.once_in(100);
                let took = if slow { 20..200 } else { 0..4 };
                sleep(machine.chance.millis(took)).await;
                worker.settle(batch);
            }
        });
    }

    /// The way to a peer.
    pub fn wire(&self, peer: u64, gate: &Arc<Gate>) -> Wire {
        Wire::Line(Line {
            net: Arc::clone(&self.net),
            from: self.node,
            to: peer,
            gate: Arc::clone(gate),
            dead: self.dead.clone(),
            oracle: Arc::clone(&self.oracle),
            certificate: self.certificate.clone(),
        })
    }
}
