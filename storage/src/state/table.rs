//! The tables, and the one way to change a row.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use uuid::Uuid;

use super::pool::{Pools, Reservations};
use super::remember::Memory;
use super::row::{Digest, Row, RowKey, RowWrite};
use crate::command::{Actor, RequestId};
use crate::event::{Action, Change, Subject};
use crate::model::{
    BootReport, ClientKey, Identifier, Install, JoinToken, Lease, Lock, Mac, Member, NodeId,
    Object, ObjectKind, Octets, Record, Revision, SealedKey, Sha256, Timeline, Timestamp, Token,
};
use crate::schema::{self, Corrupt};

/// Changes kept for those who follow the history; older ones are gone (HTTP 410).
pub const EVENTS_MAX: usize = 20_000;

/// Octets of kept changes, as stored: they are in memory and in every snapshot.
pub const EVENTS_OCTETS_MAX: usize = 64 << 20;

/// What all nodes agree on. Read through shared references, changed by [`State::apply`] alone.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(super) meta: Meta,
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) members: BTreeMap<NodeId, Arc<Record<Member>>>,
    pub(super) identifiers: BTreeMap<Ipv4Addr, Identifier>,
    pub(super) join_tokens: BTreeMap<Sha256, JoinToken>,
    pub(super) tokens: BTreeMap<Sha256, Token>,
    pub(super) objects: BTreeMap<ObjectKind, BTreeMap<String, Arc<Record<Object>>>>,
    pub(super) leases: BTreeMap<Ipv4Addr, Arc<Record<Lease>>>,
    pub(super) reports: BTreeMap<Uuid, BootReport>,
    pub(super) installs: BTreeMap<Uuid, Arc<Install>>,
    pub(super) locks: BTreeMap<Uuid, Arc<Lock>>,
    pub(super) timelines: BTreeMap<Uuid, Arc<Timeline>>,
    pub(super) events: VecDeque<Event>,
    events_octets: usize,
    pub(super) remembered: Memory,
    // Derived from the rows, by `index`.
    pub(super) machines_by_mac: BTreeMap<Mac, String>,
    pub(super) machines_by_uuid: BTreeMap<Uuid, String>,
    /// In order; most have one.
    pub(super) leases_by_client: BTreeMap<ClientKey, SmallVec<[Ipv4Addr; 4]>>,
    /// Leases whose time or hold ends, in order of that time (margin not included).
    pub(super) leases_due: BTreeSet<(Timestamp, Ipv4Addr)>,
    /// How many leases are bound, by subnet.
    pub(super) leases_bound: BTreeMap<String, u64>,
    /// Leases that were given back early, by the revision that did it.
    pub(super) leases_released: BTreeSet<(Revision, Ipv4Addr)>,
    /// Boots that are under way, in the order of their last progress.
    pub(super) boots_under_way: BTreeSet<(Timestamp, Uuid)>,
    pub(super) pools: Pools,
    pub(super) reservations: Reservations,
    digest: Digest,
    // What the entry being applied has done so far.
    pending: Vec<RowWrite>,
    pub(super) undo: Vec<(RowKey, Option<Row>)>,
    pub(super) changes: Vec<Arc<Change>>,
    corrupt: Option<Corrupt>,
}

/// Position of the state in history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Schema that the cluster behaves as.
    pub schema: u16,
    /// Latest entry time; never runs back.
    pub time: Timestamp,
    /// Revision of the last proposal of the last entry: what is at or below it has been applied.
    pub revision: Revision,
    /// Newest revision of which changes are no longer kept.
    pub forgotten: Revision,
    /// Newest revision of a proposal that its node may repeat and that is remembered no more.
    pub retries_forgotten: Revision,
    /// Until then no address that was given back is free early: a member was removed that may not
    /// know of it and may still confirm it to its last holder.
    pub no_reclaim_until: Timestamp,
    /// Since when every member has supported a newer schema than the cluster behaves as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raisable_since: Option<Timestamp>,
}

