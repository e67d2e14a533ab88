//! Whether values fit the schemas of their params.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jsonschema::Validator;
use muster_raft::{Keyring, Purpose};
use muster_storage::State;
use muster_storage::model::{Object, ObjectKind, Param, Record};
use muster_storage::state::{Kept, value_in};
use serde_json::Value;

use crate::problem::Problem;

/// Values that are looked at when a schema changes, and objects that are named when some do not fit.
const LOOKED_AT_MAX: usize = 20_000;
const NAMED_MAX: usize = 20;

/// The declarations of a state at one moment; cheap to take.
#[derive(Clone, Default)]
pub struct Declared(Vec<Arc<Record<Object>>>);

impl Declared {
    /// All declarations of `state`.
    pub fn of(state: &State) -> Self {
        Self(
            state
                .objects_after(ObjectKind::Param, None)
                .cloned()
                .collect(),
        )
    }

    /// Their schemas, compiled. The last set is kept, as declarations change rarely.
    pub fn schemas(&self) -> Arc<Schemas> {
        static LAST: Mutex<Option<(Declared, Arc<Schemas>)>> = Mutex::new(None);
        let last = || LAST.lock().unwrap_or_else(PoisonError::into_inner);
        // The records are kept alive here, so equal pointers are equal declarations.
        let same = |known: &Self| {
            known.0.len() == self.0.len()
                && known.0.iter().zip(&self.0).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        if let Some((declared, schemas)) = &*last()
            && same(declared)
        {
            return Arc::clone(schemas);
        }
        let params = self.0.iter().filter_map(|record| match &record.object {
            Object::Param(param) => Some(param),
            _ => None,
        });
        let schemas = Arc::new(Schemas::of(params));
        *last() = Some((self.clone(), Arc::clone(&schemas)));
        schemas
    }
}

/// Schemas of params, compiled. One that is no schema binds nobody.
#[derive(Default)]
pub struct Schemas(BTreeMap<String, Schema>);

struct Schema {
    validator: Validator,
    secure: bool,
}

impl Schemas {
    fn of<'a>(params: impl Iterator<Item = &'a Param>) -> Self {
        let compiled = params.filter_map(|param| {
            let validator = jsonschema::validator_for(param.schema.as_ref()?).ok()?;
            let secure = param.secure;
            Some((param.name.clone(), Schema { validator, secure }))
        });
        Self(compiled.collect())
    }

    /// Why a value does not fit, after where in it.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self, param: &str, value: &Value) -> Result<(), (String, String)> {
        let Some(schema) = self.0.get(param) else {
            return Ok(());
        };
        schema.validator.validate(value).map_err(|error| {
            // The message quotes the value.
            let message = match schema.secure {
                true => "does not fit its schema".to_owned(),
                false => error.to_string(),
            };
            (error.instance_path().to_string(), message)
        })
    }

    /// What is wrong with the values that an object has in clear.
    pub fn problems(&self, object: &Object) -> Vec<String> {
        let values = match object {
            Object::Machine(machine) => &machine.params,
            Object::Profile(profile) => &profile.params,
            _ => return Vec::new(),
        };
        let problems = values.iter().filter_map(|(name, value)| {
            let (place, message) = self.check(name, value).err()?;
            Some(format!("params.{name}{place}: {message}"))
        });
        problems.collect()
    }
}

/// What has values of params whose schemas are about to change.
pub struct Affected(Vec<(Param, Vec<Arc<Record<Object>>>)>);

/// Takes it out of the state.
pub fn affected(state: &State, objects: &[Object]) -> Affected {
    let params = objects.iter().filter_map(|object| match object {
        Object::Param(param) => Some(param),
        _ => None,
    });
    let changed = params.filter(|param| {
        let known = state
            .param(&param.name)
            .and_then(|known| known.schema.as_ref());
        param.schema.is_some() && known != param.schema.as_ref()
    });
    // What is written as well is checked by itself.
    let written = |record: &Arc<Record<Object>>| {
        let (kind, key) = (record.object.kind(), record.object.key());
        objects.iter().any(|o| o.kind() == kind && o.key() == key)
    };
    let with_holders = changed.map(|param| {
        let holders = state.holders(&param.name).filter(|record| !written(record));
        let holders = holders.take(LOOKED_AT_MAX).cloned().collect();
        (param.clone(), holders)
    });
    Affected(with_holders.collect())
}

impl Affected {
    /// Refuses a schema that values which are there already do not fit.
    ///
    /// # Errors
    /// Which they are.
    pub fn check(self, keyring: Option<&Keyring>) -> Result<(), Problem> {
        for (param, holders) in self.0 {
            let schemas = Schemas::of(std::iter::once(&param));
            let problems = holders.iter().filter_map(|record| {
                let found = value_in(&record.object, &param.name)?;
                let opened;
                let value = match found.value {
                    Kept::Plain(value) => value,
                    Kept::Sealed(sealed) => {
                        let place = found.from.place(&param.name);
                        let text = keyring?.open_sealed(Purpose::Params, sealed, &place).ok()?;
                        opened = serde_json::from_slice(&text).ok()?;
                        &opened
                    }
                };
                let (place, message) = schemas.check(&param.name, value).err()?;
                let (kind, key) = (record.object.kind(), record.object.key());
                Some(format!(
                    "{kind} `{key}` (params.{}{place}: {message})",
                    param.name
                ))
            });
            let problems: Vec<String> = problems.take(NAMED_MAX).collect();
            if !problems.is_empty() {
                let detail = format!(
                    "of param `{}` does not fit the values of {}; change them first, or write it \
                     all the same with force",
                    param.name,
                    problems.join(", ")
                );
                return Err(Problem::invalid("schema", detail));
            }
        }
        Ok(())
    }
}
