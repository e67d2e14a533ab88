//! Leases as they are written: bound, given back, declined, ended.
//!
//! Uniqueness is decided here, in `apply`; what a read says is a guess that may lose.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::offer::Grant;
use super::row::{Row, RowKey};
use super::table::{Context, State};
use crate::command::{Bind, Client, Command, Effect, Rejection};
use crate::event::{Action, Subject};
use crate::model::{
    Lease, LeaseRule, LeaseState, NodeId, Record, Revision, Subnet, SubnetMode, Timestamp,
};

/// Leases that one housekeeping command ends, so that no entry is long to apply.
const EXPIRE_MAX: usize = 1000;

/// The committed end of a lease is ahead of the promised one by at most this many seconds.
const AHEAD_SECS_MAX: u64 = 3600;

impl State {
    pub(super) fn bind(&mut self, context: Context<'_>, bind: &Bind) -> Result<Effect, Rejection> {
        let (client, address, at) = (&bind.client, bind.address, context.at);
        let foreign = Rejection::NotForClient { address };
        let subnet = self
            .subnet_with(&client.link, address)
            .ok_or(foreign.clone())?;
        let key = self.client_key(client, subnet).ok_or(foreign.clone())?;
        self.may_have(client, &key, subnet, address)?;
        let owed = self.owed(client, at);
        match owed {
            Some((owed, _)) if owed != address => return Err(foreign),
            None if subnet.mode == SubnetMode::ReservedOnly => return Err(foreign),
            _ => {}
        }
        let promised = u64::from(self.promise(client, subnet));
        let expires_at = at.plus_secs(promised + promised.min(AHEAD_SECS_MAX));
        let old = self.leases.get(&address).cloned();
        let own = old
            .as_ref()
            .filter(|record| record.object.client == key)
            .map(|record| &record.object);
        let running = own.filter(|lease| lease.state == LeaseState::Bound);
        let lease = Lease {
            address,
            subnet: subnet.name.clone(),
            client: key.clone(),
            mac: client.mac,
            client_id: client.client_id.clone(),
            hostname: client
                .hostname
                .clone()
                .or_else(|| own.and_then(|lease| lease.hostname.clone())),
            machine: client
                .mac
                .and_then(|mac| self.machine_with_mac(mac))
                .map(|machine| machine.uuid),
            state: LeaseState::Bound,
            bound_at: running.map_or(at, |lease| lease.bound_at),
            promised_until: at.plus_secs(promised),
            expires_at,
            // Whoever of the machine's identities had it before may still believe in its own end.
            held_until: old
                .as_ref()
                .filter(|record| !record.object.free)
                .map_or(expires_at, |record| {
                    record.object.held_until.max(expires_at)
                }),
            free: false,
            node: bind.node,
            rule: match owed {
                Some((_, Grant::Reservation)) => LeaseRule::Reservation,
                _ => match (running, own) {
                    (Some(running), _) => running.rule.clone(),
                    (None, Some(_)) => LeaseRule::Previous,
                    (None, None) => self.pool_rule(client, subnet),
                },
            },
            boots: client.boots || own.is_some_and(|lease| lease.boots),
            relay: client
                .relay
                .clone()
                .or_else(|| running.and_then(|lease| lease.relay.clone())),
            uuid: client
                .traits
                .uuid
                .or_else(|| own.and_then(|lease| lease.uuid)),
        };
        // A client has one address on a link: what it had before is given back.
        let on_link = |name: &str| {
            let mut subnets = self.subnets_of_link(&client.link);
            subnets.any(|subnet| subnet.name == name)
        };
        let left: Vec<Ipv4Addr> = self
            .leases_of(&key)
            .map(|record| &record.object)
            .filter(|other| {
                other.address != address
                    && on_link(&other.subnet)
                    && other.state == LeaseState::Bound
            })
            .map(|other| other.address)
            .collect();
        for other in left {
            self.give_back(context, other);
        }
        let action = match running {
            Some(_) => Action::Updated,
            None => Action::Created,
        };
        let created_at = old.as_ref().map_or(at, |record| record.created_at);
        self.write_lease(context, lease.clone(), created_at, action);
        Ok(Effect::Bound(Box::new(lease)))
    }

    /// The rule for an address that the client never had.
    fn pool_rule(&self, client: &Client, subnet: &Subnet) -> LeaseRule {
        let class = self.pool_class(client, subnet);
        match class.and_then(|place| subnet.classes.get(place)) {
            Some(class) => LeaseRule::ClassPool(class.name.clone()),
            None => LeaseRule::Pool,
        }
    }

