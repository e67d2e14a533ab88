//! Which addresses are probed, and which answers are believed. Pure: the sockets are in [`super::arp`]
//! and [`super::icmp`].

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use muster_storage::Mac;
use muster_storage::command::Client;

/// How long an answer is waited for: hosts give one within milliseconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// Probes in a second: a herd of clients is not to become a herd of broadcasts.
pub const PROBES_MAX: u32 = 200;

/// One that answers for more addresses than these answers for a whole network (proxy ARP,
/// RFC 1027), and is not believed.
const BELIEVED_MAX: usize = 3;

/// As many behind one relay, where it is not known who answers.
const BELIEVED_BEHIND_MAX: usize = 16;

/// Answers that are believed in [`REMEMBERED`], whoever gave them: anybody can answer for anything,
/// in anybody's name, and must not empty a pool by it.
const BELIEVED_IN_ALL: usize = 64;

/// How long it is remembered who answered.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// How an address is reached to ask who has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// By ARP on the link of the interface with this index.
    Arp(u32),
    /// By ICMP echo, behind a relay.
    Echo,
}

/// An address that is asked for.
pub type Place = (Way, Ipv4Addr);

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Witness {
    /// An answer to ARP names its sender's hardware.
    Hardware(Mac),
    /// An echo names nobody: somebody behind this relay.
    Behind(Option<Ipv4Addr>),
}

impl Witness {
    fn believed_max(self) -> usize {
        match self {
            Self::Hardware(_) => BELIEVED_MAX,
            Self::Behind(_) => BELIEVED_BEHIND_MAX,
        }
    }
}

/// An address that is in use by another than the client that it was offered to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The client that it was offered to.
    pub client: Client,
    /// Name of its subnet.
    pub subnet: String,
}

/// What an answer is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The address is in use.
    InUse(Box<Conflict>),
    /// There have been too many of them, on this subnet for example.
    Disbelieved(String),
    /// It answers no probe, or is the client's own.
    Nothing,
}

/// Probes that are under way, and who answered earlier ones.
#[derive(Debug, Default)]
pub struct Probes {
    pending: HashMap<Place, (Instant, Conflict)>,
    answering: HashMap<Witness, (Instant, BTreeSet<Ipv4Addr>)>,
    second: Option<(Instant, u32)>,
}

impl Probes {
    /// Whether a place, which was offered to a client just now, is to be probed. Without a hardware
    /// address its own answer could not be told from another's.
    pub fn begin(&mut self, place: Place, client: &Client, subnet: &str, now: Instant) -> bool {
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
            .get(&place)
            .is_some_and(|(until, _)| *until > now);
        if waits || sent >= PROBES_MAX || client.mac.is_none() {
            return false;
        }
        self.second = Some((since, sent + 1));
        let conflict = Conflict {
            client: client.clone(),
            subnet: subnet.to_owned(),
        };
        self.pending.insert(place, (now + PATIENCE, conflict));
        true
    }

    /// Somebody answered for a place, with this hardware address as far as the answer says.
    pub fn answered(&mut self, place: Place, by: Option<Mac>, now: Instant) -> Answer {
        let Some((until, conflict)) = self.pending.get(&place) else {
            return Answer::Nothing;
        };
        if *until <= now || (by.is_some() && conflict.client.mac == by) {
            return Answer::Nothing;
        }
        let conflict = conflict.clone();
        let relay = conflict.client.traits.giaddr;
        let witness = by.map_or(Witness::Behind(relay), Witness::Hardware);
        if !self.believes(witness, place.1, now) {
            return Answer::Disbelieved(conflict.subnet);
        }
        self.pending.remove(&place);
        Answer::InUse(Box::new(conflict))
    }

