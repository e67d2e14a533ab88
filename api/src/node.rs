//! What the API asks of the node that it runs on.

use std::net::Ipv4Addr;

use futures::future::BoxFuture;
use muster_raft::Error;
use muster_storage::command::Client;
use muster_storage::{Mac, NodeId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// About whom is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum About {
    /// The client with this MAC.
    Mac(Mac),
    /// Whoever has, had or asks for this address.
    Address(Ipv4Addr),
}

/// What one node asks of another beside the log. One that a node does not know it answers with words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum Question {
    /// What the node says of itself and the machine that it runs on.
    Facts {
        /// Whether it looks for other DHCP servers first.
        probe: bool,
    },
    /// Its metrics, a text.
    Metrics,
    /// The last lines of its log.
    Log,
    /// That it fails now, if the others can go on without it.
    Fail {
        /// How.
        how: Failure,
    },
}

/// How a node fails on order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "failure", deny_unknown_fields)]
pub enum Failure {
    /// Its process ends at once, by SIGKILL.
    Kill {
        /// Also when nobody is known to start it again.
        #[serde(default)]
        force: bool,
    },
    /// Its process stops for so long, and goes on by itself.
    Pause {
        /// How long.
        millis: u64,
    },
}

/// The services beside the API.
pub trait Node: Send + Sync + 'static {
    /// Metrics in the text format of Prometheus.
    fn metrics(&self) -> String;

    /// Since when this node has been in minority mode (invariant 7), if it is.
    fn minority_since(&self) -> Option<Timestamp> {
        None
    }

    /// What DHCP would answer to a DISCOVER of each of `clients` now (`now`), and what nodes remember
    /// of refusals (`refusals`).
    fn explain<'a>(&'a self, about: About, clients: Vec<Client>) -> BoxFuture<'a, Value> {
        let _ = (about, clients);
        Box::pin(async { json!({"now": [], "refusals": [], "unheard": []}) })
    }

    /// What is wrong with the site: `findings`, and the facts that they follow from. With `probe` nodes
    /// look for other DHCP servers first.
    fn diagnose(&self, probe: bool) -> BoxFuture<'_, Value> {
        let _ = probe;
        Box::pin(async { json!({"findings": []}) })
    }

    /// Asks a node, this one or another.
    fn ask(&self, node: NodeId, question: Question) -> BoxFuture<'_, Result<Value, Error>> {
        let _ = (node, question);
        Box::pin(async { Err(Error::Refused("this node has nothing to tell".to_owned())) })
    }
}

/// A node that has metrics and nothing else.
impl<F: Fn() -> String + Send + Sync + 'static> Node for F {
    fn metrics(&self) -> String {
        self()
    }
}
