//! The threads that all TFTP runs on: a block waits for nothing else that the node does, and the thread
//! that is woken for an acknowledgement is the one that sends the next block.

use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::sync::mpsc;
use std::thread;

use tokio::runtime::{self, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

/// Most threads: more than these send than a node's links carry.
const THREADS_MAX: usize = 4;

/// A running thread; it ends soon after this was dropped, and what it runs with it.
pub(super) struct Worker {
    runtime: Handle,
    _stop: DropGuard,
}

impl Worker {
    /// Starts a thread for each processor, up to four.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start_all() -> io::Result<Vec<Self>> {
        let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = processors.min(THREADS_MAX);
        (0..threads).map(|_| Self::start()).collect()
    }

    fn start() -> io::Result<Self> {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (tell, told) = mpsc::channel();
        // Made on its thread, the runtime also ends there, where that may take its time.
        let run = move || match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let _ = tell.send(Ok(runtime.handle().clone()));
                runtime.block_on(stopped.cancelled());
            }
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        };
        thread::Builder::new().name("tftp".to_owned()).spawn(run)?;
        Ok(Self {
            runtime: told.recv().map_err(io::Error::other)??,
            _stop: stop.drop_guard(),
        })
    }

    /// Does something in the thread's runtime, as making what is waited for there.
    pub(super) fn within<T>(&self, make: impl FnOnce() -> T) -> T {
        let _entered = self.runtime.enter();
        make()
    }

    /// Runs a future on the thread until what is returned is dropped.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> AbortOnDropHandle<T> {
        AbortOnDropHandle::new(self.runtime.spawn(future))
    }
}