/// A kept change.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// Its place among the changes of its revision.
    pub position: u32,
    /// What changed.
    pub change: Arc<Change>,
    /// How it is stored.
    stored: Stored,
}

/// What is known of a stored row.
#[derive(Clone, Copy, Debug, Default)]
struct Stored {
    octets: usize,
    digest: Digest,
}

impl Event {
    /// Its place in history.
    fn place(&self) -> (Revision, u32) {
        (self.change.revision, self.position)
    }
}

/// Identity of the cluster, written once by the founding entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Random at founding.
    pub id: Uuid,
    /// Certificate of the cluster's authority, PEM.
    pub ca_pem: String,
    /// Its private key, sealed.
    pub ca_key_sealed: Octets,
    /// Keys of the cluster's secrets, by number: the last one seals, all of them open.
    #[serde(default)]
    pub keyring: Vec<SealedKey>,
}

/// The history asked for is no longer kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "events after revision {0} are no longer kept; read the objects anew and follow from there"
)]
pub struct Gone(pub Revision);

/// What a command is applied with, beside the state.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub request: RequestId,
    pub revision: Revision,
    pub at: Timestamp,
    pub actor: &'a Actor,
}

impl State {
    /// Rows changed since the last call, oldest first, for the disk.
    ///
    /// # Errors
    /// When a row could not be encoded, or the cluster goes on to a schema that this binary does not
    /// know: the node must stop, its disk would diverge.
    pub fn take_rows(&mut self) -> Result<Vec<RowWrite>, Corrupt> {
        match self.corrupt.take() {
            Some(problem) => Err(problem),
            None => Ok(std::mem::take(&mut self.pending)),
        }
    }

