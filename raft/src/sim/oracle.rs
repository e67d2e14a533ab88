//! What must hold, checked at every step from outside: it sees all disks and every row written.
//!
//! The oracle keeps the one history as it was first applied anywhere, and applies it to a state of
//! its own. Every node, every acknowledgement and every read is held against that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use muster_storage::event::Subject;
use muster_storage::model::{ClientKey, Lease, LeaseState};
use muster_storage::{Command, Entry, NodeId, Outcome, RequestId, Revision, State, schema};
use prost::Message;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::disk::Disk;
use crate::wire::proto;

/// DESIGN invariant 7: between the last committed end of a lease and another holder.
const MARGIN: u64 = 10_000;
/// Lines of the trace that are shown with a violation.
const SHOWN: usize = 60;

/// Index in a note that holds the id of a log entry; 0 when it cannot be read.
pub fn noted_index(note: &[u8]) -> u64 {
    proto::LogId::decode(note).map_or(0, |id| id.index)
}

/// Term and node that a vote is for. Votes are ordered: one for a later node of the same term counts
/// as newer.
pub type Ballot = (u64, u64);

/// Who has an address, by the history.
struct Holder {
    client: ClientKey,
    /// The largest end ever committed to this holder.
    until: u64,
    /// When it was given back, in the history.
    released: Option<Revision>,
    /// Every member knew of that when it was made free.
    reclaimed: bool,
}

/// What a client was told.
struct Belief {
    client: usize,
    until: Duration,
}

#[derive(Default)]
struct Inner {
    disks: BTreeMap<u64, Arc<Disk>>,
    /// Entries as they were first applied.
    history: BTreeMap<u64, Bytes>,
    state: State,
    digests: BTreeMap<u64, Vec<u8>>,
    outcomes: BTreeMap<Revision, (RequestId, Outcome)>,
    /// How far each node is in its present life.
    applied: BTreeMap<u64, u64>,
    /// How far each node has ever been.
    reached: BTreeMap<u64, u64>,
    /// Voters of each membership that was ever in a log.
    memberships: BTreeMap<u64, BTreeSet<Vec<Vec<u64>>>>,
    holders: BTreeMap<Ipv4Addr, Holder>,
    beliefs: BTreeMap<Ipv4Addr, Belief>,
    /// The newest revision that was acknowledged.
    floor: Revision,
    leaders: BTreeSet<Ballot>,
    /// The newest vote that each node has given, in all its lives.
    votes: BTreeMap<u64, Ballot>,
    /// How often what was tried.
    counts: BTreeMap<String, u64>,
    trace: Vec<String>,
    hash: u64,
    violation: Option<String>,
}

/// Knows everything, and says what is wrong.
pub struct Oracle {
    inner: Mutex<Inner>,
    start: Instant,
    echo: bool,
    /// A vote was granted.
    election: Notify,
}

impl Oracle {
    /// Nothing has happened.
    pub fn new(echo: bool) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            start: Instant::now(),
            echo,
            election: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Virtual time since the start.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Something happened: part of the trace by which two runs are compared.
    pub fn note(&self, what: impl Into<String>) {
        self.note_in(&mut self.lock(), what.into());
    }

