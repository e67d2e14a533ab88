//! How the cluster agrees: one handle, [`Cluster`], over Raft, its storage and the peer link.
//!
//! The only crate that knows openraft, tonic and prost, and that there is a leader.

// The tests inside of this crate found clusters like those outside of it.
#[cfg(test)]
extern crate self as muster_raft;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;

mod answer;
mod artifacts;
mod ask;
mod backup;
mod board;
mod clock;
mod cluster;
mod desk;
mod digests;
mod disk;
mod drain;
mod error;
mod follow;
mod host;
mod identity;
mod inner;
mod join;
mod keyring;
mod manage;
mod options;
mod peer;
mod promises;
mod pulse;
mod reads;
mod recover;
mod refound;
mod renew;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod sim;
mod start;
mod status;
mod store;
mod succession;
mod telemetry;
mod tls;
mod trim;
mod types;
mod upgrade;
mod view;
mod wire;

pub use artifacts::{Arriving, ArtifactWriter, Kept, Placement, UPLOAD_KEPT, Upload, UploadNote};
pub use ask::Answerer;
pub use backup::{Backup, Restored, restore};
pub use cluster::Cluster;
pub use drain::Transfers;
pub use error::Error;
pub use follow::Follow;
pub use identity::belongs_to_cluster;
pub use keyring::{Keyring, Purpose};
pub use muster_storage::backup::{ArtifactNote, Header};
pub use muster_storage::state::Gone;
pub use options::{Limits, Options, Start, Timing};
pub use recover::{Loss, Survivor};
pub use refound::Refounded;
pub use status::{NodeStatus, Peer, Role, Status};
pub use store::{Damage, Inspection, damages};
pub use telemetry::describe_metrics;
pub use upgrade::Upgrade;
