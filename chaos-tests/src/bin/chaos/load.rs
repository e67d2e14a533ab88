//! `muster-chaos dhcp load`.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use muster_chaos::crowd::{self, Arrivals, Errand, Given, Outcome};
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::node;
use muster_chaos::summary::{Summary, Twice, given_twice};
use muster_chaos::wire::mac_text;
use serde::{Deserialize, Serialize};

use crate::Output;
use crate::place::Place;

/// More are told apart no more by their MACs.
const CLIENTS_MAX: u32 = 1 << 24;

/// RELEASEs a second: nobody acknowledges them, so none may be lost.
const RELEASES_PER_SECOND: f64 = 1000.0;

/// What to do.
#[derive(Args)]
pub struct Flags {
    #[command(flatten)]
    place: Place,
    /// Closed loop: so many clients are on their way at any time
    #[arg(long, value_name = "N", default_value_t = 16, conflicts_with = "rate")]
    in_flight: usize,
    /// Open loop: so many clients set out a second, however those before them fare
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// No more clients set out than these
    #[arg(long, value_name = "N", default_value_t = CLIENTS_MAX)]
    clients: u32,
    /// The first of the family
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    first: u32,
    /// No more clients set out after this time
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds at the start that rates and latencies leave out
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    warm: f64,
    /// Afterwards those that were served ask for more time (REBINDING) for so many seconds
    #[arg(long, value_name = "SECONDS")]
    renew: Option<f64>,
    /// Clients are PXE ROMs, and are told what to boot
    #[arg(long)]
    pxe: bool,
    /// Compares every ACK with `muster leases list`, which MUSTER_* variables configure as always
    #[arg(long)]
    audit: bool,
    /// Gives all addresses back at the end
    #[arg(long)]
    release: bool,
    /// How to write the result
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What came of it.
#[derive(Serialize)]
struct Report {
    /// DISCOVER to ACK.
    seek: Summary,
    /// REQUEST to ACK of those that asked for more time.
    renew: Option<Summary>,
    /// Addresses that two clients were given, in all.
    given_twice: Vec<Twice>,
    /// Leases that were acknowledged and are not recorded for their client; None: nobody looked.
    unrecorded: Option<Vec<String>>,
}

/// Loads; whether no address had two owners and none was lost.
pub fn run(flags: &Flags) -> Result<bool> {
    ensure!(
        flags.rate.is_none_or(|rate| rate > 0.0) && flags.in_flight > 0,
        "nobody would ever set out"
    );
    ensure!(
        flags.warm < flags.seconds,
        "all of the time is left out for warming up"
    );
    let port = flags.place.open()?;
    let last = flags.first.saturating_add(flags.clients).min(CLIENTS_MAX);
    let numbers = flags.first..last;
    let seeking = |until: Instant| {
        numbers
            .map(|number| Errand::seek(flags.place.client(number, flags.pxe)))
            .take_while(move |_| Instant::now() < until)
    };
    let (outcome, window) = flags.phase(&port, flags.seconds, flags.in_flight, seeking)?;
    let seek = Summary::of(&outcome, &window)?;
    let mut given = outcome.given;
    let renew = match flags.renew {
        Some(seconds) if !given.is_empty() => {
            let (outcome, window) = flags.renew(&port, seconds, &given)?;
            let summary = Summary::of(&outcome, &window)?;
            given.extend(outcome.given);
            Some(summary)
        }
        _ => None,
    };
    let report = Report {
        seek,
        renew,
        given_twice: given_twice(&given),
        unrecorded: flags.audit.then(|| unrecorded(&given)).transpose()?,
    };
    if flags.release {
        release(&port, &given)?;
    }
    match flags.output {
        Output::Text => println!("{report}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    let lost = report.unrecorded.is_some_and(|lost| !lost.is_empty());
    Ok(report.given_twice.is_empty() && !lost)
}

impl Flags {
    /// One crowd, and the time that counts.
    fn phase<I: Iterator<Item = Errand>>(
        &self,
        port: &Port,
        seconds: f64,
        in_flight: usize,
        errands: impl FnOnce(Instant) -> I,
    ) -> Result<(Outcome, Range<Instant>)> {
        let arrivals = match self.rate {
            Some(rate) => Arrivals::PerSecond(rate),
            None => Arrivals::InFlight(in_flight),
        };
        let begin = Instant::now();
        let end = begin + Duration::from_secs_f64(seconds);
        let patience = self.place.patience();
        let outcome = crowd::run(port, errands(end), arrivals, &patience, |_| false)?;
        // All may have been served before the time was over.
        let end = end.min(Instant::now());
        let start = begin + Duration::from_secs_f64(self.warm);
        let start = if start < end { start } else { begin };
        Ok((outcome, start..end))
    }

    fn renew(
        &self,
        port: &Port,
        seconds: f64,
        given: &[Given],
    ) -> Result<(Outcome, Range<Instant>)> {
        // None asks again before it was answered.
        let in_flight = self.in_flight.min(given.len());
        self.phase(port, seconds, in_flight, |until| {
            let again = given.iter().cycle();
            again
                .map(|given| Errand::renew(Client::new(given.mac), given.address))
                .take_while(move |_| Instant::now() < until)
        })
    }
}

fn release(port: &Port, given: &[Given]) -> Result<()> {
    let held: BTreeMap<_, _> = given.iter().map(|given| (given.mac, given)).collect();
    for given in held.values() {
        if let Some(server) = given.server {
            port.send(&Client::new(given.mac).release(given.address, server))?;
            std::thread::sleep(Duration::from_secs_f64(1.0 / RELEASES_PER_SECOND));
        }
    }
    Ok(())
}

/// What the command line tells about a lease.
#[derive(Deserialize)]
struct Lease {
    address: Ipv4Addr,
    mac: Option<String>,
    state: String,
}

/// Acknowledged leases that the cluster does not record for their client.
fn unrecorded(given: &[Given]) -> Result<Vec<String>> {
    let output = Command::new(node::binary()?)
        .args(["-o", "json", "leases", "list"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("starting `muster leases list`")?;
    ensure!(
        output.status.success(),
        "`muster leases list` failed; it is configured by MUSTER_ENDPOINT and the like"
    );
    let leases: Vec<Lease> =
        serde_json::from_slice(&output.stdout).context("reading `muster leases list`")?;
    let bound: BTreeMap<Ipv4Addr, Option<String>> = leases
        .into_iter()
        .filter(|lease| lease.state == "bound")
        .map(|lease| (lease.address, lease.mac))
        .collect();
    let held: BTreeMap<_, _> = given.iter().map(|given| (given.mac, given)).collect();
    let lost = held.values().filter(|given| {
        let mac = bound.get(&given.address).and_then(Option::as_deref);
        mac != Some(mac_text(given.mac).as_str())
    });
    Ok(lost
        .map(|given| format!("{} of {}", given.address, mac_text(given.mac)))
        .collect())
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DISCOVER to ACK\n{}", self.seek)?;
        if let Some(renew) = &self.renew {
            write!(f, "\n\nREBINDING to ACK\n{renew}")?;
        }
        match &self.unrecorded {
            None => {}
            Some(lost) if lost.is_empty() => write!(f, "\n\nevery ACK is recorded")?,
            Some(lost) => {
                write!(f, "\n\n{} ACKs ARE NOT RECORDED:", lost.len())?;
                for one in lost {
                    write!(f, "\n{one}")?;
                }
            }
        }
        match self.given_twice.len() {
            0 => write!(f, "\nno address was given twice"),
            count => write!(f, "\n{count} ADDRESSES WERE GIVEN TWICE"),
        }
    }
}
