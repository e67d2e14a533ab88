//! Labels of machines: what people and programs tell them apart by.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::objects::invalid;
use super::table::{Context, State};
use crate::command::{Effect, Rejection};
use crate::model::{Machine, Object};

/// Labels of one machine.
const LABELS_MAX: usize = 64;

/// Longest name of a label, in octets.
const NAME_MAX: usize = 63;

/// Longest value of a label, in octets.
const VALUE_MAX: usize = 255;

impl State {
    pub(super) fn label_machine(
        &mut self,
        context: Context<'_>,
        uuid: Uuid,
        set: &BTreeMap<String, String>,
        remove: &BTreeSet<String>,
    ) -> Result<Effect, Rejection> {
        if let Some(both) = remove.iter().find(|name| set.contains_key(*name)) {
            return Err(invalid("remove", &format!("`{both}` is set as well")));
        }
        let known = self.named_machine(uuid)?;
        let mut machine = known.clone();
        machine.labels.retain(|name, _| !remove.contains(name));
        machine.labels.extend(
            set.iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        if machine.labels == known.labels {
            return Ok(Effect::Done);
        }
        check_labels(&machine)?;
        self.check_unlocked(&machine)?;
        self.write_object(context, Object::Machine(machine));
        Ok(Effect::Done)
    }
}

/// Whether labels fit a screen and a URL.
pub(super) fn check_labels(machine: &Machine) -> Result<(), Rejection> {
    if machine.labels.len() > LABELS_MAX {
        let problem = format!("a machine has at most {LABELS_MAX}");
        return Err(invalid("labels", &problem));
    }
    for (name, value) in &machine.labels {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(good) {
            return Err(invalid(
                &format!("labels.{name}"),
                &format!(
                    "a name has 1 to {NAME_MAX} letters, digits, `-`, `_`, `.` and `/` of ASCII"
                ),
            ));
        }
        if value.len() > VALUE_MAX || value.chars().any(char::is_control) {
            return Err(invalid(
                &format!("labels.{name}"),
                &format!("a value has at most {VALUE_MAX} octets, on one line"),
            ));
        }
    }
    Ok(())
}
