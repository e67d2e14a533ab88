//! A subnet, its clients, and the history that they make.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::net::Ipv4Addr;

use muster_storage::command::{Bind, Client, PutMode};
use muster_storage::model::{Lease, NodeId, Object, Reservation};
use muster_storage::state::{Claim, Grant};
use muster_storage::{
    Actor, Command, Effect, Entry, Mac, Outcome, Proposal, Rejection, RequestId, Revision, State,
    Timestamp,
};

pub const START: Timestamp = Timestamp(1_800_000_000_000);
pub const LEASE: u64 = 3600;
/// The committed end is ahead of the promise by as much again, one hour at most.
pub const COMMITTED: u64 = 2 * LEASE;
pub const MARGIN: u64 = 10;

pub fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, last)
}

/// A history and the state that it makes.
#[derive(Clone)]
pub struct World {
    pub state: State,
    pub entries: Vec<(Revision, Entry)>,
    pub now: Timestamp,
}

impl World {
    /// A subnet with a pool of `size` addresses from 10.77.0.100.
    pub fn new(size: u8) -> Self {
        let mut world = Self {
            state: State::default(),
            entries: Vec::new(),
            now: START,
        };
        world.subnet(size);
        world
    }

    pub fn subnet(&mut self, size: u8) {
        let subnet = serde_json::from_value(serde_json::json!({
            "name": "lab", "cidr": "10.77.0.0/24", "lease_secs": LEASE,
            "pools": [format!("10.77.0.100-10.77.0.{}", 99 + size)],
        }))
        .unwrap();
        self.put(Object::Subnet(subnet)).result.unwrap();
    }

    pub fn apply(&mut self, command: Command) -> Outcome {
        let entry = Entry {
            at: self.now,
            proposals: vec![Proposal {
                request: RequestId(uuid::Uuid::nil()),
                actor: Actor("test".to_owned()),
                if_match: None,
                remember: None,
                command,
            }],
        };
        let revision = Revision::new(self.entries.len() as u64 + 1, 0);
        let (outcome, _) = self.state.apply(revision, &entry).remove(0);
        self.entries.push((revision, entry));
        outcome
    }

    pub fn put(&mut self, object: Object) -> Outcome {
        self.apply(Command::Put {
            object,
            mode: PutMode::Apply,
        })
    }

    pub fn reserve(&mut self, address: Ipv4Addr, mac: u8) -> Outcome {
        self.put(Object::Reservation(Reservation {
            mac: Some(mac_of(mac)),
            ..owner(address)
        }))
    }

    pub fn bind(&mut self, client: &Client, address: Ipv4Addr) -> Result<Lease, Rejection> {
        let outcome = self.apply(Command::Bind(Box::new(Bind {
            client: client.clone(),
            address,
            node: NodeId(1),
        })));
        outcome.result.map(|effect| match effect {
            Effect::Bound(lease) => *lease,
            other => panic!("{other:?}"),
        })
    }

    pub fn offer(&self, client: &Client) -> Option<(Ipv4Addr, Grant)> {
        self.state
            .offer(client, &|_| Claim::None, self.now)
            .map(|offer| (offer.address, offer.rule))
    }

    pub fn release(&mut self, client: &Client, address: Ipv4Addr) -> Outcome {
        self.apply(Command::Release {
            client: Box::new(client.clone()),
            address,
            sent: None,
        })
    }

    pub fn decline(&mut self, client: &Client, address: Ipv4Addr) -> Outcome {
        self.apply(Command::Decline {
            client: Box::new(client.clone()),
            address,
        })
    }

    pub fn reclaim(&mut self) -> Outcome {
        let applied_by_all = self.state.revision();
        self.apply(Command::Reclaim { applied_by_all })
    }

    pub fn pass(&mut self, secs: u64) {
        self.now = self.now.plus_secs(secs);
    }

    /// The cluster's time was behind by so much.
    pub fn correct_time(&mut self, secs: u64) {
        let to = self.now.plus_secs(secs);
        self.apply(Command::CorrectTime { to });
        self.now = to;
    }

    pub fn lease(&self, address: Ipv4Addr) -> &Lease {
        &self.state.lease(address).unwrap().object
    }
}

pub fn mac_of(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, number])
}

pub fn client(number: u8) -> Client {
    Client {
        mac: Some(mac_of(number)),
        client_id: None,
        boots: false,
        link: vec![ip(1)],
        requested: None,
        lease_secs: None,
        hostname: None,
        relay: None,
        traits: Default::default(),
    }
}

pub fn taken(address: Ipv4Addr) -> Result<Lease, Rejection> {
    Err(Rejection::AddressTaken { address })
}

pub fn foreign(address: Ipv4Addr) -> Result<Lease, Rejection> {
    Err(Rejection::NotForClient { address })
}

pub fn owner(address: Ipv4Addr) -> Reservation {
    Reservation {
        address,
        mac: None,
        client_id: None,
        machine: None,
        uuid: None,
        circuit_id: None,
        remote_id: None,
    }
}
