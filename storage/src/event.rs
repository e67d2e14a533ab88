//! What an entry changed: the one source of events, audit and metrics.

use serde::{Deserialize, Serialize};

use crate::command::Actor;
use crate::model::{
    Alert, BootReport, Install, Lease, LeaseState, Lock, Member, Object, Revision, Timestamp,
};

/// One thing that changed, numbered by the revision that changed it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Revision of the proposal. One proposal may change several things.
    pub revision: Revision,
    /// Entry time.
    pub at: Timestamp,
    /// On whose behalf.
    pub actor: Actor,
    /// What happened to it.
    pub action: Action,
    /// The thing after the change, or before it when it was deleted. Without its secrets.
    pub subject: Subject,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is new.
    Created,
    /// It changed.
    Updated,
    /// It is gone.
    Deleted,
}

impl Action {
    /// What happened to a lease that is so now.
    pub fn of_lease(self, lease: &Lease) -> &'static str {
        match (self, lease.state, lease.free) {
            (Self::Deleted, ..) => "forgotten",
            (Self::Created, LeaseState::Bound, _) => "bound",
            (_, LeaseState::Bound, _) => "extended",
            (_, LeaseState::Released, false) => "released",
            (_, LeaseState::Released, true) => "freed",
            (_, LeaseState::Declined, _) => "declined",
            (_, LeaseState::Expired, _) => "expired",
        }
    }
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// An object that people write.
    Object(Object),
    /// A lease.
    Lease(Lease),
    /// A node.
    Member(Member),
    /// A machine's callback.
    Report(BootReport),
    /// An order to install a machine.
    Install(Install),
    /// What keeps a machine as it is.
    Lock(Lock),
    /// What a node saw and people should look into.
    Alert(Alert),
    /// The schema that the cluster behaves as.
    Schema(u16),
}

impl Subject {
    /// The word for its kind, as in the API.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Object(object) => object.kind().singular(),
            Self::Lease(_) => "lease",
            Self::Member(_) => "node",
            Self::Report(_) => "report",
            Self::Install(_) => "install",
            Self::Lock(_) => "lock",
            Self::Alert(_) => "alert",
            Self::Schema(_) => "schema",
        }
    }

    /// Its key among things of its kind.
    pub fn key(&self) -> String {
        match self {
            Self::Object(object) => object.key(),
            Self::Lease(lease) => lease.address.to_string(),
            Self::Member(member) => member.name.clone(),
            Self::Report(report) => report.machine.to_string(),
            Self::Install(install) => install.machine.to_string(),
            Self::Lock(lock) => lock.machine.to_string(),
            Self::Alert(alert) => alert.trouble.label().to_owned(),
            Self::Schema(number) => number.to_string(),
        }
    }
}
