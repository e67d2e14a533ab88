//! What clients do, and the leader's housekeeping as `muster serve` does it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_storage::command::{Bind, Client, PutMode};
use muster_storage::linear::{self, Action, Condition, Operation, Told};
use muster_storage::model::{Lease, Mac, Object, ObjectKind, Profile, Settings, Subnet};
use muster_storage::state::Claim;
use muster_storage::{
    Actor, Command, Effect, NodeId, Outcome, Proposal, Rejection, Remember, RequestId, Revision,
    State, Timestamp,
};
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::mutant::Mutant;
use super::world::{Life, World};
use crate::{Cluster, Error};

/// Clients at a time.
const CLIENTS: usize = 8;
/// Objects that they write.
const KEYS: u64 = 6;
/// Promised lease time, in seconds: short, so that addresses change hands within a run.
const LEASE: u32 = 15;
/// The product's second.
const TICK: Duration = Duration::from_secs(1);

/// What a client knows of its address.
#[derive(Clone, Copy)]
struct Held {
    address: Ipv4Addr,
    until: Duration,
}

/// What clients did.
#[derive(Default)]
pub struct Histories {
    objects: BTreeMap<String, Vec<Operation>>,
    acknowledged: u64,
    unknown: u64,
}

/// The clients of a run.
pub struct Work {
    world: Arc<World>,
    histories: Mutex<Histories>,
    /// Numbers starts and ends.
    order: AtomicU64,
    over: AtomicBool,
}

/// What came of asking a node; nothing when it cannot be known.
type Answer<T> = Option<Result<T, Error>>;

fn proposal(client: usize, if_match: Option<Revision>, command: Command) -> Proposal {
    Proposal {
        request: RequestId(Uuid::new_v4()),
        actor: Actor(format!("client-{client}")),
        if_match,
        remember: None,
        command,
    }
}

/// The network that clients sit on, with fewer addresses than clients want.
pub fn subnet() -> Command {
    let subnet: Box<Subnet> = serde_json::from_value(json!({
        "name": "lab",
        "cidr": "192.0.2.0/24",
        "pools": ["192.0.2.10-192.0.2.29"],
        "lease_secs": LEASE,
        "match": "mac",
    }))
    .expect("a subnet");
    Command::Put {
        object: Object::Subnet(subnet),
        mode: PutMode::Apply,
    }
}

/// Settings without the margin.
pub fn no_margin() -> Command {
    let settings: Settings = serde_json::from_value(json!({
        "name": "cluster",
        "lease_margin_secs": 0,
    }))
    .expect("settings");
    Command::Put {
        object: Object::Settings(settings),
        mode: PutMode::Apply,
    }
}

/// A machine on the network, by its number.
pub fn dhcp_client(host: u64) -> Client {
    let [.., a, b] = host.to_be_bytes();
    Client {
        mac: Some(Mac([0x52, 0x54, 0, 0, a, b])),
        client_id: None,
        boots: false,
        link: vec![Ipv4Addr::new(192, 0, 2, 1)],
        requested: None,
        lease_secs: None,
        hostname: None,
        relay: None,
        traits: Default::default(),
    }
}

fn value_of(state: &State, key: &str) -> Option<(Revision, u64)> {
    let record = state.object(ObjectKind::Profile, key)?;
    match &record.object {
        Object::Profile(profile) => {
            let value = profile.params.get("value")?.as_u64()?;
            Some((record.revision, value))
        }
        _ => None,
    }
}

