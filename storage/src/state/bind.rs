//! Who may have which address: the rule that answers DISCOVER and that decides REQUEST.
//!
//! Uniqueness is decided here, in `apply`; what a read says is a guess that may lose.

use std::net::Ipv4Addr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256 as Hasher};

use super::row::{Row, RowKey};
use super::table::{Context, State};
use crate::command::{Bind, Client, Effect, Rejection};
use crate::event::{Action, Subject};
use crate::model::{
    ClientKey, Lease, LeaseState, Match, Object, ObjectKind, Record, Revision, Subnet, SubnetMode,
    Timestamp,
};

/// Leases that one housekeeping command ends, so that no entry is long to apply.
const EXPIRE_MAX: usize = 1000;

/// The committed end of a lease is ahead of the promised one by at most this many seconds.
const AHEAD_SECS_MAX: u64 = 3600;

/// The shortest lease that a client may ask for, in seconds: less would be a write storm.
const ASKED_SECS_MIN: u32 = 60;

/// An address for a client, and which rule chose it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The address.
    pub address: Ipv4Addr,
    /// Name of the subnet.
    pub subnet: String,
    /// What the client will be promised, in seconds.
    pub lease_secs: u32,
    /// Which rule chose the address.
    pub rule: Grant,
}

/// The rule that gives an address, in order of precedence (RFC 2131 §4.3.1, reservations first).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grant {
    /// A reservation names the client.
    Reservation,
    /// The client has it now.
    Binding,
    /// The client had it before.
    Previous,
    /// The client asked for it.
    Requested,
    /// The client's own order over the pool.
    Pool,
}

/// Who else may be about to take an address that is free. Known to a node beside the state, and
/// only a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// Nobody.
    None,
    /// It falls to this node, which gives it to clients that fall to others last.
    Own,
    /// It falls to another node, which may be giving it away at this moment.
    Peer,
    /// It is on offer to another client.
    Offered,
}

