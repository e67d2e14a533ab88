//! Leases, by what DHCP clients were told.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{Last, Parts, Rule, Violation};
use crate::chaos::history::{Exchange, Record, Said, Want};
use crate::chaos::leases::LEASE;

const SECOND: u64 = 1_000_000;

/// An address in the hands of a client: from an ACK to the end of what it promised.
struct Hold<'a> {
    exchange: &'a Exchange,
    address: Ipv4Addr,
    until: u64,
}

/// All of them, in the order of their ACKs. A client that has forgotten its address holds it still, as
/// far as the servers know; one that gave it back or took another does not.
fn holds(exchanges: &[Exchange]) -> Vec<Hold<'_>> {
    let mut holds: Vec<Hold<'_>> = Vec::new();
    // By client, the address that it has and all ACKs that say so.
    let mut held: BTreeMap<&str, (Ipv4Addr, Vec<usize>)> = BTreeMap::new();
    for exchange in exchanges {
        let ends = match (exchange.want, exchange.said) {
            (Want::Release | Want::Decline, _) => Some(exchange.start),
            // It was not given what it was offered: it has what it had.
            (Want::Bind, Said::Nak) => None,
            (_, Said::Nak) => Some(exchange.end),
            (_, Said::Ack) => {
                let before = held.get(&*exchange.mac);
                let other = before.is_some_and(|(address, _)| Some(*address) != exchange.address);
                other.then_some(exchange.start)
            }
            (_, Said::Nothing) => None,
        };
        if let Some(end) = ends
            && let Some((_, acks)) = held.remove(&*exchange.mac)
        {
            for index in acks {
                if let Some(hold) = holds.get_mut(index) {
                    hold.until = hold.until.min(end);
                }
            }
        }
        let given = exchange.address.zip(exchange.seconds);
        if let Some((address, seconds)) = given.filter(|_| exchange.said == Said::Ack) {
            let (_, acks) = held
                .entry(&*exchange.mac)
                .or_insert_with(|| (address, Vec::new()));
            acks.push(holds.len());
            holds.push(Hold {
                exchange,
                address,
                until: exchange.requested + u64::from(seconds) * SECOND,
            });
        }
    }
    holds
}

/// No two clients hold an address at a time.
pub fn one_owner(exchanges: &[Exchange]) -> Vec<Violation> {
    // By address, what was held last and for longest.
    let mut owners: BTreeMap<Ipv4Addr, Vec<Hold<'_>>> = BTreeMap::new();
    let mut found = Vec::new();
    for hold in holds(exchanges) {
        let others = owners.entry(hold.address).or_default();
        others.retain(|other| other.until > hold.exchange.end);
        let twice = others
            .iter()
            .find(|other| other.exchange.mac != hold.exchange.mac);
        if let Some(other) = twice {
            found.push(Violation {
                rule: Rule::OneOwner,
                what: format!(
                    "{} is given to {} while {} has it for {:.3} s more",
                    hold.address,
                    hold.exchange.mac,
                    other.exchange.mac,
                    (other.until - hold.exchange.end) as f64 / 1e6
                ),
                part: record([other.exchange, hold.exchange].into_iter()),
            });
        }
        others.push(hold);
    }
    found
}

/// What clients gave back lately. A node without a majority that has not heard of it may confirm it to
/// the same client until it would have ended: nobody else can have it before that, but it is refused
/// later.
#[derive(Default)]
struct Returned<'a>(BTreeMap<(&'a str, Ipv4Addr), u64>);

impl<'a> Returned<'a> {
    fn note(&mut self, exchange: &'a Exchange) {
        if let Some(address) = exchange.address {
            self.0.insert((&*exchange.mac, address), exchange.start);
        }
    }

    /// Whether this ACK may be such a confirmation.
    fn doubts(&self, ack: &Exchange) -> bool {
        // What is committed lasts twice as long as what is promised.
        let committed = 2 * u64::from(LEASE) * SECOND;
        let key = ack.address.map(|address| (&*ack.mac, address));
        let returned = key.and_then(|key| self.0.get(&key));
        returned.is_some_and(|at| ack.end < at + committed)
    }
}

