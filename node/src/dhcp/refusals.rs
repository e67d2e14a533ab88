//! What this node refused lately, and why, for those who ask: in memory, and bounded.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Instant;

use dhcproto::v4::MessageType;
use muster_api::node::About;
use muster_storage::Mac;
use serde::{Deserialize, Serialize};

use super::decide::Reason;
use super::metrics::label;
use super::reply::Nak;
use super::request::Request;

/// Refusals that are remembered; the oldest are forgotten first.
const REFUSALS_MAX: usize = 4096;

/// Refusals that are told of at a time, the latest.
const TOLD_MAX: usize = 16;

/// How a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// With a NAK.
    Nak(Nak),
    /// With silence.
    Silent(Reason),
}

/// A refusal, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Type of the request.
    #[serde(rename = "type")]
    pub kind: String,
    /// `nak` or `silence`.
    pub outcome: String,
    /// As in the metrics.
    pub reason: String,
    /// The same for people.
    pub why: String,
    /// MAC of the client, if it has one.
    pub mac: Option<Mac>,
    /// The address that it asked for last.
    pub address: Option<Ipv4Addr>,
    /// How often.
    pub times: u64,
    /// Seconds since the last time.
    pub secs_ago: u64,
}

/// One client's requests of one type that are refused for one reason are one entry: a client that
/// never gives up does not push out all others.
type Key = (u64, u8, Refused);

#[derive(Clone, Debug)]
struct Entry {
    mac: Option<Mac>,
    address: Option<Ipv4Addr>,
    times: u64,
    last: Instant,
}

/// The memory.
#[derive(Debug, Default)]
pub struct Refusals {
    entries: HashMap<Key, Entry>,
    /// Keys as they came.
    order: VecDeque<Key>,
}

impl Refusals {
    /// Takes note of a refusal.
    pub fn note(&mut self, request: &Request, refused: Refused, now: Instant) {
        let client = super::rank::hash(request.sender());
        let key = (client, u8::from(request.kind), refused);
        let address = match request.ciaddr.is_unspecified() {
            true => request.client.requested,
            false => Some(request.ciaddr),
        };
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.times = entry.times.saturating_add(1);
            entry.address = address;
            entry.last = now;
            return;
        }
        if self.order.len() >= REFUSALS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
        self.order.push_back(key);
        self.entries.insert(
            key,
            Entry {
                mac: request.client.mac,
                address,
                times: 1,
                last: now,
            },
        );
    }

    /// What is remembered about a client or an address, the latest first.
    pub fn about(&self, about: About, now: Instant) -> Vec<Refusal> {
        let wanted = |entry: &Entry| match about {
            About::Mac(mac) => entry.mac == Some(mac),
            About::Address(address) => entry.address == Some(address),
        };
        let mut found: Vec<(&Key, &Entry)> = self
            .entries
            .iter()
            .filter(|(_, entry)| wanted(entry))
            .collect();
        found.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.last));
        found
            .into_iter()
            .take(TOLD_MAX)
            .map(|((_, kind, refused), entry)| {
                let (outcome, reason, why) = match refused {
                    Refused::Nak(nak) => ("nak", nak.label(), nak.message()),
                    Refused::Silent(reason) => ("silence", reason.label(), reason.explain()),
                };
                Refusal {
                    kind: label(MessageType::from(*kind)).to_owned(),
                    outcome: outcome.to_owned(),
                    reason: reason.to_owned(),
                    why: why.to_owned(),
                    mac: entry.mac,
                    address: entry.address,
                    times: entry.times,
                    secs_ago: now.saturating_duration_since(entry.last).as_secs(),
                }
            })
            .collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddrV4;
    use std::time::Duration;

    use super::*;
    use crate::dhcp::request::Arrival;

    const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

    fn request(kind: MessageType, last: u16, address: Ipv4Addr) -> (Request, Mac) {
        let [high, low] = last.to_be_bytes();
        let mac = [0x52, 0x54, 0, 0, high, low];
        let mut bytes = vec![0; 240];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[28..34].copy_from_slice(&mac);
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        bytes.extend([53, 1, kind.into(), 50, 4]);
        bytes.extend(address.octets());
        let arrival = Arrival {
            link: [Ipv4Addr::new(10, 77, 0, 1)].into(),
            source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
            destination: Ipv4Addr::BROADCAST,
            boot_server: false,
        };
        (Request::parse(&bytes, arrival).unwrap(), Mac(mac))
    }

    #[test]
    fn what_is_refused_again_is_counted() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        let (asked, mac) = request(MessageType::Request, 1, A);
        let silent = Refused::Silent(Reason::Refused);
        refusals.note(&asked, silent, now);
        refusals.note(&asked, Refused::Nak(Nak::NotForClient), now);
        let later = now + Duration::from_secs(7);
        refusals.note(&asked, silent, later);
        let told = refusals.about(About::Mac(mac), later + Duration::from_secs(2));
        let short: Vec<_> = told
            .iter()
            .map(|it| {
                (
                    it.outcome.as_str(),
                    it.reason.as_str(),
                    it.times,
                    it.secs_ago,
                )
            })
            .collect();
        assert_eq!(
            short,
            [
                ("silence", "refused", 2, 2),
                ("nak", "not_for_client", 1, 9)
            ]
        );
        assert_eq!(refusals.about(About::Address(A), later).len(), 2);
        let other = Ipv4Addr::new(10, 77, 0, 101);
        assert!(refusals.about(About::Address(other), later).is_empty());
        assert!(refusals.about(About::Mac(Mac([2; 6])), later).is_empty());
    }

    #[test]
    fn the_oldest_is_forgotten_first_and_a_stubborn_client_takes_one_place() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        let silent = Refused::Silent(Reason::NoAddress);
        let (first, first_mac) = request(MessageType::Discover, 0, A);
        let (second, second_mac) = request(MessageType::Discover, 1, A);
        refusals.note(&first, silent, now);
        refusals.note(&second, silent, now);
        for _ in 0..2 * REFUSALS_MAX {
            refusals.note(&second, silent, now);
        }
        assert_eq!(refusals.about(About::Mac(first_mac), now).len(), 1);
        for last in 2..=REFUSALS_MAX as u16 {
            refusals.note(&request(MessageType::Discover, last, A).0, silent, now);
        }
        assert_eq!(refusals.entries.len(), REFUSALS_MAX);
        assert!(refusals.about(About::Mac(first_mac), now).is_empty());
        assert_eq!(refusals.about(About::Mac(second_mac), now).len(), 1);
        assert_eq!(refusals.about(About::Address(A), now).len(), TOLD_MAX);
    }
}
