//! What was said lately, by this node and by its peers: offers (never written, see the invariants)
//! and which packets have an answer. Bounded and forgotten within a minute.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use foldhash::{HashMap, HashMapExt as _};
use muster_storage::model::ClientKey;

use super::rank::hash;

/// How long an address on offer is kept from others (RFC 2131 §3.1: reuse only when time is up).
const OFFER_KEPT: Duration = Duration::from_secs(60);

/// How long an answer is remembered: longer, by half already, than any rank waits and than a client
/// waits until it repeats itself.
const ANSWER_KEPT: Duration = Duration::from_secs(20);

/// What is said about a packet is said within this time of its arrival at any node; clients wait
/// longer before they send a copy.
pub const SAME_COPY: Duration = Duration::from_millis(500);

/// How long what was learnt about a relay is believed.
const RELAY_KEPT: Duration = Duration::from_secs(30);

/// Entries in each table; the oldest are forgotten first.
const ENTRIES_MAX: usize = 65_536;

/// First octet of a message to peers, so that other services may gossip too.
const TAG: u8 = 0xd4;

/// Names a client in the tables.
pub type ClientHash = u64;

/// Names one exchange of one client: transaction, sender, kind of message.
pub type ExchangeHash = u64;

/// Hash of what a client is known by.
pub fn client_hash(key: &ClientKey) -> ClientHash {
    match key {
        ClientKey::Mac(mac) => hash(&mac.0),
        ClientKey::Id(id) => !hash(&id.0),
    }
}

/// How far an exchange has come, here or at a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// A node has proposed the write that the answer needs.
    Proposed,
    /// A node has answered.
    Answered,
}

/// What a node tells its peers, in one small datagram for a batch of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An address is on offer to a client.
    Offered(Ipv4Addr, ClientHash),
    /// An exchange goes on.
    Exchange(ExchangeHash, Progress),
}

impl Notice {
    /// Writes notices.
    pub fn encode(notices: &[Self]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(notices.len() * 13 + 1);
        bytes.put_u8(TAG);
        for notice in notices {
            match notice {
                Self::Offered(address, client) => {
                    bytes.put_u8(1);
                    bytes.put_slice(&address.octets());
                    bytes.put_u64(*client);
                }
                Self::Exchange(exchange, Progress::Answered) => {
                    bytes.put_u8(2);
                    bytes.put_u64(*exchange);
                }
                Self::Exchange(exchange, Progress::Proposed) => {
                    bytes.put_u8(3);
                    bytes.put_u64(*exchange);
                }
            }
        }
        bytes.freeze()
    }

    /// Reads notices, up to the first that this version does not know.
    pub fn decode(bytes: &[u8]) -> Vec<Self> {
        let mut notices = Vec::new();
        let mut rest = match bytes {
            [TAG, rest @ ..] => rest,
            _ => return notices,
        };
        while let Some((notice, next)) = Self::decode_one(rest) {
            notices.push(notice);
            rest = next;
        }
        notices
    }

    fn decode_one(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (kind, rest) = bytes.split_first()?;
        match kind {
            1 => {
                let (address, rest) = rest.split_first_chunk::<4>()?;
                let (client, rest) = rest.split_first_chunk::<8>()?;
                let client = u64::from_be_bytes(*client);
                Some((Self::Offered(Ipv4Addr::from(*address), client), rest))
            }
            2 | 3 => {
                let (exchange, rest) = rest.split_first_chunk::<8>()?;
                let progress = match kind {
                    2 => Progress::Answered,
                    _ => Progress::Proposed,
                };
                Some((
                    Self::Exchange(u64::from_be_bytes(*exchange), progress),
                    rest,
                ))
            }
            _ => None,
        }
    }
}

/// Addresses on offer to one client, the latest first: more than one where several nodes answered.
type Offers = [Option<Ipv4Addr>; 4];

/// What is known of an exchange.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Its packet came here, once at least.
    came: bool,
    /// And a copy of it.
    again: bool,
    /// How far it has come, and when that was noted.
    progress: Option<(Progress, Instant)>,
}

/// The tables.
#[derive(Debug, Default)]
pub struct Recent {
    offers: Table<Ipv4Addr, ClientHash>,
    offered_to: Table<ClientHash, Offers>,
    exchanges: Table<ExchangeHash, Known>,
    only_here: Table<Ipv4Addr, ()>,
}

