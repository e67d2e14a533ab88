//! What the API asks of the node that it runs on.

use std::net::Ipv4Addr;

use futures::future::BoxFuture;
use muster_storage::command::Client;
use muster_storage::{Mac, Timestamp};
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
}

/// A node that has metrics and nothing else.
impl<F: Fn() -> String + Send + Sync + 'static> Node for F {
    fn metrics(&self) -> String {
        self()
    }
}
