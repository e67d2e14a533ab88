//! `muster-chaos dhcp failover`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use muster_chaos::cluster::Cluster;
use muster_chaos::crowd::Outcome;
use muster_chaos::dhcp::{Client, Port};
use muster_chaos::failover::{Phase, Report, Stream};
use muster_chaos::outage::{self, Outage};

use crate::Output;
use crate::place::Place;

/// The network of the lab's clients.
const SUBNET: &str = "kind: subnet
name: lab
cidr: 10.77.0.0/16
pools: [10.77.16.0-10.77.255.254]
routers: [10.77.0.1]
";

/// What to do.
#[derive(Args)]
pub struct Flags {
    #[command(flatten)]
    place: Place,
    /// New clients a second
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// How long new clients set out
    #[arg(long, default_value_t = 60.0, conflicts_with = "lab")]
    seconds: f64,
    /// Seconds that a client may take beyond the first of its own timers
    #[arg(long, value_name = "SECONDS", default_value_t = 1.5)]
    bound: f64,
    /// Makes a lab of three nodes on this machine, in namespaces of its own, and does this to it in
    /// turn; else you are to break what you want to see broken
    #[arg(long, value_name = "OUTAGE", value_delimiter = ',', conflicts_with_all = ["interface", "relay"])]
    lab: Vec<Outage>,
    /// Seconds before, in and after each outage of the lab
    #[arg(long, default_value_t = 10.0)]
    each: f64,
    /// How to write the result
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Sends clients out; whether none gave up or was late and no address had two owners.
pub fn run(flags: &Flags) -> Result<bool> {
    ensure!(flags.rate > 0.0, "nobody would ever set out");
    let report = match flags.lab.is_empty() {
        true => flags.watch()?,
        false => flags.in_lab()?,
    };
    match flags.output {
        Output::Text => println!("{report}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(report.good())
}

impl Flags {
    fn stream(&self) -> Stream {
        Stream {
            per_second: self.rate,
            patience: self.place.patience(),
            bound: Duration::from_secs_f64(self.bound),
        }
    }

    /// Sends clients out on a network of the user's, who breaks things meanwhile.
    fn watch(&self) -> Result<Report> {
        let port = self.place.open()?;
        let begin = Instant::now();
        let end = begin + Duration::from_secs_f64(self.seconds);
        let mut progress = Progress::new();
        let outcome = self.stream().run(&port, self.clients(), |outcome| {
            progress.tell(outcome);
            Instant::now() >= end
        })?;
        let phase = Phase {
            name: "all the time".to_owned(),
            from: begin,
        };
        self.stream().report(&outcome, &[phase])
    }

    fn clients(&self) -> impl Iterator<Item = Client> + Send {
        (0..).map(|number| self.place.client(number, true))
    }

    /// Breaks a cluster of our own, one thing after the other.
    fn in_lab(&self) -> Result<Report> {
        let cluster = Cluster::found(3)?;
        cluster.apply(SUBNET)?;
        let port = Port::direct(&cluster.lab().host("clients", None)?)?;
        let each = Duration::from_secs_f64(self.each);
        let mut progress = Progress::new();
        let mut told = |outcome: &Outcome| progress.tell(outcome);
        outage::rehearse(
            &cluster,
            &port,
            &self.stream(),
            self.clients(),
            &self.lab,
            each,
            &mut told,
        )
    }
}

/// One line a second, so that whoever breaks things sees what it does.
struct Progress {
    begin: Instant,
    told: u64,
    served: usize,
}

impl Progress {
    fn new() -> Self {
        Self {
            begin: Instant::now(),
            told: 0,
            served: 0,
        }
    }

    fn tell(&mut self, outcome: &Outcome) {
        let second = self.begin.elapsed().as_secs();
        if second == self.told {
            return;
        }
        let news = outcome.given.get(self.served..).unwrap_or_default();
        let slowest = news
            .iter()
            .map(|given| given.took)
            .max()
            .unwrap_or_default();
        eprintln!(
            "{second:4} s: {:3} served, the slowest in {:.2} s; {} on their way, {} gave up",
            news.len(),
            slowest.as_secs_f64(),
            outcome.started - outcome.given.len() - outcome.gave_up.len(),
            outcome.gave_up.len()
        );
        (self.told, self.served) = (second, outcome.given.len());
    }
}
