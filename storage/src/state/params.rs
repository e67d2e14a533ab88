//! Which value a param has for a machine.

use std::collections::BTreeMap;

use serde_json::Value;

use super::table::State;
use crate::model::{Machine, Object, ObjectKind, Param, Profile};

/// Name of the profile that applies to all machines.
pub const GLOBAL: &str = "global";

impl State {
    /// All params of a machine, or of no machine: machine, its profiles in order, the profile
    /// `global`, the param's default; the first that gives a value wins.
    pub fn params(&self, machine: Option<&Machine>) -> BTreeMap<String, Value> {
        let mut values = BTreeMap::new();
        let mut add = |params: &BTreeMap<String, Value>| {
            for (name, value) in params {
                values.entry(name.clone()).or_insert_with(|| value.clone());
            }
        };
        if let Some(machine) = machine {
            add(&machine.params);
            for profile in machine
                .profiles
                .iter()
                .filter_map(|name| self.profile(name))
            {
                add(&profile.params);
            }
        }
        if let Some(global) = self.profile(GLOBAL) {
            add(&global.params);
        }
        for record in self.objects_after(ObjectKind::Param, None) {
            if let Object::Param(Param {
                name,
                default: Some(default),
                ..
            }) = &record.object
            {
                values
                    .entry(name.clone())
                    .or_insert_with(|| default.clone());
            }
        }
        values
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
}
