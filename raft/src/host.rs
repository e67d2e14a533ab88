//! What a node takes from the machine it runs on: clocks, threads for work that blocks, the thread
//! that syncs, and the way to its peers. Tests put a simulated machine in its place.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::task::TaskTracker;

use crate::store::{SyncWorker, Waiter};

/// The machine that a node runs on.
#[derive(Clone, Default)]
pub enum Host {
    /// The one that this process runs on.
    #[default]
    Real,
    /// One on virtual time, with a disk and a network that fail as they are told.
    #[cfg(test)]
    Simulated(std::sync::Arc<crate::sim::Machine>),
}

impl Host {
    /// Milliseconds since 1970 by the wall clock.
    pub fn wall(&self) -> u64 {
        match self {
            Self::Real => {
                let since = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }
            #[cfg(test)]
            Self::Simulated(machine) => machine.wall(),
        }
    }

    /// Milliseconds by the clock that counts also while the machine sleeps, and that nobody sets.
    pub fn boot(&self) -> u64 {
        match self {
            Self::Real => {
                // It exists on every Linux; without it time stands still, which only makes a clock
                // suspicious.
                let time =
                    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
                u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
            }
            #[cfg(test)]
            Self::Simulated(machine) => machine.boot(),
        }
    }

    /// Runs what blocks where it holds up nobody; a stopping node waits for what is in `jobs`.
    ///
    /// # Errors
    /// Those of the job; and when it panicked, or the process is ending.
    pub async fn blocking<T: Send + 'static>(
        &self,
        jobs: Option<&TaskTracker>,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let running = match (self, jobs) {
            (Self::Real, Some(jobs)) => jobs.spawn_blocking(job),
            (Self::Real, None) => tokio::task::spawn_blocking(job),
            #[cfg(test)]
            (Self::Simulated(machine), _) => return machine.blocking(job).await,
        };
        running.await.map_err(io::Error::other)?
    }

    /// Starts the one thread that syncs a log.
    pub fn spawn_syncer(
        &self,
        worker: SyncWorker,
        waiters: UnboundedReceiver<Waiter>,
    ) -> io::Result<()> {
        match self {
            Self::Real => std::thread::Builder::new()
                .name("muster-log-sync".into())
                .spawn(move || worker.run(waiters))
                .map(drop),
            #[cfg(test)]
            Self::Simulated(machine) => {
                machine.spawn_syncer(worker, waiters);
                Ok(())
            }
        }
    }
}
