//! The keys of the cluster's secrets: one is added, what it replaces is sealed anew, the old go.

use std::sync::Arc;

use super::row::{Row, RowKey};
use super::table::{Cluster, State};
use crate::command::{Effect, Rejection};
use crate::model::{Object, ObjectKind, Record, Sealed, SealedKey};

impl State {
    pub(super) fn add_key(&mut self, key: &SealedKey) -> Result<Effect, Rejection> {
        let cluster = self.cluster_now()?;
        let newest = cluster.keyring.last().map_or(0, |key| key.id);
        if newest.checked_add(1) != Some(key.id) {
            return Err(Rejection::Conflict(format!(
                "the newest key of the keyring is {newest}: others rotate it as well"
            )));
        }
        let mut keyring = cluster.keyring.clone();
        keyring.push(key.clone());
        self.set_keyring(cluster, keyring)
    }

    pub(super) fn drop_keys(&mut self, below: u32) -> Result<Effect, Rejection> {
        let cluster = self.cluster_now()?;
        let mut keyring = cluster.keyring.clone();
        keyring.retain(|key| key.id >= below);
        if keyring.is_empty() {
            return Err(Rejection::Conflict("a keyring keeps a key".into()));
        }
        if let Some(record) = self.sealed_below(below).next() {
            return Err(Rejection::Conflict(format!(
                "{} `{}` is sealed with an older key",
                record.object.kind(),
                record.object.key()
            )));
        }
        self.set_keyring(cluster, keyring)
    }

    /// Objects with secrets that are sealed with keys below a number.
    pub fn sealed_below(&self, key: u32) -> impl Iterator<Item = &Arc<Record<Object>>> {
        [ObjectKind::Param, ObjectKind::Profile, ObjectKind::Machine]
            .into_iter()
            .flat_map(|kind| self.objects_after(kind, None))
            .filter(move |record| secrets(&record.object).any(|sealed| sealed.key < key))
    }

    fn cluster_now(&self) -> Result<Cluster, Rejection> {
        let cluster = self.cluster().cloned();
        cluster.ok_or_else(|| Rejection::Conflict("there is no cluster yet".into()))
    }

    fn set_keyring(
        &mut self,
        cluster: Cluster,
        keyring: Vec<SealedKey>,
    ) -> Result<Effect, Rejection> {
        let cluster = Cluster { keyring, ..cluster };
        self.put(RowKey::Cluster, Some(Row::Cluster(cluster)));
        Ok(Effect::Done)
    }
}

/// What is sealed in an object.
fn secrets(object: &Object) -> impl Iterator<Item = &Sealed> {
    let (values, default) = match object {
        Object::Machine(machine) => (Some(&machine.sealed), None),
        Object::Profile(profile) => (Some(&profile.sealed), None),
        Object::Param(param) => (None, param.default_sealed.as_ref()),
        _ => (None, None),
    };
    let values = values.into_iter().flat_map(|sealed| sealed.values());
    values.chain(default)
}
