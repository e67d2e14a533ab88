//! The vocabulary of writes: what anyone may propose, what the log holds, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::{
    Alert, Attempt, Install, JoinToken, Lease, Mac, Member, NodeId, Object, ObjectKind, Octets,
    Revision, SealedKey, Seen, Sha256, Timestamp, Token, Verdict,
};

/// Names a proposal, so that a retry is recognised. Random, chosen by the proposer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub Uuid);

/// On whose behalf a write is made: a user's name, or `node:NAME` for a node's own work.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Actor(pub String);

/// A wish to write. Anyone builds it; the leader orders it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// Names this proposal.
    pub request: RequestId,
    /// On whose behalf.
    pub actor: Actor,
    /// Refuse unless the object that the command names is at this revision.
    pub if_match: Option<Revision>,
    /// Whether a second copy of this proposal gets the outcome of the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remember: Option<Remember>,
    /// What to write.
    pub command: Command,
}

/// For how long the outcome of a proposal is remembered. What is refused is not remembered: it
/// changed nothing, and may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remember {
    /// While the node that proposes it may repeat it.
    Retry {
        /// What that node had applied before it proposed it for the first time.
        since: Revision,
    },
    /// For a day: the client chose the key of which the request's id is made.
    Key {
        /// Digest of what the client asked for: a key is for one request.
        asked: Sha256,
    },
}

/// One log entry: a batch of proposals with the leader's time. At most [`Entry::PROPOSALS_MAX`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Leader's clock when it made the entry; `apply` never lets state time run back.
    pub at: Timestamp,
    /// In the order of their revisions.
    pub proposals: Vec<Proposal>,
}

impl Entry {
    /// Proposals in an entry: a revision has 256 positions for each log index.
    pub const PROPOSALS_MAX: usize = 256;
}

/// Whether a `Put` may create or replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PutMode {
    /// Refuse if the object exists.
    Create,
    /// Refuse if it does not.
    Replace,
    /// Either.
    Apply,
    /// Refuse if it does not, or if more than the keys of its secrets changes: then it is done to
    /// locked machines as well.
    Reseal,
}

