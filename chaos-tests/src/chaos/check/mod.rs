//! What must hold whatever befell the cluster, looked up in the history. Every check is a function of
//! records alone, and is tested on histories that break it.

mod leases;
mod objects;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::Serialize;

use super::history::{Boot, Call, Exchange, Fault, Record, Said, Want};

/// Something that must not be.
#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    /// Which rule is broken.
    pub rule: Rule,
    /// How.
    pub what: String,
    /// The records that show it.
    pub part: Vec<Record>,
}

/// What must hold, as clients and operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// No address is promised to two clients at a time.
    OneOwner,
    /// A lease that was acknowledged is there until it ends or is given back.
    LeaseKept,
    /// What clients saw of each object can have happened in one order.
    Linearizable,
    /// A read shows all that was acknowledged before it began.
    Fresh,
    /// Who can reach no majority promises nothing new, and refuses nothing.
    Minority,
    /// No firmware and no client gives up.
    NobodyGivesUp,
    /// A cluster that nothing hinders any more becomes whole in time, and no node ends by itself.
    Heals,
    /// All nodes have the same state.
    SameState,
}

/// What the cluster says at the end, when all is whole again.
#[derive(Clone, Debug, Default)]
pub struct Last {
    /// When it was asked.
    pub at: u64,
    /// Who has which address.
    pub bound: BTreeMap<Ipv4Addr, String>,
}

/// A history by what is in it.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// In the order of their starts.
    pub calls: Vec<Call>,
    /// In the order of their ends.
    pub exchanges: Vec<Exchange>,
    /// In the order of their ends.
    pub boots: Vec<Boot>,
    /// In the order of their starts.
    pub faults: Vec<Fault>,
}

impl Parts {
    /// Takes a history apart.
    pub fn of(records: Vec<Record>) -> Self {
        let mut parts = Self::default();
        for record in records {
            match record {
                Record::Call(call) => parts.calls.push(call),
                Record::Exchange(exchange) => parts.exchanges.push(exchange),
                Record::Boot(boot) => parts.boots.push(boot),
                Record::Fault(fault) => parts.faults.push(fault),
            }
        }
        parts.calls.sort_by_key(|call| call.start);
        parts.exchanges.sort_by_key(|exchange| exchange.end);
        parts.boots.sort_by_key(|boot| boot.end);
        parts.faults.sort_by_key(|fault| fault.start);
        parts
    }
}

/// Everything that is wrong with a history, and with what the cluster said at its end, if that is known.
pub fn violations(parts: &Parts, last: Option<&Last>) -> Vec<Violation> {
    let mut found = objects::linearizable(&parts.calls);
    found.extend(objects::fresh(&parts.calls));
    found.extend(objects::minority(parts));
    found.extend(leases::one_owner(&parts.exchanges));
    found.extend(leases::kept(&parts.exchanges, last));
    found.extend(leases::minority(parts));
    found.extend(nobody_gives_up(parts));
    found.extend(heals(&parts.faults));
    found
}

fn nobody_gives_up(parts: &Parts) -> Vec<Violation> {
    let boots = parts.boots.iter().filter(|boot| !boot.up);
    let boots = boots.map(|boot| Violation {
        rule: Rule::NobodyGivesUp,
        what: format!("{} ({}) did not come up", boot.mac, boot.model),
        part: vec![Record::Boot(boot.clone())],
    });
    let clients = parts
        .exchanges
        .iter()
        .filter(|exchange| exchange.want == Want::Bind && exchange.said == Said::Nothing);
    let clients = clients.map(|exchange| Violation {
        rule: Rule::NobodyGivesUp,
        what: format!(
            "{} got no address for as long as it could wait",
            exchange.mac
        ),
        part: vec![Record::Exchange(exchange.clone())],
    });
    boots.chain(clients).collect()
}

fn heals(faults: &[Fault]) -> Vec<Violation> {
    let troubled = faults.iter().filter_map(|fault| {
        fault.trouble.as_ref().map(|trouble| Violation {
            rule: Rule::Heals,
            what: format!("after {}: {trouble}", fault.what),
            part: vec![Record::Fault(fault.clone())],
        })
    });
    troubled.collect()
}

#[cfg(test)]
mod tests;