    fn note_in(&self, inner: &mut Inner, what: String) {
        let line = format!("{:>12.6} {what}", self.now().as_secs_f64());
        // FNV-1a.
        for octet in line.bytes() {
            inner.hash = (inner.hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.echo {
            println!("{line}");
        }
        inner.trace.push(line);
    }

    fn wrong(&self, inner: &mut Inner, what: String) {
        self.note_in(inner, format!("VIOLATION {what}"));
        inner.violation.get_or_insert(what);
    }

    /// A rule does not hold.
    pub fn violated(&self, what: impl Into<String>) {
        self.wrong(&mut self.lock(), what.into());
    }

    /// Counts what the run has tried, for the report.
    pub fn count(&self, what: &str, by: u64) {
        *self.lock().counts.entry(what.to_owned()).or_default() += by;
    }

    /// What was counted.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.lock().counts.clone()
    }

    /// The first rule that did not hold.
    pub fn violation(&self) -> Option<String> {
        self.lock().violation.clone()
    }

    /// Hash of the trace, and its last lines.
    pub fn trace(&self) -> (u64, Vec<String>) {
        let inner = self.lock();
        let from = inner.trace.len().saturating_sub(SHOWN);
        (inner.hash, inner.trace[from..].to_vec())
    }

    /// A node has a disk.
    pub fn watch(&self, node: u64, disk: &Arc<Disk>) {
        self.lock().disks.insert(node, Arc::clone(disk));
    }

    /// A node begins a life with what its rows hold.
    pub fn started(&self, node: u64, applied: &[u8]) {
        let mut inner = self.lock();
        if applied.is_empty() {
            inner.applied.remove(&node);
        } else {
            inner.applied.insert(node, noted_index(applied));
        }
    }

    /// A node's rows were replaced by a snapshot's.
    pub fn installed(&self, node: u64) {
        // What the snapshot jumped over is not in this node's log.
        self.lock().applied.insert(node, u64::MAX);
        self.count("snapshots installed", 1);
    }

    /// Entries came into a log.
    pub fn appended(&self, entries: &[(u64, Bytes)]) {
        use proto::log_entry::Payload;
        for (index, bytes) in entries {
            let entry = proto::LogEntry::decode(bytes.clone()).unwrap_or_default();
            if let Some(Payload::Membership(membership)) = entry.payload {
                let voters = membership.configs.into_iter().map(|config| config.voters);
                let mut inner = self.lock();
                let known = inner.memberships.entry(*index).or_default();
                known.insert(voters.collect());
            }
        }
    }

    /// A node wrote rows as of an entry.
    pub fn applied(&self, node: u64, applied: &[u8], digest: &[u8]) {
        let to = noted_index(applied);
        let mut inner = self.lock();
        let from = inner.applied.insert(node, to);
        let first = match from {
            Some(from) if from < to => from + 1,
            // At the very start there is entry 0.
            None => 0,
            _ => to + 1,
        };
        let reached = inner.reached.entry(node).or_default();
        *reached = to.max(*reached);
        for index in first..=to {
            let Some(disk) = inner.disks.get(&node).cloned() else {
                break;
            };
            match disk.entry(index) {
                Some(bytes) => self.entry_applied(&mut inner, node, index, &bytes),
                None => {
                    let what = format!("node {node} applied entry {index}, which it does not have");
                    self.wrong(&mut inner, what);
                }
            }
        }
        match inner.digests.get(&to) {
            Some(known) if known != digest => {
                let what = format!(
                    "node {node} has another digest at entry {to} than the history: the states differ"
                );
                self.wrong(&mut inner, what);
            }
            Some(_) => {}
            None => {
                let what = format!("node {node} is at entry {to}, which nobody committed");
                self.wrong(&mut inner, what);
            }
        }
    }

    fn entry_applied(&self, inner: &mut Inner, node: u64, index: u64, bytes: &Bytes) {
        match inner.history.get(&index) {
            Some(known) if known == bytes => return,
            Some(_) => {
                let what = format!("node {node} applied another entry {index} than others did");
                return self.wrong(inner, what);
            }
            None => {}
        }
        if let Some(missing) = inner.lacks_quorum(index, bytes) {
            let what = format!(
                "node {node} applied entry {index} before a quorum had it on disk: {missing}"
            );
            self.wrong(inner, what);
        }
        inner.history.insert(index, bytes.clone());
        let entry = proto::LogEntry::decode(bytes.clone()).unwrap_or_default();
        if let Some(proto::log_entry::Payload::Entry(encoded)) = entry.payload {
            match schema::decode_entry(&encoded) {
                Ok(entry) => self.commit(inner, index, &entry),
                Err(error) => self.wrong(inner, format!("entry {index}: {error}")),
            }
        }
        let digest = inner.state.digest().0.to_vec();
        inner.digests.insert(index, digest);
        let what = format!(
            "committed {index} of term {}",
            entry.id.map_or(0, |id| id.term)
        );
        self.note_in(inner, what);
    }

    fn commit(&self, inner: &mut Inner, index: u64, entry: &Entry) {
        let mut at = inner.state.time().max(entry.at).0;
        let applied = inner.state.apply(Revision::new(index, 0), entry);
        // Rows are the nodes' affair.
        let _ = inner.state.take_rows();
        for (proposal, (outcome, changes)) in entry.proposals.iter().zip(applied) {
            if let Command::CorrectTime { to } = &proposal.command {
                // A promise is a span of real time.
                let by = to.0.saturating_sub(at);
                at = at.saturating_add(by);
                for holder in inner.holders.values_mut() {
                    holder.until = holder.until.saturating_add(by);
                }
                *inner.counts.entry("time corrected".into()).or_default() += 1;
                self.note_in(inner, format!("the time is corrected by {by} ms"));
            }
            for change in &changes {
                if let Subject::Lease(lease) = &change.subject
                    && let Some(problem) =
                        inner.lease_changed(lease, change.revision, at, &proposal.command)
                {
                    self.wrong(inner, problem);
                }
            }
            inner
                .outcomes
                .insert(outcome.revision, (proposal.request, outcome));
        }
    }

    /// A client was told what became of its write.
    pub fn acknowledged(&self, node: u64, request: RequestId, outcome: &Outcome) {
        let mut inner = self.lock();
        match inner.outcomes.get(&outcome.revision) {
            Some((known, same)) if *known == request && same == outcome => {}
            Some((known, same)) => {
                let what = format!(
                    "node {node} acknowledged {outcome:?} of {request:?}, the history has {same:?} of {known:?}"
                );
                self.wrong(&mut inner, what);
            }
            None => {
                let what = format!(
                    "node {node} acknowledged revision {} before it was committed",
                    outcome.revision
                );
                self.wrong(&mut inner, what);
            }
        }
        inner.floor = inner.floor.max(outcome.revision);
    }

    /// The newest acknowledged revision: what a read that begins now must see.
    pub fn floor(&self) -> Revision {
        self.lock().floor
    }

    /// A linearizable read saw the state at `revision`; at its start `floor` was acknowledged.
    pub fn read(&self, node: u64, floor: Revision, revision: Revision) {
        if revision < floor {
            let what = format!(
                "a linearizable read at node {node} saw revision {revision}, {floor} had been acknowledged"
            );
            self.violated(what);
        }
    }

    /// A client was given an address, and uses it until then.
    pub fn believes(&self, client: usize, address: Ipv4Addr, until: Duration) {
        let mut inner = self.lock();
        let now = self.now();
        if let Some(other) = inner.beliefs.get(&address)
            && other.client != client
            && other.until > now
        {
            let what = format!(
                "{address} was given to client {client} while client {} may use it for another {:?}",
                other.client,
                other.until.saturating_sub(now)
            );
            self.wrong(&mut inner, what);
        }
        inner.beliefs.insert(address, Belief { client, until });
    }

    /// A client does not use the address any more.
    pub fn gives_up(&self, client: usize, address: Ipv4Addr) {
        let mut inner = self.lock();
        if inner
            .beliefs
            .get(&address)
            .is_some_and(|belief| belief.client == client)
        {
            inner.beliefs.remove(&address);
        }
    }

    /// A node says that it leads a term. In a term there may be several, one after the other: votes
    /// are ordered by term and node.
    pub fn leads(&self, node: u64, term: u64) {
        let mut inner = self.lock();
        if inner.leaders.insert((term, node)) {
            *inner.counts.entry("elections".into()).or_default() += 1;
        }
    }

    /// The newest vote that a node has given.
    pub fn vote_of(&self, node: u64) -> Option<Ballot> {
        self.lock().votes.get(&node).copied()
    }

    /// A node asks for votes, and has given its own.
    pub fn stands(&self, node: u64, vote: Ballot) {
        let mut inner = self.lock();
        let newest = inner.votes.entry(node).or_default();
        *newest = vote.max(*newest);
    }

    /// A node has granted a vote. What it had given `before` it was asked counts, whatever has become
    /// of it since.
    pub fn granted(&self, node: u64, vote: Ballot, before: Option<Ballot>) {
        self.stands(node, vote);
        self.election.notify_waiters();
        if let Some(before) = before.filter(|before| vote < *before) {
            self.violated(format!(
                "node {node} votes for {vote:?} and had voted for {before:?} before"
            ));
        }
    }

    /// Resolves when a node grants its vote.
    pub async fn next_vote(&self) {
        self.election.notified().await;
    }

    /// How far each node is, and the end of the history.
    pub fn progress(&self) -> (BTreeMap<u64, u64>, u64) {
        let inner = self.lock();
        let last = inner
            .history
            .last_key_value()
            .map_or(0, |(index, _)| *index);
        (inner.applied.clone(), last)
    }

    /// The members as of the whole history.
    pub fn members(&self) -> Vec<NodeId> {
        let inner = self.lock();
        inner.state.members().map(|member| member.id).collect()
    }
}

impl Inner {
    /// Why an entry that was taken for committed cannot be, by what is on the disks; absent when it
    /// can be. The membership that counts is the one before the entry, or one that came since.
    fn lacks_quorum(&self, index: u64, bytes: &Bytes) -> Option<String> {
        let holders: BTreeSet<u64> = self
            .disks
            .iter()
            .filter(|(_, disk)| disk.keeps(index, bytes))
            .map(|(node, _)| *node)
            .collect();
        let before = self.memberships.range(..=index).next_back();
        let since = self.memberships.range(index.saturating_add(1)..);
        let enough = before
            .into_iter()
            .chain(since)
            .flat_map(|(_, memberships)| memberships)
            .any(|configs| {
                configs.iter().all(|voters| {
                    let have = voters.iter().filter(|voter| holders.contains(voter));
                    have.count() > voters.len() / 2
                })
            });
        (!enough).then(|| format!("only {holders:?} have it"))
    }

