//! Rows: the pieces in which state is kept on disk, travels in snapshots and enters the digest.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256 as Hasher};
use uuid::Uuid;

use super::remember::Remembered;
use super::table::{Cluster, Meta};
use crate::command::RequestId;
use crate::event::Change;
use crate::model::{
    BootReport, Identifier, Install, JoinToken, Lease, Lock, Member, NodeId, Object, ObjectKind,
    Record, Revision, Sha256, Timeline, Token,
};
use crate::schema::{self, Corrupt};

/// Where a row lives. The encoded key begins with a table octet and sorts as the table does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RowKey {
    /// Schema, time and position: one row.
    Meta,
    /// The cluster's identity: one row.
    Cluster,
    /// A node.
    Member(NodeId),
    /// An address of option 54.
    Identifier(Ipv4Addr),
    /// A join token by hash.
    JoinToken(Sha256),
    /// A bearer token by hash.
    Token(Sha256),
    /// An object by kind and key.
    Object(ObjectKind, String),
    /// A lease by address.
    Lease(Ipv4Addr),
    /// The last callback of a machine.
    Report(Uuid),
    /// A change in the event history, by revision and position in it.
    Event(Revision, u32),
    /// A proposal that was made, and what came of it.
    Remembered(RequestId),
    /// The order to install a machine.
    Install(Uuid),
    /// What keeps a machine as it is.
    Lock(Uuid),
    /// What was seen of how a machine boots.
    Timeline(Uuid),
}

/// What a row holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Row {
    /// See [`RowKey::Meta`].
    Meta(Meta),
    /// See [`RowKey::Cluster`].
    Cluster(Cluster),
    /// See [`RowKey::Member`].
    Member(Record<Member>),
    /// See [`RowKey::Identifier`].
    Identifier(Identifier),
    /// See [`RowKey::JoinToken`].
    JoinToken(JoinToken),
    /// See [`RowKey::Token`].
    Token(Token),
    /// See [`RowKey::Object`].
    Object(Box<Record<Object>>),
    /// See [`RowKey::Lease`].
    Lease(Arc<Record<Lease>>),
    /// See [`RowKey::Report`].
    Report(BootReport),
    /// See [`RowKey::Event`].
    Event(Arc<Change>),
    /// See [`RowKey::Remembered`].
    Remembered(Box<Remembered>),
    /// See [`RowKey::Install`].
    Install(Arc<Install>),
    /// See [`RowKey::Lock`].
    Lock(Arc<Lock>),
    /// See [`RowKey::Timeline`].
    Timeline(Arc<Timeline>),
}

/// A row to be written, or deleted when there is no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowWrite {
    /// Encoded [`RowKey`].
    pub key: Vec<u8>,
    /// Encoded [`Row`].
    pub value: Option<Vec<u8>>,
}

impl RowKey {
    /// Stored form of the key.
    pub fn encode(&self) -> Vec<u8> {
        let table = |octet: u8, rest: &[u8]| [&[octet], rest].concat();
        match self {
            Self::Meta => table(0, &[]),
            Self::Cluster => table(1, &[]),
            Self::Member(id) => table(2, &id.0.to_be_bytes()),
            Self::Identifier(address) => table(3, &address.octets()),
            Self::JoinToken(hash) => table(4, &hash.0),
            Self::Token(hash) => table(5, &hash.0),
            Self::Object(kind, key) => table(6, format!("{kind}\0{key}").as_bytes()),
            Self::Lease(address) => table(7, &address.octets()),
            Self::Report(machine) => table(8, machine.as_bytes()),
            Self::Event(revision, position) => table(
                9,
                &[&revision.0.to_be_bytes()[..], &position.to_be_bytes()].concat(),
            ),
            Self::Remembered(request) => table(10, request.0.as_bytes()),
            Self::Install(machine) => table(11, machine.as_bytes()),
            Self::Lock(machine) => table(12, machine.as_bytes()),
            Self::Timeline(machine) => table(13, machine.as_bytes()),
        }
    }
}

impl Row {
    /// Key under which this row belongs; events need their position.
    pub fn key(&self, event_position: u32) -> RowKey {
        match self {
            Self::Meta(_) => RowKey::Meta,
            Self::Cluster(_) => RowKey::Cluster,
            Self::Member(record) => RowKey::Member(record.object.id),
            Self::Identifier(identifier) => RowKey::Identifier(identifier.address),
            Self::JoinToken(token) => RowKey::JoinToken(token.hash),
            Self::Token(token) => RowKey::Token(token.hash),
            Self::Object(record) => RowKey::Object(record.object.kind(), record.object.key()),
            Self::Lease(record) => RowKey::Lease(record.object.address),
            Self::Report(report) => RowKey::Report(report.machine),
            Self::Event(change) => RowKey::Event(change.revision, event_position),
            Self::Remembered(remembered) => RowKey::Remembered(remembered.request),
            Self::Install(install) => RowKey::Install(install.machine),
            Self::Lock(lock) => RowKey::Lock(lock.machine),
            Self::Timeline(timeline) => RowKey::Timeline(timeline.machine),
        }
    }

    /// Stored form of the row.
    ///
    /// # Errors
    /// When a value cannot be expressed, which no checked command holds.
    pub fn encode(&self) -> Result<Vec<u8>, Corrupt> {
        schema::encode("row", self)
    }

    /// Reads a stored row and checks that it stands under its own key.
    ///
    /// # Errors
    /// When it is damaged, misplaced or of a newer schema.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<(RowKey, Self), Corrupt> {
        let row: Self = schema::decode("row", value)?;
        let position = key
            .last_chunk::<4>()
            .map_or(0, |octets| u32::from_be_bytes(*octets));
        let own = row.key(position);
        if own.encode() == key {
            Ok((own, row))
        } else {
            Err(Corrupt::Undecodable {
                what: "row",
                problem: format!("the row of {own:?} stands under key {}", hex::encode(key)),
            })
        }
    }
}

/// A sum over all rows: equal on all nodes at equal revision, whatever path led there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// Of these rows alone: key and value of each, as stored.
    pub fn of<'a>(rows: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut digest = Self::default();
        for (key, value) in rows {
            digest.add(Self::of_row(key, value));
        }
        digest
    }

    /// Of one row.
    pub(super) fn of_row(key: &[u8], value: &[u8]) -> Self {
        let full = Hasher::new()
            .chain_update((key.len() as u64).to_be_bytes())
            .chain_update(key)
            .chain_update(value)
            .finalize();
        Self(full.first_chunk().copied().unwrap_or_default())
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.map(other, u128::wrapping_add)
    }

    /// Adds a row.
    pub(super) fn add(&mut self, row: Self) {
        *self = self.plus(row);
    }

    /// Takes a row out.
    pub(super) fn remove(&mut self, row: Self) {
        *self = self.map(row, u128::wrapping_sub);
    }

    fn map(self, other: Self, both: impl FnOnce(u128, u128) -> u128) -> Self {
        let (one, two) = (u128::from_be_bytes(self.0), u128::from_be_bytes(other.0));
        Self(both(one, two).to_be_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}
