//! Clients that fetch at once, each a thread on the clients' host: what they fetch is counted and
//! thrown away, so that servers are measured and not clients.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use muster_chaos::lab::Host;
use muster_chaos::node::processor_time;

use crate::servers::client_address;

/// Where clients are, and for how long they fetch.
pub struct Crowd<'a> {
    pub host: &'a Host,
    /// Before it counts.
    pub warm: Duration,
    /// While it counts.
    pub measured: Duration,
}

/// One client, as it sees itself.
pub struct Client<'a> {
    /// From 0.
    pub number: usize,
    /// Its own.
    pub address: Ipv4Addr,
    shared: &'a Shared,
    answered: Vec<(Instant, Duration)>,
}

#[derive(Default)]
struct Shared {
    octets: AtomicU64,
    repeats: AtomicU64,
    over: AtomicBool,
}

/// What came in the time that counts.
pub struct Outcome {
    pub octets: u64,
    /// How long each answer took.
    pub answered: Vec<Duration>,
    /// Messages that were sent again, in the whole time.
    pub repeats: u64,
    /// Processors that the clients used, in the whole time.
    pub busy: f64,
}

impl Client<'_> {
    /// Whether it is to begin nothing more.
    pub fn is_over(&self) -> bool {
        self.shared.over.load(Ordering::Relaxed)
    }

    /// Some octets have come.
    pub fn took(&self, octets: usize) {
        let octets = octets as u64;
        self.shared.octets.fetch_add(octets, Ordering::Relaxed);
    }

    /// A message has to be sent again.
    pub fn repeats(&self) {
        self.shared.repeats.fetch_add(1, Ordering::Relaxed);
    }

    /// What was asked for at `since` is here.
    pub fn answered(&mut self, since: Instant) {
        let now = Instant::now();
        self.answered.push((now, now.duration_since(since)));
    }
}

impl Crowd<'_> {
    /// Runs so many clients; each calls `fetch`, which returns when the time is over.
    pub fn run(
        &self,
        clients: usize,
        fetch: impl Fn(&mut Client) -> Result<()> + Sync,
    ) -> Result<Outcome> {
        let shared = Shared::default();
        let (began, busy) = (Instant::now(), own_time()?);
        let outcome = self
            .host
            .inside(|| self.together(clients, &shared, &fetch))?;
        let busy = (own_time()? - busy).as_secs_f64() / began.elapsed().as_secs_f64();
        Ok(Outcome { busy, ..outcome })
    }

    /// On the clients' host, whose network the threads inherit.
    fn together(
        &self,
        clients: usize,
        shared: &Shared,
        fetch: &(impl Fn(&mut Client) -> Result<()> + Sync),
    ) -> Result<Outcome> {
        let count = || shared.octets.load(Ordering::Relaxed);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..clients)
                .map(|number| {
                    scope.spawn(move || {
                        let mut client = Client {
                            number,
                            address: client_address(number),
                            shared,
                            answered: Vec::new(),
                        };
                        let done = fetch(&mut client);
                        done.map(|()| client.answered)
                    })
                })
                .collect();
            std::thread::sleep(self.warm);
            let (start, before) = (Instant::now(), count());
            std::thread::sleep(self.measured);
            let (end, after) = (Instant::now(), count());
            shared.over.store(true, Ordering::Relaxed);
            // The clocks of this thread are not exact: what counts is what was measured.
            let share = self.measured.as_secs_f64() / end.duration_since(start).as_secs_f64();
            let octets = ((after - before) as f64 * share) as u64;
            let inside = |at: Instant| at >= start && at < start + self.measured;
            let mut answered = Vec::new();
            for thread in threads {
                let one = thread.join().map_err(|_| anyhow!("a client panicked"))??;
                let counted = one.into_iter().filter(|(at, _)| inside(*at));
                answered.extend(counted.map(|(_, took)| took));
            }
            Ok(Outcome {
                octets,
                answered,
                repeats: shared.repeats.load(Ordering::Relaxed),
                busy: 0.0,
            })
        })
    }
}

fn own_time() -> Result<Duration> {
    processor_time(std::process::id()).context("asking for the clients' processor time")
}
