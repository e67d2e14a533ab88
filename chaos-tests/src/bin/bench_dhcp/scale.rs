//! Whether it matters to new clients how large their pool is, and how many leases there are already.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dhcproto::v4::relay::RelayInfo;
use muster_chaos::cluster::Cluster;
use muster_chaos::crowd::{self, Arrivals, Errand, Patience};
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::lab::{Host, Lab};
use muster_chaos::summary::{Ratios, median};

use crate::DROP_AFTER;
use crate::site::{LEASE_SECS, RELAY};

/// Clients on their way at any time while it is measured, and while leases are loaded.
const IN_FLIGHT: usize = 64;
const LOADING: usize = 256;

/// Addresses of a small pool, how many clients share them, and how many such pools one figure is of:
/// one alone is used up in a moment.
const SMALL: u32 = 1000;
const SMALL_CLIENTS: u32 = 500;

/// Links by a relay's selection (RFC 3527): the small pools', one after the other, and the large one's.
const SMALL_LINKS: u32 = u32::from_be_bytes([172, 16, 0, 0]);
const SMALL_SIZE: u32 = 1024;
const LARGE_LINK: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);

/// What is to be measured.
pub struct Plan {
    /// How often each figure is taken, in turns.
    pub rounds: u32,
    /// Small pools that a figure is of.
    pub pools: u32,
    /// Leases that are there already.
    pub leases: u32,
}

/// A cluster with a pool of two million addresses, whose clients are behind a relay.
struct Place {
    cluster: Cluster,
    relay: Host,
    /// The number of the next client that was never seen.
    next: u32,
}

impl Place {
    fn new(more: &str) -> Result<Self> {
        let lab = Lab::new()?;
        let relay = lab.host("relay", Some(RELAY))?;
        let cluster = Cluster::found_in(lab, 3)?;
        cluster.apply(&format!(
            "kind: subnet\nname: large\ncidr: 10.64.0.0/10\npools: [10.80.0.0-10.111.255.255]\n\
             lease_secs: {LEASE_SECS}\n{more}"
        ))?;
        Ok(Self {
            cluster,
            relay,
            next: 0,
        })
    }

    /// Has so many new clients on a link find an address; how long it took.
    fn seek(&mut self, link: Ipv4Addr, clients: u32, in_flight: usize) -> Result<Duration> {
        let nodes = self.cluster.nodes().iter();
        let servers: Vec<Ipv4Addr> = nodes.map(|node| node.address()).collect();
        let selection = vec![RelayInfo::LinkSelection(link)];
        let port = Port::relay(&self.relay, &servers, selection)?;
        let patience = Patience {
            waits: vec![DROP_AFTER; 4],
            anew_after: None,
        };
        let numbers = self.next..self.next + clients;
        self.next = numbers.end;
        let errands = numbers.map(|number| Errand::seek(Client::numbered(1, number)));
        let begin = Instant::now();
        let arrivals = Arrivals::InFlight(in_flight);
        let outcome = crowd::run(&port, errands, arrivals, &patience, |_| false)?;
        let took = begin.elapsed();
        ensure!(
            outcome.given.len() == clients as usize,
            "{} of {clients} were served on {link}: {}",
            outcome.given.len(),
            self.cluster.logs()
        );
        crowd::one_owner(&outcome.given)?;
        Ok(took)
    }

    /// New clients a second on the large pool.
    fn rate(&mut self, clients: u32) -> Result<f64> {
        let took = self.seek(LARGE_LINK, clients, IN_FLIGHT)?;
        Ok(f64::from(clients) / took.as_secs_f64())
    }
}

/// Measures; the table.
pub fn run(plan: &Plan) -> Result<String> {
    let mut text = format!(
        "### Large pools and many leases\n\nNew clients, {IN_FLIGHT} in flight, three nodes; {} rounds, in \
         turns; medians, ratios round by round.\n\n\
         | | ACKs/s | beside it | ACKs/s | ratio | rounds |\n|---|---|---|---|---|---|\n",
        plan.rounds
    );
    let (large, small) = pools(plan)?;
    row(
        &mut text,
        "a pool of 2,097,152 addresses",
        &format!("{} pools of {SMALL} in turn", plan.pools),
        &large,
        &small,
    );
    let (full, empty) = leases(plan)?;
    row(
        &mut text,
        &format!("{} leases are there", plan.leases),
        "none is",
        &full,
        &empty,
    );
    Ok(text)
}

fn row(text: &mut String, what: &str, beside: &str, ours: &[f64], theirs: &[f64]) {
    let ratios = Ratios::of(ours, theirs);
    let middle = |figures: &[f64]| median(figures).unwrap_or(f64::NAN);
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "| {what} | {:.0} | {beside} | {:.0} | {} | {} |",
        middle(ours),
        middle(theirs),
        ratios.median(),
        ratios.rounds()
    );
}

/// Rates with a large pool, and with small ones.
fn pools(plan: &Plan) -> Result<(Vec<f64>, Vec<f64>)> {
    let link = |number: u32| Ipv4Addr::from(SMALL_LINKS + number * SMALL_SIZE);
    let subnet = |number: u32| {
        let first = link(number);
        let pool = u32::from(first) + 1;
        format!(
            "---\nkind: subnet\nname: small{number}\ncidr: {first}/22\npools: [{}-{}]\n\
             lease_secs: {LEASE_SECS}\n",
            Ipv4Addr::from(pool),
            Ipv4Addr::from(pool + SMALL - 1)
        )
    };
    let count = plan.rounds * plan.pools;
    let mut place = Place::new(&(0..count).map(subnet).collect::<String>())?;
    // The first clients after the start find cold caches.
    place.seek(LARGE_LINK, SMALL_CLIENTS, IN_FLIGHT)?;
    let clients = f64::from(SMALL_CLIENTS * plan.pools);
    let (mut large, mut small) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        let (mut in_large, mut in_small) = (Duration::ZERO, Duration::ZERO);
        for number in round * plan.pools..(round + 1) * plan.pools {
            // Either comes first as often as the other.
            for is_large in [number % 2 == 0, number % 2 != 0] {
                match is_large {
                    true => in_large += place.seek(LARGE_LINK, SMALL_CLIENTS, IN_FLIGHT)?,
                    false => in_small += place.seek(link(number), SMALL_CLIENTS, IN_FLIGHT)?,
                }
            }
        }
        large.push(clients / in_large.as_secs_f64());
        small.push(clients / in_small.as_secs_f64());
        eprintln!("pools, round {} of {}", round + 1, plan.rounds);
    }
    Ok((large, small))
}

/// Rates of a cluster that has leases, and of one that has none.
fn leases(plan: &Plan) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut full, mut empty) = (Place::new("")?, Place::new("")?);
    let took = full.seek(LARGE_LINK, plan.leases, LOADING)?;
    eprintln!("{} leases loaded in {took:?}", plan.leases);
    let clients = SMALL_CLIENTS * plan.pools;
    empty.seek(LARGE_LINK, SMALL_CLIENTS, IN_FLIGHT)?;
    let (mut of_full, mut of_empty) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        for is_full in [round % 2 == 0, round % 2 != 0] {
            match is_full {
                true => of_full.push(full.rate(clients)?),
                false => of_empty.push(empty.rate(clients)?),
            }
        }
        eprintln!("leases, round {} of {}", round + 1, plan.rounds);
    }
    Ok((of_full, of_empty))
}
