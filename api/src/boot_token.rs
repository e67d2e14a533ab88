//! The token that a machine is given with its boot script: for a day it fetches what nobody else
//! may have.
//!
//! Every node makes and checks it by the cluster's keyring, so it is nowhere stored. It reads, and
//! nothing else.

use muster_raft::{Keyring, Purpose};
use muster_storage::Timestamp;
use uuid::Uuid;

/// Marks our tokens, so that leaked ones are found by scanners.
const PREFIX: &str = "mbt_";

/// How long one is good, in seconds: longer than an installer takes.
const LIFE_SECS: u64 = 24 * 3600;

/// A token for a machine, good from now on; absent when the cluster has no keyring.
pub fn issue(keyring: &Keyring, machine: Uuid, now: Timestamp) -> Option<String> {
    let until = now.plus_secs(LIFE_SECS);
    let proof = keyring.sign(Purpose::MachineTokens, &message(machine, until));
    Some(format!("{PREFIX}{}_{}", until.0, hex::encode(proof.ok()?)))
}

/// Whether a token is good for this machine.
pub fn is_good(keyring: &Keyring, machine: Uuid, token: &str, now: Timestamp) -> bool {
    let read = || {
        let (until, proof) = token.strip_prefix(PREFIX)?.split_once('_')?;
        Some((Timestamp(until.parse().ok()?), hex::decode(proof).ok()?))
    };
    read().is_some_and(|(until, proof)| {
        let message = message(machine, until);
        now < until && keyring.verify(Purpose::MachineTokens, &message, &proof)
    })
}

fn message(machine: Uuid, until: Timestamp) -> Vec<u8> {
    let until = until.0.to_be_bytes();
    [b"boot ", &machine.as_bytes()[..], &until].concat()
}
