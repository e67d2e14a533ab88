//! How a node is started.

use std::net::IpAddr;
use std::path::PathBuf;

use openraft::{Config, SnapshotPolicy};

use crate::Error;

/// Everything a node needs to know to start.
#[derive(Clone)]
pub struct Options {
    /// Where it keeps its files.
    pub data_dir: PathBuf,
    /// Its name, unique among members.
    pub node_name: String,
    /// What peers and machines reach.
    pub advertise: IpAddr,
    /// Port of the peer link; 0 takes any free one.
    pub peer_port: u16,
    /// HTTPS port of the API, for the member record.
    pub api_port: u16,
    /// HTTP port of the boot service, for the member record.
    pub boot_port: u16,
    /// Version of the binary.
    pub version: String,
    /// What to do with an empty directory.
    pub start: Start,
    /// Pace of heartbeats and elections.
    pub timing: Timing,
    /// Size of the log.
    pub limits: Limits,
    /// Acknowledge without syncing. Only for the test that shows what syncing is for.
    pub unsafe_no_sync: bool,
}

/// What to do with a directory that belongs to no cluster yet. Ignored when it does.
#[derive(Clone)]
pub enum Start {
    /// Found a cluster of one.
    Found {
        /// PHC string of the first password of user `admin`.
        admin_password_hash: String,
    },
    /// Join a cluster.
    Join {
        /// `HOST:PORT` of peer links of members.
        peers: Vec<String>,
        /// What `muster cluster join-token` printed.
        token: String,
    },
    /// Refuse.
    Resume,
}

/// Pace of heartbeats and elections, in milliseconds. The same on all nodes.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two heartbeats of the leader.
    pub heartbeat: u64,
    /// A follower that hears nothing for this long stands for election, at the latest after twice
    /// as long. Until then no voter elects another leader, but one whose process is seen to have
    /// ended is succeeded at once.
    pub election: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: 60,
            election: 400,
        }
    }
}

/// Size of the log. Whichever limit is reached first counts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A snapshot is made after so many entries.
    pub snapshot_every: u64,
    /// So many entries that are in the snapshot are kept, for followers that were away.
    pub keep: u64,
    /// A snapshot is made, and the log cut to a quarter of this, after so many octets.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            snapshot_every: 200_000,
            keep: 200_000,
            bytes: 512 << 20,
        }
    }
}

impl Options {
    /// openraft's configuration. Several of its defaults are wrong for us; each is set here.
    pub(crate) fn raft_config(&self) -> Result<Config, Error> {
        let Timing {
            heartbeat,
            election,
        } = self.timing;
        let Limits {
            snapshot_every,
            keep,
            ..
        } = self.limits;
        let config = Config {
            cluster_name: "muster".into(),
            heartbeat_interval: heartbeat,
            // The longest is at the same time the lease of the last leader that was heard, after
            // which a follower waits for its own time-out.
            election_timeout_min: (election / 4).max(heartbeat.saturating_add(1)),
            election_timeout_max: election,
            // A leader that lost power may have replicated entries that it lost itself; taking up
            // its old term without a vote would put other entries under the same ids.
            enable_leader_restore: Some(false),
            enable_pre_vote: Some(true),
            // A leader that can send but not hear must let others be elected.
            quorum_loss_probe_interval: Some(election.saturating_mul(2)),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every),
            max_in_snapshot_log_to_keep: keep,
            purge_batch_size: (keep / 10).clamp(1, 10_000),
            // Above the policy, or a snapshot would not cure a lag.
            replication_lag_threshold: snapshot_every.saturating_add(keep).saturating_mul(2),
            // For the whole transfer; a peer that is gone is noticed by the transport.
            install_snapshot_timeout: 30 * 60 * 1000,
            max_payload_entries: 1024,
            api_channel_size: Some(4096),
            backoff: "100ms 200ms ...1000ms".into(),
            ..Config::default()
        };
        config
            .validate()
            .map_err(|error| Error::Config(format!("timing of elections: {error}")))
    }
}
