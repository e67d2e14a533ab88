//! What can go wrong, with what to do about it.

use std::io;
use std::path::PathBuf;

/// Why the cluster could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No leader could be reached in time; nothing was done.
    #[error("no leader can be reached, so nothing was written; see `muster cluster status`")]
    NoLeader,
    /// The deadline passed, or the leader was lost, after the proposal was sent.
    #[error(
        "the answer did not come in time; the write may or may not have been made: read before trying again"
    )]
    Timeout,
    /// Too many proposals are waiting; nothing was done.
    #[error("too many writes are waiting; try again in a moment")]
    Overloaded,
    /// The join token is unknown, expired or revoked.
    #[error("the cluster refused the join token; make a new one with `muster cluster join-token`")]
    TokenRefused,
    /// The text is not a join token.
    #[error(
        "this is not a join token; copy the whole line that `muster cluster join-token` printed"
    )]
    BadToken,
    /// The cluster did not admit this node, for a reason other than the token.
    #[error("the cluster did not admit this node: {0}")]
    NotAdmitted(String),
    /// The directory belongs to no cluster, and none is to be founded or joined.
    #[error("{} belongs to no cluster; start with --found to found one, or with --join to join one", .0.display())]
    NoCluster(PathBuf),
    /// There is a log, but no identity.
    #[error("{} has a log but its node.json is missing; a node without its identity must not vote: \
             restore the file, or empty the directory and join anew", .0.display())]
    IdentityMissing(PathBuf),
    /// A file of the node's identity is damaged.
    #[error("{file}: {problem}; restore it from a copy, or empty the directory and join anew")]
    BadIdentity {
        /// Which file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Stored data cannot be used.
    #[error("stored data cannot be used: {0}")]
    Corrupt(String),
    /// A backup cannot be read.
    #[error(transparent)]
    Backup(#[from] muster_storage::backup::Error),
    /// The disk or the network failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// A setting makes no sense.
    #[error("{0}")]
    Config(String),
    /// There is no such node.
    #[error("there is no node `{0}`; see `muster cluster status`")]
    NoSuchNode(String),
    /// The order would harm the cluster, or makes no sense now.
    #[error("{0}")]
    Refused(String),
    /// What was ordered needs something that takes time; the same order again goes on from there.
    #[error("{0}")]
    NotYet(String),
    /// No peer has the artifact.
    #[error("no live node has the artifact {0}")]
    NoSuchArtifact(String),
    /// Too few disks have room for the artifact.
    #[error(
        "fewer than a quorum of nodes have room for the artifact; make room on the disks of their data \
         directories, or remove artifacts that are not used any more"
    )]
    NoRoom,
    /// This node took itself out of service before.
    #[error("this node is out of service: {0}")]
    Diverged(String),
    /// This node has stopped taking part.
    #[error("this node has stopped taking part: {0}")]
    Stopped(String),
}

impl Error {
    /// Wraps a failure of the system with what was being done.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| match source.kind() {
            io::ErrorKind::InvalidData => Self::Corrupt(format!("{doing}: {source}")),
            _ => Self::Io { doing, source },
        }
    }

    /// Whether the write certainly was not made.
    pub fn is_certain(&self) -> bool {
        !matches!(self, Self::Timeout)
    }
}
