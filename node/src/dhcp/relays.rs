//! Relays that forwarded something lately: who sees none where one should be knows what to look into.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Relays that are remembered: anybody can claim to be any relay.
const RELAYS_MAX: usize = 256;

/// A relay that forwarded packets to this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// What it calls itself (giaddr).
    pub giaddr: Ipv4Addr,
    /// The subnet of its clients; none when no subnet has their link.
    pub subnet: Option<String>,
    /// Packets that it forwarded since the node was started.
    pub packets: u64,
    /// When the last one came.
    pub secs_ago: u64,
}

#[derive(Debug)]
struct Note {
    subnet: Option<String>,
    packets: u64,
    last: Instant,
}

/// The relays that were heard last.
#[derive(Debug, Default)]
pub struct Relays(HashMap<Ipv4Addr, Note>);

impl Relays {
    /// A relay forwarded a packet of a client on this subnet, if it is one's link at all.
    pub fn note(&mut self, giaddr: Ipv4Addr, subnet: Option<&str>, now: Instant) {
        if !self.0.contains_key(&giaddr) && self.0.len() >= RELAYS_MAX {
            let oldest = self.0.iter().min_by_key(|(_, note)| note.last);
            if let Some(giaddr) = oldest.map(|(giaddr, _)| *giaddr) {
                self.0.remove(&giaddr);
            }
        }
        let note = self.0.entry(giaddr).or_insert(Note {
            subnet: None,
            packets: 0,
            last: now,
        });
        note.packets = note.packets.saturating_add(1);
        note.last = now;
        if note.subnet.as_deref() != subnet {
            note.subnet = subnet.map(str::to_owned);
        }
    }

    /// All of them, by address.
    pub fn seen(&self, now: Instant) -> Vec<Seen> {
        let mut seen: Vec<Seen> = self
            .0
            .iter()
            .map(|(giaddr, note)| Seen {
                giaddr: *giaddr,
                subnet: note.subnet.clone(),
                packets: note.packets,
                secs_ago: now.saturating_duration_since(note.last).as_secs(),
            })
            .collect();
        seen.sort_by_key(|relay| relay.giaddr);
        seen
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn relays_are_remembered_with_their_subnets_and_a_flood_is_bounded() {
        let (mut relays, start) = (Relays::default(), Instant::now());
        let relay = Ipv4Addr::new(10, 78, 0, 1);
        relays.note(relay, None, start);
        relays.note(relay, Some("hall"), start + Duration::from_secs(1));
        let expected = Seen {
            giaddr: relay,
            subnet: Some("hall".to_owned()),
            packets: 2,
            secs_ago: 9,
        };
        assert_eq!(relays.seen(start + Duration::from_secs(10)), [expected]);
        for other in 0..1000 {
            relays.note(Ipv4Addr::from(other), None, start + Duration::from_secs(2));
        }
        let seen = relays.seen(start + Duration::from_secs(10));
        assert_eq!(seen.len(), RELAYS_MAX);
        assert!(seen.iter().all(|seen| seen.giaddr != relay), "the oldest");
    }
}
