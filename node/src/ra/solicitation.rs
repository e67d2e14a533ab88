//! What a router solicitation is, and who is answered when. Pure.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

/// The group that solicitations are sent to (RFC 4291 §2.7.1).
pub(super) const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// The group that everybody listens to.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Least time between two advertisements to all (MIN_DELAY_BETWEEN_RAS, RFC 4861 §10).
const BETWEEN_ALL: Duration = Duration::from_secs(3);

/// Advertisements to single machines within [`BETWEEN_ALL`]: a hall that is switched on at once.
const SINGLE_MAX: u32 = 512;

const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;

/// Whether a packet, of which the kernel has checked the checksum and the hop limit, is a valid
/// solicitation (RFC 4861 §6.1.1).
pub(super) fn is_solicitation(packet: &[u8], from: Ipv6Addr) -> bool {
    let [133, 0, _, _, _, _, _, _, options @ ..] = packet else {
        return false;
    };
    let mut rest = options;
    while let [kind, length, ..] = rest {
        // In units of eight octets.
        let octets = usize::from(*length) * 8;
        if octets == 0 || (*kind == SOURCE_LINK_LAYER_ADDRESS && from.is_unspecified()) {
            return false;
        }
        match rest.get(octets..) {
            Some(after) => rest = after,
            None => return false,
        }
    }
    rest.is_empty()
}

/// How often is answered, so that a flood of solicitations does not become one of advertisements.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When all were answered last.
    all: Option<Instant>,
    /// Since when single answers are counted, and how many there were.
    singles: Option<(Instant, u32)>,
}

impl Pace {
    /// Where the answer to a solicitation goes, if it is answered: to its sender alone, or to all when
    /// it has no address of this link.
    pub(super) fn destination(&mut self, from: Ipv6Addr, now: Instant) -> Option<Ipv6Addr> {
        let within = |since: Instant| now.saturating_duration_since(since) < BETWEEN_ALL;
        if !from.is_unicast_link_local() {
            if self.all.is_some_and(within) {
                return None;
            }
            self.all = Some(now);
            return Some(ALL_NODES);
        }
        let (since, count) = self
            .singles
            .filter(|(since, _)| within(*since))
            .unwrap_or((now, 0));
        self.singles = Some((since, count.saturating_add(1)));
        (count < SINGLE_MAX).then_some(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x50);
    const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

    #[test]
    fn solicitations_are_checked() {
        let plain = [133, 0, 1, 2, 0, 0, 0, 0];
        let source = [1, 1, 0x52, 0x54, 0, 0, 0, 0x50];
        let with = |options: &[u8]| [&plain[..], options].concat();
        for (packet, from, good) in [
            (plain.to_vec(), CLIENT, true),
            (plain.to_vec(), NOBODY, true),
            (with(&source), CLIENT, true),
            (with(&source), NOBODY, false),
            (with(&[source, source].concat()), CLIENT, true),
            (with(&[253, 1, 0, 0, 0, 0, 0, 0]), NOBODY, true),
            (with(&[1, 0, 0, 0, 0, 0, 0, 0]), CLIENT, false),
            (with(&[1, 2, 0, 0, 0, 0, 0, 0]), CLIENT, false),
            (with(&[1]), CLIENT, false),
            (vec![133, 1, 0, 0, 0, 0, 0, 0], CLIENT, false),
            (vec![134, 0, 0, 0, 0, 0, 0, 0], CLIENT, false),
            (plain[..7].to_vec(), CLIENT, false),
            (Vec::new(), CLIENT, false),
        ] {
            assert_eq!(is_solicitation(&packet, from), good, "{packet:?} {from}");
        }
    }

    #[test]
    fn all_are_answered_seldom_and_one_at_once() {
        let mut pace = Pace::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let global = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        assert_eq!(pace.destination(NOBODY, at(0)), Some(ALL_NODES));
        assert_eq!(pace.destination(NOBODY, at(2999)), None);
        assert_eq!(pace.destination(CLIENT, at(2999)), Some(CLIENT));
        assert_eq!(pace.destination(global, at(3000)), Some(ALL_NODES));
        assert_eq!(pace.destination(NOBODY, at(3001)), None);
    }

    #[test]
    fn a_flood_is_not_answered() {
        let mut pace = Pace::default();
        let start = Instant::now();
        let answered = (0..10_000).filter(|_| pace.destination(CLIENT, start).is_some());
        assert_eq!(answered.count(), 512);
        assert!(pace.destination(CLIENT, start + BETWEEN_ALL).is_some());
    }
}
