//! How a node comes to belong to a cluster: by founding one, by joining one, or because it did
//! before.

use std::io;
use std::path::Path;
use std::time::Duration;

use muster_api::auth;
use muster_raft::{Cluster, Limits, Options, Start, Timing, belongs_to_cluster};

use super::files::write_file;
use super::settings::{Settings, peers, token_file};
use super::{Error, system};
use crate::config::ServeOptions;

/// First and longest pause between attempts to join.
const JOIN_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// How often the token file is looked at while it is empty.
const TOKEN_PAUSE: Duration = Duration::from_millis(250);

/// Founds, joins or resumes; when joining, waits as long as it takes.
pub(super) async fn begin(
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
        Some(election) => Timing {
            heartbeat: (election / 6).max(1),
            election: election.max(6),
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
