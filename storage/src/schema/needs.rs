//! The smallest schema that can express a value. It is what the value is written down as, so that the
//! same value always has the same bytes, and so that older binaries read all that does not need more.

use crate::command::{Command, Entry};
use crate::event::{Change, Subject};
use crate::model::{Machine, Object};
use crate::state::Row;

/// See the module.
pub trait Needs {
    /// The smallest schema that can express this.
    fn needs(&self) -> u16;
}

impl Needs for Machine {
    fn needs(&self) -> u16 {
        match self.labels.is_empty() {
            true => 1,
            false => 2,
        }
    }
}

impl Needs for Object {
    fn needs(&self) -> u16 {
        match self {
            Self::Machine(machine) => machine.needs(),
            _ => 1,
        }
    }
}

impl Needs for Command {
    fn needs(&self) -> u16 {
        match self {
            Self::LabelMachine { .. } | Self::Release { sent: Some(_), .. } => 2,
            Self::Put { object, .. } => object.needs(),
            Self::Many(commands) => most(commands),
            _ => 1,
        }
    }
}

impl Needs for Entry {
    fn needs(&self) -> u16 {
        let commands = self
            .proposals
            .iter()
            .map(|proposal| proposal.command.needs());
        commands.max().unwrap_or(1)
    }
}

impl Needs for Change {
    fn needs(&self) -> u16 {
        match &self.subject {
            Subject::Object(object) => object.needs(),
            _ => 1,
        }
    }
}

impl Needs for Row {
    fn needs(&self) -> u16 {
        match self {
            Self::Object(record) => record.object.needs(),
            Self::Event(change) => change.needs(),
            _ => 1,
        }
    }
}

fn most(of: &[impl Needs]) -> u16 {
    of.iter().map(Needs::needs).max().unwrap_or(1)
}