/// A write. Every variant is applied by `State::apply` alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The founding entry: names the cluster and hands it its certificate authority.
    Found(Box<Founding>),
    /// The state of a lost cluster goes on as a new one, under the same authority and with one
    /// member. Applied to what a backup or the last survivor holds, before anything is served.
    Refound(Box<Refounding>),
    /// Write an object.
    Put {
        /// The object, whole.
        object: Object,
        /// Whether it may exist.
        mode: PutMode,
    },
    /// Remove an object that nothing else names.
    Delete {
        /// Its kind.
        kind: ObjectKind,
        /// Its key.
        key: String,
    },
    /// Go on only if an object is at this revision: guards what stands beside it in a bundle.
    Expect {
        /// Its kind.
        kind: ObjectKind,
        /// Its key.
        key: String,
        /// As its reader saw it; 0 when it was not there.
        revision: Revision,
    },
    /// All or nothing, in this order. Not nested; at most [`Command::MANY_MAX`].
    Many(Vec<Command>),
    /// Give a client an address, or extend what it has (RFC 2131 §4.3.2).
    Bind(Box<Bind>),
    /// A client gives its address back (RFC 2131 §4.3.4).
    Release {
        /// Who.
        client: Box<Client>,
        /// What.
        address: Ipv4Addr,
        /// When its node heard of it, by the cluster's time. Refused when the lease was written since,
        /// or after [`Command::RELEASE_MS`]: the client may have been given it anew. Since schema 2.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sent: Option<Timestamp>,
    },
    /// A client found its address in use (RFC 2131 §4.3.3).
    Decline {
        /// Who.
        client: Box<Client>,
        /// What.
        address: Ipv4Addr,
    },
    /// A node found an address in use by another when it offered it: nobody gets it for a while, as
    /// after a DECLINE. Refused when somebody has taken it meanwhile.
    Quarantine {
        /// To whom it was offered.
        client: Box<Client>,
        /// What.
        address: Ipv4Addr,
        /// The node that offered it.
        node: NodeId,
    },
    /// Leader's housekeeping: end the leases whose time and margin are over, and forget expired
    /// tokens and identifiers. Takes the entry's time.
    Expire,
    /// Leader's housekeeping: every member has applied the releases up to `applied_by_all`, so
    /// addresses that were released until then are free at once.
    Reclaim {
        /// Smallest revision that any member, learners included, has reported as applied.
        applied_by_all: Revision,
    },
    /// Leader's housekeeping: the cluster's time is behind real time, and goes on from `to`. What
    /// leases and quarantines have left is theirs still.
    CorrectTime {
        /// What a majority of the members' clocks agree on.
        to: Timestamp,
    },
    /// An operator ends a lease; the address stays held as after a release.
    EndLease {
        /// The address.
        address: Ipv4Addr,
    },
    /// A node joins as learner; its id is the log index of this command.
    AddMember {
        /// The member; its `id` is ignored.
        member: Box<Member>,
        /// Token by which it joins; absent when an administrator adds it, or at founding.
        token: Option<Sha256>,
    },
    /// A node reports its present address, ports, version, identifiers.
    UpdateMember(Box<Member>),
    /// A node leaves for good.
    RemoveMember {
        /// Who.
        node: NodeId,
    },
    /// Behave as a newer schema from here on: what older binaries do not know may be written. Refused
    /// while a member, learners included, does not support it.
    RaiseSchema {
        /// The schema; done already when the cluster is at it or beyond.
        to: u16,
    },
    /// Let nodes join by this token.
    AddJoinToken(JoinToken),
    /// No node joins by any token made so far.
    RevokeJoinTokens,
    /// Let a user in by this token.
    AddToken(Token),
    /// Turn all tokens of a user away.
    RevokeTokens {
        /// Whose.
        user: String,
    },
    /// Seal with a new key from now on; its number is one more than that of the newest.
    AddKey(SealedKey),
    /// Forget the keys below a number: nothing is sealed with them any more.
    DropKeys {
        /// The first that stays.
        below: u32,
    },
    /// A node saw something that people should look into: an event, and nothing else.
    Alert(Box<Alert>),
    /// A machine calls back.
    Report {
        /// Which machine.
        machine: Uuid,
        /// What it sent.
        body: String,
        /// What it says of its install, by a token that was found to be its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        verdict: Option<Verdict>,
        /// The node that it called.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeId>,
    },
    /// A machine is to be installed: it boots `bootenv` until it says that it is.
    OrderInstall {
        /// Which machine.
        machine: Uuid,
        /// What installs it.
        bootenv: String,
        /// Attempts that it may take; as the settings say if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempts: Option<u32>,
    },
    /// A node is about to let a machine have the script of an attempt: opens the next one, goes on
    /// with the present one, or ends the order when it has used up its attempts. Refused when the
    /// order is not as the node read it: what comes late must not use up an attempt.
    OpenAttempt {
        /// Which machine.
        machine: Uuid,
        /// The attempt that the node read, or 0 before the first.
        read: Attempt,
        /// Whether the node read that its kernel was handed over.
        started: bool,
        /// Which node.
        node: NodeId,
    },
    /// An order to install a machine is taken back.
    CancelInstall {
        /// Which machine.
        machine: Uuid,
    },
    /// A machine is to stay as it is until it is unlocked.
    LockMachine {
        /// Which machine.
        machine: Uuid,
        /// Why, for people.
        reason: String,
    },
    /// A machine may be changed again.
    UnlockMachine {
        /// Which machine.
        machine: Uuid,
    },
    /// Set and remove labels of a machine, and leave the others as they are. Since schema 2.
    LabelMachine {
        /// Which machine.
        machine: Uuid,
        /// Labels to have, with their values.
        set: BTreeMap<String, String>,
        /// Labels not to have; none of them is in `set`.
        remove: BTreeSet<String>,
    },
    /// What a node saw of machines that boot; those that are gone are passed over. At most
    /// [`Command::SEEN_MAX`].
    Saw {
        /// Which node.
        node: NodeId,
        /// What, in the order of time.
        seen: Vec<Seen>,
    },
    /// Leader's housekeeping: nothing was seen of a machine that boots for too long.
    BootStalled {
        /// Which machine.
        machine: Uuid,
        /// The node that leads.
        node: NodeId,
    },
}

