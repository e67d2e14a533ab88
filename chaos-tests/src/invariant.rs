//! What must hold whatever broke, checked from outside by what every node answers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::lab::wait_until;
use crate::node::Node;

/// How long nodes that can reach each other may take to agree.
const AGREEMENT: Duration = Duration::from_secs(30);

/// All that operators and clients can see of the state.
const RESOURCES: [&str; 10] = [
    "machines",
    "subnets",
    "reservations",
    "leases",
    "templates",
    "bootenvs",
    "profiles",
    "params",
    "artifacts",
    "settings",
];

/// All objects of a kind as one node has them, without asking others, and at which revision.
pub fn local(node: &Node, resource: &str) -> Result<(u64, Vec<Value>)> {
    let mut all = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/api/v1/{resource}?consistency=local&limit=1000{after}");
        let (status, body) = node.get(&path)?;
        ensure!(status == 200, "{path} answers {status}: {body}");
        let page: Value = serde_json::from_str(&body).with_context(|| path.clone())?;
        let items = page["items"].as_array().context("a list without items")?;
        all.extend_from_slice(items);
        match page["next"].as_str() {
            Some(next) => after = format!("&after={}", next.replace('/', "%2F")),
            None => return Ok((page["revision"].as_u64().context("no revision")?, all)),
        }
    }
}

/// Fields of leases that 0.1.0 does not show. That the nodes' states are the same, digests tell.
const NOT_SHOWN_BY_ALL: [&str; 2] = ["held_until", "free"];

/// Bound leases by address, as (MAC, client id), as one node has them.
pub fn bound(node: &Node) -> Result<BTreeMap<Ipv4Addr, (Value, Value)>> {
    let (_, leases) = local(node, "leases")?;
    let mut bound = BTreeMap::new();
    for lease in leases.iter().filter(|lease| lease["state"] == "bound") {
        let address = lease["address"].as_str().context("no address")?.parse()?;
        let holder = (lease["mac"].clone(), lease["client_id"].clone());
        if let Some(other) = bound.insert(address, holder.clone()) {
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
    agree(cluster, "the leases", bound)
}

/// Invariant 8: all running nodes come to hold the same, object by object.
pub fn same_everywhere(cluster: &Cluster) -> Result<()> {
    agree(cluster, "all objects", |node| {
        let lists = RESOURCES.map(|resource| local(node, resource));
        let lists = lists.into_iter().collect::<Result<Vec<_>>>()?;
        let (revisions, mut lists): (Vec<u64>, Vec<Vec<Value>>) = lists.into_iter().unzip();
        for object in lists.iter_mut().flatten().filter_map(Value::as_object_mut) {
            object.retain(|field, _| !NOT_SHOWN_BY_ALL.contains(&field.as_str()));
        }
        Ok((revisions.into_iter().max(), lists))
    })?;
    one_owner_everywhere(cluster)
}

fn agree<T: PartialEq>(
    cluster: &Cluster,
    what: &str,
    view: impl Fn(&Node) -> Result<T>,
) -> Result<()> {
    wait_until(&format!("the nodes to agree on {what}"), AGREEMENT, || {
        let mut nodes = cluster.running();
        let first = nodes.next().context("no node runs")?;
        let expected = view(first)?;
        for node in nodes {
            ensure!(
                view(node)? == expected,
                "{} and {} differ",
                first.name(),
                node.name()
            );
        }
        Ok(Some(()))
    })
}
