//! Which addresses are free: one bitmap for each pool, so that the size of a pool is no cost.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use smallvec::SmallVec;

use super::offer::Claim;
use crate::model::{Lease, Mac, Octets, Pool, Record, Reservation, Subnet, TextOctets};
use uuid::Uuid;

/// Bits in a word of the bitmap.
const WORD: u32 = 64;

/// All pools and reserved addresses. Derived from rows; never stored.
#[derive(Clone, Debug, Default)]
pub(super) struct Pools {
    /// By network address; networks do not overlap.
    networks: BTreeMap<Ipv4Addr, Network>,
    /// Networks that share a link, by its name.
    shared: BTreeMap<String, BTreeSet<Ipv4Addr>>,
    reserved: BTreeSet<Ipv4Addr>,
}

#[derive(Clone, Debug)]
struct Network {
    cidr: Ipv4Net,
    subnet: String,
    shared: Option<String>,
    /// Of the subnet, then of each of its classes.
    pools: Vec<Vec<Bitmap>>,
}

impl Network {
    fn all_pools(&self) -> impl Iterator<Item = &Bitmap> {
        self.pools.iter().flatten()
    }

    fn pools_for(&self, class: Option<usize>) -> &[Bitmap] {
        let place = class.map_or(0, |class| class + 1);
        self.pools.get(place).map(Vec::as_slice).unwrap_or_default()
    }
}

#[derive(Clone, Debug)]
struct Bitmap {
    pool: Pool,
    /// A set bit is an address that nobody else may be given.
    words: Vec<u64>,
    taken: u32,
}

impl Bitmap {
    fn new(pool: Pool) -> Self {
        let words = pool.len().div_ceil(WORD) as usize;
        let mut bitmap = Self {
            pool,
            words: vec![0; words],
            taken: 0,
        };
        // Bits beyond the last address count as taken, for the search alone.
        for beyond in pool.len()..pool.len().next_multiple_of(WORD) {
            if let Some(word) = bitmap.words.get_mut((beyond / WORD) as usize) {
                *word |= 1 << (beyond % WORD);
            }
        }
        bitmap
    }

    fn set(&mut self, address: Ipv4Addr, taken: bool) {
        if !self.pool.contains(address) {
            return;
        }
        let bit = u32::from(address) - u32::from(self.pool.first);
        let Some(word) = self.words.get_mut((bit / WORD) as usize) else {
            return;
        };
        let mask = 1u64 << (bit % WORD);
        match (*word & mask != 0, taken) {
            (false, true) => self.taken += 1,
            (true, false) => self.taken -= 1,
            _ => return,
        }
        *word ^= mask;
    }

    /// First free address at or after the `start`th, wrapping around.
    fn free_from(&self, start: u32) -> Option<Ipv4Addr> {
        if self.taken >= self.pool.len() {
            return None;
        }
        let count = self.words.len() as u32;
        let (first_word, first_bit) = (start / WORD, start % WORD);
        // The first word is looked at twice: its upper bits first, its lower bits last.
        (0..=count).find_map(|step| {
            let index = (first_word + step) % count;
            let word = *self.words.get(index as usize)?;
            let skipped = match step {
                0 => (1u64 << first_bit) - 1,
                _ => 0,
            };
            let free = !(word | skipped);
            (free != 0).then(|| {
                let bit = index * WORD + free.trailing_zeros();
                Ipv4Addr::from(u32::from(self.pool.first) + bit)
            })
        })
    }
}

impl Bitmap {
    /// Free addresses in the order that `seed` gives: some that are spread, so that losers of one
    /// race part, then those that follow, so that the last of a pool are found.
    fn probes(&self, seed: u64) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let length = self.pool.len();
        let stride = seed as u32 % 61;
        let mut start = (seed % u64::from(length)) as u32;
        let free = length - self.taken;
        (0..SPREAD.saturating_add(free).min(PROBES_MAX)).map_while(move |probe| {
            let address = self.free_from(start)?;
            let leap = if probe < SPREAD { stride * probe } else { 0 };
            let next = u32::from(address) - u32::from(self.pool.first) + 1 + leap;
            start = next % length;
            Some(address)
        })
    }
}

/// Networks, each with the name of its subnet. Most links have one.
pub(super) type Networks<'a> = SmallVec<[(Ipv4Addr, &'a str); 2]>;

