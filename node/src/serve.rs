//! `muster serve`: builds a node, runs it, and drains it.

mod early;
mod services;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_api::server::{self, Serving, SocketFile};
use muster_api::{App, auth, rest};
use muster_raft::{Cluster, Limits, Options, Start, Timing, belongs_to_cluster};
use nix::ifaddrs::getifaddrs;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::ServeOptions;
use crate::notify::notify;
use crate::telemetry;

/// How long a node takes to stop at most: then it just ends.
const DRAIN: Duration = Duration::from_secs(10);

/// How long transfers that run may take of that.
const WIND_DOWN: Duration = Duration::from_secs(5);

/// First and longest pause between attempts to join.
const JOIN_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// How often the token file is looked at while it is empty.
const TOKEN_PAUSE: Duration = Duration::from_millis(250);

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

/// Runs a node until it is told to stop; the exit code.
pub fn main(data_dir: &Path, options: &ServeOptions) -> u8 {
    // What a node stores is its own, whoever made the directory; what is not is opened by name.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let result = telemetry::log(&options.log_level, options.log_format)
        .map_err(Error::from)
        .and_then(|()| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .map_err(system("starting threads"))?;
            let result = runtime.block_on(run(data_dir, options));
            // What still blocks a thread (a template, a disk) must not keep the process alive.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => 0,
        Err(error) => {
            tracing::debug!(?error, "the node ends");
            eprintln!("muster: {error}");
            error.exit_code()
        }
    }
}

async fn run(data_dir: &Path, options: &ServeOptions) -> Result<(), Error> {
    let settings = Settings::new(data_dir, options)?;
    let metrics = telemetry::metrics()?;
    tokio::spawn(telemetry::keep_up(metrics.clone()));
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
    let app = App::new(cluster.clone(), move || metrics.render(), stopping.clone());
    api.serving.set(rest::router(app), cluster.api_tls());
    let mut services = services::start(&cluster, options, &settings, &stopping)?;
    notify("READY=1");
    tracing::info!(
        node = settings.node_name,
        id = %cluster.node_id(),
        address = %settings.advertise,
        "serving"
    );

    let failure = tokio::select! {
        () = stop_signal.wait() => None,
        failure = services.failure() => Some(failure),
    };
    notify("STOPPING=1");
    let drained = drain(&cluster, &stopping, services, api);
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("the node did not drain in time");
    }
    match failure {
        None => Ok(()),
        Some(failure) => Err(failure),
    }
}

/// Hands over what others can do, lets end what has begun, and leaves.
async fn drain(
    cluster: &Cluster,
    stopping: &CancellationToken,
    services: services::Services,
    api: Api,
) {
    tracing::info!("draining");
    cluster.prepare_to_stop().await;
    stopping.cancel();
    let wound_down = async {
        tokio::join!(services.finish(), api.finish());
    };
    if tokio::time::timeout(WIND_DOWN, wound_down).await.is_err() {
        tracing::warn!("some transfers did not end in time");
    }
    cluster.stop().await;
    tracing::info!("stopped");
}

/// What a node is, settled from flags and from the machine.
struct Settings {
    node_name: String,
    advertise: IpAddr,
    api_port: u16,
}

impl Settings {
    fn new(data_dir: &Path, options: &ServeOptions) -> Result<Self, Error> {
        if !belongs_to_cluster(data_dir)? {
            check_beginning(data_dir, options).map_err(Error::Usage)?;
        }
        Ok(Self {
            node_name: match &options.node_name {
                Some(name) => name.clone(),
                None => hostname()?,
            },
            advertise: match options.advertise {
                Some(address) => address,
                None => only_global_address()?,
            },
            api_port: options.api_port,
        })
    }
}

