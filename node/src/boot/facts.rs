//! What this node sees of machines that boot, for their timelines.
//!
//! Each is told as a step of its boot (`spans`), then noted for its timeline. Facts are noted without
//! waiting and written together, about once a second, never before an
//! answer. Without a quorum they wait here, as many as there is room for.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_raft::{Cluster, Error};
use muster_storage::model::{Seen, Step};
use muster_storage::{Actor, Command, Proposal, RequestId, State, Timestamp};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::metrics;
use super::trace::TraceId;
use crate::spans::{Span, Spans, Visit};

/// Facts that may wait to be taken; more are dropped and counted.
const QUEUE_MAX: usize = 1024;

/// Facts that wait to be written; the oldest are dropped and counted.
const WAITING_MAX: usize = 4096;

/// Between two writes.
const EVERY: Duration = Duration::from_secs(1);

/// For how long a machine that does the same again and again is not written of again, in
/// milliseconds.
const SAME_MILLIS: u64 = 30_000;

/// Machines of which the last step is remembered, and clients of which the machine is.
const KNOWN_MAX: usize = 4096;

/// How long the last facts may take to be written when the node stops.
const LAST: Duration = Duration::from_secs(1);

/// Where facts are noted. Clones share it.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Noted>,
    /// Which machine asked from which address for its script: some have no lease of ours.
    askers: Arc<Mutex<HashMap<IpAddr, Uuid>>>,
    cluster: Cluster,
}

/// A step as it waits to be told and written.
struct Noted {
    seen: Seen,
    span: Span,
    /// Whether it is for this recorder to write.
    written: bool,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    /// Tells and writes what is noted until `stop` is cancelled.
    pub fn start(cluster: Cluster, spans: Spans, stop: CancellationToken) -> Self {
        let (queue, noted) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run(cluster.clone(), spans, noted, stop));
        Self {
            queue,
            askers: Arc::default(),
            cluster,
        }
    }

    /// Notes a fact, if there is room.
    pub fn note(&self, machine: Uuid, step: Step, visit: Visit) {
        self.take(machine, step, visit, true);
    }

    /// Tells of a step that is written with something else.
    pub fn tell(&self, machine: Uuid, step: Step, visit: Visit) {
        self.take(machine, step, visit, false);
    }

    fn take(&self, machine: Uuid, step: Step, visit: Visit, written: bool) {
        metrics::step(&step);
        let at = self.cluster.now();
        let cluster = self.cluster.cluster_id();
        let (trace, name) = self.cluster.read(|state| {
            let timeline = state.timeline(machine);
            let found = state.machine_with_uuid(machine);
            (
                TraceId::of(cluster, machine, timeline, &step, at),
                found.map_or_else(|| machine.to_string(), |found| found.name.clone()),
            )
        });
        let span = Span {
            trace,
            machine,
            name,
            step: step.clone(),
            protocol: visit.protocol,
            took: visit.began.elapsed(),
            at,
        };
        let noted = Noted {
            seen: Seen { machine, at, step },
            span,
            written,
        };
        if self.queue.try_send(noted).is_err() {
            metrics::facts_dropped(1);
        }
    }

    /// The machine that has this address, if it is known.
    pub fn machine_at(&self, address: IpAddr) -> Option<Uuid> {
        let leased = |state: &State| {
            let mac = super::tree::leased_to(state, address)?;
            Some(state.machine_with_mac(mac)?.uuid)
        };
        let asked = || self.askers().get(&address).copied();
        self.cluster.read(leased).or_else(asked)
    }

    /// Remembers which machine asked from this address.
    pub fn asked(&self, address: IpAddr, machine: Uuid) {
        let mut askers = self.askers();
        if askers.len() >= KNOWN_MAX && !askers.contains_key(&address) {
            askers.clear();
        }
        askers.insert(address, machine);
    }

    fn askers(&self) -> MutexGuard<'_, HashMap<IpAddr, Uuid>> {
        self.askers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fact that comes true when all octets have been sent.
#[derive(Clone, Debug)]
pub struct OnceSent {
    recorder: Recorder,
    machine: Uuid,
    step: Step,
    visit: Visit,
}

impl OnceSent {
    /// `step` of this machine.
    pub fn new(recorder: &Recorder, machine: Uuid, step: Step, visit: Visit) -> Self {
        Self {
            recorder: recorder.clone(),
            machine,
            step,
            visit,
        }
    }

    /// They have.
    pub fn sent(self) {
        self.recorder.note(self.machine, self.step, self.visit);
    }
}