impl Pools {
    /// Adds to `networks` the one that holds `address` and those that share its link: their own
    /// addresses and the names of their subnets.
    pub fn networks_of<'a>(&'a self, address: Ipv4Addr, networks: &mut Networks<'a>) {
        let Some(network) = self.network(address) else {
            return;
        };
        networks.push((network.cidr.network(), &network.subnet));
        let shared = network.shared.as_ref();
        let others = shared.and_then(|name| self.shared.get(name));
        for other in others.into_iter().flatten() {
            if let Some(network) = self.networks.get(other) {
                networks.push((*other, &network.subnet));
            }
        }
    }

    /// Whether some dynamic lease may have `address` on its subnet.
    pub fn pooled(&self, address: Ipv4Addr) -> bool {
        self.network(address)
            .is_some_and(|network| network.all_pools().any(|map| map.pool.contains(address)))
    }

    /// Whether a client that gets its addresses from the pools of `class` may have `address`.
    pub fn pooled_for(&self, address: Ipv4Addr, class: Option<usize>) -> bool {
        self.network(address).is_some_and(|network| {
            let mut pools = network.pools_for(class).iter();
            pools.any(|map| map.pool.contains(address))
        })
    }

    /// Whether a reservation names `address`.
    pub fn is_reserved(&self, address: Ipv4Addr) -> bool {
        self.reserved.contains(&address)
    }

    /// Addresses in the pools of a subnet: taken, all.
    pub fn usage(&self, subnet: &str) -> (u64, u64) {
        self.networks
            .values()
            .filter(|network| network.subnet == subnet)
            .flat_map(Network::all_pools)
            .fold((0, 0), |(taken, all), map| {
                (
                    taken + u64::from(map.taken),
                    all + u64::from(map.pool.len()),
                )
            })
    }

    /// All pools of all subnets: the subnet, the place of the class among those of the subnet, the
    /// pool, and how many of its addresses are taken.
    pub fn all(&self) -> impl Iterator<Item = (&str, Option<usize>, Pool, u32)> {
        self.networks.values().flat_map(|network| {
            let places = std::iter::once(None).chain((0..).map(Some));
            let pools = network.pools.iter().zip(places);
            pools.flat_map(move |(maps, class)| {
                maps.iter()
                    .map(move |map| (network.subnet.as_str(), class, map.pool, map.taken))
            })
        })
    }

    /// The first free address that nobody claims, in the order that `seed` gives over the pools of
    /// the subnet at `network`, or of one of its classes; else the first of those with the weakest
    /// claim.
    pub fn pick(
        &self,
        network: Ipv4Addr,
        class: Option<usize>,
        seed: u64,
        claim: &dyn Fn(Ipv4Addr) -> Claim,
    ) -> Option<Ipv4Addr> {
        let maps = self.network(network)?.pools_for(class);
        let pools = maps.len().max(1);
        let (later, sooner) = maps.split_at((seed % pools as u64) as usize);
        let mut second: Option<(Claim, Ipv4Addr)> = None;
        for map in sooner.iter().chain(later) {
            for address in map.probes(seed / pools as u64) {
                match claim(address) {
                    Claim::None => return Some(address),
                    claimed if second.is_none_or(|(least, _)| claimed < least) => {
                        second = Some((claimed, address));
                    }
                    _ => {}
                }
            }
        }
        // Offers may lapse, so one is made again rather than none.
        second.map(|(_, address)| address)
    }

    pub fn set_subnet(
        &mut self,
        name: &str,
        subnet: Option<&Subnet>,
        leases: &BTreeMap<Ipv4Addr, Arc<Record<Lease>>>,
    ) {
        self.networks.retain(|_, network| network.subnet != name);
        self.set_shared();
        let Some(subnet) = subnet else { return };
        let classes = subnet.classes.iter().map(|class| &class.pools);
        let mut pools: Vec<Vec<Bitmap>> = std::iter::once(&subnet.pools)
            .chain(classes)
            .map(|pools| pools.iter().copied().map(Bitmap::new).collect())
            .collect();
        for map in pools.iter_mut().flatten() {
            let range = map.pool.first..=map.pool.last;
            for (address, record) in leases.range(range.clone()) {
                if !record.object.free {
                    map.set(*address, true);
                }
            }
            for address in self.reserved.range(range) {
                map.set(*address, true);
            }
        }
        self.networks.insert(
            subnet.cidr.network(),
            Network {
                cidr: subnet.cidr,
                subnet: name.to_owned(),
                shared: subnet.shared_network.clone(),
                pools,
            },
        );
        self.set_shared();
    }

    fn set_shared(&mut self) {
        self.shared.clear();
        for (address, network) in &self.networks {
            if let Some(name) = &network.shared {
                let networks = self.shared.entry(name.clone()).or_default();
                networks.insert(*address);
            }
        }
    }

    pub fn set_leased(&mut self, address: Ipv4Addr, leased: bool) {
        let taken = leased || self.reserved.contains(&address);
        self.set(address, taken);
    }

    pub fn reserve(&mut self, address: Ipv4Addr) {
        self.reserved.insert(address);
        self.set(address, true);
    }

    pub fn unreserve(
        &mut self,
        address: Ipv4Addr,
        leases: &BTreeMap<Ipv4Addr, Arc<Record<Lease>>>,
    ) {
        self.reserved.remove(&address);
        let leased = leases
            .get(&address)
            .is_some_and(|record| !record.object.free);
        self.set(address, leased);
    }

    fn set(&mut self, address: Ipv4Addr, taken: bool) {
        let network = self.networks.range_mut(..=address).next_back();
        if let Some((_, network)) = network {
            for map in network.pools.iter_mut().flatten() {
                map.set(address, taken);
            }
        }
    }

    fn network(&self, address: Ipv4Addr) -> Option<&Network> {
        let (_, network) = self.networks.range(..=address).next_back()?;
        network.cidr.contains(&address).then_some(network)
    }
}