impl Command {
    /// Commands in one `Many`.
    pub const MANY_MAX: usize = 10_000;

    /// How late a `Release` may be written, in milliseconds: a packet is dropped when it has waited for
    /// 3.5 s, and its write given up after 5 s.
    pub const RELEASE_MS: u64 = 20_000;

    /// Facts in one `Saw`.
    pub const SEEN_MAX: usize = 256;
}

/// What founding writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founding {
    /// Identity of the cluster.
    pub cluster_id: Uuid,
    /// Certificate of the cluster's authority, PEM.
    pub ca_pem: String,
    /// Its private key, sealed under the key that only members hold.
    pub ca_key_sealed: Octets,
    /// The first key of the keyring.
    #[serde(default)]
    pub keyring: Vec<SealedKey>,
    /// PHC string of the first password of user `admin`.
    pub admin_password_hash: String,
    /// The founding node; gets id 1.
    pub member: Member,
}

/// What going on as a new cluster writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refounding {
    /// Identity of the new cluster.
    pub cluster_id: Uuid,
    /// Private key of the authority, sealed under the new cluster's key.
    pub ca_key_sealed: Octets,
    /// The keyring, sealed under it as well.
    #[serde(default)]
    pub keyring: Vec<SealedKey>,
    /// Its only member; gets the revision of this command as its id.
    pub member: Member,
}

/// A DHCP client as one packet shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Hardware address; absent for hardware without a six-octet one.
    pub mac: Option<Mac>,
    /// Option 61.
    pub client_id: Option<Octets>,
    /// Whether the packet has a PXE, HTTP boot or iPXE class.
    pub boots: bool,
    /// Addresses that tell the client's link: those of the receiving interface, or the relay's,
    /// or option 82.5 / 118.
    pub link: Vec<Ipv4Addr>,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 51.
    pub lease_secs: Option<u32>,
    /// Option 12.
    pub hostname: Option<String>,
    /// Option 82, whole.
    pub relay: Option<Octets>,
    /// What classes tell it apart by.
    #[serde(default, skip_serializing_if = "Traits::is_empty")]
    pub traits: Traits,
}

/// What a packet says about the kind of its sender.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traits {
    /// Option 60.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor_class: Option<String>,
    /// Option 77.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_classes: Vec<String>,
    /// Enterprise numbers of options 124 and 125.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub enterprises: Vec<u32>,
    /// Option 93.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<u16>,
    /// Option 97.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// `giaddr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub giaddr: Option<Ipv4Addr>,
}

impl Traits {
    /// Whether the packet says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A REQUEST that is to be granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Who.
    pub client: Client,
    /// Which address.
    pub address: Ipv4Addr,
    /// The node that answers.
    pub node: NodeId,
}

/// What became of a proposal. The same on every node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Its place in history.
    pub revision: Revision,
    /// What it did, or why not.
    pub result: Result<Effect, Rejection>,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Done; nothing more to say.
    Done,
    /// An object was written.
    Stored {
        /// Its kind.
        kind: ObjectKind,
        /// Its key.
        key: String,
        /// Whether it is new.
        created: bool,
    },
    /// A `Many`, one effect for each command.
    Many(Vec<Effect>),
    /// A lease was made or extended.
    Bound(Box<Lease>),
    /// A member was added.
    Member(NodeId),
    /// So many leases were ended or freed.
    Ended(u32),
    /// An order to install a machine, as it is now.
    Install(Box<Install>),
    /// A callback was kept, and its token was this.
    Reported(TokenUse),
}

