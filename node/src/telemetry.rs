//! Logs and metrics of this process.

use std::io::{BufWriter, IsTerminal as _};
use std::time::Duration;

use metrics::{counter, describe_counter};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::writer::MakeWriterExt as _;

use crate::config::LogFormat;
use crate::recent_log::RecentLog;

/// Upper bounds of the histograms, in seconds: from a read in memory to a lost leader.
const BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Upper bounds of histograms that are not of that kind.
const OTHER_BUCKETS: &[(&str, &[f64])] = &[
    ("muster_raft_forward_proposals", BATCHES),
    ("muster_raft_entry_proposals", BATCHES),
    ("muster_raft_apply_seconds", IN_MEMORY),
    ("muster_raft_snapshot_build_seconds", LONG),
];

/// Counts of writes.
const BATCHES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Seconds of what waits for nothing.
const IN_MEMORY: &[f64] = &[
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1, 1.0,
];

/// Seconds of what grows with the state.
const LONG: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0];

/// How often histograms are folded.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why logs or metrics cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a filter.
    #[error("--log-level: {0}; write error, warn, info, debug, trace, or target=level by commas")]
    Level(#[from] ParseError),
    /// There is a recorder already.
    #[error("metrics cannot be set up: {0}")]
    Metrics(#[from] BuildError),
}

/// Counts lines of the log that nobody took in time.
const LINES_DROPPED: &str = "muster_log_lines_dropped_total";

/// The log of this process.
pub struct Log {
    /// Writes what is left when it is dropped.
    _writer: WorkerGuard,
    /// Lines that were dropped.
    pub dropped: ErrorCounter,
    /// The last lines.
    pub recent: RecentLog,
}

/// Logs to standard error from now on, until the log is dropped. A thread of its own writes: whoever
/// reads the log may be slow, and the node is not; lines for which there is no room are counted.
///
/// # Errors
/// When `level` is no filter.
pub fn log(level: &str, format: LogFormat) -> Result<Log, Error> {
    let filter: EnvFilter = match level {
        // Raft tells each of its steps, and each heartbeat that a dead peer misses: that is for
        // those who look for a fault in it.
        "error" | "warn" | "info" | "debug" => format!("{level},openraft=error").parse()?,
        other => other.parse()?,
    };
    let (lines, writer) = NonBlocking::new(BufWriter::new(std::io::stderr()));
    let dropped = lines.error_counter();
    let recent = RecentLog::default();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(lines.and(recent.clone()));
    // An error means that somebody in this process logs already.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(Log {
        _writer: writer,
        dropped,
        recent,
    })
}

/// Records metrics from now on; the handle gives them as text.
///
/// # Errors
/// When this process records them already.
pub fn metrics() -> Result<PrometheusHandle, Error> {
    let mut builder = PrometheusBuilder::new().set_buckets(BUCKETS)?;
    for (name, bounds) in OTHER_BUCKETS {
        builder = builder.set_buckets_for_metric(Matcher::Full((*name).to_owned()), bounds)?;
    }
    let handle = builder.install_recorder()?;
    describe();
    Ok(handle)
}

/// Folds what histograms have gathered, again and again: nobody may ever ask for it. Counts lines that
/// the log dropped.
pub async fn keep_up(handle: PrometheusHandle, dropped: ErrorCounter) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        handle.run_upkeep();
        counter!(LINES_DROPPED).absolute(dropped.dropped_lines() as u64);
    }
}

/// Looks how much this process uses.
pub fn read_process() {
    Collector::default().collect();
}

/// Says what this node's metrics mean, to whatever recorder there is.
pub fn describe() {
    muster_raft::describe_metrics();
    muster_api::rest::describe_metrics();
    crate::dhcp::metrics::describe();
    crate::boot::metrics::describe();
    crate::minority::describe();
    crate::upkeep::describe();
    crate::journal::describe();
    crate::scrape::describe();
    crate::spans::describe();
    Collector::default().describe();
    describe_counter!(
        LINES_DROPPED,
        "Lines of the log that were dropped because they were not read in time"
    );
}
