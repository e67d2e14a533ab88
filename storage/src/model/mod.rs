//! Plain structs for everything that the cluster remembers, in the words of the API.
//!
//! A struct here is both the stored form and the API's object: unknown fields are refused by name,
//! optional fields have the defaults of the documented object. What the cluster adds to an object
//! (revision, times) is kept beside it in [`Record`].

mod alert;
mod artifact;
mod boot;
mod class;
mod ids;
mod install;
mod keyring;
mod lease;
mod member;
mod network;
mod objects;
mod timeline;
mod user;

pub use alert::{Alert, Trouble};
pub use artifact::{Artifact, ArtifactSettings};
pub use boot::{BadLoader, BadLoaders, LOADER_NAME_MAX, Loader, Loaders, LocalBoot, Platform};
pub use class::{Class, Condition};
pub use ids::{BadMac, BadSha256, Mac, NodeId, Octets, Revision, Sha256, TextOctets, Timestamp};
pub use install::{Attempt, Ended, Install, InstallPhase, Lock, Served, Status, Verdict};
pub use keyring::{Sealed, SealedKey};
pub use lease::{ClientKey, Lease, LeaseRule, LeaseState};
pub use member::{Identifier, JoinToken, Member};
pub use network::{BadPool, ConflictDetection, Match, Pool, Reservation, Subnet, SubnetMode};
pub use objects::{
    BootReport, Bootenv, HIDDEN, LOCAL, Machine, Object, ObjectKind, Param, Profile, RenderedFile,
    Settings, Template, UnknownKind,
};
pub use timeline::{FACTS_MAX, Fact, Seen, Step, Timeline, UnderWay};
pub use user::{Token, User};

use serde::{Deserialize, Serialize};

/// An object with what the cluster adds to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record<T> {
    /// Revision of the last change: the ETag.
    pub revision: Revision,
    /// Entry time of the creation.
    pub created_at: Timestamp,
    /// Entry time of the last change.
    pub updated_at: Timestamp,
    /// The object as its owner wrote it.
    pub object: T,
}
