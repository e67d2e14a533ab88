//! Of which revisions of which objects something was made: when a machine did what nobody expected,
//! this tells what it was given.

use std::fmt;

use muster_storage::State;
use muster_storage::model::{Machine, ObjectKind, Revision};
use muster_storage::state::GLOBAL;

/// What a text for a machine was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Of the state that was read.
    pub revision: Revision,
    /// What of it went in: each with the revision of its last change.
    parts: Vec<(String, Revision)>,
}

impl Stamp {
    /// Of a machine, its params, and these objects.
    pub fn of<'a>(
        state: &State,
        machine: &'a Machine,
        objects: impl IntoIterator<Item = (ObjectKind, &'a str)>,
    ) -> Self {
        let named = objects
            .into_iter()
            .chain([(ObjectKind::Machine, machine.name.as_str())]);
        let mut parts: Vec<(String, Revision)> = named
            .filter_map(|(kind, key)| {
                let record = state.object(kind, key)?;
                Some((format!("{kind} {key}"), record.revision))
            })
            .collect();
        parts.dedup();
        let profiles = machine.profiles.iter().map(String::as_str).chain([GLOBAL]);
        let profiles = profiles.filter_map(|name| state.object(ObjectKind::Profile, name));
        let declared = state.objects_after(ObjectKind::Param, None);
        let params = profiles.chain(declared).map(|record| record.revision).max();
        parts.extend(params.map(|revision| ("params".to_owned(), revision)));
        Self {
            revision: state.revision(),
            parts,
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (what, revision)) in self.parts.iter().enumerate() {
            let comma = if position == 0 { "" } else { ", " };
            write!(f, "{comma}{what} of {revision}")?;
        }
        Ok(())
    }
}
