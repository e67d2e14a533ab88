//! The thread that all TFTP runs on.
//!
//! async-tftp waits through async-io, whose reactor has a thread of its own unless those who wait drive it
//! themselves. Driven from tokio's threads, every block would wake that thread, and that thread one of
//! tokio's; here the thread that waits is the one that goes on.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread;

use async_executor::{Executor, Task};
use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A running thread; it ends when this is dropped, and what it runs with it.
pub(super) struct Worker {
    executor: Arc<Executor<'static>>,
    _stop: DropGuard,
}

impl Worker {
    /// Starts the thread. What runs on it may use the runtime that this is called in.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start() -> io::Result<Self> {
        let executor = Arc::new(Executor::new());
        let stop = CancellationToken::new();
        let runtime = Handle::current();
        let (running, stopped) = (Arc::clone(&executor), stop.clone());
        thread::Builder::new()
            .name("tftp".to_owned())
            .spawn(move || {
                let _runtime = runtime.enter();
                async_io::block_on(running.run(stopped.cancelled()));
            })?;
        Ok(Self {
            executor,
            _stop: stop.drop_guard(),
        })
    }

    /// Runs a future on the thread until the task is dropped.
    pub(super) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) -> Task<()> {
        self.executor.spawn(future)
    }
}