    /// Rebuilds state from stored rows, in any order.
    ///
    /// # Errors
    /// When a row is damaged, misplaced or of a newer schema.
    pub fn load(rows: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<Self, Corrupt> {
        let mut state = Self::default();
        for (key, value) in rows {
            let (row_key, row) = Row::decode(&key, &value)?;
            let stored = Stored {
                octets: value.len(),
                digest: Digest::of_row(&key, &value),
            };
            state.digest.add(stored.digest);
            state.index(&row_key, Some(row), stored);
        }
        if state.meta.schema > schema::CURRENT {
            return Err(Corrupt::Newer {
                what: "state",
                found: state.meta.schema,
            });
        }
        Ok(state)
    }

    /// Every row, in key order.
    ///
    /// # Errors
    /// When a row cannot be encoded.
    pub fn rows(&self) -> Result<Vec<RowWrite>, Corrupt> {
        let mut rows = vec![(RowKey::Meta, Row::Meta(self.meta.clone()))];
        if let Some(cluster) = &self.cluster {
            rows.push((RowKey::Cluster, Row::Cluster((**cluster).clone())));
        }
        let others = self
            .members
            .values()
            .map(|m| Row::Member((**m).clone()))
            .chain(self.identifiers.values().cloned().map(Row::Identifier))
            .chain(self.join_tokens.values().cloned().map(Row::JoinToken))
            .chain(self.tokens.values().cloned().map(Row::Token))
            .chain(
                self.objects
                    .values()
                    .flat_map(BTreeMap::values)
                    .map(|o| Row::Object(Box::new((**o).clone()))),
            )
            .chain(
                self.leases
                    .values()
                    .map(|record| Row::Lease(Arc::clone(record))),
            )
            .chain(self.reports.values().cloned().map(Row::Report))
            .chain(self.installs.values().cloned().map(Row::Install))
            .chain(self.locks.values().cloned().map(Row::Lock))
            .chain(self.timelines.values().cloned().map(Row::Timeline))
            .chain(self.remembered.rows())
            .map(|row| (row.key(0), row));
        rows.extend(others);
        rows.extend(self.events.iter().map(|event| {
            (
                RowKey::Event(event.change.revision, event.position),
                Row::Event(Arc::clone(&event.change)),
            )
        }));
        let mut writes = rows
            .into_iter()
            .map(|(key, row)| {
                Ok(RowWrite {
                    key: key.encode(),
                    value: Some(row.encode()?),
                })
            })
            .collect::<Result<Vec<_>, Corrupt>>()?;
        writes.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(writes)
    }

    /// Sum over all rows: equal on all nodes at equal revision.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Revision of the last applied proposal.
    pub fn revision(&self) -> Revision {
        self.meta.revision
    }

    /// Latest entry time.
    pub fn time(&self) -> Timestamp {
        self.meta.time
    }

    /// The node must stop: what it would write from here on is not what the others have.
    pub(super) fn stop(&mut self, why: Corrupt) {
        self.corrupt.get_or_insert(why);
    }

    /// Notes a change for followers; it becomes history when the proposal is done.
    pub(super) fn changed(&mut self, context: Context<'_>, action: Action, subject: Subject) {
        // History outlives the declaration that hides a param.
        let subject = match subject {
            Subject::Object(object) => {
                Subject::Object(object.without_secrets(|name| self.is_secure(name)))
            }
            other => other,
        };
        self.changes.push(Arc::new(Change {
            revision: context.revision,
            at: context.at,
            actor: context.actor.clone(),
            action,
            subject,
        }));
    }

    pub(super) fn record(&mut self, changes: &[Arc<Change>]) {
        for (change, position) in changes.iter().zip(0u32..) {
            self.put(
                RowKey::Event(change.revision, position),
                Some(Row::Event(Arc::clone(change))),
            );
        }
    }

    /// Forgets the oldest changes beyond the limits; returns the newest revision it forgot of.
    pub(super) fn trim_history(&mut self) -> Option<Revision> {
        let mut forgotten = None;
        while self.events.len() > EVENTS_MAX || self.events_octets > EVENTS_OCTETS_MAX {
            let Some(oldest) = self.events.front() else {
                break;
            };
            let (revision, position) = (oldest.change.revision, oldest.position);
            self.put(RowKey::Event(revision, position), None);
            forgotten = Some(revision);
        }
        forgotten
    }

    pub(super) fn roll_back(&mut self) {
        self.changes.clear();
        for (key, before) in std::mem::take(&mut self.undo).into_iter().rev() {
            self.put(key, before);
        }
    }

    /// The one way to change a row: keeps tables, indexes, digest, disk and undo in step.
    pub(super) fn put(&mut self, key: RowKey, row: Option<Row>) {
        let encoded = key.encode();
        let value = match row.as_ref().map(Row::encode).transpose() {
            Ok(value) => value,
            Err(problem) => {
                self.stop(problem);
                None
            }
        };
        let stored = value.as_ref().map(|value| Stored {
            octets: value.len(),
            digest: Digest::of_row(&encoded, value),
        });
        // Of history it is known still: it is only ever added to, and forgotten.
        let digest = self.digest_of_event(&key);
        let before = self.index(&key, row, stored.unwrap_or_default());
        let old = before
            .as_ref()
            .and_then(|row| digest.or_else(|| Some(Digest::of_row(&encoded, &row.encode().ok()?))));
        if let Some(old) = old {
            self.digest.remove(old);
        }
        if let Some(new) = stored {
            self.digest.add(new.digest);
        }
        self.pending.push(RowWrite {
            key: encoded,
            value,
        });
        self.undo.push((key, before));
    }

    /// Puts a row into its table and the indexes; returns what stood there.
    fn index(&mut self, key: &RowKey, row: Option<Row>, stored: Stored) -> Option<Row> {
        match (key, row) {
            (RowKey::Object(kind, name), row) => {
                let new = match row {
                    Some(Row::Object(record)) => Some(*record),
                    _ => None,
                };
                self.index_object(*kind, name, new)
                    .map(|record| Row::Object(Box::new(unshare(record))))
            }
            (RowKey::Lease(address), row) => {
                let new = match row {
                    Some(Row::Lease(record)) => Some(record),
                    _ => None,
                };
                self.index_lease(*address, new).map(Row::Lease)
            }
            (RowKey::Event(revision, position), row) => {
                let place = (*revision, *position);
                let at = self.place_of_event(place);
                let stands = self.event_at(place).is_some();
                let old = stands.then(|| self.events.remove(at)).flatten();
                if let Some(old) = &old {
                    self.events_octets = self.events_octets.saturating_sub(old.stored.octets);
                }
                if let Some(Row::Event(change)) = row {
                    self.events_octets = self.events_octets.saturating_add(stored.octets);
                    let event = Event {
                        position: *position,
                        change,
                        stored,
                    };
                    self.events.insert(at, event);
                }
                old.map(|event| Row::Event(event.change))
            }
            (RowKey::Meta, row) => {
                let new = match row {
                    Some(Row::Meta(meta)) => meta,
                    _ => Meta::default(),
                };
                let old = std::mem::replace(&mut self.meta, new);
                (old != Meta::default()).then_some(Row::Meta(old))
            }
            (RowKey::Cluster, row) => {
                let new = match row {
                    Some(Row::Cluster(cluster)) => Some(Arc::new(cluster)),
                    _ => None,
                };
                std::mem::replace(&mut self.cluster, new).map(|old| Row::Cluster(unshare(old)))
            }
            (RowKey::Member(id), Some(Row::Member(record))) => self
                .members
                .insert(*id, Arc::new(record))
                .map(|old| Row::Member(unshare(old))),
            (RowKey::Member(id), _) => self.members.remove(id).map(|old| Row::Member(unshare(old))),
            (RowKey::Identifier(address), Some(Row::Identifier(identifier))) => self
                .identifiers
                .insert(*address, identifier)
                .map(Row::Identifier),
            (RowKey::Identifier(address), _) => {
                self.identifiers.remove(address).map(Row::Identifier)
            }
            (RowKey::JoinToken(hash), Some(Row::JoinToken(token))) => {
                self.join_tokens.insert(*hash, token).map(Row::JoinToken)
            }
            (RowKey::JoinToken(hash), _) => self.join_tokens.remove(hash).map(Row::JoinToken),
            (RowKey::Token(hash), Some(Row::Token(token))) => {
                self.tokens.insert(*hash, token).map(Row::Token)
            }
            (RowKey::Token(hash), _) => self.tokens.remove(hash).map(Row::Token),
            (RowKey::Remembered(request), row) => {
                let new = match row {
                    Some(Row::Remembered(remembered)) => Some(*remembered),
                    _ => None,
                };
                self.remembered
                    .index(*request, new, stored.octets)
                    .map(|old| Row::Remembered(Box::new(old)))
            }
            (RowKey::Report(machine), Some(Row::Report(report))) => {
                self.reports.insert(*machine, report).map(Row::Report)
            }
            (RowKey::Report(machine), _) => self.reports.remove(machine).map(Row::Report),
            (RowKey::Install(machine), Some(Row::Install(install))) => {
                self.installs.insert(*machine, install).map(Row::Install)
            }
            (RowKey::Install(machine), _) => self.installs.remove(machine).map(Row::Install),
            (RowKey::Lock(machine), Some(Row::Lock(lock))) => {
                self.locks.insert(*machine, lock).map(Row::Lock)
            }
            (RowKey::Lock(machine), _) => self.locks.remove(machine).map(Row::Lock),
            (RowKey::Timeline(machine), row) => {
                let new = match row {
                    Some(Row::Timeline(timeline)) => Some(timeline),
                    _ => None,
                };
                self.index_timeline(*machine, new).map(Row::Timeline)
            }
        }
    }

    fn event_at(&self, place: (Revision, u32)) -> Option<&Event> {
        let event = self.events.get(self.place_of_event(place))?;
        (event.place() == place).then_some(event)
    }

    fn digest_of_event(&self, key: &RowKey) -> Option<Digest> {
        match key {
            RowKey::Event(revision, position) => {
                let event = self.event_at((*revision, *position))?;
                Some(event.stored.digest)
            }
            _ => None,
        }
    }

    /// Where a change stands or would stand: nearly always behind all, or first when it is forgotten.
    fn place_of_event(&self, place: (Revision, u32)) -> usize {
        match (self.events.front(), self.events.back()) {
            (_, Some(last)) if last.place() < place => self.events.len(),
            (Some(first), _) if first.place() >= place => 0,
            _ => self.events.partition_point(|event| event.place() < place),
        }
    }

    fn index_object(
        &mut self,
        kind: ObjectKind,
        key: &str,
        new: Option<Record<Object>>,
    ) -> Option<Arc<Record<Object>>> {
        let new = new.map(Arc::new);
        let table = self.objects.entry(kind).or_default();
        let old = match &new {
            Some(record) => table.insert(key.to_owned(), Arc::clone(record)),
            None => table.remove(key),
        };
        let (before, after) = (
            old.as_ref().map(|record| &record.object),
            new.as_ref().map(|record| &record.object),
        );
        if let Some(Object::Machine(machine)) = before {
            self.machines_by_uuid.remove(&machine.uuid);
            for mac in &machine.macs {
                self.machines_by_mac.remove(mac);
            }
        }
        if let Some(Object::Machine(machine)) = after {
            self.machines_by_uuid.insert(machine.uuid, key.to_owned());
            for mac in &machine.macs {
                self.machines_by_mac.insert(*mac, key.to_owned());
            }
        }
        if kind == ObjectKind::Subnet {
            let subnet = match after {
                Some(Object::Subnet(subnet)) => Some(&**subnet),
                _ => None,
            };
            self.pools.set_subnet(key, subnet, &self.leases);
        }
        if kind == ObjectKind::Reservation {
            if let Some(Object::Reservation(reservation)) = before {
                self.reservations.remove(reservation);
                self.pools.unreserve(reservation.address, &self.leases);
            }
            if let Some(Object::Reservation(reservation)) = after {
                self.reservations.insert(reservation);
                self.pools.reserve(reservation.address);
            }
        }
        old
    }

    fn index_lease(
        &mut self,
        address: Ipv4Addr,
        new: Option<Arc<Record<Lease>>>,
    ) -> Option<Arc<Record<Lease>>> {
        let old = match &new {
            Some(record) => self.leases.insert(address, Arc::clone(record)),
            None => self.leases.remove(&address),
        };
        let (before, after) = (
            old.as_ref().map(|record| &record.object.client),
            new.as_ref().map(|record| &record.object.client),
        );
        if before != after {
            if let Some(before) = before
                && let Some(held) = self.leases_by_client.get_mut(before)
            {
                held.retain(|held| *held != address);
                if held.is_empty() {
                    self.leases_by_client.remove(before);
                }
            }
            if let Some(after) = after {
                let held = self.leases_by_client.entry(after.clone()).or_default();
                if let Err(place) = held.binary_search(&address) {
                    held.insert(place, address);
                }
            }
        }
        if let Some(record) = &old {
            self.leases_due.remove(&(record.object.held_until, address));
            self.leases_released.remove(&(record.revision, address));
        }
        if let Some(record) = &new {
            let lease = &record.object;
            if !lease.free {
                self.leases_due.insert((lease.held_until, address));
                if lease.is_returned() {
                    self.leases_released.insert((record.revision, address));
                }
            }
        }
        let free = new.as_ref().is_none_or(|record| record.object.free);
        self.pools.set_leased(address, !free);
        self.count_bound(old.as_deref(), new.as_deref());
        old
    }
}

fn unshare<T: Clone>(shared: Arc<T>) -> T {
    Arc::try_unwrap(shared).unwrap_or_else(|shared| (*shared).clone())
}
