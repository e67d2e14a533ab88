//! `muster serve`: builds a node, runs it, and drains it.

mod api;
mod begin;
mod drain;
mod early;
mod files;
mod own;
mod services;
mod settings;

use std::io;
use std::path::Path;
use std::time::Duration;

use muster_api::{App, rest};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use api::Api;
use begin::begin;
use drain::{drain, step_out};
use files::{make_data_dir, write_file};
use own::Own;
pub(crate) use services::interfaces;
use settings::Settings;

use crate::boot::Recorder;
use crate::config::ServeOptions;
use crate::doctor;
use crate::minority::Minority;
use crate::notify::{keep_watchdog_quiet, notify};
use crate::spans::Spans;
use crate::telemetry::{self, Log};

/// How long threads that still work may take to end: a store must not be at work when the process
/// ends, and a template that never ends must not keep it alive.
const THREADS: Duration = Duration::from_secs(2);

/// Open files that all connections together may take, and the stores beside them.
const FILES_MIN: u64 = 32_768;

/// Why a node does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The call makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Logs or metrics.
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    /// The system refused something.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// What it said.
        source: io::Error,
    },
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] muster_raft::Error),
    /// A service could not start, or failed.
    #[error("{0}")]
    Service(String),
}

impl Error {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Telemetry(_) | Self::System { .. } | Self::Cluster(_) | Self::Service(_) => 1,
        }
    }
}

fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let doing = doing.into();
    move |source| Error::System { doing, source }
}

/// Whether a node could be begun or resumed with these options, as far as that shows before.
///
/// # Errors
/// Why not, and what to do.
pub fn check(data_dir: &Path, options: &ServeOptions) -> Result<(), Error> {
    Settings::new(data_dir, options)?;
    interfaces(&options.dhcp_interfaces).map(drop)
}

/// Runs a node until it is told to stop; the exit code.
pub fn main(data_dir: &Path, options: &ServeOptions) -> u8 {
    // What a node stores is its own, whoever made the directory; what is not is opened by name.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let result = telemetry::log(&options.log_level, options.log_format)
        .map_err(Error::from)
        .and_then(|log| {
            open_more_files();
            // Also when the file has been replaced since by a newer one.
            muster_api::template::isolate(Path::new("/proc/self/exe"));
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(workers())
                .enable_all()
                .build()
                .map_err(system("starting threads"))?;
            let result = runtime.block_on(run(data_dir, options, &log));
            runtime.shutdown_timeout(THREADS);
            if let Err(error) = &result {
                tracing::debug!(?error, "the node ends");
            }
            result
        });
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("muster: {error}");
            error.exit_code()
        }
    }
}

/// One for each processor, and never fewer than one more than the tasks that write to the disk, which
/// may hang: openraft's own, and the one that applies entries.
fn workers() -> usize {
    std::thread::available_parallelism()
        .map_or(1, usize::from)
        .max(3)
}

/// Takes all the open files that the system allows: the stores must never lack one because many
/// clients are connected.
fn open_more_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    });
    match raised {
        Ok(limit) if limit >= FILES_MIN => {}
        Ok(limit) => tracing::warn!(
            limit,
            "few files may be open at a time; allow {FILES_MIN} (LimitNOFILE=, ulimit -Hn)"
        ),
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

async fn run(data_dir: &Path, options: &ServeOptions, log: &Log) -> Result<(), Error> {
    let settings = Settings::new(data_dir, options)?;
    let metrics = telemetry::metrics()?;
    tokio::spawn(telemetry::keep_up(metrics.clone(), log.dropped.clone()));
    let mut stop_signal = StopSignal::new()?;

    make_data_dir(data_dir)?;
    let api = Api::listen(data_dir, &settings).await?;
    let begun = tokio::select! {
        cluster = begin(data_dir, options, &settings) => Some(cluster?),
        () = stop_signal.wait() => None,
    };
    let Some(cluster) = begun else {
        tracing::info!("told to stop before the node belonged to a cluster");
        api.finish().await;
        return Ok(());
    };
    write_file(&data_dir.join("ca.pem"), cluster.ca_pem().as_ref(), 0o644)?;

    let stopping = CancellationToken::new();
    let spans = match options.otlp_endpoint.as_deref() {
        // Machines boot without being watched, too.
        Some(url) if !url.is_empty() => Spans::export(url, &cluster).unwrap_or_else(|error| {
            tracing::warn!(url, %error, "no traces are exported");
            Spans::default()
        }),
        _ => Spans::default(),
    };
    let recorder = Recorder::start(cluster.clone(), spans, stopping.clone());
    let dhcp = services::dhcp(&cluster, options, &settings, recorder.clone())?;
    let minority = Minority::default();
    let own = Own {
        cluster: cluster.clone(),
        metrics,
        minority: minority.clone(),
        log: log.recent.clone(),
        site: doctor::site::Own {
            cluster: cluster.clone(),
            dhcp: dhcp.clone(),
            data_dir: data_dir.to_owned(),
            options: options.clone(),
        },
    };
    cluster.answer_with(own.answerer());
    let app = App::new(cluster.clone(), own, stopping.clone());
    api.serving
        .set(rest::router(app.clone()), cluster.api_tls());
    let mut services = services::start(
        &cluster, options, &settings, dhcp, minority, recorder, &stopping,
    );
    notify("READY=1");
    tokio::spawn(keep_watchdog_quiet(cluster.clone()));
    tracing::info!(
        node = settings.node_name,
        node_id = %cluster.node_id(),
        address = %settings.advertise,
        "serving"
    );

    let failure = tokio::select! {
        () = stop_signal.wait() => None,
        failure = services.failure() => Some(failure),
        why = cluster.diverges() => {
            let router = rest::out_of_service(app, why);
            api.serving.set(router, cluster.api_tls());
            step_out(&stopping, &mut services).await;
            stop_signal.wait().await;
            None
        }
    };
    notify("STOPPING=1");
    drain(&cluster, &stopping, services, api).await;
    match failure {
        None => Ok(()),
        Some(failure) => Err(failure),
    }
}

/// SIGTERM or SIGINT.
struct StopSignal {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignal {
    fn new() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(system("listening to signals"));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