    pub(super) fn release(
        &mut self,
        context: Context<'_>,
        client: &Client,
        address: Ipv4Addr,
        sent: Option<Timestamp>,
    ) -> Result<Effect, Rejection> {
        let record = self.held_by(client, address)?;
        let late = |sent: Timestamp| {
            let given_since = record.updated_at > sent;
            given_since || context.at.0.saturating_sub(sent.0) > Command::RELEASE_MS
        };
        if sent.is_some_and(late) {
            return Err(Rejection::Stale {
                current: record.revision,
            });
        }
        self.give_back(context, address);
        Ok(Effect::Ended(1))
    }

    pub(super) fn end_lease(
        &mut self,
        context: Context<'_>,
        address: Ipv4Addr,
    ) -> Result<Effect, Rejection> {
        let record = self.leases.get(&address).ok_or(Rejection::NotFound {
            kind: "lease".into(),
            key: address.to_string(),
        })?;
        if record.object.free {
            let lease = record.object.clone();
            self.put(RowKey::Lease(address), None);
            self.changed(context, Action::Deleted, Subject::Lease(lease));
        } else if record.object.state == LeaseState::Bound {
            self.give_back(context, address);
        }
        Ok(Effect::Ended(1))
    }

    /// Ends a bound lease early. The address stays held, see [`Lease::held_until`].
    fn give_back(&mut self, context: Context<'_>, address: Ipv4Addr) {
        if let Some(record) = self.leases.get(&address).cloned() {
            let lease = Lease {
                state: LeaseState::Released,
                ..record.object.clone()
            };
            self.write_lease(context, lease, record.created_at, Action::Updated);
        }
    }

    pub(super) fn decline(
        &mut self,
        context: Context<'_>,
        client: &Client,
        address: Ipv4Addr,
    ) -> Result<Effect, Rejection> {
        let record = self.held_by(client, address)?;
        let quarantine = context
            .at
            .plus_secs(u64::from(self.settings().decline_secs));
        let lease = Lease {
            state: LeaseState::Declined,
            held_until: record.object.held_until.max(quarantine),
            ..record.object.clone()
        };
        self.write_lease(context, lease, record.created_at, Action::Updated);
        Ok(Effect::Ended(1))
    }

    /// Keeps an address from everybody for a while, as a DECLINE does, before the client that it was
    /// offered to takes it. One that is bound is left alone: its holder may be who answered.
    pub(super) fn quarantine(
        &mut self,
        context: Context<'_>,
        client: &Client,
        address: Ipv4Addr,
        node: NodeId,
    ) -> Result<Effect, Rejection> {
        let foreign = Rejection::NotForClient { address };
        let subnet = self
            .subnet_with(&client.link, address)
            .ok_or(foreign.clone())?;
        let key = self.client_key(client, subnet).ok_or(foreign.clone())?;
        if self.pools.is_reserved(address) || !self.pools.pooled(address) {
            return Err(foreign);
        }
        let old = self.leases.get(&address).cloned();
        let row = old.as_ref().map(|record| &record.object);
        let own = row.filter(|lease| lease.client == key);
        let returned = own.is_some_and(|lease| lease.state == LeaseState::Released);
        if row.is_some_and(|lease| !lease.free) && !returned {
            return Err(Rejection::AddressTaken { address });
        }
        let at = context.at;
        let quarantine = at.plus_secs(u64::from(self.settings().decline_secs));
        let lease = Lease {
            address,
            subnet: subnet.name.clone(),
            client: key,
            mac: client.mac,
            client_id: client.client_id.clone(),
            hostname: own.and_then(|lease| lease.hostname.clone()),
            machine: own.and_then(|lease| lease.machine),
            state: LeaseState::Declined,
            bound_at: at,
            promised_until: at,
            expires_at: at,
            held_until: own.map_or(quarantine, |lease| lease.held_until.max(quarantine)),
            free: false,
            node,
            rule: self.pool_rule(client, subnet),
            boots: own.is_some_and(|lease| lease.boots),
            relay: None,
            uuid: own.and_then(|lease| lease.uuid),
        };
        let created_at = old.as_ref().map_or(at, |record| record.created_at);
        self.write_lease(context, lease, created_at, Action::Updated);
        Ok(Effect::Ended(1))
    }

    /// The lease at `address` if this client has it now.
    fn held_by(&self, client: &Client, address: Ipv4Addr) -> Result<Arc<Record<Lease>>, Rejection> {
        let foreign = Rejection::NotForClient { address };
        let record = self.leases.get(&address).ok_or(foreign.clone())?;
        let bound = record.object.state == LeaseState::Bound;
        let holds = bound && self.is_of(&record.object, client);
        holds.then(|| Arc::clone(record)).ok_or(foreign)
    }

