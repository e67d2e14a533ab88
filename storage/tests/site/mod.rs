//! A cluster that is written to one command at a time.

use muster_storage::command::Founding;
use muster_storage::model::{Member, Octets, Sha256};
use muster_storage::{
    Actor, Command, Effect, Entry, NodeId, Proposal, Rejection, RequestId, Revision, State,
    Timestamp,
};
use uuid::Uuid;

/// See the module.
pub struct Site {
    pub state: State,
    /// Entries so far.
    pub index: u64,
    /// Milliseconds between two.
    step: u64,
}

impl Site {
    /// Founded by this member; so many milliseconds pass from command to command.
    pub fn founded(member: Member, step: u64) -> Self {
        let mut site = Self {
            state: State::default(),
            index: 0,
            step,
        };
        site.run(Command::Found(Box::new(Founding {
            cluster_id: Uuid::from_u128(1),
            ca_pem: String::new(),
            ca_key_sealed: Octets::default(),
            keyring: Vec::new(),
            admin_password_hash: String::new(),
            member,
        })));
        site
    }

    /// What comes of a command.
    pub fn try_run(&mut self, command: Command) -> Result<Effect, Rejection> {
        self.index += 1;
        let entry = entry(Timestamp(1_000_000 + self.index * self.step), command);
        let mut outcomes = self.state.apply(Revision::new(self.index, 0), &entry);
        outcomes.pop().expect("one outcome").0.result
    }

    /// What a command that is accepted does.
    pub fn run(&mut self, command: Command) -> Effect {
        self.try_run(command).expect("accepted")
    }
}

/// An entry of one command.
pub fn entry(at: Timestamp, command: Command) -> Entry {
    Entry {
        at,
        proposals: vec![Proposal {
            request: RequestId(Uuid::nil()),
            actor: Actor("test".into()),
            if_match: None,
            remember: None,
            command,
        }],
    }
}

/// A member whose binary supports schemas up to this; `last` is its number, and ends its address.
pub fn member(last: u8, max_schema: u16) -> Member {
    Member {
        id: NodeId(u64::from(last)),
        name: format!("n{last}"),
        address: [10, 0, 0, last].into(),
        peer_port: 8093,
        api_port: 8092,
        boot_port: 8091,
        version: "0.1.0".into(),
        min_schema: 1,
        max_schema,
        key_hash: Sha256([last; 32]),
        identifiers: Vec::new(),
    }
}
