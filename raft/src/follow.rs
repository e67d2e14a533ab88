//! Following the history on this node.

use std::sync::Arc;

use muster_storage::state::Gone;
use muster_storage::{Change, Revision};
use tokio::sync::watch;

use crate::store::{Memory, Progress};

/// Changes in one answer, more only when one write made more.
const MANY: usize = 512;

/// A place in the history, from which changes are read as they come.
pub struct Follow {
    memory: Arc<Memory>,
    progress: watch::Receiver<Progress>,
    after: Revision,
}

impl Follow {
    pub(crate) fn new(memory: Arc<Memory>, after: Revision) -> Self {
        Self {
            progress: memory.progress(),
            memory,
            after,
        }
    }

    /// The next changes, at least one, those of one revision always together. Waits for them.
    ///
    /// # Errors
    /// When the history no longer reaches back to where this follower is.
    pub async fn next(&mut self) -> Result<Vec<Arc<Change>>, Gone> {
        loop {
            self.progress.mark_unchanged();
            let changes = self.memory.read(|state| {
                let mut changes: Vec<Arc<Change>> = Vec::new();
                for change in state.events_after(self.after)? {
                    let last = changes.last().map(|last| last.revision);
                    if changes.len() >= MANY && last != Some(change.revision) {
                        break;
                    }
                    changes.push(Arc::clone(change));
                }
                Ok::<_, Gone>(changes)
            })?;
            if let Some(last) = changes.last() {
                self.after = last.revision;
                return Ok(changes);
            }
            if self.progress.changed().await.is_err() {
                // The node has stopped: there is nothing more to come.
                std::future::pending::<()>().await;
            }
        }
    }

    /// How far this follower has read.
    pub fn position(&self) -> Revision {
        self.after
    }
}
