//! The disk of a node when it hangs or is full: no error comes from it yet, and none is waited for.
//!
//! The node says what is wrong and takes no part meanwhile, so that others step in for it, and gives
//! leadership away. When the disk can go on, so does the node.

mod room;
mod stall;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval};

use crate::inner::Inner;
use crate::manage;

use room::Room;
pub use room::{check_for_artifact, check_for_start};
use stall::Pending;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// What is known of a node's disk. Clones share it.
#[derive(Clone, Default)]
pub struct Disk {
    pending: Pending,
    room: Room,
}

impl Disk {
    /// Carries out a write that is quick as long as the disk is well, without the hand-over to
    /// another thread that would cost more than the write. One that hangs holds up nothing but its
    /// task and its thread, of which the runtime has more than there are tasks that write: whom this
    /// task has woken goes before it, as nobody else can take that off the thread.
    pub async fn write<T>(&self, write: impl FnOnce() -> T) -> T {
        yield_now().await;
        self.pending.write(write)
    }

    /// Carries out a write on a thread that is there for it.
    pub fn write_blocking<T>(&self, write: impl FnOnce() -> T) -> T {
        self.pending.write(write)
    }

    /// Waits until there is room for more entries; false when the node stops before.
    pub async fn has_room(&self) -> bool {
        self.room.wait().await
    }

    /// Nobody waits for room any more.
    pub fn close(&self) {
        self.room.close();
    }

    /// What is wrong and what to do, while the disk hangs or is full.
    pub fn fault(&self) -> Option<String> {
        self.room.fault().or_else(|| self.pending.fault())
    }
}

/// Looks after the room on the disk for as long as the node runs.
pub async fn watch_room(inner: Arc<Inner>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (room, dir) = (inner.disk.room.clone(), inner.options.data_dir.clone());
        let host = inner.memory.host();
        let looked = host.blocking(None, move || room.look(&dir)).await;
        if let Err(error) = looked {
            tracing::warn!(%error, "cannot see how much room the disk has");
        }
    }
}

/// Says when the disk hangs or is full, and gives leadership away then, for as long as the node runs.
pub async fn watch_faults(inner: Arc<Inner>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_faulty = false;
    loop {
        ticks.tick().await;
        inner.disk.pending.measure();
        let fault = inner.disk.fault();
        match &fault {
            Some(fault) if !was_faulty => {
                tracing::error!(error = fault, "this node takes no part for now");
            }
            None if was_faulty => tracing::info!("the disk is well again"),
            _ => {}
        }
        was_faulty = fault.is_some();
        // What Raft does not come to now it would do when others have long elected a leader.
        let comes_to_it = || {
            let asked = inner.raft.with_raft_state(|_| ());
            tokio::time::timeout(LOOK, asked)
        };
        if was_faulty
            && inner.view().leading
            && matches!(comes_to_it().await, Ok(Ok(())))
            && let Err(error) = manage::transfer(&inner, None).await
        {
            tracing::warn!(%error, "leadership is not handed over");
        }
    }
}
