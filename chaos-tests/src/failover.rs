//! New clients all the time, each as patient as a PXE ROM, while servers die: which of them notice.

use std::fmt::{self, Display};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use crate::crowd::{self, Arrivals, Errand, Given, Outcome, Patience};
use crate::dhcp::{Client, Port};
use crate::summary::{Latency, Twice, given_twice};
use crate::wire::mac_text;

/// Who sets out.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Clients a second.
    pub per_second: f64,
    /// How often they repeat themselves.
    pub patience: Patience,
    /// How long a client may take beyond the first of its own timers.
    pub bound: Duration,
}

/// A part of the time, by what was the matter with the servers.
#[derive(Clone, Debug)]
pub struct Phase {
    /// What.
    pub name: String,
    /// Since when; the next phase ends it.
    pub from: Instant,
}

/// Which clients noticed.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Clients that set out.
    pub started: usize,
    /// Clients that got their ACK.
    pub served: usize,
    /// Messages that were sent again because no answer had come.
    pub repeats: usize,
    /// Times that a client was refused what it was offered.
    pub refused: usize,
    /// MACs of those that gave up, and what they asked for last.
    pub gave_up: Vec<String>,
    /// Those that took longer than the bound and the first of their own timers together.
    pub late: Vec<Late>,
    /// Addresses that two clients were given.
    pub given_twice: Vec<Twice>,
    /// The longest time in which nobody got an ACK, in seconds.
    pub longest_silence: f64,
    /// By what was the matter when clients set out.
    pub phases: Vec<PhaseReport>,
}

/// A client that was served late.
#[derive(Clone, Debug, Serialize)]
pub struct Late {
    /// Who.
    pub mac: String,
    /// When it set out, in seconds since the first did.
    pub set_out: f64,
    /// Seconds to its ACK.
    pub took: f64,
}

/// What clients took that set out in one phase.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseReport {
    /// What was the matter.
    pub name: String,
    /// Clients that were served.
    pub served: usize,
    /// Clients that had to repeat themselves.
    pub repeated: usize,
    /// From a client's first message to its ACK.
    pub latency: Latency,
}

impl Stream {
    /// Sends clients out until `until` says so, then waits for those on their way.
    pub fn run(
        &self,
        port: &Port,
        clients: impl Iterator<Item = Client>,
        mut until: impl FnMut(&Outcome) -> bool,
    ) -> Result<Outcome> {
        let over = std::cell::Cell::new(false);
        let errands = clients.map(Errand::seek).take_while(|_| !over.get());
        crowd::run(
            port,
            errands,
            Arrivals::PerSecond(self.per_second),
            &self.patience,
            |outcome| {
                over.set(over.get() || until(outcome));
                false
            },
        )
    }

    /// Tells what became of them. `phases` are in order, the first from the beginning.
    pub fn report(&self, outcome: &Outcome, phases: &[Phase]) -> Result<Report> {
        let begin = phases.first().map(|phase| phase.from);
        let since = |at: Instant| begin.map_or(Duration::ZERO, |begin| at.duration_since(begin));
        let first_wait = self.patience.waits.first().copied().unwrap_or_default();
        let late = outcome
            .given
            .iter()
            .filter(|given| given.took > self.bound + first_wait)
            .map(|given| Late {
                mac: mac_text(given.mac),
                set_out: since(given.set_out()).as_secs_f64(),
                took: given.took.as_secs_f64(),
            });
        let gave_up = outcome.gave_up.iter().map(|one| {
            let at = since(one.at).as_secs_f64();
            format!("{} ({:?}, after {at:.1} s)", mac_text(one.mac), one.asking)
        });
        let silences = outcome
            .given
            .windows(2)
            .map(|pair| pair[1].at.duration_since(pair[0].at));
        Ok(Report {
            started: outcome.started,
            served: outcome.given.len(),
            repeats: outcome.repeats,
            refused: outcome.refused,
            gave_up: gave_up.collect(),
            late: late.collect(),
            given_twice: given_twice(&outcome.given),
            longest_silence: silences.max().unwrap_or_default().as_secs_f64(),
            phases: phase_reports(&outcome.given, phases)?,
        })
    }
}