async fn run(
    cluster: Cluster,
    spans: Spans,
    mut noted: mpsc::Receiver<Noted>,
    stop: CancellationToken,
) {
    let mut waiting = Waiting {
        spans,
        ..Waiting::default()
    };
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            next = noted.recv() => {
                let Some(next) = next else { break };
                // The next attempt of an install hangs on it.
                let urgent = matches!(next.seen.step, Step::Kernel { .. });
                waiting.take(next);
                if !urgent {
                    continue;
                }
            }
            _ = ticks.tick() => {}
        }
        waiting.take_all(&mut noted);
        waiting.write(&cluster).await;
    }
    waiting.take_all(&mut noted);
    // Whether they are written or not, the node ends.
    let _ = tokio::time::timeout(LAST, waiting.write(&cluster)).await;
}

/// Facts that are to be written.
#[derive(Default)]
struct Waiting {
    facts: VecDeque<Seen>,
    /// What each machine did last, and when.
    last: HashMap<Uuid, (Step, Timestamp)>,
    /// Where steps are told.
    spans: Spans,
}

impl Waiting {
    fn take_all(&mut self, noted: &mut mpsc::Receiver<Noted>) {
        while let Ok(next) = noted.try_recv() {
            self.take(next);
        }
    }

    fn take(&mut self, noted: Noted) {
        if self.is_told(&noted.seen) {
            return;
        }
        self.remember(&noted.seen);
        self.spans.tell(noted.span);
        if noted.written {
            self.add(noted.seen);
        }
    }

    /// Takes note of what a machine did last.
    fn remember(&mut self, seen: &Seen) {
        if self.last.len() >= KNOWN_MAX && !self.last.contains_key(&seen.machine) {
            self.last.clear();
        }
        self.last.insert(seen.machine, (seen.step.clone(), seen.at));
    }

    fn add(&mut self, seen: Seen) {
        if self.facts.len() >= WAITING_MAX {
            self.facts.pop_front();
            metrics::facts_dropped(1);
        }
        self.facts.push_back(seen);
    }

    /// Whether the machine only waits, and asks the same every few seconds.
    fn is_told(&self, seen: &Seen) -> bool {
        let Some((last, at)) = self.last.get(&seen.machine) else {
            return false;
        };
        let same = match (last, &seen.step) {
            (Step::Script { boots, .. }, Step::Script { boots: now, .. }) => boots == now,
            (Step::Offered { .. } | Step::Bound { .. }, step) => last == step,
            _ => false,
        };
        same && seen.at.0 < at.0.saturating_add(SAME_MILLIS)
    }

    async fn write(&mut self, cluster: &Cluster) {
        while !self.facts.is_empty() {
            let count = self.facts.len().min(Command::SEEN_MAX);
            let proposal = Proposal {
                request: RequestId(Uuid::new_v4()),
                actor: Actor(format!("node:{}", cluster.node_name())),
                if_match: None,
                remember: None,
                command: Command::Saw {
                    node: cluster.node_id(),
                    seen: self.facts.iter().take(count).cloned().collect(),
                },
            };
            match cluster.propose(proposal).await {
                Ok(_) => drop(self.facts.drain(..count)),
                // Written, or perhaps: told twice would be worse than not told.
                Err(Error::Timeout) => {
                    self.facts.drain(..count);
                    metrics::facts_dropped(count);
                }
                Err(problem) => {
                    tracing::debug!(error = %problem, waiting = self.facts.len(), "facts wait");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(machine: u128, at: u64, step: Step) -> Seen {
        Seen {
            machine: Uuid::from_u128(machine),
            at: Timestamp(at),
            step,
        }
    }

    fn hold() -> Step {
        Step::Script {
            boots: "hold".to_owned(),
            revision: Default::default(),
            attempt: None,
        }
    }

    fn kernel() -> Step {
        Step::Kernel {
            path: "k".to_owned(),
        }
    }

    fn noted(seen: Seen) -> Noted {
        let span = Span {
            trace: TraceId([0; 16]),
            machine: seen.machine,
            name: "m".to_owned(),
            step: seen.step.clone(),
            protocol: crate::spans::Protocol::Http,
            took: Duration::ZERO,
            at: seen.at,
        };
        Noted {
            seen,
            span,
            written: true,
        }
    }

    #[test]
    fn who_only_waits_is_told_of_now_and_then() {
        let mut waiting = Waiting::default();
        for at in (0..120_000).step_by(10_000) {
            waiting.take(noted(seen(1, at, hold())));
        }
        assert_eq!(waiting.facts.len(), 4);
        for at in [120_000, 120_001] {
            waiting.take(noted(seen(1, at, kernel())));
        }
        assert_eq!(waiting.facts.len(), 6, "each kernel counts");
    }

    #[test]
    fn what_waits_is_bounded_and_the_newest_stay() {
        let mut waiting = Waiting::default();
        let more = WAITING_MAX as u64 + 10;
        for at in 0..more {
            waiting.take(noted(seen(u128::from(at), at, kernel())));
        }
        assert_eq!(waiting.facts.len(), WAITING_MAX);
        assert_eq!(waiting.facts.front().map(|seen| seen.at.0), Some(10));
        assert!(waiting.last.len() <= KNOWN_MAX);
    }
}
