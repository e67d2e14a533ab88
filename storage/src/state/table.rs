//! The tables, the one way to change a row, and `apply`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::pool::{Pools, Reservations};
use super::row::{Digest, Row, RowKey, RowWrite};
use crate::command::{Actor, Command, Effect, Entry, Founding, Outcome, Rejection};
use crate::event::{Action, Change, Subject};
use crate::model::{
    BootReport, ClientKey, Identifier, JoinToken, Lease, Mac, Machine, Member, NodeId, Object,
    ObjectKind, Octets, Record, Revision, Settings, Sha256, Timestamp, Token, User,
};
use crate::schema::{self, Corrupt};

/// Changes kept for those who follow the history; older ones are gone (HTTP 410).
pub const EVENTS_MAX: usize = 20_000;

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
    events: VecDeque<(u32, Arc<Change>)>,
    // Derived from the rows, by `index`.
    pub(super) machines_by_mac: BTreeMap<Mac, String>,
    pub(super) machines_by_uuid: BTreeMap<Uuid, String>,
    pub(super) leases_by_client: BTreeMap<ClientKey, BTreeSet<Ipv4Addr>>,
    /// Leases whose time or hold ends, in order of that time (margin not included).
    pub(super) leases_due: BTreeSet<(Timestamp, Ipv4Addr)>,
    /// Leases that were given back early, by the revision that did it.
    pub(super) leases_released: BTreeSet<(Revision, Ipv4Addr)>,
    pub(super) pools: Pools,
    pub(super) reservations: Reservations,
    digest: Digest,
    // What the entry being applied has done so far.
    pending: Vec<RowWrite>,
    undo: Vec<(RowKey, Option<Row>)>,
    changes: Vec<Change>,
    corrupt: Option<String>,
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
    pub revision: Revision,
    pub at: Timestamp,
    pub actor: &'a Actor,
}

impl State {
    /// Applies a committed entry: the only way in which state changes.
    ///
    /// `revision` is that of the entry's first proposal. Deterministic: the same entries in the
    /// same order give the same rows, outcomes and changes on every node. A refused proposal
    /// changes nothing.
    pub fn apply(&mut self, revision: Revision, entry: &Entry) -> Vec<(Outcome, Vec<Change>)> {
        let at = self.meta.time.max(entry.at);
        let mut meta = self.meta.clone();
        meta.time = at;
        let last = entry.proposals.len().saturating_sub(1) as u64;
        meta.revision = Revision(revision.0.saturating_add(last));
        meta.schema = meta.schema.max(1);
        self.put(RowKey::Meta, Some(Row::Meta(meta)));
        let outcomes = entry
            .proposals
            .iter()
            .zip(0u64..)
            .map(|(proposal, position)| {
                let revision = Revision(revision.0.saturating_add(position));
                let context = Context {
                    revision,
                    at,
                    actor: &proposal.actor,
                };
                self.undo.clear();
                self.changes.clear();
                let result = self
                    .check_revision(proposal.if_match, &proposal.command)
                    .and_then(|()| self.execute(context, &proposal.command));
                if result.is_err() {
                    self.roll_back();
                }
                let changes = std::mem::take(&mut self.changes);
                self.record(&changes);
                (Outcome { revision, result }, changes)
            })
            .collect();
        self.undo.clear();
        outcomes
    }

