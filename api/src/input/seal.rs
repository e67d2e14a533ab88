//! Secrets are sealed on the way in: what is proposed, and so what the log, the rows, the history
//! and backups hold, has none in clear.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_raft::{Keyring, Purpose};
use muster_storage::model::{HIDDEN, Machine, Object, ObjectKind, Profile, Record, Sealed};
use muster_storage::state::{Kept, Owner, value_in};
use muster_storage::{Command, State, command::PutMode};
use serde_json::Value;

use crate::problem::Problem;

/// Objects whose values are sealed when a param becomes secure: they are written with it.
const HOLDERS_MAX: usize = 2000;

/// What is to be sealed when some objects are written together.
pub struct Sealing {
    /// Params that are secrets.
    secure: BTreeSet<String>,
    /// The objects as they are.
    known: BTreeMap<(ObjectKind, String), Arc<Record<Object>>>,
    /// Objects that have values of params that become secure.
    holders: Vec<Arc<Record<Object>>>,
}

/// Takes out of the state what is needed to seal `objects`.
///
/// # Errors
/// When a param that becomes secure has too many values.
pub fn sealing(state: &State, objects: &[Object]) -> Result<Sealing, Problem> {
    let mut secure = BTreeSet::new();
    let mut holders: BTreeMap<(ObjectKind, String), Arc<Record<Object>>> = BTreeMap::new();
    for object in objects {
        let values = match object {
            Object::Machine(machine) => &machine.params,
            Object::Profile(profile) => &profile.params,
            _ => continue,
        };
        let known = values.keys().filter(|name| state.is_secure(name));
        secure.extend(known.cloned());
    }
    for object in objects {
        let Object::Param(param) = object else {
            continue;
        };
        if !param.secure {
            // Where it hides something, that is refused when it is applied.
            secure.remove(&param.name);
            continue;
        }
        secure.insert(param.name.clone());
        if state.is_secure(&param.name) {
            continue;
        }
        let plain = state.holders(&param.name).filter(|record| {
            let value = value_in(&record.object, &param.name).map(|value| value.value);
            matches!(value, Some(Kept::Plain(_)))
        });
        for record in plain.take(HOLDERS_MAX + 1) {
            let key = (record.object.kind(), record.object.key());
            holders.insert(key, Arc::clone(record));
        }
        if holders.len() > HOLDERS_MAX {
            return Err(Problem::invalid(
                "secure",
                format!(
                    "param `{}` has more than {HOLDERS_MAX} values, which would all be sealed now: \
                     make another param, and give it the values in profiles",
                    param.name
                ),
            ));
        }
    }
    let known = objects.iter().filter_map(|object| {
        let (kind, key) = (object.kind(), object.key());
        let record = state.object(kind, &key).filter(|_| has_params(kind))?;
        Some(((kind, key), Arc::clone(record)))
    });
    Ok(Sealing {
        known: known.collect(),
        secure,
        holders: holders.into_values().collect(),
    })
}

fn has_params(kind: ObjectKind) -> bool {
    matches!(
        kind,
        ObjectKind::Machine | ObjectKind::Profile | ObjectKind::Param
    )
}

impl Sealing {
    /// Whether the keyring is needed.
    pub fn is_needed(&self) -> bool {
        !self.secure.is_empty()
    }

    /// Seals the secrets of `objects`, and returns what has to be written before them.
    ///
    /// # Errors
    /// When a secret is not there, or cannot be sealed.
    pub fn seal(self, keyring: &Keyring, objects: &mut [Object]) -> Result<Vec<Command>, Problem> {
        for object in objects {
            let known = self.known.get(&(object.kind(), object.key()));
            let known = known.map(|record| &record.object);
            seal_object(&self.secure, keyring, object, known)?;
        }
        let mut before = Vec::with_capacity(2 * self.holders.len());
        for record in self.holders {
            let mut object = record.object.clone();
            seal_object(&self.secure, keyring, &mut object, None)?;
            before.push(Command::Expect {
                kind: object.kind(),
                key: object.key(),
                revision: record.revision,
            });
            let mode = PutMode::Replace;
            before.push(Command::Put { object, mode });
        }
        // What is expected of one must not have been written by another.
        before.sort_by_key(|command| !matches!(command, Command::Expect { .. }));
        Ok(before)
    }
}

fn seal_object(
    secure: &BTreeSet<String>,
    keyring: &Keyring,
    object: &mut Object,
    known: Option<&Object>,
) -> Result<(), Problem> {
    let (kind, key) = (object.kind(), object.key());
    let owner = Owner { kind, key: &key };
    let seal = |name: &str, field: &str, value: &Value| {
        let known = known.and_then(|known| sealed_in(known, name));
        seal_value(keyring, &owner.place(name), field, value, known)
    };
    let (params, sealed) = match object {
        Object::Machine(machine) => (&mut machine.params, &mut machine.sealed),
        Object::Profile(profile) => (&mut profile.params, &mut profile.sealed),
        Object::Param(param) if param.secure => {
            if let Some(value) = param.default.take() {
                param.default_sealed = Some(seal(&param.name, "default", &value)?);
            }
            return Ok(());
        }
        _ => return Ok(()),
    };
    for name in secure {
        if let Some(value) = params.remove(name) {
            let field = format!("params.{name}");
            sealed.insert(name.clone(), seal(name, &field, &value)?);
        }
    }
    Ok(())
}

/// Seals the secrets of an object anew, with the newest key.
///
/// # Errors
/// When one does not open.
pub fn reseal(keyring: &Keyring, object: &mut Object) -> Result<(), Problem> {
    let (kind, key) = (object.kind(), object.key());
    let owner = Owner { kind, key: &key };
    let reseal = |name: &str, sealed: &mut Sealed| {
        let place = owner.place(name);
        let secret = keyring.open_sealed(Purpose::Params, sealed, &place)?;
        *sealed = keyring.seal(Purpose::Params, &secret, &place)?;
        Ok::<_, Problem>(())
    };
    match object {
        Object::Machine(Machine { sealed, .. }) | Object::Profile(Profile { sealed, .. }) => sealed
            .iter_mut()
            .try_for_each(|(name, sealed)| reseal(name, sealed)),
        Object::Param(param) => match &mut param.default_sealed {
            Some(sealed) => reseal(&param.name, sealed),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn sealed_in<'a>(object: &'a Object, param: &str) -> Option<&'a Sealed> {
    match object {
        Object::Machine(machine) => machine.sealed.get(param),
        Object::Profile(profile) => profile.sealed.get(param),
        Object::Param(param) => param.default_sealed.as_ref(),
        _ => None,
    }
}

fn seal_value(
    keyring: &Keyring,
    place: &str,
    field: &str,
    value: &Value,
    known: Option<&Sealed>,
) -> Result<Sealed, Problem> {
    if value == HIDDEN {
        let advice = format!("`{HIDDEN}` stands for a value that is kept, and none is: write it");
        return Err(Problem::invalid(field, advice));
    }
    // The same value stays what it is: writing what is there already is no change.
    let same = |sealed: &&Sealed| {
        let opened = keyring.open_sealed(Purpose::Params, sealed, place).ok();
        let opened = opened.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        opened.as_ref() == Some(value)
    };
    match known.filter(same) {
        Some(sealed) => Ok(sealed.clone()),
        None => {
            let text = value.to_string();
            Ok(keyring.seal(Purpose::Params, text.as_bytes(), place)?)
        }
    }
}