/// Whether an empty data directory can be begun with: once it belongs to a cluster, nobody asks.
fn check_beginning(data_dir: &Path, options: &ServeOptions) -> Result<(), String> {
    match (options.found, peers(options).is_empty()) {
        (false, true) => Err(format!(
            "{} belongs to no cluster: give --found to found a new one, or --join HOST:8093 \
             --join-token-file FILE to join one. (If this node was in a cluster, its disk has \
             been erased: remove it there with `muster cluster remove NODE` and join anew.)",
            data_dir.display()
        )),
        (true, false) => Err("--found and --join exclude each other".to_owned()),
        (false, false) if token_file(options).is_none() => Err(
            "--join needs --join-token-file FILE, with what `muster cluster join-token` printed"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

/// Whom to join; a variable may be set to nothing.
fn peers(options: &ServeOptions) -> Vec<String> {
    let peers = options.join.iter().map(|peer| peer.trim());
    let peers = peers.filter(|peer| !peer.is_empty());
    peers.map(str::to_owned).collect()
}

fn token_file(options: &ServeOptions) -> Option<&Path> {
    let path = options.join_token_file.as_deref();
    path.filter(|path| !path.as_os_str().is_empty())
}

fn hostname() -> Result<String, Error> {
    let name = nix::sys::utsname::uname().map_err(|error| Error::System {
        doing: "asking for the hostname".to_owned(),
        source: error.into(),
    })?;
    let name = name.nodename().to_string_lossy().into_owned();
    let short = name.split('.').next().unwrap_or_default();
    if short.is_empty() {
        return Err(Error::Usage(
            "this machine has no hostname: give --node-name".to_owned(),
        ));
    }
    Ok(short.to_owned())
}

/// The one address of this machine that others can reach, when there is just one.
fn only_global_address() -> Result<IpAddr, Error> {
    let all = getifaddrs().map_err(|error| Error::System {
        doing: "listing interfaces".to_owned(),
        source: error.into(),
    })?;
    let addresses: Vec<IpAddr> = all
        .filter_map(|entry| Some(IpAddr::V4(entry.address?.as_sockaddr_in()?.ip())))
        .filter(is_global)
        .collect();
    match addresses.as_slice() {
        [address] => Ok(*address),
        [] => Err(Error::Usage(
            "this machine has no address that others can reach: give --advertise IP".to_owned(),
        )),
        several => {
            let listed: Vec<String> = several.iter().map(ToString::to_string).collect();
            Err(Error::Usage(format!(
                "this machine has several addresses ({}): give --advertise IP with the one that \
                 peers and machines reach",
                listed.join(", ")
            )))
        }
    }
}

fn is_global(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

/// Founds, joins or resumes; when joining, waits as long as it takes.
async fn begin(
    data_dir: &Path,
    options: &ServeOptions,
    settings: &Settings,
) -> Result<Cluster, Error> {
    if belongs_to_cluster(data_dir)? {
        if options.found || !peers(options).is_empty() {
            tracing::info!(
                "the data directory belongs to a cluster: --found and --join are ignored"
            );
        }
        return Ok(
            Cluster::start(cluster_options(data_dir, options, settings, Start::Resume)).await?,
        );
    }
    if options.found {
        let admin_password_hash = first_password(data_dir, options).await?;
        let start = Start::Found {
            admin_password_hash,
        };
        return Ok(Cluster::start(cluster_options(data_dir, options, settings, start)).await?);
    }
    join(data_dir, options, settings).await
}

async fn join(
    data_dir: &Path,
    options: &ServeOptions,
    settings: &Settings,
) -> Result<Cluster, Error> {
    let (mut pause, longest) = JOIN_PAUSE;
    let peers = peers(options);
    loop {
        let start = Start::Join {
            peers: peers.clone(),
            token: join_token(options).await,
        };
        match Cluster::start(cluster_options(data_dir, options, settings, start)).await {
            Ok(cluster) => return Ok(cluster),
            Err(error @ muster_raft::Error::TokenRefused) => return Err(error.into()),
            // The file may be copied just now.
            Err(error @ muster_raft::Error::BadToken) => {
                let file = token_file(options).unwrap_or(Path::new("")).display();
                tracing::warn!(%error, %file, "cannot join yet");
            }
            Err(error) => tracing::warn!(%error, ?peers, "cannot join yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// The token, once somebody has written one that can be read.
async fn join_token(options: &ServeOptions) -> String {
    let path = token_file(options).unwrap_or(Path::new(""));
    let file = path.display();
    let (mut pause, longest) = (TOKEN_PAUSE, JOIN_PAUSE.1);
    let mut told = false;
    loop {
        match tokio::fs::read_to_string(path).await {
            Ok(text) if !text.trim().is_empty() => return text.trim().to_owned(),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%file, %error, "the join token cannot be read yet");
                pause = (pause * 2).min(longest);
            }
            Ok(_) | Err(_) => {
                if !told {
                    tracing::info!(%file, "waiting for a join token");
                    told = true;
                }
                pause = TOKEN_PAUSE;
            }
        }
        tokio::time::sleep(pause).await;
    }
}

fn cluster_options(
    data_dir: &Path,
    options: &ServeOptions,
    settings: &Settings,
    start: Start,
) -> Options {
    Options {
        data_dir: data_dir.to_owned(),
        node_name: settings.node_name.clone(),
        advertise: settings.advertise,
        peer_port: options.peer_port,
        api_port: options.api_port,
        boot_port: options.boot_port,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        start,
        timing: timing(options),
        limits: Limits::default(),
        unsafe_no_sync: options.unsafe_no_sync,
    }
}

/// How fast the cluster reacts: by default as fast as a busy small machine allows.
fn timing(options: &ServeOptions) -> Timing {
    let default = Timing::default();
    match options.election_ms {
        None => default,
        Some(shortest) => Timing {
            heartbeat: (shortest / 4).max(1),
            election_min: shortest.max(4),
            election_max: shortest.max(4).saturating_mul(8) / 5,
        },
    }
}

/// The hash of the first password of `admin`: the one in the file, or a random one that is left in
/// the data directory.
async fn first_password(data_dir: &Path, options: &ServeOptions) -> Result<String, Error> {
    let failed = |problem: muster_api::Problem| Error::Service(problem.detail);
    let password = match &options.admin_password_file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(system(format!("reading {}", path.display())))?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => {
            let password = auth::random_secret().map_err(failed)?;
            let path = data_dir.join("admin-password");
            write_file(&path, format!("{password}\n").as_bytes(), 0o600)?;
            tracing::info!(file = %path.display(), "the password of `admin` is random; keep it and remove the file");
            password
        }
    };
    auth::hash_password(password).await.map_err(failed)
}

fn make_data_dir(dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(system(format!("making {}", dir.display())))
}

/// Writes a file that is there whole or not at all.
fn write_file(path: &Path, contents: &[u8], mode: u32) -> Result<(), Error> {
    use std::io::Write as _;
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let write = || {
        let part = path.with_extension("part");
        match std::fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&part)?;
        // The process's mask must not take away what others are to read.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(contents)?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    write().map_err(system(format!("writing {}", path.display())))
}

/// The listeners of the API, up from the first moment.
struct Api {
    serving: Serving,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    _socket: SocketFile,
}

impl Api {
    async fn listen(data_dir: &Path, settings: &Settings) -> Result<Self, Error> {
        let why = "this node does not belong to a cluster yet, or is still starting";
        let tls = early::tls(&settings.node_name, settings.advertise)?;
        let serving = Serving::new(rest::waiting(why), tls);
        let stop = CancellationToken::new();
        let path: PathBuf = data_dir.join("muster.sock");
        let unix = server::listen_unix(&path)
            .map_err(system(format!("listening on {}", path.display())))?;
        let socket = SocketFile(path);
        let port = settings.api_port;
        let tcp = server::listen_tcp(port)
            .await
            .map_err(system(format!("listening on TCP port {port} (--api-port)")))?;
        let tasks = vec![
            tokio::spawn(server::serve_unix(unix, serving.clone(), stop.clone())),
            tokio::spawn(server::serve_tls(tcp, serving.clone(), stop.clone())),
        ];
        Ok(Self {
            serving,
            stop,
            tasks,
            _socket: socket,
        })
    }

    async fn finish(self) {
        self.stop.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
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