/// Who has an address is not told that it has none or another, and is known for its owner at the end.
pub fn kept(exchanges: &[Exchange], last: Option<&Last>) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut returned = Returned::default();
    let mut doubtful: Vec<u64> = Vec::new();
    let mut held: BTreeMap<&str, (&Exchange, u64)> = BTreeMap::new();
    for exchange in exchanges {
        let before = held.get(&*exchange.mac).copied();
        match (exchange.want, exchange.said) {
            (Want::Release | Want::Decline, _) => {
                returned.note(exchange);
                held.remove(&*exchange.mac);
            }
            (Want::Bind, Said::Nak) => {}
            (_, Said::Nak) => {
                let valid =
                    before.filter(|(ack, until)| *until > exchange.end && !returned.doubts(ack));
                if let Some((ack, _)) = valid {
                    found.push(Violation {
                        rule: Rule::LeaseKept,
                        what: format!("{} is refused the address that it has", exchange.mac),
                        part: record([ack, exchange].into_iter()),
                    });
                }
                held.remove(&*exchange.mac);
            }
            (want, Said::Ack) => {
                let other = before.filter(|(ack, until)| {
                    *until > exchange.end && ack.address != exchange.address
                });
                if let Some((ack, _)) = other.filter(|_| want != Want::Bind) {
                    found.push(Violation {
                        rule: Rule::LeaseKept,
                        what: format!("{} asks for more time and is moved", exchange.mac),
                        part: record([ack, exchange].into_iter()),
                    });
                }
                if returned.doubts(exchange) {
                    doubtful.push(exchange.end);
                }
                let seconds = u64::from(exchange.seconds.unwrap_or_default());
                held.insert(
                    &exchange.mac,
                    (exchange, exchange.requested + seconds * SECOND),
                );
            }
            (_, Said::Nothing) => {}
        }
    }
    let Some(last) = last else {
        return found;
    };
    let holds = holds(exchanges).into_iter();
    let lasting = holds.filter(|hold| hold.until > last.at + SECOND);
    for hold in lasting.filter(|hold| doubtful.binary_search(&hold.exchange.end).is_err()) {
        let owner = last.bound.get(&hold.address);
        if owner != Some(&hold.exchange.mac) {
            found.push(Violation {
                rule: Rule::LeaseKept,
                what: format!(
                    "{} belongs to {} for {:.1} s more, and by the cluster to {owner:?}",
                    hold.address,
                    hold.exchange.mac,
                    (hold.until - last.at) as f64 / 1e6
                ),
                part: record([hold.exchange].into_iter()),
            });
        }
    }
    found
}

/// A node that can reach no majority confirms what its client has, and says nothing else.
pub fn minority(parts: &Parts) -> Vec<Violation> {
    // As committed: twice what was promised, and though its client may have given it back since, of which
    // that node may not have heard.
    let committed = |ack: &Exchange| {
        let seconds = u64::from(ack.seconds.unwrap_or_default());
        ack.requested + 2 * seconds * SECOND
    };
    let mut found = Vec::new();
    for fault in &parts.faults {
        for exchange in &parts.exchanges {
            let alone = exchange
                .from
                .is_some_and(|from| fault.alone.contains(&from));
            if !alone || exchange.requested < fault.struck || exchange.end > fault.healing {
                continue;
            }
            let had = parts.exchanges.iter().any(|ack| {
                ack.said == Said::Ack
                    && ack.mac == exchange.mac
                    && ack.address == exchange.address
                    && ack.end < exchange.requested
                    && committed(ack) > exchange.requested
            });
            if exchange.said == Said::Nak || !had {
                found.push(Violation {
                    rule: Rule::Minority,
                    what: format!(
                        "{:?} for {} by a node that can reach no majority",
                        exchange.said, exchange.mac
                    ),
                    part: vec![
                        Record::Fault(fault.clone()),
                        Record::Exchange(exchange.clone()),
                    ],
                });
            }
        }
    }
    found
}

fn record<'a>(exchanges: impl Iterator<Item = &'a Exchange>) -> Vec<Record> {
    let records = exchanges.map(|exchange| Record::Exchange(exchange.clone()));
    records.collect()
}
