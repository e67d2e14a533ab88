//! The token that a machine is given with what it boots: it reads what is for this machine alone,
//! and while the machine is installed it ends that.
//!
//! Every node makes and checks it by the cluster's keyring, so it is nowhere stored.

use muster_raft::{Cluster, Keyring, Purpose};
use muster_storage::model::{Attempt, Revision};
use muster_storage::{State, Timestamp};
use uuid::Uuid;

/// Marks our tokens, so that leaked ones are found by scanners: of an install, and of another boot.
const INSTALL: &str = "mmt_";
const BOOT: &str = "mbt_";

/// How long the token of a boot is good at least, in seconds. It ends at a full hour, so that what
/// is rendered again for the same boot is the same.
const LIFE_SECS: u64 = 24 * 3600;
const HOUR_SECS: u64 = 3600;

/// What stands for a token where the machine is not the one that reads.
pub const HIDDEN: &str = "<token>";

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Reading while this attempt to install the machine is open, and ending it.
    Install(Attempt),
    /// Reading until then.
    Boot(Timestamp),
}

/// The token for a machine now: of the attempt to install it that is open, or of a boot that begins
/// now. Absent when the cluster has no keyring.
pub fn issue(state: &State, keyring: &Keyring, machine: Uuid, now: Timestamp) -> Option<String> {
    let grant = match open_attempt(state, machine) {
        Some(attempt) => Grant::Install(attempt),
        None => Grant::Boot(end_of_boot(now)),
    };
    text(keyring, machine, grant)
}

fn open_attempt(state: &State, machine: Uuid) -> Option<Attempt> {
    let present = state.active_install(machine)?.present();
    Some(present).filter(|attempt| state.admits(machine, *attempt))
}

/// The token that grants this to a machine; absent when the cluster has no keyring.
pub fn text(keyring: &Keyring, machine: Uuid, grant: Grant) -> Option<String> {
    let message = message(machine, grant);
    let proof = keyring.sign(Purpose::MachineTokens, &message).ok()?;
    let proof = hex::encode(proof);
    Some(match grant {
        Grant::Install(Attempt { order, number }) => format!("{INSTALL}{number}_{order}_{proof}"),
        Grant::Boot(until) => format!("{BOOT}{}_{proof}", until.0),
    })
}

/// What a token grants to this machine, whether that is over or not; nothing when no node made it
/// for this machine.
pub fn read(keyring: &Keyring, machine: Uuid, token: &str) -> Option<Grant> {
    let (head, proof) = token.rsplit_once('_')?;
    let grant = if let Some(attempt) = head.strip_prefix(INSTALL) {
        let (number, order) = attempt.split_once('_')?;
        Grant::Install(Attempt {
            order: Revision(order.parse().ok()?),
            number: number.parse().ok()?,
        })
    } else {
        let until = head.strip_prefix(BOOT)?;
        Grant::Boot(Timestamp(until.parse().ok()?))
    };
    let proof = hex::decode(proof).ok()?;
    let authentic = keyring.verify(Purpose::MachineTokens, &message(machine, grant), &proof);
    authentic.then_some(grant)
}

/// Whether a token is good for this machine now, as far as this node knows: who has to be sure
/// confirms with a quorum first.
pub fn is_good(cluster: &Cluster, machine: Uuid, token: &str) -> bool {
    let Ok(keyring) = cluster.keyring() else {
        return false;
    };
    match read(&keyring, machine, token) {
        Some(Grant::Install(attempt)) => cluster.read(|state| state.admits(machine, attempt)),
        // What is read while a machine is installed is for who installs it.
        Some(Grant::Boot(until)) => {
            cluster.now() < until && cluster.read(|state| open_attempt(state, machine).is_none())
        }
        None => false,
    }
}

fn end_of_boot(now: Timestamp) -> Timestamp {
    let hours = now.secs_since(Timestamp(0)).div_ceil(HOUR_SECS);
    Timestamp(0).plus_secs(hours.saturating_mul(HOUR_SECS).saturating_add(LIFE_SECS))
}

fn message(machine: Uuid, grant: Grant) -> Vec<u8> {
    let machine = &machine.as_bytes()[..];
    match grant {
        Grant::Install(Attempt { order, number }) => [
            b"install ",
            machine,
            &order.0.to_be_bytes(),
            &number.to_be_bytes(),
        ]
        .concat(),
        Grant::Boot(until) => [b"boot ", machine, &until.0.to_be_bytes()].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_of_a_boot_is_good_for_a_day_and_the_same_for_an_hour() {
        let hour = |count: u64| Timestamp(0).plus_secs(count * HOUR_SECS);
        assert_eq!(end_of_boot(hour(5)), hour(29));
        assert_eq!(end_of_boot(Timestamp(hour(5).0 + 1000)), hour(30));
        assert_eq!(end_of_boot(hour(6)), hour(30));
        assert_eq!(end_of_boot(Timestamp(u64::MAX)), Timestamp(u64::MAX));
    }
}