fn phase_reports(given: &[Given], phases: &[Phase]) -> Result<Vec<PhaseReport>> {
    let ends = phases.iter().skip(1).map(|phase| Some(phase.from));
    let ends = ends.chain([None]);
    let report = |(phase, end): (&Phase, Option<Instant>)| {
        let inside = given.iter().filter(|given| {
            let set_out = given.set_out();
            set_out >= phase.from && end.is_none_or(|end| set_out < end)
        });
        let inside: Vec<&Given> = inside.collect();
        Ok(PhaseReport {
            name: phase.name.clone(),
            served: inside.len(),
            repeated: inside
                .iter()
                .filter(|given| !given.waited.is_zero())
                .count(),
            latency: Latency::of(inside.iter().map(|given| given.took))?,
        })
    };
    phases.iter().zip(ends).map(report).collect()
}

impl Report {
    /// Whether all was as it must be: all served, in time, each with an address of its own.
    pub fn good(&self) -> bool {
        self.gave_up.is_empty() && self.late.is_empty() && self.given_twice.is_empty()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for phase in &self.phases {
            writeln!(
                f,
                "{:>28}: {:5} served, {:3} of them repeated; {}",
                phase.name, phase.served, phase.repeated, phase.latency
            )?;
        }
        writeln!(
            f,
            "{} set out, {} served; {} messages repeated, {} times refused; \
             the longest time without any ACK was {:.2} s",
            self.started, self.served, self.repeats, self.refused, self.longest_silence
        )?;
        for client in &self.gave_up {
            writeln!(f, "GAVE UP: {client}")?;
        }
        for late in &self.late {
            writeln!(
                f,
                "LATE: {} set out at {:.1} s and took {:.2} s",
                late.mac, late.set_out, late.took
            )?;
        }
        for twice in &self.given_twice {
            let [one, other] = &twice.macs;
            writeln!(f, "{} WAS GIVEN TO {one} AND TO {other}", twice.address)?;
        }
        write!(
            f,
            "{} gave up, {} were late, {} addresses were given twice",
            self.gave_up.len(),
            self.late.len(),
            self.given_twice.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use dhcproto::v4::MessageType;

    use super::*;
    use crate::crowd::GaveUp;

    #[test]
    fn late_clients_those_who_gave_up_and_silence_are_told() -> Result<()> {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let given = |number: u32, at, took| Given {
            mac: Client::numbered(0, number).mac,
            address: Ipv4Addr::from(number),
            server: None,
            took: Duration::from_millis(took),
            waited: Duration::ZERO,
            at,
        };
        let stream = Stream {
            per_second: 20.0,
            patience: Patience::rom(),
            bound: Duration::from_millis(1500),
        };
        let mut outcome = Outcome {
            started: 3,
            given: vec![given(1, at(10), 10), given(2, at(5600), 5500)],
            ..Outcome::default()
        };
        let phases = ["steady", "dead"].into_iter().zip([0, 50]);
        let phases: Vec<Phase> = phases
            .map(|(name, from)| Phase {
                name: name.to_owned(),
                from: at(from),
            })
            .collect();
        let report = stream.report(&outcome, &phases)?;
        assert!(report.good());
        let served: Vec<usize> = report.phases.iter().map(|phase| phase.served).collect();
        assert_eq!(served, [1, 1]);
        assert!((report.longest_silence - 5.59).abs() < 0.001);

        outcome.given.push(given(3, at(9000), 5501));
        assert_eq!(stream.report(&outcome, &phases)?.late.len(), 1);
        outcome.given.pop();
        outcome.gave_up.push(GaveUp {
            mac: Client::numbered(0, 4).mac,
            asking: MessageType::Discover,
            at: at(60_000),
        });
        assert!(!stream.report(&outcome, &phases)?.good());
        Ok(())
    }
}
