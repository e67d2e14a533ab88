//! Clients that call again as soon as they are answered, and how long each answer took.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Result;

/// One client: its calls are one after the other.
pub trait Caller: Send + 'static {
    /// Calls once; an error is anything but a full success.
    fn call(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// For how long clients call, and from when on it counts.
#[derive(Clone, Copy)]
pub struct Window {
    /// Before it counts.
    pub warm: Duration,
    /// While it counts.
    pub measured: Duration,
}

/// What came of it.
pub struct Measured {
    /// Calls that succeeded, in the window.
    pub done: usize,
    /// Calls that did not.
    pub failed: usize,
    /// Why the first of them did not.
    pub failure: Option<String>,
    /// Of the window.
    pub took: Duration,
    /// Microseconds of each success, sorted.
    latencies: Vec<u32>,
}

impl Measured {
    /// Successes a second.
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.took.as_secs_f64()
    }

    /// Milliseconds within which `percent` of the successes were answered.
    pub fn percentile(&self, percent: usize) -> f64 {
        let place =
            (self.latencies.len() * percent / 100).min(self.latencies.len().saturating_sub(1));
        self.latencies
            .get(place)
            .map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
    }
}

/// Lets all clients call at once.
pub async fn drive<C: Caller>(callers: Vec<C>, window: Window) -> Measured {
    let start = Instant::now() + window.warm;
    let end = start + window.measured;
    let tasks: Vec<_> = callers
        .into_iter()
        .map(|caller| tokio::spawn(client(caller, start, end)))
        .collect();
    let mut all = Measured {
        done: 0,
        failed: 0,
        failure: None,
        took: window.measured,
        latencies: Vec::new(),
    };
    for task in tasks {
        match task.await {
            Ok(one) => {
                all.failed += one.failed;
                all.failure = all.failure.take().or(one.failure);
                all.latencies.extend(one.latencies);
            }
            Err(error) => {
                all.failed += 1;
                all.failure = Some(error.to_string());
            }
        }
    }
    all.latencies.sort_unstable();
    all.done = all.latencies.len();
    all
}

#[derive(Default)]
struct One {
    failed: usize,
    failure: Option<String>,
    latencies: Vec<u32>,
}

async fn client(mut caller: impl Caller, start: Instant, end: Instant) -> One {
    let mut one = One::default();
    loop {
        let called = Instant::now();
        if called >= end {
            return one;
        }
        let result = caller.call().await;
        let now = Instant::now();
        match result {
            Ok(()) if now >= start && now < end => {
                let micros = now.duration_since(called).as_micros();
                one.latencies
                    .push(u32::try_from(micros).unwrap_or(u32::MAX));
            }
            Ok(()) => {}
            Err(error) => {
                one.failed += 1;
                one.failure.get_or_insert_with(|| format!("{error:#}"));
                // Whoever is refused at once does not ask again at once.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}
