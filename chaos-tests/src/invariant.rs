//! What must hold whatever broke, checked from outside by what every node answers.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::lab::wait_until;

/// Bound leases by address, as (MAC, client id), as one node reads them locally.
pub fn bound(cluster: &Cluster, node: usize) -> Result<BTreeMap<String, (Value, Value)>> {
    let leases: Vec<Value> = cluster.node(node).cli(&["leases", "list"])?.json()?;
    let mut bound = BTreeMap::new();
    for lease in leases.iter().filter(|lease| lease["state"] == "bound") {
        let address = lease["address"].as_str().unwrap_or_default().to_owned();
        let holder = (lease["mac"].clone(), lease["client_id"].clone());
        if let Some(other) = bound.insert(address.clone(), holder.clone()) {
            ensure!(
                other == holder,
                "{address} is bound to both {other:?} and {holder:?}"
            );
        }
    }
    Ok(bound)
}

/// Invariants 1 and 8: every running node comes to hold the same leases, each with one owner.
pub fn one_owner_everywhere(cluster: &Cluster) -> Result<()> {
    wait_until(
        "the nodes to agree on the leases",
        Duration::from_secs(30),
        || {
            let mut first: Option<BTreeMap<String, (Value, Value)>> = None;
            for (index, node) in cluster.nodes().iter().enumerate() {
                if !node.is_running() {
                    continue;
                }
                let leases = bound(cluster, index)?;
                match &first {
                    Some(first) => ensure!(
                        *first == leases,
                        "{} has {leases:?}, an earlier one {first:?}",
                        node.name()
                    ),
                    None => first = Some(leases),
                }
            }
            Ok(Some(()))
        },
    )
}