    fn believes(&mut self, by: Witness, address: Ipv4Addr, now: Instant) -> bool {
        self.answering.retain(|_, (until, _)| *until > now);
        let believed: usize = self.answering.values().map(|(_, all)| all.len()).sum();
        let fresh = || (now + REMEMBERED, BTreeSet::new());
        let (_, known) = self.answering.entry(by).or_insert_with(fresh);
        if known.contains(&address) {
            return true;
        }
        if known.len() >= by.believed_max() || believed >= BELIEVED_IN_ALL {
            if known.is_empty() {
                self.answering.remove(&by);
            }
            return false;
        }
        known.insert(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Place = (Way::Arp(1), Ipv4Addr::new(10, 77, 0, 100));
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
        assert_eq!(
            probes.answered(A, Some(OTHER), now),
            Answer::Nothing,
            "nobody asked"
        );
        assert!(probes.begin(A, &client(), "lab", now));
        assert!(!probes.begin(A, &client(), "lab", now), "it is under way");
        let own = client().mac.unwrap_or(OTHER);
        assert_eq!(
            probes.answered(A, Some(own), now),
            Answer::Nothing,
            "its own"
        );
        let elsewhere = (Way::Arp(2), A.1);
        assert_eq!(
            probes.answered(elsewhere, Some(OTHER), now),
            Answer::Nothing
        );
        let conflict = Conflict {
            client: client(),
            subnet: "lab".to_owned(),
        };
        assert_eq!(
            probes.answered(A, Some(OTHER), now),
            Answer::InUse(Box::new(conflict))
        );
        assert_eq!(
            probes.answered(A, Some(OTHER), now),
            Answer::Nothing,
            "told once"
        );
        assert!(probes.begin(A, &client(), "lab", now));
        let late = probes.answered(A, Some(OTHER), now + PATIENCE);
        assert_eq!(late, Answer::Nothing, "too late");
        let unknown = Client {
            mac: None,
            ..client()
        };
        assert!(!probes.begin(elsewhere, &unknown, "lab", now));
    }

    fn believed(probes: &mut Probes, last: u32, by: Mac, at: Instant) -> bool {
        let place = (Way::Arp(1), Ipv4Addr::from(0x0a4d_0000 + last));
        assert!(probes.begin(place, &client(), "lab", at));
        match probes.answered(place, Some(by), at) {
            Answer::InUse(_) => true,
            Answer::Disbelieved(subnet) => subnet != "lab",
            Answer::Nothing => false,
        }
    }

    #[test]
    fn one_that_answers_for_everything_is_not_believed() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        for last in 1..=BELIEVED_MAX as u32 {
            assert!(believed(&mut probes, last, OTHER, now));
        }
        assert!(!believed(&mut probes, 100, OTHER, now));
        assert!(believed(&mut probes, 1, OTHER, now), "believed before");
        let another = Mac([2, 0, 0, 0, 0, 8]);
        assert!(believed(&mut probes, 101, another, now), "somebody else");
        let later = now + REMEMBERED;
        assert!(believed(&mut probes, 100, OTHER, later), "after a while");
    }

    #[test]
    fn behind_a_relay_it_is_not_known_who_answers() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        let behind = |last: u8| {
            let mut client = client();
            client.traits.giaddr = Some(Ipv4Addr::new(10, 78, last, 1));
            client
        };
        let mut ask = |relay, last| {
            let place = (Way::Echo, Ipv4Addr::new(10, 78, relay, last));
            assert!(probes.begin(place, &behind(relay), "lab", now));
            matches!(probes.answered(place, None, now), Answer::InUse(_))
        };
        let believed = (1..=100).filter(|last| ask(1, *last)).count();
        assert_eq!(believed, BELIEVED_BEHIND_MAX);
        assert!(ask(2, 1), "behind another");
    }

    /// A router that answers for everything does not hide who has an address.
    #[test]
    fn the_second_answer_to_a_probe_counts() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        for last in 1..=BELIEVED_MAX as u32 {
            believed(&mut probes, last, OTHER, now);
        }
        assert!(probes.begin(A, &client(), "lab", now));
        let router = probes.answered(A, Some(OTHER), now);
        assert_eq!(router, Answer::Disbelieved("lab".to_owned()));
        let holder = probes.answered(A, Some(Mac([2, 0, 0, 0, 0, 8])), now);
        assert!(matches!(holder, Answer::InUse(_)), "{holder:?}");
    }

    #[test]
    fn a_forger_of_answers_does_not_empty_a_pool() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        let forged = (0..1000u32).filter(|number| {
            let [a, b, c, d] = number.to_be_bytes();
            let at = now + Duration::from_millis(u64::from(*number) * 10);
            believed(&mut probes, *number, Mac([2, 1, a, b, c, d]), at)
        });
        assert_eq!(forged.count(), BELIEVED_IN_ALL);
        assert!(probes.answering.len() <= BELIEVED_IN_ALL);
    }

    #[test]
    fn a_herd_is_not_probed_whole() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        let begun = |probes: &mut Probes, at| {
            let many = 0..10 * PROBES_MAX;
            many.filter(|it| probes.begin((Way::Arp(1), Ipv4Addr::from(*it)), &client(), "lab", at))
                .count()
        };
        assert_eq!(begun(&mut probes, now), PROBES_MAX as usize);
        let later = now + Duration::from_secs(1);
        assert_eq!(begun(&mut probes, later), PROBES_MAX as usize);
        let left = probes.pending.len();
        assert_eq!(left, PROBES_MAX as usize, "old ones are gone");
    }
}
