//! What a crowd came to, in figures.

use std::fmt::{self, Display};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::crowd::{self, Given, Outcome};
use crate::wire::mac_text;

/// Figures of one crowd.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Clients that set out.
    pub started: usize,
    /// Clients that got their ACK.
    pub served: usize,
    /// Clients that gave up: their machines do not boot.
    pub gave_up: usize,
    /// Messages that were sent again because no answer had come.
    pub repeats: usize,
    /// Times that a client was refused what it was offered.
    pub refused: usize,
    /// Seconds that the figures below are of; the time before is for warming up.
    pub seconds: f64,
    /// ACKs a second in that time.
    pub per_second: f64,
    /// From a client's first message to its ACK, of the ACKs in that time.
    pub latency: Latency,
    /// Addresses that two clients were given, in the whole time.
    pub given_twice: Vec<Twice>,
}

/// Percentiles, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// The mean.
    pub mean_ms: f64,
    /// Half are faster.
    pub p50_ms: f64,
    /// 90 % are.
    pub p90_ms: f64,
    /// 99 % are.
    pub p99_ms: f64,
    /// 99.9 % are.
    pub p999_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

/// An address with two owners.
#[derive(Clone, Debug, Serialize)]
pub struct Twice {
    /// Which.
    pub address: Ipv4Addr,
    /// Two of its owners.
    pub macs: [String; 2],
}

impl Summary {
    /// Sums up; rates and latencies are of the ACKs that came in `window`.
    pub fn of(outcome: &Outcome, window: &Range<Instant>) -> Result<Self> {
        let inside = |given: &&Given| window.contains(&given.at);
        let took = outcome.given.iter().filter(inside).map(|given| given.took);
        let seconds = window.end.duration_since(window.start).as_secs_f64();
        let acks = outcome.given.iter().filter(inside).count();
        Ok(Self {
            started: outcome.started,
            served: outcome.given.len(),
            gave_up: outcome.gave_up.len(),
            repeats: outcome.repeats,
            refused: outcome.refused,
            seconds,
            per_second: acks as f64 / seconds,
            latency: Latency::of(took)?,
            given_twice: given_twice(&outcome.given),
        })
    }
}

/// Addresses that two clients were given.
pub fn given_twice(given: &[Given]) -> Vec<Twice> {
    let twice = crowd::given_twice(given).into_iter();
    twice
        .map(|(address, macs)| Twice {
            address,
            macs: macs.map(mac_text),
        })
        .collect()
}

/// The middle of some figures; of an even number, the mean of the two in the middle.
pub fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    match sorted.len() % 2 {
        0 => Some((sorted.get(sorted.len() / 2 - 1)? + upper) / 2.0),
        _ => Some(upper),
    }
}

/// How one fared beside another, round by round.
#[derive(Clone, Debug, Default)]
pub struct Ratios(Vec<f64>);

impl Ratios {
    /// Of what was measured in the same rounds.
    pub fn of(ours: &[f64], theirs: &[f64]) -> Self {
        let rounds = ours.iter().zip(theirs);
        Self(rounds.map(|(our, their)| our / their).collect())
    }

    /// The median, in bold; nothing of no rounds.
    pub fn median(&self) -> String {
        median(&self.0).map_or(String::new(), |ratio| format!("**{ratio:.2}**"))
    }

    /// All, in their order.
    pub fn rounds(&self) -> String {
        let rounds: Vec<String> = self.0.iter().map(|ratio| format!("{ratio:.2}")).collect();
        rounds.join(" ")
    }
}

impl Latency {
    /// Of these times.
    pub fn of(times: impl Iterator<Item = Duration>) -> Result<Self> {
        let mut histogram = Histogram::<u64>::new(3).context("making a histogram")?;
        for time in times {
            histogram
                .record(u64::try_from(time.as_micros())?)
                .context("recording a time")?;
        }
        if histogram.is_empty() {
            return Ok(Self::default());
        }
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Ok(Self {
            mean_ms: histogram.mean() / 1000.0,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: histogram.max() as f64 / 1000.0,
        })
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} set out, {} served, {} gave up; {} messages repeated, {} times refused",
            self.started, self.served, self.gave_up, self.repeats, self.refused
        )?;
        writeln!(
            f,
            "{:.0} ACKs/s over {:.1} s",
            self.per_second, self.seconds
        )?;
        write!(f, "{}", self.latency)?;
        for twice in &self.given_twice {
            let [one, other] = &twice.macs;
            write!(f, "\n{} WAS GIVEN TO {one} AND TO {other}", twice.address)?;
        }
        Ok(())
    }
}

impl Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ms to the ACK: mean {:.1}, p50 {:.1}, p90 {:.1}, p99 {:.1}, p99.9 {:.1}, most {:.1}",
            self.mean_ms, self.p50_ms, self.p90_ms, self.p99_ms, self.p999_ms, self.max_ms
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::Client;

    fn given(number: u32, last: u8, took_ms: u64, at: Instant) -> Given {
        Given {
            mac: Client::numbered(0, number).mac,
            address: Ipv4Addr::new(10, 77, 0, last),
            server: None,
            took: Duration::from_millis(took_ms),
            waited: Duration::ZERO,
            at,
        }
    }

    #[test]
    fn figures_are_of_the_window_and_owners_of_the_whole() -> Result<()> {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let outcome = Outcome {
            started: 4,
            given: vec![
                given(1, 1, 900, at(0)),
                given(2, 2, 10, at(1)),
                given(3, 1, 30, at(2)),
                given(4, 4, 900, at(3)),
            ],
            ..Outcome::default()
        };
        let summary = Summary::of(&outcome, &(at(1)..at(3)))?;
        assert_eq!((summary.served, summary.per_second), (4, 1.0));
        assert!((summary.latency.p50_ms - 10.0).abs() < 0.1);
        assert!((summary.latency.max_ms - 30.0).abs() < 0.1);
        let twice: Vec<_> = summary.given_twice.iter().map(|one| one.address).collect();
        assert_eq!(twice, [Ipv4Addr::new(10, 77, 0, 1)]);
        Ok(())
    }
}
