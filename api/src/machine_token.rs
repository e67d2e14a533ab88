//! The token that a machine is given with what it boots to be installed.
//!
//! It names the machine and the attempt, and is good while that attempt is open: a callback that
//! shows it ends the install. Every node makes and checks it by a secret of the cluster, so it is
//! nowhere stored; a new attempt has another one.

use muster_raft::Cluster;
use muster_storage::Revision;
use muster_storage::model::Attempt;
use uuid::Uuid;

/// Marks our tokens, so that leaked ones are found by scanners.
const PREFIX: &str = "mmt_";

const PURPOSE: &str = "machine token";

/// What stands for a token where the machine is not the one that reads.
pub const HIDDEN: &str = "<token>";

/// The token of an attempt; absent on a node that has no part in the cluster's secrets.
pub fn issue(cluster: &Cluster, machine: Uuid, attempt: Attempt) -> Option<String> {
    let tag = cluster.authenticate(PURPOSE, &message(machine, attempt))?;
    let Attempt { order, number } = attempt;
    Some(format!("{PREFIX}{}_{number}_{}", order.0, hex::encode(tag)))
}

/// The attempt of this machine that a token is for, whether that is over or not; nothing when no
/// node made it for this machine.
pub fn read(cluster: &Cluster, machine: Uuid, token: &str) -> Option<Attempt> {
    let (order, rest) = token.strip_prefix(PREFIX)?.split_once('_')?;
    let (number, tag) = rest.split_once('_')?;
    let attempt = Attempt {
        order: Revision(order.parse().ok()?),
        number: number.parse().ok()?,
    };
    let tag = hex::decode(tag).ok()?;
    let authentic = cluster.is_authentic(PURPOSE, &message(machine, attempt), &tag);
    authentic.then_some(attempt)
}

/// Whether a token is good for this machine now, as far as this node knows: who has to be sure
/// confirms with a quorum first.
pub fn is_good(cluster: &Cluster, machine: Uuid, token: &str) -> bool {
    read(cluster, machine, token)
        .is_some_and(|attempt| cluster.read(|state| state.admits(machine, attempt)))
}

fn message(machine: Uuid, attempt: Attempt) -> Vec<u8> {
    [
        &machine.as_bytes()[..],
        &attempt.order.0.to_be_bytes(),
        &attempt.number.to_be_bytes(),
    ]
    .concat()
}