impl Recent {
    /// Takes note of what was said, here or by a peer.
    pub fn note(&mut self, notice: Notice, now: Instant) {
        match notice {
            Notice::Offered(address, client) => {
                // Whoever was offered it first may hold that offer.
                if !self.offered_to_other(address, client, now) {
                    self.offers.insert(address, client, now, OFFER_KEPT);
                }
                let known = self.offered_to.get(&client, now);
                let earlier = known.into_iter().flatten().flatten();
                let mut offers = Offers::default();
                let all =
                    std::iter::once(address).chain(earlier.copied().filter(|it| *it != address));
                for (place, offer) in offers.iter_mut().zip(all) {
                    *place = Some(offer);
                }
                self.offered_to.insert(client, offers, now, OFFER_KEPT);
            }
            Notice::Exchange(exchange, progress) => {
                let since = now.checked_sub(SAME_COPY).unwrap_or(now);
                let known = self.exchanges.entry(exchange, now, ANSWER_KEPT);
                if known.since(since) <= Some(progress) {
                    known.progress = Some((progress, now));
                }
            }
        }
    }

    /// Whether `address` is on offer to a client other than `client`.
    pub fn offered_to_other(&self, address: Ipv4Addr, client: ClientHash, now: Instant) -> bool {
        self.offers
            .get(&address, now)
            .is_some_and(|holder| *holder != client)
    }

    /// What was put on offer to `client` last.
    pub fn offered_to(&self, client: ClientHash, now: Instant) -> Option<Ipv4Addr> {
        let [latest, ..] = self.offered_to.get(&client, now)?;
        *latest
    }

    /// The client asks for `address`: what else was on offer to it is free.
    pub fn chose(&mut self, client: ClientHash, address: Ipv4Addr, now: Instant) {
        self.forget_offers(client);
        self.offers.insert(address, client, now, OFFER_KEPT);
        let offers = [Some(address), None, None, None];
        self.offered_to.insert(client, offers, now, OFFER_KEPT);
    }

    /// The client took another server's offer: what was on offer to it is free.
    pub fn forget_offers(&mut self, client: ClientHash) {
        let offers = self.offered_to.entries.remove(&client);
        for address in offers.into_iter().flat_map(|(_, offers)| offers).flatten() {
            if matches!(self.offers.entries.get(&address), Some((_, holder)) if *holder == client) {
                self.offers.entries.remove(&address);
            }
        }
    }

    /// How far an exchange has come, by what was noted `since` then: what was said about an earlier
    /// copy of a packet says nothing about a later one, whose sender did not hear it.
    pub fn progress(
        &self,
        exchange: ExchangeHash,
        since: Instant,
        now: Instant,
    ) -> Option<Progress> {
        self.exchanges.get(&exchange, now)?.since(since)
    }

    /// A relay's packet waited for peers in vain: they do not get what this relay sends.
    pub fn only_here(&mut self, relay: Ipv4Addr, now: Instant) {
        self.only_here.insert(relay, (), now, RELAY_KEPT);
    }

    /// Whether this node alone gets a relay's packets, as far as was seen lately.
    pub fn is_only_here(&self, relay: Ipv4Addr, now: Instant) -> bool {
        self.only_here.get(&relay, now).is_some()
    }

    /// Notes that a packet came; says whether it is a copy of one that came before.
    pub fn is_copy(&mut self, exchange: ExchangeHash, now: Instant) -> bool {
        let known = self.exchanges.entry(exchange, now, ANSWER_KEPT);
        known.again |= known.came;
        known.came = true;
        known.again
    }

    /// Whether a packet and a copy of it came: its sender was not served at once.
    pub fn came_again(&self, exchange: ExchangeHash, now: Instant) -> bool {
        self.exchanges
            .get(&exchange, now)
            .is_some_and(|known| known.again)
    }
}

impl Known {
    /// How far it has come, by what was noted since then.
    fn since(&self, since: Instant) -> Option<Progress> {
        let (progress, noted) = self.progress?;
        (noted >= since).then_some(progress)
    }
}