impl Work {
    /// Starts the clients.
    pub fn start(world: &Arc<World>) -> Arc<Self> {
        let work = Arc::new(Self {
            world: Arc::clone(world),
            histories: Mutex::default(),
            order: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        for client in 0..CLIENTS {
            let work = Arc::clone(&work);
            tokio::spawn(async move { work.run(client).await });
        }
        work
    }

    /// No client begins anything new.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    fn histories(&self) -> std::sync::MutexGuard<'_, Histories> {
        self.histories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Operations of known and of unknown outcome so far.
    pub fn counts(&self) -> (u64, u64) {
        let histories = self.histories();
        (histories.acknowledged, histories.unknown)
    }

    /// Objects whose history cannot have happened.
    pub fn contradictions(&self) -> Vec<String> {
        let histories = self.histories();
        let wrong = histories
            .objects
            .iter()
            .filter_map(|(key, history)| Some((key, history, linear::contradiction(history)?)));
        wrong
            .map(|(key, history, last)| {
                format!(
                    "the history of {key}, {} operations, is not linearizable since {last:?}",
                    history.len()
                )
            })
            .collect()
    }

    fn tick(&self) -> u64 {
        self.order.fetch_add(1, Ordering::Relaxed)
    }

    fn note(&self, what: String) {
        self.world.oracle.note(what);
    }

    async fn run(self: Arc<Self>, client: usize) {
        let chance = Arc::clone(&self.world.chance);
        // A client stands for several machines on the network.
        let mut hosts: BTreeMap<u64, Held> = BTreeMap::new();
        while !self.over.load(Ordering::Relaxed) {
            sleep(chance.millis(20..400)).await;
            let Some(node) = chance.pick(&self.world.alive()) else {
                continue;
            };
            let Some(life) = self.world.life(node) else {
                continue;
            };
            if chance.once_in(2) {
                self.object(client, node, &life).await;
            } else {
                let host = client as u64 * 8 + chance.range(0..4);
                self.lease(host, node, &life, &mut hosts).await;
            }
        }
    }

    /// Asks a life of a node; when it ends first, nothing is known.
    async fn ask<T>(life: &Life, asking: impl Future<Output = Result<T, Error>>) -> Answer<T> {
        tokio::select! {
            biased;
            () = life.dead.cancelled() => None,
            answer = asking => Some(answer),
        }
    }

    async fn propose(&self, node: u64, life: &Life, proposal: Proposal) -> Answer<Outcome> {
        let request = proposal.request;
        let mut answer = Self::ask(life, life.cluster.propose(proposal.clone())).await;
        if self.world.mutant == Some(Mutant::RepeatUnknown)
            && matches!(answer, Some(Err(Error::Timeout)))
        {
            answer = Self::ask(life, life.cluster.propose(proposal)).await;
        }
        match &answer {
            Some(Ok(outcome)) => {
                self.world.oracle.acknowledged(node, request, outcome);
                self.histories().acknowledged += 1;
            }
            Some(Err(error)) if error.is_certain() => {}
            _ => self.histories().unknown += 1,
        }
        answer
    }

    /// As the API proposes: a second copy has no second effect.
    fn remembered(&self, life: &Life, proposal: Proposal) -> Proposal {
        let forgetful = [Mutant::RepeatUnknown, Mutant::ProposeTwice].map(Some);
        let since = life.cluster.read(State::revision);
        let remember = Some(Remember::Retry { since });
        Proposal {
            remember: remember.filter(|_| !forgetful.contains(&self.world.mutant)),
            ..proposal
        }
    }

    async fn object(&self, client: usize, node: u64, life: &Life) {
        let chance = &self.world.chance;
        let key = format!("p{}", chance.range(0..KEYS));
        if chance.once_in(3) {
            return self.read(node, life, &key).await;
        }
        let value = self.tick();
        let seen = life.cluster.read(|state| value_of(state, &key));
        let (if_match, condition) = match (chance.range(0..4), seen) {
            (0, Some((revision, seen))) => (Some(revision), Condition::Is(seen)),
            (1, _) => (None, Condition::Absent),
            (2, _) => (None, Condition::Exists),
            _ => (None, Condition::Always),
        };
        let delete = chance.once_in(5) && matches!(condition, Condition::Is(_) | Condition::Exists);
        let (action, command) = if delete {
            let command = Command::Delete {
                kind: ObjectKind::Profile,
                key: key.clone(),
            };
            (Action::Delete(condition), command)
        } else {
            let profile = Profile {
                name: key.clone(),
                params: BTreeMap::from([("value".to_owned(), json!(value))]),
                loaders: Default::default(),
                local_boot: None,
                sealed: BTreeMap::new(),
            };
            let mode = match condition {
                Condition::Absent => PutMode::Create,
                Condition::Exists => PutMode::Replace,
                _ => PutMode::Apply,
            };
            let command = Command::Put {
                object: Object::Profile(profile),
                mode,
            };
            (Action::Write(condition, value), command)
        };
        let start = self.tick();
        let answer = self
            .propose(
                node,
                life,
                self.remembered(life, proposal(client, if_match, command)),
            )
            .await;
        let told = match &answer {
            Some(Ok(outcome)) => match &outcome.result {
                Ok(_) => Told::Done,
                Err(
                    Rejection::Stale { .. } | Rejection::Exists { .. } | Rejection::NotFound { .. },
                ) => Told::Refused,
                // A copy that came too late to know what became of the first.
                Err(Rejection::Forgotten) => Told::Unknown,
                Err(other) => {
                    let what = format!("{key} was refused for no good reason: {other}");
                    return self.world.oracle.violated(what);
                }
            },
            // It certainly was not written: it has no place in the history.
            Some(Err(error)) if error.is_certain() => {
                return self.note(format!("client {client} node {node} {key}: {error}"));
            }
            _ => Told::Unknown,
        };
        self.record(&key, action, told, start);
        self.note(format!(
            "client {client} node {node} {key} {action:?} {told:?}"
        ));
    }

    async fn read(&self, node: u64, life: &Life, key: &str) {
        let start = self.tick();
        let floor = self.world.oracle.floor();
        let look = |state: &State| (state.revision(), value_of(state, key));
        let answer = if self.world.mutant == Some(Mutant::ReadWithoutIndex) {
            Some(Ok(life.cluster.read(look)))
        } else {
            Self::ask(life, life.cluster.read_linear(look)).await
        };
        let Some(Ok((revision, seen))) = answer else {
            return self.note(format!("node {node} {key} is not read"));
        };
        self.world.oracle.read(node, floor, revision);
        self.histories().acknowledged += 1;
        let seen = seen.map(|(_, value)| value);
        self.record(key, Action::Read(seen), Told::Done, start);
        self.note(format!("node {node} {key} reads {seen:?}"));
    }

    fn record(&self, key: &str, action: Action, told: Told, start: u64) {
        let end = match told {
            Told::Unknown => u64::MAX,
            _ => self.tick(),
        };
        let operation = Operation {
            action,
            told,
            start,
            end,
        };
        let mut histories = self.histories();
        histories
            .objects
            .entry(key.to_owned())
            .or_default()
            .push(operation);
    }

    /// What a machine on the network does about its address: get one, extend it, give it back.
    async fn lease(&self, host: u64, node: u64, life: &Life, hosts: &mut BTreeMap<u64, Held>) {
        let world = &self.world;
        let now = world.oracle.now();
        let client = dhcp_client(host);
        let who = usize::try_from(host).unwrap_or_default();
        let held = hosts.get(&host).copied().filter(|held| held.until > now);
        if held.is_none() {
            hosts.remove(&host);
        }
        match held {
            Some(held) if world.chance.once_in(5) => {
                hosts.remove(&host);
                world.oracle.gives_up(who, held.address);
                life.cluster.read(|state| {
                    let record = state.lease(held.address);
                    let record = record.filter(|record| state.is_of(&record.object, &client));
                    if let Some(record) = record {
                        life.cluster.end_promise(&record.object, Duration::ZERO);
                    }
                });
                let command = Command::Release {
                    client: Box::new(client),
                    address: held.address,
                    sent: Some(life.cluster.now()),
                };
                let answer = self.propose(node, life, proposal(who, None, command)).await;
                self.note(format!(
                    "host {host} releases {}: {}",
                    held.address,
                    brief(&answer)
                ));
            }
            held => {
                let now_there = life.cluster.now();
                let offered = || {
                    let offer = life
                        .cluster
                        .read(|state| state.offer(&client, &|_| Claim::None, now_there));
                    offer.map(|offer| offer.address)
                };
                let Some(address) = held.map(|held| held.address).or_else(offered) else {
                    return self.note(format!("host {host} is offered nothing at node {node}"));
                };
                if let Some((lease, secs)) = self.confirmable(life, &client, address, now_there) {
                    let until = now + Duration::from_secs(u64::from(secs));
                    world.oracle.believes(who, lease.address, until);
                    hosts.insert(host, Held { address, until });
                    world.oracle.count("leases confirmed", 1);
                    return self.note(format!("host {host} is confirmed {address} at node {node}"));
                }
                let command = Command::Bind(Box::new(Bind {
                    client,
                    address,
                    node: NodeId(node),
                }));
                let answer = self.propose(node, life, proposal(who, None, command)).await;
                if let Some(Ok(outcome)) = &answer
                    && let Ok(Effect::Bound(lease)) = &outcome.result
                {
                    let until = now + Duration::from_secs(u64::from(LEASE));
                    world.oracle.believes(who, lease.address, until);
                    hosts.insert(host, Held { address, until });
                }
                self.note(format!(
                    "host {host} binds {address} at node {node}: {}",
                    brief(&answer)
                ));
            }
        }
    }

    /// As the product confirms early renewals: from the committed lease, on a node that has caught
    /// up since its start.
    fn confirmable(
        &self,
        life: &Life,
        client: &Client,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> Option<(Lease, u32)> {
        if !life.cluster.caught_up_once() || !self.world.chance.once_in(3) {
            return None;
        }
        life.cluster.read(|state| {
            let (lease, secs) = state.confirmable(client, address, now)?;
            life.cluster.promise(lease, secs);
            Some((lease.clone(), secs))
        })
    }
}

fn brief(answer: &Answer<Outcome>) -> String {
    match answer {
        None => "its node is gone".into(),
        Some(Err(error)) => error.to_string(),
        Some(Ok(outcome)) => match &outcome.result {
            Ok(_) => format!("done at {}", outcome.revision),
            Err(rejection) => rejection.to_string(),
        },
    }
}

/// Expires and reclaims while the node leads, as `muster serve` does.
pub fn keep_house(world: &Arc<World>, node: u64, cluster: &Cluster, dead: &CancellationToken) {
    let (world, cluster, dead) = (Arc::clone(world), cluster.clone(), dead.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = dead.cancelled() => return,
                () = sleep(TICK) => {}
            }
            if !(cluster.is_leader() && cluster.has_quorum()) {
                continue;
            }
            let applied_by_all = match world.mutant {
                Some(Mutant::ForgetQuarantine) => Some(Revision(u64::MAX)),
                _ => cluster.vouched_by_all(),
            };
            let now = cluster.now();
            let correct = cluster.time_behind().map(|to| Command::CorrectTime { to });
            let commands = cluster.read(|state| {
                let expire = state.has_expired(now).then_some(Command::Expire);
                let reclaim = applied_by_all
                    .filter(|revision| state.has_reclaimable(*revision))
                    .map(|applied_by_all| Command::Reclaim { applied_by_all });
                correct
                    .into_iter()
                    .chain(expire)
                    .chain(reclaim)
                    .collect::<Vec<_>>()
            });
            for command in commands {
                let proposal = Proposal {
                    request: RequestId(Uuid::new_v4()),
                    actor: Actor(format!("node:{node}")),
                    if_match: None,
                    remember: None,
                    command,
                };
                let written = tokio::select! {
                    biased;
                    () = dead.cancelled() => return,
                    written = cluster.propose(proposal) => written,
                };
                world
                    .oracle
                    .note(format!("node {node} keeps house: {}", written.is_ok()));
            }
        }
    });
}
