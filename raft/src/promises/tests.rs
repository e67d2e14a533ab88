//! Who may have an address that was given back, as a table.

use std::net::Ipv4Addr;

use muster_storage::command::{Bind, Client, PutMode};
use muster_storage::model::Object;
use muster_storage::{
    Actor, Command, Entry, NodeId, Proposal, RequestId, Revision, State, Timestamp,
};
use serde_json::json;
use uuid::Uuid;

use super::{Moment, Promises};
use crate::sim::dhcp_client;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// Promised seconds.
const LEASE: u32 = 3600;
/// The margin of leases, in milliseconds.
const MARGIN: u64 = 10_000;
/// By how much later than it was sent a release may be written.
const LATE: u64 = Command::RELEASE_MS + MARGIN;

/// A node's state and clocks, with a lease that is bound. Its boot clock begins with the lease.
struct Node {
    state: State,
    index: u64,
    time: Timestamp,
    boot: u64,
    promises: Promises,
}

impl Node {
    fn new(resumes: bool) -> Self {
        let mut node = Self {
            state: State::default(),
            index: 0,
            time: Timestamp(1_700_000_000_000),
            boot: 0,
            promises: Promises::new(resumes, 0),
        };
        let subnet = serde_json::from_value(json!({
            "name": "lab", "cidr": "192.0.2.0/24", "pools": ["192.0.2.10-192.0.2.29"],
            "lease_secs": LEASE, "match": "mac",
        }));
        node.apply(Command::Put {
            object: Object::Subnet(subnet.expect("a subnet")),
            mode: PutMode::Apply,
        });
        node.bind();
        node
    }

    fn apply(&mut self, command: Command) {
        self.index += 1;
        let entry = Entry {
            at: self.time,
            proposals: vec![Proposal {
                request: RequestId(Uuid::from_u128(self.index.into())),
                actor: Actor("test".into()),
                if_match: None,
                remember: None,
                command,
            }],
        };
        let outcomes = self.state.apply(Revision::new(self.index, 0), &entry);
        assert!(outcomes.iter().all(|(outcome, _)| outcome.result.is_ok()));
    }

    fn client() -> Client {
        dhcp_client(7)
    }

    fn bind(&mut self) {
        self.apply(Command::Bind(Box::new(Bind {
            client: Self::client(),
            address: ADDRESS,
            node: NodeId(1),
        })));
    }

    fn release(&mut self) {
        self.apply(Command::Release {
            client: Box::new(Self::client()),
            address: ADDRESS,
            sent: None,
        });
    }

    fn pass(&mut self, milliseconds: u64) {
        self.time = Timestamp(self.time.0 + milliseconds);
        self.boot += milliseconds;
    }

    fn confirm(&mut self) {
        let lease = &self.state.lease(ADDRESS).expect("a lease").object;
        self.promises.give(lease, LEASE, self.boot);
    }

    fn end(&self, when: u64) {
        let lease = &self.state.lease(ADDRESS).expect("a lease").object;
        self.promises.end(lease, when);
    }

    fn vouches(&self) -> bool {
        let now = Moment {
            time: self.time,
            boot: self.boot,
        };
        let vouched = self.promises.vouched(&self.state, now);
        let first = self.state.returned().next().map(|record| record.revision);
        let all = vouched == self.state.revision();
        // All of it, or what was before.
        assert!(all || first.is_some_and(|first| vouched.0 + 1 == first.0));
        all
    }
}

#[test]
fn what_nobody_confirmed_is_vouched_for() {
    let mut node = Node::new(false);
    node.release();
    assert!(node.vouches());
}

#[test]
fn a_release_that_was_written_after_a_confirmation_waits_for_its_end() {
    let mut node = Node::new(false);
    node.confirm();
    node.pass(300);
    node.release();
    assert!(!node.vouches());
    node.pass(u64::from(LEASE) * 1000 - 300 + MARGIN - 1);
    assert!(!node.vouches());
    node.pass(1);
    assert!(node.vouches());
}

#[test]
fn one_that_was_written_long_after_is_the_clients_last_word() {
    let mut node = Node::new(false);
    node.confirm();
    node.pass(LATE + 1);
    node.release();
    assert!(node.vouches());
}

#[test]
fn a_correction_of_the_time_makes_no_release_older() {
    let mut node = Node::new(false);
    node.confirm();
    let to = node.time.plus_secs(600);
    node.apply(Command::CorrectTime { to });
    node.time = to;
    node.release();
    assert!(!node.vouches());
}

#[test]
fn a_client_that_tells_this_node_or_is_bound_anew_ends_the_promise() {
    let mut told = Node::new(false);
    told.pass(5);
    told.confirm();
    told.release();
    told.end(5);
    assert!(!told.vouches(), "it said so before it was confirmed");
    told.end(6);
    assert!(told.vouches());

    let mut bound = Node::new(false);
    bound.confirm();
    bound.release();
    assert!(!bound.vouches());
    bound.bind();
    assert!(bound.vouches());
}

#[test]
fn what_an_earlier_life_may_have_confirmed_is_not_vouched_for() {
    let mut node = Node::new(true);
    node.pass(LATE);
    node.release();
    assert!(!node.vouches());
    node.pass(LATE);
    assert!(!node.vouches());
    node.bind();
    assert!(node.vouches());
    node.release();
    assert!(node.vouches(), "it was given back in this life");
}

#[test]
fn a_shorter_promise_takes_nothing_back() {
    let mut node = Node::new(false);
    node.confirm();
    let lease = node.state.lease(ADDRESS).expect("a lease").object.clone();
    node.promises.give(&lease, 1, node.boot);
    node.release();
    node.pass(1000 + MARGIN);
    assert!(!node.vouches());
}

#[test]
fn what_is_of_no_consequence_is_forgotten() {
    let mut node = Node::new(false);
    let known = |node: &Node| node.promises.given().promises.len();
    node.confirm();
    node.confirm();
    node.pass(LATE);
    assert!(node.vouches());
    assert_eq!(known(&node), 1, "what was given back may come yet");
    node.pass(1);
    node.bind();
    assert!(node.vouches());
    assert_eq!(known(&node), 0);

    // One that holds an address back is kept until it is over, and hides none behind it.
    node.confirm();
    node.release();
    node.pass(LATE + 1);
    node.apply(Command::Expire);
    assert!(!node.vouches());
    assert_eq!(known(&node), 1);
    node.pass(u64::from(LEASE) * 1000);
    assert!(node.vouches());
    assert_eq!(known(&node), 0);
    assert!(node.promises.given().order.is_empty());
}
