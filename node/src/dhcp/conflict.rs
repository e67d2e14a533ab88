//! Which addresses are probed, and which answers are believed. Pure: the sockets are in [`super::arp`].

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use muster_storage::Mac;
use muster_storage::command::Client;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Probes in a second: a herd of clients is not to become a herd of broadcasts.
const PROBES_MAX: u32 = 200;

/// One that answers for more addresses than these answers for a whole network (proxy ARP,
/// RFC 1027), and is not believed.
const BELIEVED_MAX: usize = 3;

/// How long it is remembered who answered.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Those that are remembered.
const ANSWERING_MAX: usize = 1024;

/// An address that is in use by another than the client that it was offered to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The client that it was offered to.
    pub client: Client,
    /// Name of its subnet.
    pub subnet: String,
}

/// Probes that are under way, and who answered earlier ones.
#[derive(Debug, Default)]
pub struct Probes {
    pending: HashMap<Ipv4Addr, (Instant, Conflict)>,
    answering: HashMap<Mac, (Instant, BTreeSet<Ipv4Addr>)>,
    second: Option<(Instant, u32)>,
}

impl Probes {
    /// Whether `address`, which was offered to a client just now, is to be probed.
    pub fn begin(
        &mut self,
        address: Ipv4Addr,
        client: &Client,
        subnet: &str,
        now: Instant,
    ) -> bool {
        let (since, sent) = match self.second {
            Some((since, sent))
                if now.saturating_duration_since(since) < Duration::from_secs(1) =>
            {
                (since, sent)
            }
            _ => {
                self.pending.retain(|_, (until, _)| *until > now);
                (now, 0)
            }
        };
        let waits = self
            .pending
            .get(&address)
            .is_some_and(|(until, _)| *until > now);
        if waits || sent >= PROBES_MAX {
            return false;
        }
        self.second = Some((since, sent + 1));
        let conflict = Conflict {
            client: client.clone(),
            subnet: subnet.to_owned(),
        };
        self.pending.insert(address, (now + PATIENCE, conflict));
        true
    }

    /// Somebody answered for `address`: the conflict, if it is one.
    pub fn answered(&mut self, address: Ipv4Addr, by: Mac, now: Instant) -> Option<Conflict> {
        let (until, conflict) = self.pending.remove(&address)?;
        if until <= now || conflict.client.mac == Some(by) {
            return None;
        }
        if self.answering.len() >= ANSWERING_MAX {
            self.answering.retain(|_, (until, _)| *until > now);
        }
        if self.answering.len() >= ANSWERING_MAX && !self.answering.contains_key(&by) {
            return None;
        }
        let fresh = || (now + REMEMBERED, BTreeSet::new());
        let known = self.answering.entry(by).or_insert_with(fresh);
        if known.0 <= now {
            *known = fresh();
        }
        if known.1.len() >= BELIEVED_MAX && !known.1.contains(&address) {
            return None;
        }
        known.1.insert(address);
        Some(conflict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn client() -> Client {
        Client {
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            client_id: None,
            boots: false,
            link: vec![Ipv4Addr::new(10, 77, 0, 1)],
            requested: None,
            lease_secs: None,
            hostname: None,
            relay: None,
            traits: muster_storage::command::Traits::default(),
        }
    }

    #[test]
    fn another_that_answers_in_time_is_a_conflict() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        assert_eq!(probes.answered(A, OTHER, now), None, "nobody asked");
        assert!(probes.begin(A, &client(), "lab", now));
        assert!(!probes.begin(A, &client(), "lab", now), "it is under way");
        let conflict = probes.answered(A, OTHER, now);
        assert_eq!(conflict.map(|it| it.subnet), Some("lab".to_owned()));
        assert_eq!(probes.answered(A, OTHER, now), None, "told once");
        assert!(probes.begin(A, &client(), "lab", now));
        assert_eq!(probes.answered(A, OTHER, now + PATIENCE), None, "too late");
        assert!(probes.begin(A, &client(), "lab", now + PATIENCE));
        let own = client().mac.unwrap_or(OTHER);
        assert_eq!(probes.answered(A, own, now + PATIENCE), None, "its own");
    }

    #[test]
    fn one_that_answers_for_everything_is_not_believed() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        let mut believed = |last: u8, by: Mac, at: Instant| {
            let address = Ipv4Addr::new(10, 77, 0, last);
            assert!(probes.begin(address, &client(), "lab", at));
            probes.answered(address, by, at).is_some()
        };
        for last in 1..=BELIEVED_MAX as u8 {
            assert!(believed(last, OTHER, now));
        }
        assert!(!believed(100, OTHER, now));
        assert!(believed(1, OTHER, now), "one that was believed before");
        assert!(believed(101, Mac([2, 0, 0, 0, 0, 8]), now), "somebody else");
        assert!(believed(100, OTHER, now + REMEMBERED), "after a while");
    }

    #[test]
    fn a_herd_is_not_probed_whole() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        let begun = |probes: &mut Probes, at| {
            let many = 0..10 * PROBES_MAX;
            many.filter(|it| probes.begin(Ipv4Addr::from(*it), &client(), "lab", at))
                .count()
        };
        assert_eq!(begun(&mut probes, now), PROBES_MAX as usize);
        let later = now + 2 * PATIENCE;
        assert_eq!(begun(&mut probes, later), PROBES_MAX as usize);
        assert_eq!(
            probes.pending.len(),
            PROBES_MAX as usize,
            "old ones are gone"
        );
    }
}