    fn lease_changed(
        &mut self,
        lease: &Lease,
        revision: Revision,
        at: u64,
        command: &Command,
    ) -> Option<String> {
        let address = lease.address;
        let over = |holder: &Holder| at >= holder.until.saturating_add(MARGIN);
        let members: Vec<u64> = self.state.members().map(|member| member.id.0).collect();
        let holder = self.holders.get_mut(&address);
        match (lease.state, holder) {
            (LeaseState::Bound, Some(holder)) if holder.client == lease.client => {
                holder.until = holder.until.max(lease.expires_at.0);
                holder.released = None;
                holder.reclaimed = false;
                None
            }
            (LeaseState::Bound, holder) => {
                let problem = holder
                    .filter(|holder| !over(holder) && !holder.reclaimed)
                    .map(|holder| {
                        format!(
                            "{address} went from {} to {} at {at}, {} ms before the last end and the margin",
                            holder.client,
                            lease.client,
                            holder.until.saturating_add(MARGIN).saturating_sub(at)
                        )
                    });
                let holder = Holder {
                    client: lease.client.clone(),
                    until: lease.expires_at.0,
                    released: None,
                    reclaimed: false,
                };
                self.holders.insert(address, holder);
                problem
            }
            (_, Some(holder)) if lease.free => {
                if over(holder) {
                    return None;
                }
                let released = holder.released;
                let unaware = members.into_iter().find(|member| {
                    let reached = self.reached.get(member).copied().unwrap_or(0);
                    // Ids come from revisions: whoever joined later never took the lease for bound
                    // once it had caught up, and says nothing of leases before that.
                    released.is_none_or(|released| {
                        *member <= released.0 && reached < released.log_index()
                    })
                });
                let early = holder.until.saturating_add(MARGIN).saturating_sub(at);
                if !matches!(command, Command::Reclaim { .. }) {
                    return Some(format!(
                        "{address} was freed {early} ms before its last end and the margin"
                    ));
                }
                holder.reclaimed = unaware.is_none();
                unaware.map(|node| {
                    format!(
                        "{address} was freed {early} ms early although node {node} had not applied \
                         its release"
                    )
                })
            }
            (_, Some(holder)) => {
                holder.released.get_or_insert(revision);
                None
            }
            (_, None) => None,
        }
    }
}
