//! Packets that other nodes come first for, until those have had their time.
//!
//! Most are answered by then and are dropped, many at a time: two nodes of three see each packet in
//! vain, so that nothing is spent on it but its place in a queue.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::{Exchange, PROPOSED_GRACE, Service};
use crate::dhcp::decide::Reason;
use crate::dhcp::offers::Progress;
use crate::dhcp::{metrics, rank};

/// How exactly turns are kept; short beside what a rank waits.
const TICK: Duration = Duration::from_millis(10);

/// A packet, and when it is this node's.
pub(super) struct Turn {
    due: Instant,
    exchange: Exchange,
    place: OwnedSemaphorePermit,
    /// A peer has proposed the write that the answer needs, and was given time for it.
    granted: bool,
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Turn {}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        self.due.cmp(&other.due)
    }
}

/// All turns to come. Bounded by the places that they hold.
#[derive(Default)]
pub(super) struct Later {
    turns: Mutex<BinaryHeap<Reverse<Turn>>>,
    filled: Notify,
}

impl Later {
    fn turns(&self) -> MutexGuard<'_, BinaryHeap<Reverse<Turn>>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a packet for `delay`.
    pub fn push(&self, exchange: Exchange, delay: Duration, place: OwnedSemaphorePermit) {
        let due = Instant::now() + delay;
        self.turns().push(Reverse(Turn {
            due,
            exchange,
            place,
            granted: false,
        }));
        self.filled.notify_one();
    }

    /// Those whose time has come, and when the next ones' does.
    fn due(&self) -> (Vec<Turn>, Option<Instant>) {
        let (mut turns, now) = (self.turns(), Instant::now());
        let mut due = Vec::new();
        while turns.peek().is_some_and(|Reverse(turn)| turn.due <= now) {
            due.extend(turns.pop().map(|Reverse(turn)| turn));
        }
        (due, turns.peek().map(|Reverse(turn)| turn.due))
    }
}

impl Service {
    /// Takes the packets that nobody else has answered when their time comes, for ever.
    pub async fn take_turns(self: Arc<Self>) {
        loop {
            let (due, next) = self.later.due();
            self.take(due);
            match next {
                Some(next) => {
                    // Who comes meanwhile has its turn a step from now at the earliest.
                    let now = Instant::now();
                    let look = next.clamp(now + TICK, now + rank::STEP / 2);
                    tokio::time::sleep_until(look.into()).await;
                }
                None => self.later.filled.notified().await,
            }
        }
    }

    fn take(self: &Arc<Self>, due: Vec<Turn>) {
        let progress: Vec<Option<Progress>> = {
            let recent = self.recent();
            due.iter()
                .map(|turn| Self::progress_in(&recent, &turn.exchange))
                .collect()
        };
        let mut answered = Vec::new();
        for (mut turn, progress) in due.into_iter().zip(progress) {
            match progress {
                Some(Progress::Answered) => {
                    self.remember_silence(&turn.exchange, Reason::Answered);
                    answered.push(turn.exchange.request.kind);
                }
                Some(Progress::Proposed) if !turn.granted => {
                    turn.granted = true;
                    turn.due += PROPOSED_GRACE;
                    self.later.turns().push(Reverse(turn));
                }
                _ => {
                    let unheard = progress.is_none() && turn.exchange.request.relayed();
                    let Turn {
                        exchange, place, ..
                    } = turn;
                    self.spawn(place, move |service| async move {
                        service.look_and_finish(exchange, unheard).await;
                    });
                }
            }
        }
        metrics::silent(answered.into_iter(), Reason::Answered.label());
    }
}