    /// Whether a lease, wherever it stands, is this client's.
    pub fn is_of(&self, lease: &Lease, client: &Client) -> bool {
        let subnet = self.subnet(&lease.subnet);
        let key = subnet.and_then(|subnet| self.client_key(client, subnet));
        key.as_ref() == Some(&lease.client)
    }

    /// Whether the leader has leases, tokens or identifiers to end at `now`.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        let margin = u64::from(self.settings().lease_margin_secs);
        self.leases_due
            .first()
            .is_some_and(|(until, _)| until.plus_secs(margin) <= now)
            || self.has_forgettable(now)
    }

    /// Leases that were given back early and wait to be free, in the order of their revisions.
    pub fn returned(&self) -> impl Iterator<Item = &Record<Lease>> {
        let rows = self.leases_released.iter();
        rows.filter_map(|(_, address)| self.leases.get(address).map(|record| &**record))
    }

    /// Whether some address was given back at or before `applied_by_all` and waits to be free.
    pub fn has_reclaimable(&self, applied_by_all: Revision) -> bool {
        self.meta.no_reclaim_until <= self.meta.time
            && self
                .leases_released
                .first()
                .is_some_and(|(revision, _)| *revision <= applied_by_all)
    }

    pub(super) fn expire(&mut self, context: Context<'_>) -> Effect {
        let margin = u64::from(self.settings().lease_margin_secs);
        let over: Vec<Ipv4Addr> = self
            .leases_due
            .iter()
            .take_while(|(until, _)| until.plus_secs(margin) <= context.at)
            .take(EXPIRE_MAX)
            .map(|(_, address)| *address)
            .collect();
        for address in &over {
            self.free(context, *address);
        }
        self.forget_expired(context.at);
        Effect::Ended(over.len() as u32)
    }

    pub(super) fn reclaim(&mut self, context: Context<'_>, applied_by_all: Revision) -> Effect {
        if self.meta.no_reclaim_until > context.at {
            return Effect::Ended(0);
        }
        let released: Vec<Ipv4Addr> = self
            .leases_released
            .iter()
            .take_while(|(revision, _)| *revision <= applied_by_all)
            .take(EXPIRE_MAX)
            .map(|(_, address)| *address)
            .collect();
        for address in &released {
            self.free(context, *address);
        }
        Effect::Ended(released.len() as u32)
    }

    /// Moves the state's time forward, and with it the ends of all that is bound or held: what was
    /// promised was a span of real time.
    pub(super) fn correct_time(&mut self, context: Context<'_>, to: Timestamp) -> Effect {
        let Some(by) = to.0.checked_sub(context.at.0).filter(|by| *by > 0) else {
            return Effect::Done;
        };
        let later = |at: Timestamp| Timestamp(at.0.saturating_add(by));
        let mut meta = self.meta.clone();
        meta.time = to;
        if meta.no_reclaim_until > context.at {
            meta.no_reclaim_until = later(meta.no_reclaim_until);
        }
        self.put(RowKey::Meta, Some(Row::Meta(meta)));
        let held: Vec<_> = self
            .leases
            .values()
            .filter(|record| !record.object.free)
            .cloned()
            .collect();
        for record in held {
            let lease = &record.object;
            let moved = Record {
                object: Lease {
                    promised_until: later(lease.promised_until),
                    expires_at: later(lease.expires_at),
                    held_until: later(lease.held_until),
                    ..lease.clone()
                },
                ..Record::clone(&record)
            };
            let key = RowKey::Lease(lease.address);
            self.put(key, Some(Row::Lease(Arc::new(moved))));
        }
        Effect::Done
    }

    /// Lets another client have the address.
    fn free(&mut self, context: Context<'_>, address: Ipv4Addr) {
        let Some(record) = self.leases.get(&address).cloned() else {
            return;
        };
        let state = match record.object.state {
            LeaseState::Bound => LeaseState::Expired,
            LeaseState::Declined => {
                self.put(RowKey::Lease(address), None);
                self.changed(
                    context,
                    Action::Deleted,
                    Subject::Lease(record.object.clone()),
                );
                return;
            }
            ended => ended,
        };
        let lease = Lease {
            state,
            free: true,
            ..record.object.clone()
        };
        self.write_lease(context, lease, record.created_at, Action::Updated);
    }

    fn write_lease(
        &mut self,
        context: Context<'_>,
        lease: Lease,
        created_at: Timestamp,
        action: Action,
    ) {
        let record = Record {
            revision: context.revision,
            created_at,
            updated_at: context.at,
            object: lease.clone(),
        };
        self.put(
            RowKey::Lease(lease.address),
            Some(Row::Lease(Arc::new(record))),
        );
        self.changed(context, action, Subject::Lease(lease));
    }
}
