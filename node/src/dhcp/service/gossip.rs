//! What this node tells its peers, gathered: one message for all that is said within some
//! milliseconds, whatever the number of clients.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Service;
use crate::dhcp::offers::Notice;

/// Between two messages. Short beside what a rank waits for those before it.
const PACE: Duration = Duration::from_millis(20);

/// Notices in one message, by the bound on its octets; more follow in the next.
const NOTICES_MAX: usize = 1024;

/// Notices that wait, at most; peers do without the rest, which costs a double answer.
const WAITING_MAX: usize = 65_536;

/// What is to be said next.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    notices: Mutex<Vec<Notice>>,
    filled: Notify,
}

impl Outbox {
    fn push(&self, notices: &[Notice]) {
        let mut waiting = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        let room = WAITING_MAX.saturating_sub(waiting.len());
        waiting.extend(notices.iter().take(room));
        drop(waiting);
        self.filled.notify_one();
    }

    async fn take(&self) -> Vec<Notice> {
        loop {
            self.filled.notified().await;
            let mut waiting = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
            if !waiting.is_empty() {
                return std::mem::take(&mut *waiting);
            }
        }
    }
}

impl Service {
    /// Remembers, and tells the peers soon.
    pub(super) fn tell(&self, notices: &[Notice]) {
        if notices.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut recent = self.recent();
        for notice in notices {
            // Offers are noted when they are made.
            if !matches!(notice, Notice::Offered(..)) {
                recent.note(*notice, now);
            }
        }
        drop(recent);
        self.outbox.push(notices);
    }

    /// Tells the peers what there is to be told, for ever.
    pub async fn spread(self: Arc<Self>) {
        loop {
            for notices in self.outbox.take().await.chunks(NOTICES_MAX) {
                self.cluster.gossip(Notice::encode(notices));
            }
            tokio::time::sleep(PACE).await;
        }
    }
}