/// What a callback's token did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenUse {
    /// It ended the install.
    Used,
    /// It said again what it had said before.
    Repeated,
    /// Nothing: its attempt is over.
    Spent,
}

/// Why a command was refused: data, replicated, with a stable code and advice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// The object does not exist.
    #[error("{kind} `{key}` does not exist")]
    NotFound {
        /// Kind of the object.
        kind: String,
        /// Its key.
        key: String,
    },
    /// The object exists already.
    #[error("{kind} `{key}` exists already; use apply or put to replace it")]
    Exists {
        /// Kind of the object.
        kind: String,
        /// Its key.
        key: String,
    },
    /// Another object stands against it.
    #[error("{0}")]
    Conflict(String),
    /// `if_match` does not hold.
    #[error("the object is at revision {current}, not at the one given; read it again")]
    Stale {
        /// Revision of the object now; 0 when it does not exist.
        current: Revision,
    },
    /// It may have been made before, so long ago that nobody remembers.
    #[error("it is not known whether this was written before; read, then decide")]
    Forgotten,
    /// The idempotency key was used for another request.
    #[error("this idempotency key was used for another request; choose a new one for each")]
    KeyReused,
    /// As many idempotency keys are remembered as there may be.
    #[error("too many idempotency keys are remembered; try again later, or write without one")]
    KeysFull,
    /// The object breaks a rule.
    #[error("{field}: {problem}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The artifact has more bytes than one may have.
    #[error("an artifact may have {limit} bytes; see `artifacts.max_bytes` of the settings")]
    TooLarge {
        /// As many as one may have.
        limit: u64,
    },
    /// All artifacts together may not have so many bytes.
    #[error(
        "of the quota of {quota} bytes for artifacts {left} are left; remove artifacts that are not \
         used, or raise `artifacts.quota_bytes` of the settings"
    )]
    Quota {
        /// As many as they may have.
        quota: u64,
        /// How many more.
        left: u64,
    },
    /// Something else names the object.
    #[error("{kind} `{key}` is used by {by}; change that first")]
    InUse {
        /// Kind of the object.
        kind: String,
        /// Its key.
        key: String,
        /// Who names it.
        by: String,
    },
    /// The machine is locked.
    #[error(
        "machine `{machine}` is locked{}; `muster machines unlock {machine}` frees it",
        told(.reason)
    )]
    Locked {
        /// Its name.
        machine: String,
        /// Why, if its locker said so.
        reason: String,
    },
    /// The address belongs to another client, or may not be given yet.
    #[error("address {address} is held for another client")]
    AddressTaken {
        /// The address.
        address: Ipv4Addr,
    },
    /// The client may not have this address here.
    #[error("address {address} is not for this client on this link")]
    NotForClient {
        /// The address.
        address: Ipv4Addr,
    },
    /// The join token is unknown, expired or revoked.
    #[error("the join token is not valid; make a new one with `muster cluster join-token`")]
    TokenRefused,
}

impl Rejection {
    /// Stable code, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::Exists { .. } => "exists",
            Self::Conflict(_) => "conflict",
            Self::Stale { .. } => "stale",
            Self::Invalid { .. } => "invalid",
            Self::InUse { .. } => "in_use",
            Self::Locked { .. } => "locked",
            Self::AddressTaken { .. } => "address_taken",
            Self::NotForClient { .. } => "not_for_client",
            Self::TokenRefused => "token_refused",
            Self::Forgotten => "forgotten",
            Self::KeyReused => "key_reused",
            Self::KeysFull => "keys_full",
            Self::TooLarge { .. } => "too_large",
            Self::Quota { .. } => "quota",
        }
    }
}

/// A reason, as it follows a statement.
fn told(reason: &str) -> String {
    match reason {
        "" => String::new(),
        reason => format!(" ({reason})"),
    }
}