impl State {
    /// The subnets of a client's link, in order of their networks: one, unless several share it
    /// because the link has addresses of several.
    pub fn subnets_of_link(&self, link: &[Ipv4Addr]) -> impl Iterator<Item = &Subnet> + use<'_> {
        let networks = link.iter().filter_map(|it| self.pools.network_of(*it));
        let mut networks: Vec<_> = networks.collect();
        // The same order on every node, in whichever its interface has its addresses.
        networks.sort_unstable();
        networks.dedup();
        networks
            .into_iter()
            .filter_map(|(_, name)| self.subnet(name))
    }

    /// The subnet of a client's link that holds `address`.
    pub fn subnet_with(&self, link: &[Ipv4Addr], address: Ipv4Addr) -> Option<&Subnet> {
        self.subnets_of_link(link)
            .find(|subnet| subnet.cidr.contains(&address))
    }

    /// A subnet by name.
    pub fn subnet(&self, name: &str) -> Option<&Subnet> {
        match &self.object(ObjectKind::Subnet, name)?.object {
            Object::Subnet(subnet) => Some(subnet),
            _ => None,
        }
    }

    /// Pool addresses of a subnet that are taken, and how many there are.
    pub fn pool_usage(&self, subnet: &str) -> (u64, u64) {
        self.pools.usage(subnet)
    }

    /// By what the client is known on `subnet`; none when it sends nothing to know it by.
    pub fn client_key(&self, client: &Client, subnet: &Subnet) -> Option<ClientKey> {
        let by_mac = client.mac.map(ClientKey::Mac);
        let by_id = client.client_id.clone().map(ClientKey::Id);
        match subnet.matching {
            Match::Mac => by_mac.or(by_id),
            Match::ClientId => by_id.or(by_mac),
            Match::Auto if client.boots || self.knows_by_mac(client) => by_mac.or(by_id),
            Match::Auto => by_id.or(by_mac),
        }
    }

    /// Whether a machine, a reservation or an earlier network boot ties the client to its MAC.
    fn knows_by_mac(&self, client: &Client) -> bool {
        let Some(mac) = client.mac else { return false };
        self.machines_by_mac.contains_key(&mac)
            || self.reservations.of_mac(mac).next().is_some()
            || self
                .leases_of(&ClientKey::Mac(mac))
                .any(|record| record.object.boots)
    }

    /// Leases, present and past, of a client.
    pub fn leases_of(&self, key: &ClientKey) -> impl Iterator<Item = &Arc<Record<Lease>>> {
        self.leases_by_client
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|address| self.leases.get(address))
    }

    /// The address that a client would be offered now, with regard to what others `claim`; of
    /// several subnets that share the link, by the rule that comes first, else in their order.
    /// Reads only; the same on every node that has applied the same entries and knows the same
    /// claims.
    pub fn offer(
        &self,
        client: &Client,
        claim: &dyn Fn(Ipv4Addr) -> Claim,
        now: Timestamp,
    ) -> Option<Offer> {
        self.subnets_of_link(&client.link)
            .filter_map(|subnet| self.offer_on(subnet, client, claim, now))
            .min_by_key(|offer| offer.rule)
    }

    fn offer_on(
        &self,
        subnet: &Subnet,
        client: &Client,
        claim: &dyn Fn(Ipv4Addr) -> Claim,
        now: Timestamp,
    ) -> Option<Offer> {
        if matches!(subnet.mode, SubnetMode::Off | SubnetMode::Proxy) {
            return None;
        }
        let key = self.client_key(client, subnet)?;
        let offer = |address, rule| {
            Some(Offer {
                address,
                subnet: subnet.name.clone(),
                lease_secs: self.promise(client, subnet),
                rule,
            })
        };
        if let Some((address, rule)) = self.owed_on(subnet, client, &key, now) {
            return offer(address, rule);
        }
        if subnet.mode == SubnetMode::ReservedOnly {
            return None;
        }
        let free = |address: &Ipv4Addr| {
            self.may_have(client, &key, subnet, *address).is_ok()
                && claim(*address) != Claim::Offered
        };
        let previous = self
            .leases_of(&key)
            .filter(|record| record.object.state != LeaseState::Declined)
            .max_by_key(|record| record.object.bound_at)
            .map(|record| record.object.address)
            .filter(free);
        if let Some(address) = previous {
            return offer(address, Grant::Previous);
        }
        if let Some(address) = client.requested.filter(free) {
            return offer(address, Grant::Requested);
        }
        let address = self.pools.pick(subnet.cidr.network(), seed(&key), claim)?;
        offer(address, Grant::Pool)
    }

    /// The address that the client must get if it gets any: its reservation, else its binding.
    fn owed(&self, client: &Client, now: Timestamp) -> Option<(Ipv4Addr, Grant)> {
        self.subnets_of_link(&client.link)
            .filter_map(|subnet| {
                let key = self.client_key(client, subnet)?;
                self.owed_on(subnet, client, &key, now)
            })
            .min_by_key(|(_, rule)| *rule)
    }

    fn owed_on(
        &self,
        subnet: &Subnet,
        client: &Client,
        key: &ClientKey,
        now: Timestamp,
    ) -> Option<(Ipv4Addr, Grant)> {
        let allowed = |address: &Ipv4Addr| self.may_have(client, key, subnet, *address).is_ok();
        if let Some(address) = self.reserved_for(client, subnet).find(allowed) {
            return Some((address, Grant::Reservation));
        }
        self.leases_of(key)
            .map(|record| &record.object)
            .filter(|lease| lease.state == LeaseState::Bound && lease.expires_at > now)
            .map(|lease| lease.address)
            .find(allowed)
            .map(|address| (address, Grant::Binding))
    }

    /// Addresses reserved for the client on `subnet`: by machine, then MAC, then client identifier.
    fn reserved_for<'a>(
        &'a self,
        client: &'a Client,
        subnet: &'a Subnet,
    ) -> impl Iterator<Item = Ipv4Addr> + 'a {
        let machine = client.mac.and_then(|mac| self.machine_with_mac(mac));
        let by_machine = machine
            .into_iter()
            .flat_map(|machine| self.reservations.of_machine(machine.uuid));
        let by_mac = client
            .mac
            .into_iter()
            .flat_map(|mac| self.reservations.of_mac(mac));
        let by_id = client
            .client_id
            .iter()
            .flat_map(|id| self.reservations.of_client_id(id));
        by_machine
            .chain(by_mac)
            .chain(by_id)
            .filter(|address| subnet.cidr.contains(address))
    }

    /// Whether nothing forbids that this client has this address.
    fn may_have(
        &self,
        client: &Client,
        key: &ClientKey,
        subnet: &Subnet,
        address: Ipv4Addr,
    ) -> Result<(), Rejection> {
        let foreign = Rejection::NotForClient { address };
        if !subnet.cidr.contains(&address) {
            return Err(foreign);
        }
        let own_reservation = self
            .reserved_for(client, subnet)
            .any(|reserved| reserved == address);
        let dynamic = subnet.mode == SubnetMode::Full
            && self.pools.pooled(address)
            && !self.pools.is_reserved(address);
        if !own_reservation && !dynamic {
            return Err(foreign);
        }
        match self.leases.get(&address).map(|record| &record.object) {
            None => Ok(()),
            Some(lease) if lease.free => Ok(()),
            Some(lease) if lease.client == *key && lease.state != LeaseState::Declined => Ok(()),
            // A machine's own reservation under another of its identities is still its own.
            Some(lease)
                if own_reservation
                    && lease.state != LeaseState::Declined
                    && lease.mac.is_some()
                    && lease.mac == client.mac =>
            {
                Ok(())
            }
            Some(_) => Err(Rejection::AddressTaken { address }),
        }
    }

    /// Seconds that a client is promised on `subnet`: what it asks for (option 51), within bounds.
    pub fn promise(&self, client: &Client, subnet: &Subnet) -> u32 {
        let longest = subnet
            .lease_secs
            .unwrap_or_else(|| self.settings().lease_secs);
        match client.lease_secs {
            Some(asked) => asked.max(ASKED_SECS_MIN).min(longest),
            None => longest,
        }
    }

    /// Whether `address` may be confirmed to the client from the committed lease, without a write:
    /// returns the lease and the seconds that may be promised. Only while the rule that binds would
    /// still give it that address, and never past the committed end.
    pub fn confirmable(
        &self,
        client: &Client,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> Option<(&Lease, u32)> {
        let subnet = self.subnet_with(&client.link, address)?;
        let key = self.client_key(client, subnet)?;
        let (owed, _) = self.owed(client, now)?;
        let lease = &self.leases.get(&address)?.object;
        let holds = owed == address
            && lease.client == key
            && lease.state == LeaseState::Bound
            && lease.subnet == subnet.name
            // What the binding remembers of the client must not change without a write.
            && lease.boots >= client.boots;
        let promise = self.promise(client, subnet);
        let committed = lease.expires_at.secs_since(now);
        (holds && committed >= u64::from(promise)).then_some((lease, promise))
    }

    pub(super) fn bind(&mut self, context: Context<'_>, bind: &Bind) -> Result<Effect, Rejection> {
        let (client, address, at) = (&bind.client, bind.address, context.at);
        let foreign = Rejection::NotForClient { address };
        let subnet = self
            .subnet_with(&client.link, address)
            .ok_or(foreign.clone())?
            .clone();
        let key = self.client_key(client, &subnet).ok_or(foreign.clone())?;
        self.may_have(client, &key, &subnet, address)?;
        match self.owed(client, at) {
            Some((owed, _)) if owed != address => return Err(foreign),
            None if subnet.mode == SubnetMode::ReservedOnly => return Err(foreign),
            _ => {}
        }
        let promised = u64::from(self.promise(client, &subnet));
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
            boots: client.boots || own.is_some_and(|lease| lease.boots),
            relay: client
                .relay
                .clone()
                .or_else(|| running.and_then(|lease| lease.relay.clone())),
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

    pub(super) fn release(
        &mut self,
        context: Context<'_>,
        client: &Client,
        address: Ipv4Addr,
    ) -> Result<Effect, Rejection> {
        self.held_by(client, address)?;
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

    /// The lease at `address` if this client has it now.
    fn held_by(&self, client: &Client, address: Ipv4Addr) -> Result<Arc<Record<Lease>>, Rejection> {
        let foreign = Rejection::NotForClient { address };
        let record = self.leases.get(&address).ok_or(foreign.clone())?;
        let subnet = self.subnet(&record.object.subnet).ok_or(foreign.clone())?;
        let key = self.client_key(client, subnet);
        let holds =
            record.object.state == LeaseState::Bound && key.as_ref() == Some(&record.object.client);
        holds.then(|| Arc::clone(record)).ok_or(foreign)
    }

    /// Whether the leader has leases, tokens or identifiers to end at `now`.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        let margin = u64::from(self.settings().lease_margin_secs);
        self.leases_due
            .first()
            .is_some_and(|(until, _)| until.plus_secs(margin) <= now)
            || self.has_forgettable(now)
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
            Some(Row::Lease(Box::new(record))),
        );
        self.changed(context, action, Subject::Lease(lease));
    }
}

/// Where a client's own order over a pool begins.
fn seed(key: &ClientKey) -> u64 {
    let mut hasher = Hasher::new();
    match key {
        ClientKey::Mac(mac) => hasher.update(mac.0),
        ClientKey::Id(id) => hasher.update(&id.0),
    }
    hasher
        .finalize()
        .first_chunk::<8>()
        .map_or(0, |octets| u64::from_be_bytes(*octets))
}