/// Addresses of one search that are spread over the pool.
const SPREAD: u32 = 64;

/// Addresses of one pool that one search looks at: with more than this many offers to others, one
/// more race is cheaper than the search.
const PROBES_MAX: u32 = 4096;

/// Reservations by owner. Derived from rows; never stored.
#[derive(Clone, Debug, Default)]
pub(super) struct Reservations {
    by_mac: BTreeMap<Mac, BTreeSet<Ipv4Addr>>,
    by_client_id: BTreeMap<Octets, BTreeSet<Ipv4Addr>>,
    by_machine: BTreeMap<Uuid, BTreeSet<Ipv4Addr>>,
    by_uuid: BTreeMap<Uuid, BTreeSet<Ipv4Addr>>,
    by_place: BTreeMap<Place, BTreeSet<Ipv4Addr>>,
}

/// Circuit id and remote id.
type Place = (Option<TextOctets>, Option<TextOctets>);

impl Reservations {
    pub fn of_mac(&self, mac: Mac) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.by_mac.get(&mac).into_iter().flatten().copied()
    }

    pub fn of_client_id(&self, id: &Octets) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.by_client_id.get(id).into_iter().flatten().copied()
    }

    pub fn of_machine(&self, machine: Uuid) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.by_machine.get(&machine).into_iter().flatten().copied()
    }

    /// Whether any reservation looks at option 97.
    pub fn has_uuids(&self) -> bool {
        !self.by_uuid.is_empty()
    }

    /// Of a firmware's UUID; some firmware sends the first three fields in the other byte order.
    pub fn of_uuid(&self, uuid: Uuid) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let swapped = Uuid::from_bytes_le(*uuid.as_bytes());
        [uuid, swapped]
            .into_iter()
            .filter_map(|uuid| self.by_uuid.get(&uuid))
            .flatten()
            .copied()
    }

    /// Whether any reservation looks at option 82.
    pub fn has_places(&self) -> bool {
        !self.by_place.is_empty()
    }

    /// Of a place, those that name both parts of it first.
    pub fn of_place(
        &self,
        circuit: Option<&[u8]>,
        remote: Option<&[u8]>,
    ) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let text = |part: Option<&[u8]>| part.map(|octets| TextOctets(octets.to_vec()));
        let (circuit, remote) = (text(circuit), text(remote));
        let places = [
            (circuit.clone(), remote.clone()),
            (circuit, None),
            (None, remote),
        ];
        places
            .into_iter()
            .filter(|place| *place != (None, None))
            .filter_map(|place| self.by_place.get(&place))
            .flatten()
            .copied()
    }

    pub fn insert(&mut self, reservation: &Reservation) {
        let address = reservation.address;
        if let Some(mac) = reservation.mac {
            self.by_mac.entry(mac).or_default().insert(address);
        }
        if let Some(id) = &reservation.client_id {
            self.by_client_id
                .entry(id.clone())
                .or_default()
                .insert(address);
        }
        if let Some(machine) = reservation.machine {
            self.by_machine.entry(machine).or_default().insert(address);
        }
        if let Some(uuid) = reservation.uuid {
            self.by_uuid.entry(uuid).or_default().insert(address);
        }
        if let Some(place) = place(reservation) {
            self.by_place.entry(place).or_default().insert(address);
        }
    }

    pub fn remove(&mut self, reservation: &Reservation) {
        let address = reservation.address;
        if let Some(mac) = reservation.mac {
            remove(&mut self.by_mac, &mac, address);
        }
        if let Some(id) = &reservation.client_id {
            remove(&mut self.by_client_id, id, address);
        }
        if let Some(machine) = reservation.machine {
            remove(&mut self.by_machine, &machine, address);
        }
        if let Some(uuid) = reservation.uuid {
            remove(&mut self.by_uuid, &uuid, address);
        }
        if let Some(place) = place(reservation) {
            remove(&mut self.by_place, &place, address);
        }
    }
}

fn place(reservation: &Reservation) -> Option<Place> {
    let place = (
        reservation.circuit_id.clone(),
        reservation.remote_id.clone(),
    );
    (place != (None, None)).then_some(place)
}

fn remove<K: Ord>(index: &mut BTreeMap<K, BTreeSet<Ipv4Addr>>, key: &K, address: Ipv4Addr) {
    if let Some(addresses) = index.get_mut(key) {
        addresses.remove(&address);
        if addresses.is_empty() {
            index.remove(key);
        }
    }
}
