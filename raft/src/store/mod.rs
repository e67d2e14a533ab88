//! openraft's storage traits on [`muster_storage::engine`].

mod check;
mod end;
mod inspect;
mod log;
mod machine;
mod snapshot;
mod sync;
#[cfg(test)]
#[allow(clippy::expect_used)]
mod tests;

pub use check::{Damage, damages};
pub use end::{check_end, forget_end, note_end};
pub use inspect::Inspection;
pub use log::{LogStore, Size, claim};
pub use machine::{Machine, Memory, Progress};
pub use snapshot::{Receiver, Snapshot};
pub use sync::{SyncWorker, Waiter};

/// Notes beside rows and log entries.
pub mod note {
    /// Whose log it is.
    pub const IDENTITY: &str = "identity";
    /// Last vote.
    pub const VOTE: &str = "vote";
    /// Last log entry known to be committed.
    pub const COMMITTED: &str = "committed";
    /// Last log entry that was purged.
    pub const PURGED: &str = "purged";
    /// Last log entry whose rows are written.
    pub const APPLIED: &str = "applied";
    /// Membership as of that entry.
    pub const MEMBERSHIP: &str = "membership";
    /// Digest of the state as of that entry.
    pub const DIGEST: &str = "digest";
    /// Beside the rows of a node that was stopped in good order: how its log ended.
    pub const LOG_END: &str = "log_end";
}
