//! Questions that anyone may ask of the state.

use std::net::Ipv4Addr;
use std::sync::Arc;

use uuid::Uuid;

use super::table::{Cluster, Gone, State};
use crate::event::Change;
use crate::model::{
    BootReport, Identifier, JoinToken, Lease, Mac, Machine, Member, NodeId, Object, ObjectKind,
    Record, Revision, Settings, Sha256, Timestamp, Token, User,
};

impl State {
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
        if after < self.meta.forgotten {
            return Err(Gone(after));
        }
        let start = self
            .events
            .partition_point(|event| event.change.revision <= after);
        Ok(self.events.range(start..).map(|event| &event.change))
    }

    /// Revision to follow the history from, as far as it is kept.
    pub fn history_start(&self) -> Revision {
        self.meta.forgotten
    }
}

fn as_machine(record: &Arc<Record<Object>>) -> Option<&Machine> {
    match &record.object {
        Object::Machine(machine) => Some(machine),
        _ => None,
    }
}