    /// Rows changed since the last call, oldest first, for the disk.
    ///
    /// # Errors
    /// When a row could not be encoded: the node must stop, its disk would diverge.
    pub fn take_rows(&mut self) -> Result<Vec<RowWrite>, Corrupt> {
        match self.corrupt.take() {
            Some(problem) => Err(Corrupt::Undecodable {
                what: "row",
                problem,
            }),
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
            state.digest.add(&key, &value);
            state.index(&row_key, Some(row));
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
                    .map(|l| Row::Lease(Box::new((**l).clone()))),
            )
            .chain(self.reports.values().cloned().map(Row::Report))
            .map(|row| (row.key(0), row));
        rows.extend(others);
        rows.extend(self.events.iter().map(|(position, change)| {
            (
                RowKey::Event(change.revision, *position),
                Row::Event(Box::new((**change).clone())),
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

    /// Schema that the cluster behaves as.
    pub fn schema(&self) -> u16 {
        self.meta.schema.max(1)
    }

    /// Identity of the cluster; absent before the founding entry.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_deref()
    }

    /// All members, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values().map(|record| &record.object)
    }

    /// All members with revision and times, by id.
    pub fn member_records(&self) -> impl Iterator<Item = &Record<Member>> {
        self.members.values().map(Arc::as_ref)
    }

    /// A member by id.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.get(&id).map(|record| &record.object)
    }

    /// A member by name.
    pub fn member_named(&self, name: &str) -> Option<&Member> {
        self.members().find(|member| member.name == name)
    }

    /// Who registered an address for option 54, if it is honoured still.
    pub fn identifier(&self, address: Ipv4Addr) -> Option<&Identifier> {
        self.identifiers.get(&address)
    }

    /// A join token by the hash of its secret, valid or not.
    pub fn join_token(&self, hash: &Sha256) -> Option<&JoinToken> {
        self.join_tokens.get(hash)
    }

    /// A bearer token by its hash, if it is valid at `now`.
    pub fn token(&self, hash: &Sha256, now: Timestamp) -> Option<&Token> {
        self.tokens.get(hash).filter(|token| token.expires_at > now)
    }

    /// A user by name.
    pub fn user(&self, name: &str) -> Option<&User> {
        match &self.object(ObjectKind::User, name)?.object {
            Object::User(user) => Some(user),
            _ => None,
        }
    }

    /// An object with its revision and times. A machine is found by name only, see
    /// [`State::machine`].
    pub fn object(&self, kind: ObjectKind, key: &str) -> Option<&Arc<Record<Object>>> {
        self.objects.get(&kind)?.get(key)
    }

    /// Objects of a kind in key order, from the first key after `after`.
    pub fn objects_after<'a>(
        &'a self,
        kind: ObjectKind,
        after: Option<&str>,
    ) -> impl Iterator<Item = &'a Arc<Record<Object>>> + use<'a> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.to_owned()));
        self.objects
            .get(&kind)
            .into_iter()
            .flat_map(move |table| table.range((from.clone(), Bound::Unbounded)))
            .map(|(_, record)| record)
    }

    /// The cluster's settings, or their defaults.
    pub fn settings(&self) -> Settings {
        match self
            .object(ObjectKind::Settings, "cluster")
            .map(|record| &record.object)
        {
            Some(Object::Settings(settings)) => settings.clone(),
            _ => Settings::default(),
        }
    }

    /// A machine by name, UUID or MAC, with its record.
    pub fn machine_record(&self, key: &str) -> Option<&Arc<Record<Object>>> {
        let machines = self.objects.get(&ObjectKind::Machine)?;
        if let Some(record) = machines.get(key) {
            return Some(record);
        }
        let name = match (key.parse::<Uuid>(), key.parse::<Mac>()) {
            (Ok(uuid), _) => self.machines_by_uuid.get(&uuid),
            (_, Ok(mac)) => self.machines_by_mac.get(&mac),
            _ => None,
        }?;
        machines.get(name)
    }

    /// A machine by name, UUID or MAC.
    pub fn machine(&self, key: &str) -> Option<&Machine> {
        as_machine(self.machine_record(key)?)
    }

    /// The machine that owns a MAC.
    pub fn machine_with_mac(&self, mac: Mac) -> Option<&Machine> {
        let name = self.machines_by_mac.get(&mac)?;
        as_machine(self.object(ObjectKind::Machine, name)?)
    }

    /// The machine with a UUID.
    pub fn machine_with_uuid(&self, uuid: Uuid) -> Option<&Machine> {
        let name = self.machines_by_uuid.get(&uuid)?;
        as_machine(self.object(ObjectKind::Machine, name)?)
    }

    /// The last callback of a machine.
    pub fn report(&self, machine: Uuid) -> Option<&BootReport> {
        self.reports.get(&machine)
    }

    /// A lease by address, with its record.
    pub fn lease(&self, address: Ipv4Addr) -> Option<&Arc<Record<Lease>>> {
        self.leases.get(&address)
    }

    /// Leases in order of address, from the first after `after`.
    pub fn leases_after(
        &self,
        after: Option<Ipv4Addr>,
    ) -> impl Iterator<Item = &Arc<Record<Lease>>> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.leases
            .range((from, Bound::Unbounded))
            .map(|(_, record)| record)
    }

    /// Changes after a revision, oldest first, as far as they are kept.
    ///
    /// # Errors
    /// When the history no longer reaches back that far.
    pub fn events_after(
        &self,
        after: Revision,
    ) -> Result<impl Iterator<Item = &Arc<Change>>, Gone> {
        let kept_from = self.events.front().map(|(_, change)| change.revision);
        if self.events.len() >= EVENTS_MAX && kept_from.is_some_and(|first| after < first) {
            return Err(Gone(after));
        }
        let start = self
            .events
            .partition_point(|(_, change)| change.revision <= after);
        Ok(self.events.range(start..).map(|(_, change)| change))
    }

    /// Revision to follow the history from, as far as it is kept.
    pub fn history_start(&self) -> Revision {
        // The oldest revision may be there in part.
        let first = self
            .events
            .front()
            .filter(|_| self.events.len() >= EVENTS_MAX);
        first.map_or(Revision(0), |(_, change)| change.revision)
    }

    fn execute(&mut self, context: Context<'_>, command: &Command) -> Result<Effect, Rejection> {
        match command {
            Command::Found(founding) => self.found(context, founding),
            Command::Put { object, mode } => self.put_object(context, object, *mode),
            Command::Delete { kind, key } => self.delete_object(context, *kind, key),
            Command::Many(commands) => self.execute_many(context, commands),
            Command::Bind(bind) => self.bind(context, bind),
            Command::Release { client, address } => self.release(context, client, *address),
            Command::Decline { client, address } => self.decline(context, client, *address),
            Command::Expire => Ok(self.expire(context)),
            Command::Reclaim { applied_by_all } => Ok(self.reclaim(context, *applied_by_all)),
            Command::EndLease { address } => self.end_lease(context, *address),
            Command::AddMember { member, token } => self.add_member(context, member, *token),
            Command::UpdateMember(member) => self.update_member(context, member),
            Command::RemoveMember { node } => self.remove_member(context, *node),
            Command::AddJoinToken(token) => {
                self.put(
                    RowKey::JoinToken(token.hash),
                    Some(Row::JoinToken(token.clone())),
                );
                Ok(Effect::Done)
            }
            Command::RevokeJoinTokens => {
                for hash in self.join_tokens.keys().copied().collect::<Vec<_>>() {
                    self.put(RowKey::JoinToken(hash), None);
                }
                Ok(Effect::Done)
            }
            Command::AddToken(token) => self.add_token(token),
            Command::RevokeTokens { user } => {
                self.revoke_tokens(user);
                Ok(Effect::Done)
            }
            Command::Report { machine, body } => self.report_boot(context, *machine, body),
        }
    }

    fn execute_many(
        &mut self,
        context: Context<'_>,
        commands: &[Command],
    ) -> Result<Effect, Rejection> {
        if commands.len() > Command::MANY_MAX {
            return Err(Rejection::Invalid {
                field: "commands".into(),
                problem: format!("more than {} in one bundle; split it", Command::MANY_MAX),
            });
        }
        let effects = commands.iter().map(|command| match command {
            Command::Many(_) => Err(Rejection::Invalid {
                field: "commands".into(),
                problem: "a bundle inside a bundle".into(),
            }),
            single => self.execute(context, single),
        });
        effects.collect::<Result<_, _>>().map(Effect::Many)
    }

    fn found(&mut self, context: Context<'_>, founding: &Founding) -> Result<Effect, Rejection> {
        if self.cluster.is_some() {
            return Err(Rejection::Conflict("the cluster is founded already".into()));
        }
        self.put(
            RowKey::Cluster,
            Some(Row::Cluster(Cluster {
                id: founding.cluster_id,
                ca_pem: founding.ca_pem.clone(),
                ca_key_sealed: founding.ca_key_sealed.clone(),
            })),
        );
        let member = Member {
            id: NodeId(1),
            ..founding.member.clone()
        };
        self.write_member(context, member, Action::Created);
        for object in [
            Object::Settings(Settings::default()),
            Object::User(User {
                name: "admin".into(),
                password_hash: founding.admin_password_hash.clone(),
            }),
        ] {
            self.write_object(context, object);
        }
        Ok(Effect::Member(NodeId(1)))
    }

    fn add_member(
        &mut self,
        context: Context<'_>,
        member: &Member,
        token: Option<Sha256>,
    ) -> Result<Effect, Rejection> {
        if let Some(hash) = token {
            let valid = |known: &&JoinToken| known.expires_at > context.at;
            self.join_token(&hash)
                .filter(valid)
                .ok_or(Rejection::TokenRefused)?;
        }
        self.check_member_name(member, None)?;
        // The position keeps ids apart when several nodes join in one entry; ids of entries cannot
        // overlap because the log index is scaled.
        let id = NodeId(context.revision.0);
        let member = Member {
            id,
            ..member.clone()
        };
        self.write_member(context, member, Action::Created);
        Ok(Effect::Member(id))
    }

    fn update_member(
        &mut self,
        context: Context<'_>,
        member: &Member,
    ) -> Result<Effect, Rejection> {
        if self.member(member.id).is_none() {
            return Err(Rejection::NotFound {
                kind: "node".into(),
                key: member.id.to_string(),
            });
        }
        self.check_member_name(member, Some(member.id))?;
        self.write_member(context, member.clone(), Action::Updated);
        Ok(Effect::Done)
    }

    fn check_member_name(&self, member: &Member, own: Option<NodeId>) -> Result<(), Rejection> {
        match self.member_named(&member.name) {
            Some(other) if Some(other.id) != own => Err(Rejection::Conflict(format!(
                "a node named `{}` is in the cluster already; remove it first or use another name",
                member.name
            ))),
            _ => Ok(()),
        }
    }

    fn remove_member(&mut self, context: Context<'_>, node: NodeId) -> Result<Effect, Rejection> {
        let member = self.member(node).cloned().ok_or(Rejection::NotFound {
            kind: "node".into(),
            key: node.to_string(),
        })?;
        // Clients name its identifiers until the longest lease granted so far ends.
        let longest = self
            .leases_due
            .last()
            .map_or(context.at, |(due, _)| (*due).max(context.at));
        for identifier in self.identifiers.clone().into_values() {
            if identifier.node == node {
                let kept = Identifier {
                    until: Some(longest),
                    ..identifier
                };
                self.put(
                    RowKey::Identifier(kept.address),
                    Some(Row::Identifier(kept)),
                );
            }
        }
        self.put(RowKey::Member(node), None);
        self.changed(context, Action::Deleted, Subject::Member(member));
        Ok(Effect::Done)
    }

    fn write_member(&mut self, context: Context<'_>, member: Member, action: Action) {
        for address in &member.identifiers {
            self.put(
                RowKey::Identifier(*address),
                Some(Row::Identifier(Identifier {
                    address: *address,
                    node: member.id,
                    until: None,
                })),
            );
        }
        let created_at = self
            .members
            .get(&member.id)
            .map_or(context.at, |record| record.created_at);
        let record = Record {
            revision: context.revision,
            created_at,
            updated_at: context.at,
            object: member.clone(),
        };
        self.put(RowKey::Member(member.id), Some(Row::Member(record)));
        self.changed(context, action, Subject::Member(member));
    }

    fn add_token(&mut self, token: &Token) -> Result<Effect, Rejection> {
        if self.user(&token.user).is_none() {
            return Err(Rejection::NotFound {
                kind: "user".into(),
                key: token.user.clone(),
            });
        }
        self.put(RowKey::Token(token.hash), Some(Row::Token(token.clone())));
        Ok(Effect::Done)
    }

    pub(super) fn revoke_tokens(&mut self, user: &str) {
        let of_user = self.tokens.values().filter(|token| token.user == user);
        for hash in of_user.map(|token| token.hash).collect::<Vec<_>>() {
            self.put(RowKey::Token(hash), None);
        }
    }

    /// Tokens and identifiers whose time is over at `at`.
    fn forgettable(&self, at: Timestamp) -> impl Iterator<Item = RowKey> + '_ {
        let tokens = self
            .tokens
            .values()
            .filter(move |token| token.expires_at <= at)
            .map(|token| RowKey::Token(token.hash));
        let join_tokens = self
            .join_tokens
            .values()
            .filter(move |token| token.expires_at <= at)
            .map(|token| RowKey::JoinToken(token.hash));
        let identifiers = self
            .identifiers
            .values()
            .filter(move |identifier| identifier.until.is_some_and(|until| until <= at))
            .map(|identifier| RowKey::Identifier(identifier.address));
        tokens.chain(join_tokens).chain(identifiers)
    }

    pub(super) fn has_forgettable(&self, at: Timestamp) -> bool {
        self.forgettable(at).next().is_some()
    }

    pub(super) fn forget_expired(&mut self, at: Timestamp) {
        for key in self.forgettable(at).collect::<Vec<_>>() {
            self.put(key, None);
        }
    }

    fn report_boot(
        &mut self,
        context: Context<'_>,
        machine: Uuid,
        body: &str,
    ) -> Result<Effect, Rejection> {
        if self.machine_with_uuid(machine).is_none() {
            return Err(Rejection::NotFound {
                kind: "machine".into(),
                key: machine.to_string(),
            });
        }
        let report = BootReport {
            machine,
            at: context.at,
            body: body.to_owned(),
        };
        self.put(RowKey::Report(machine), Some(Row::Report(report.clone())));
        self.changed(context, Action::Created, Subject::Report(report));
        Ok(Effect::Done)
    }

    /// Notes a change for followers; it becomes history when the proposal is done.
    pub(super) fn changed(&mut self, context: Context<'_>, action: Action, subject: Subject) {
        self.changes.push(Change {
            revision: context.revision,
            at: context.at,
            actor: context.actor.clone(),
            action,
            subject,
        });
    }

    fn record(&mut self, changes: &[Change]) {
        for (change, position) in changes.iter().zip(0u32..) {
            self.put(
                RowKey::Event(change.revision, position),
                Some(Row::Event(Box::new(change.clone()))),
            );
        }
        while self.events.len() > EVENTS_MAX {
            let Some((position, change)) = self.events.front() else {
                break;
            };
            let key = RowKey::Event(change.revision, *position);
            self.put(key, None);
        }
    }

    fn roll_back(&mut self) {
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
                self.corrupt = Some(problem.to_string());
                None
            }
        };
        let before = self.index(&key, row);
        if let Some(old) = before.as_ref().and_then(|row| row.encode().ok()) {
            self.digest.remove(&encoded, &old);
        }
        if let Some(new) = &value {
            self.digest.add(&encoded, new);
        }
        self.pending.push(RowWrite {
            key: encoded,
            value,
        });
        self.undo.push((key, before));
    }

    /// Puts a row into its table and the indexes; returns what stood there.
    fn index(&mut self, key: &RowKey, row: Option<Row>) -> Option<Row> {
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
                    Some(Row::Lease(record)) => Some(*record),
                    _ => None,
                };
                self.index_lease(*address, new)
                    .map(|record| Row::Lease(Box::new(unshare(record))))
            }
            (RowKey::Event(revision, position), row) => match row {
                Some(Row::Event(change)) => {
                    let at = self.events.partition_point(|(old_position, old)| {
                        (old.revision, *old_position) < (*revision, *position)
                    });
                    self.events.insert(at, (*position, Arc::new(*change)));
                    None
                }
                _ => {
                    let at = self.events.iter().position(|(old_position, old)| {
                        (old.revision, *old_position) == (*revision, *position)
                    })?;
                    let (_, change) = self.events.remove(at)?;
                    Some(Row::Event(Box::new(unshare(change))))
                }
            },
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
            (RowKey::Report(machine), Some(Row::Report(report))) => {
                self.reports.insert(*machine, report).map(Row::Report)
            }
            (RowKey::Report(machine), _) => self.reports.remove(machine).map(Row::Report),
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
                Some(Object::Subnet(subnet)) => Some(subnet),
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
        new: Option<Record<Lease>>,
    ) -> Option<Arc<Record<Lease>>> {
        let new = new.map(Arc::new);
        let old = match &new {
            Some(record) => self.leases.insert(address, Arc::clone(record)),
            None => self.leases.remove(&address),
        };
        if let Some(record) = &old {
            if let Some(held) = self.leases_by_client.get_mut(&record.object.client) {
                held.remove(&address);
                if held.is_empty() {
                    self.leases_by_client.remove(&record.object.client);
                }
            }
            self.leases_due.remove(&(record.object.held_until, address));
            self.leases_released.remove(&(record.revision, address));
        }
        if let Some(record) = &new {
            let lease = &record.object;
            self.leases_by_client
                .entry(lease.client.clone())
                .or_default()
                .insert(address);
            if !lease.free {
                self.leases_due.insert((lease.held_until, address));
                if lease.state == crate::model::LeaseState::Released {
                    self.leases_released.insert((record.revision, address));
                }
            }
        }
        let free = new.as_ref().is_none_or(|record| record.object.free);
        self.pools.set_leased(address, !free);
        old
    }
}

fn as_machine(record: &Arc<Record<Object>>) -> Option<&Machine> {
    match &record.object {
        Object::Machine(machine) => Some(machine),
        _ => None,
    }
}

fn unshare<T: Clone>(shared: Arc<T>) -> T {
    Arc::try_unwrap(shared).unwrap_or_else(|shared| (*shared).clone())
}