/// A map whose entries end, with a bound.
#[derive(Debug)]
struct Table<K, V> {
    entries: HashMap<K, (Instant, V)>,
    /// Ends in order of insertion; an entry that was renewed is here more than once.
    order: VecDeque<(Instant, K)>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<K: Copy + Eq + std::hash::Hash, V> Table<K, V> {
    fn get(&self, key: &K, now: Instant) -> Option<&V> {
        self.entries
            .get(key)
            .filter(|(end, _)| *end > now)
            .map(|(_, value)| value)
    }

    fn insert(&mut self, key: K, value: V, now: Instant, kept: Duration) {
        self.make_room(now);
        let end = now + kept;
        self.entries.insert(key, (end, value));
        self.order.push_back((end, key));
    }

    fn make_room(&mut self, now: Instant) {
        while let Some((end, oldest)) = self.order.front().copied() {
            if end > now && self.order.len() < ENTRIES_MAX {
                break;
            }
            self.order.pop_front();
            if let Entry::Occupied(entry) = self.entries.entry(oldest)
                && entry.get().0 <= end
            {
                entry.remove();
            }
        }
    }
}

impl<K: Copy + Eq + std::hash::Hash, V: Default> Table<K, V> {
    /// What is there, or a new entry, to be changed. One that is there is kept for half of the time
    /// still at least.
    fn entry(&mut self, key: K, now: Instant, kept: Duration) -> &mut V {
        self.make_room(now);
        let (end, value) = self.entries.entry(key).or_insert((now, V::default()));
        if *end < now + kept / 2 {
            *end = now + kept;
            self.order.push_back((*end, key));
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

    #[test]
    fn an_offer_keeps_others_away_for_a_minute() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        recent.note(Notice::Offered(A, 1), now);
        assert!(recent.offered_to_other(A, 2, now));
        assert!(!recent.offered_to_other(A, 1, now));
        assert!(!recent.offered_to_other(A, 2, now + OFFER_KEPT));
        recent.forget_offers(2);
        assert!(recent.offered_to_other(A, 2, now));
        recent.forget_offers(1);
        assert!(!recent.offered_to_other(A, 2, now));
    }

    #[test]
    fn two_nodes_offers_stand_until_the_client_chooses() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        let b = Ipv4Addr::new(10, 77, 0, 101);
        recent.note(Notice::Offered(A, 1), now);
        recent.note(Notice::Offered(b, 1), now);
        assert!(recent.offered_to_other(A, 2, now));
        assert!(recent.offered_to_other(b, 2, now));
        recent.chose(1, A, now);
        assert_eq!(recent.offered_to(1, now), Some(A));
        assert!(recent.offered_to_other(A, 2, now));
        recent.note(Notice::Offered(b, 2), now);
        recent.chose(1, b, now);
        assert!(!recent.offered_to_other(A, 2, now));
        // Whichever of them it takes, the others are free.
        let mut recent = Recent::default();
        recent.note(Notice::Offered(A, 1), now);
        recent.note(Notice::Offered(b, 1), now);
        recent.chose(1, b, now);
        assert!(!recent.offered_to_other(A, 2, now));
        assert!(recent.offered_to_other(b, 2, now));
        assert_eq!(recent.offered_to(1, now + OFFER_KEPT), None);
    }

    #[test]
    fn the_first_offer_of_an_address_stands() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        recent.note(Notice::Offered(A, 1), now);
        recent.note(Notice::Offered(A, 2), now);
        assert!(recent.offered_to_other(A, 2, now));
        recent.chose(2, A, now);
        assert!(recent.offered_to_other(A, 1, now));
    }

    #[test]
    fn an_answer_is_not_taken_back() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        recent.note(Notice::Exchange(7, Progress::Answered), now);
        recent.note(Notice::Exchange(7, Progress::Proposed), now);
        assert_eq!(recent.progress(7, now, now), Some(Progress::Answered));
        let later = now + ANSWER_KEPT;
        assert_eq!(recent.progress(7, now, later), None);
    }

    #[test]
    fn an_answer_to_one_copy_is_none_to_the_next() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        recent.note(Notice::Exchange(7, Progress::Answered), now);
        let copy = now + Duration::from_secs(1);
        assert_eq!(recent.progress(7, copy, copy), None);
        recent.note(Notice::Exchange(7, Progress::Proposed), copy);
        assert_eq!(recent.progress(7, copy, copy), Some(Progress::Proposed));
    }

    #[test]
    fn the_second_packet_of_an_exchange_is_a_copy() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        assert!(!recent.is_copy(7, now));
        assert!(!recent.came_again(7, now));
        assert!(recent.is_copy(7, now) && recent.came_again(7, now));
        assert!(recent.is_copy(7, now));
        assert!(!recent.is_copy(8, now) && !recent.came_again(8, now));
    }

    #[test]
    fn tables_are_bounded() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        for n in 0..2 * ENTRIES_MAX as u32 {
            recent.note(Notice::Offered(Ipv4Addr::from(n), 1), now);
        }
        assert!(recent.offers.entries.len() <= ENTRIES_MAX);
        assert!(recent.offers.order.len() <= ENTRIES_MAX);
        assert!(recent.offered_to_other(Ipv4Addr::from(2 * ENTRIES_MAX as u32 - 1), 2, now));
    }

    #[test]
    fn notices_survive_the_wire_and_unknown_ones_end_the_reading() {
        let notices = [
            Notice::Offered(A, 42),
            Notice::Exchange(7, Progress::Answered),
            Notice::Exchange(8, Progress::Proposed),
        ];
        let mut bytes = Notice::encode(&notices).to_vec();
        assert_eq!(Notice::decode(&bytes), notices);
        bytes.extend([99, 1, 2]);
        assert_eq!(Notice::decode(&bytes), notices);
        assert_eq!(Notice::decode(bytes.get(..16).unwrap_or_default()).len(), 1);
    }
}
