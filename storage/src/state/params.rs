//! Which value a param has for a machine, and where it is from.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::table::State;
use crate::command::Rejection;
use crate::model::{Machine, Object, ObjectKind, Param, Profile, Record, Sealed};

/// Name of the profile that applies to all machines.
pub const GLOBAL: &str = "global";

/// Who says what value a param has: a machine, a profile, or the param's declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner<'a> {
    /// Kind of the object.
    pub kind: ObjectKind,
    /// Its key.
    pub key: &'a str,
}

impl Owner<'_> {
    /// The place of a param's value there, for which it is sealed: no other place opens it.
    pub fn place(&self, param: &str) -> String {
        format!("{self} param {param}")
    }
}

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

/// A value as it is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kept<'a> {
    /// For everybody to read.
    Plain(&'a Value),
    /// The JSON text of a value, sealed.
    Sealed(&'a Sealed),
}

/// The value that a param has for a machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParamValue<'a> {
    /// The value.
    pub value: Kept<'a>,
    /// Who says so.
    pub from: Owner<'a>,
}

impl State {
    /// All params of a machine, or of no machine: machine, its profiles in order, the profile
    /// `global`, the param's default; the first that gives a value wins.
    pub fn params<'a>(&'a self, machine: Option<&'a Machine>) -> BTreeMap<&'a str, ParamValue<'a>> {
        resolve(machine, |name| self.profile(name), self.declared())
    }

    /// The declarations of all params.
    pub fn declared(&self) -> impl Iterator<Item = &Param> {
        self.objects_after(ObjectKind::Param, None)
            .filter_map(|record| match &record.object {
                Object::Param(param) => Some(param),
                _ => None,
            })
    }

    /// A profile by name.
    pub fn profile(&self, name: &str) -> Option<&Profile> {
        match &self.object(ObjectKind::Profile, name)?.object {
            Object::Profile(profile) => Some(profile),
            _ => None,
        }
    }

    /// A param's declaration by name.
    pub fn param(&self, name: &str) -> Option<&Param> {
        match &self.object(ObjectKind::Param, name)?.object {
            Object::Param(param) => Some(param),
            _ => None,
        }
    }

    /// Whether the values of a param are secrets.
    pub fn is_secure(&self, param: &str) -> bool {
        self.param(param).is_some_and(|param| param.secure)
    }

    /// The machines and profiles that give a param a value.
    pub fn holders<'a>(
        &'a self,
        param: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Record<Object>>> + use<'a> {
        [ObjectKind::Machine, ObjectKind::Profile]
            .into_iter()
            .flat_map(|kind| self.objects_after(kind, None))
            .filter(move |record| value_in(&record.object, param).is_some())
    }

    /// Refuses a secret that is not sealed. Whoever proposes seals; but a param may have become
    /// secure since.
    pub(super) fn check_sealed(&self, object: &Object) -> Result<(), Rejection> {
        let unsealed = |name: &str| Rejection::Invalid {
            field: format!("params.{name}"),
            problem: "is secure, but came unsealed: send it again".to_owned(),
        };
        match object {
            Object::Machine(Machine { params, sealed, .. })
            | Object::Profile(Profile { params, sealed, .. }) => {
                if let Some(name) = sealed.keys().find(|name| params.contains_key(*name)) {
                    return Err(Rejection::Invalid {
                        field: format!("params.{name}"),
                        problem: "has two values".to_owned(),
                    });
                }
                match params.keys().find(|name| self.is_secure(name)) {
                    Some(name) => Err(unsealed(name)),
                    None => Ok(()),
                }
            }
            Object::Param(param) if param.secure && !self.is_secure(&param.name) => {
                let plain = |record: &&Arc<Record<Object>>| {
                    let value = value_in(&record.object, &param.name).map(|value| value.value);
                    matches!(value, Some(Kept::Plain(_)))
                };
                match self.holders(&param.name).find(plain) {
                    Some(record) => Err(Rejection::InUse {
                        kind: ObjectKind::Param.to_string(),
                        key: param.name.clone(),
                        by: format!(
                            "{} `{}`, whose value is not sealed yet",
                            record.object.kind(),
                            record.object.key()
                        ),
                    }),
                    None if param.default.is_some() => Err(unsealed(&param.name)),
                    None => Ok(()),
                }
            }
            Object::Param(param) if param.secure && param.default.is_some() => {
                Err(unsealed(&param.name))
            }
            Object::Param(_)
            | Object::Subnet(_)
            | Object::Reservation(_)
            | Object::Template(_)
            | Object::Bootenv(_)
            | Object::Settings(_)
            | Object::Artifact(_)
            | Object::User(_) => Ok(()),
        }
    }
}

/// As [`State::params`], of profiles and declarations that may not be written yet.
pub fn resolve<'a>(
    machine: Option<&'a Machine>,
    profile: impl Fn(&str) -> Option<&'a Profile>,
    declared: impl Iterator<Item = &'a Param>,
) -> BTreeMap<&'a str, ParamValue<'a>> {
    let own = machine
        .into_iter()
        .flat_map(|machine| values(of_machine(machine), &machine.params, &machine.sealed));
    let named = machine.into_iter().flat_map(|machine| &machine.profiles);
    let profiles = named.map(String::as_str).chain([GLOBAL]);
    let shared = profiles
        .filter_map(profile)
        .flat_map(|profile| values(of_profile(profile), &profile.params, &profile.sealed));
    let all = own.chain(shared).chain(declared.filter_map(default_of));
    let mut params = BTreeMap::new();
    for (name, value) in all {
        params.entry(name).or_insert(value);
    }
    params
}

/// The value that a machine or a profile gives a param.
pub fn value_in<'a>(object: &'a Object, param: &str) -> Option<ParamValue<'a>> {
    let (from, params, sealed) = match object {
        Object::Machine(machine) => (of_machine(machine), &machine.params, &machine.sealed),
        Object::Profile(profile) => (of_profile(profile), &profile.params, &profile.sealed),
        _ => return None,
    };
    let value = match (params.get(param), sealed.get(param)) {
        (Some(value), _) => Kept::Plain(value),
        (None, Some(sealed)) => Kept::Sealed(sealed),
        (None, None) => return None,
    };
    Some(ParamValue { value, from })
}

fn of_machine(machine: &Machine) -> Owner<'_> {
    Owner {
        kind: ObjectKind::Machine,
        key: &machine.name,
    }
}

fn of_profile(profile: &Profile) -> Owner<'_> {
    Owner {
        kind: ObjectKind::Profile,
        key: &profile.name,
    }
}

fn values<'a>(
    from: Owner<'a>,
    params: &'a BTreeMap<String, Value>,
    sealed: &'a BTreeMap<String, Sealed>,
) -> impl Iterator<Item = (&'a str, ParamValue<'a>)> {
    let plain = params
        .iter()
        .map(|(name, value)| (name, Kept::Plain(value)));
    let sealed = sealed
        .iter()
        .map(|(name, value)| (name, Kept::Sealed(value)));
    plain
        .chain(sealed)
        .map(move |(name, value)| (name.as_str(), ParamValue { value, from }))
}

fn default_of(param: &Param) -> Option<(&str, ParamValue<'_>)> {
    let value = match (&param.default, &param.default_sealed) {
        (Some(value), _) => Kept::Plain(value),
        (None, Some(sealed)) => Kept::Sealed(sealed),
        (None, None) => return None,
    };
    let from = Owner {
        kind: ObjectKind::Param,
        key: &param.name,
    };
    Some((&param.name, ParamValue { value, from }))
}
