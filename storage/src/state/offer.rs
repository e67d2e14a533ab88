//! Who may have which address: the rule that answers DISCOVER and that decides REQUEST.

use std::net::Ipv4Addr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256 as Hasher};

use super::pool::Networks;
use super::table::State;
use crate::command::{Client, Rejection};
use crate::model::{
    ClientKey, Lease, LeaseState, Machine, Match, Object, ObjectKind, Pool, Record, Subnet,
    SubnetMode, Timestamp,
};

/// The shortest lease that a client may ask for, in seconds: less would be a write storm.
const ASKED_SECS_MIN: u32 = 60;

/// The subnet of a lease that is bound.
fn bound_in(record: &Record<Lease>) -> Option<&str> {
    let lease = &record.object;
    (lease.state == LeaseState::Bound).then_some(lease.subnet.as_str())
}

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

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUsage<'a> {
    /// Name of its subnet.
    pub subnet: &'a str,
    /// Name of its class; none when it is the subnet's own.
    pub class: Option<&'a str>,
    /// Its addresses.
    pub pool: Pool,
    /// How many of them are leased, reserved or held.
    pub taken: u32,
}

impl State {
    /// The subnets of a client's link, in order of their networks: one, unless several share it
    /// because the link has addresses of several, or because they say so.
    pub fn subnets_of_link(&self, link: &[Ipv4Addr]) -> impl Iterator<Item = &Subnet> + use<'_> {
        let mut networks = Networks::new();
        for address in link {
            self.pools.networks_of(*address, &mut networks);
        }
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
            Object::Subnet(subnet) => Some(&**subnet),
            _ => None,
        }
    }

    /// Pool addresses of a subnet that are taken, and how many there are.
    pub fn pool_usage(&self, subnet: &str) -> (u64, u64) {
        self.pools.usage(subnet)
    }

    /// Whether a reservation names `address`.
    pub fn is_reserved(&self, address: Ipv4Addr) -> bool {
        self.pools.is_reserved(address)
    }

    /// How full each pool is.
    pub fn pools(&self) -> impl Iterator<Item = PoolUsage<'_>> {
        self.pools.all().map(|(subnet, class, pool, taken)| {
            let class = class.and_then(|place| self.subnet(subnet)?.classes.get(place));
            PoolUsage {
                subnet,
                class: class.map(|class| class.name.as_str()),
                pool,
                taken,
            }
        })
    }

    /// How many leases are bound, by the subnet that they are in.
    pub fn bound_by_subnet(&self) -> impl Iterator<Item = (&str, u64)> {
        let counts = self.leases_bound.iter();
        counts.map(|(subnet, count)| (subnet.as_str(), *count))
    }

    /// Keeps count of a lease that was `old` and is `new`.
    pub(super) fn count_bound(&mut self, old: Option<&Record<Lease>>, new: Option<&Record<Lease>>) {
        let (old, new) = (old.and_then(bound_in), new.and_then(bound_in));
        if old == new {
            return;
        }
        if let Some(subnet) = new {
            match self.leases_bound.get_mut(subnet) {
                Some(count) => *count += 1,
                None => drop(self.leases_bound.insert(subnet.to_owned(), 1)),
            }
        }
        if let Some(subnet) = old
            && let Some(count) = self.leases_bound.get_mut(subnet)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.leases_bound.remove(subnet);
            }
        }
    }

    /// By what the client is known on `subnet`; none when it sends nothing to know it by.
    pub fn client_key(&self, client: &Client, subnet: &Subnet) -> Option<ClientKey> {
        let (by_mac, by_id) = match (client.mac, &client.client_id) {
            (Some(mac), Some(id)) => (ClientKey::Mac(mac), ClientKey::Id(id.clone())),
            (Some(mac), None) => return Some(ClientKey::Mac(mac)),
            (None, id) => return id.clone().map(ClientKey::Id),
        };
        Some(match subnet.matching {
            Match::Mac => by_mac,
            Match::ClientId => by_id,
            Match::Auto if client.boots || self.knows_by_mac(client) => by_mac,
            Match::Auto => by_id,
        })
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
    pub fn leases_of<'a>(
        &'a self,
        key: &ClientKey,
    ) -> impl Iterator<Item = &'a Arc<Record<Lease>>> + use<'a> {
        self.leases_by_client
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|address| self.leases.get(address))
    }

    /// Leases that a machine has now, by its cards in their order.
    pub fn bound_leases<'a>(&'a self, machine: &'a Machine) -> impl Iterator<Item = &'a Lease> {
        let keys = machine.macs.iter().map(|mac| ClientKey::Mac(*mac));
        keys.flat_map(|key| self.leases_of(&key))
            .map(|record| &record.object)
            .filter(|lease| lease.state == LeaseState::Bound)
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
            .min_by_key(|offer| match offer.rule {
                // Free on one subnet is better than about to be taken on another.
                Grant::Pool => (offer.rule, claim(offer.address)),
                rule => (rule, Claim::None),
            })
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
            .filter(|record| free(&record.object.address))
            .max_by_key(|record| record.object.bound_at)
            .map(|record| record.object.address);
        if let Some(address) = previous {
            return offer(address, Grant::Previous);
        }
        if let Some(address) = client.requested.filter(free) {
            return offer(address, Grant::Requested);
        }
        let class = self.pool_class(client, subnet);
        let network = subnet.cidr.network();
        let address = self.pools.pick(network, class, seed(&key), claim)?;
        offer(address, Grant::Pool)
    }

    /// The address that the client must get if it gets any: its reservation, else its binding.
    pub(super) fn owed(&self, client: &Client, now: Timestamp) -> Option<(Ipv4Addr, Grant)> {
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

    /// Addresses reserved for the client on `subnet`: by machine, then MAC, then client identifier,
    /// then the firmware's UUID, then the place of its cable.
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
        let by_uuid = self.reservations.has_uuids().then(|| {
            let uuid = self.uuid_of(client, subnet);
            uuid.into_iter()
                .flat_map(|uuid| self.reservations.of_uuid(uuid))
        });
        let by_place = self.reservations.has_places().then(|| {
            let circuit = self.circuit_id(client, subnet);
            let remote = self.remote_id(client, subnet);
            self.reservations.of_place(circuit, remote)
        });
        by_machine
            .chain(by_mac)
            .chain(by_id)
            .chain(by_uuid.into_iter().flatten())
            .chain(by_place.into_iter().flatten())
            .filter(|address| subnet.cidr.contains(address))
    }

    /// Whether nothing forbids that this client has this address.
    pub(super) fn may_have(
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
        let lease = self.leases.get(&address).map(|record| &record.object);
        // What a client has it keeps, whatever class the next stage of its boot puts it in.
        let pooled = || match lease.is_some_and(|lease| lease.client == *key) {
            true => self.pools.pooled(address),
            false => {
                let class = self.pool_class(client, subnet);
                self.pools.pooled_for(address, class)
            }
        };
        let dynamic =
            subnet.mode == SubnetMode::Full && !self.pools.is_reserved(address) && pooled();
        if !own_reservation && !dynamic {
            return Err(foreign);
        }
        match lease {
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
        let by_class = || {
            let mut classes = self.classes_of(client, subnet);
            classes.find_map(|(_, class)| class.lease_secs)
        };
        let longest = by_class()
            .or(subnet.lease_secs)
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
            && lease.boots >= client.boots
            && (client.traits.uuid.is_none() || client.traits.uuid == lease.uuid);
        let promise = self.promise(client, subnet);
        let committed = lease.expires_at.secs_since(now);
        (holds && committed >= u64::from(promise)).then_some((lease, promise))
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
