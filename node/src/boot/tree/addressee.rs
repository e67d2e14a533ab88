//! Whether what is sent to an address is sent to a machine.
//!
//! A boot script is asked for by hardware address, which anybody can guess, over plain HTTP. What it
//! has in it that is for the machine alone it has only for an address that the machine holds.

use std::net::{IpAddr, Ipv4Addr};

use muster_storage::State;
use muster_storage::model::{
    Lease, LeaseState, Machine, Object, ObjectKind, Reservation, Subnet, SubnetMode,
};

/// Whether an address is the machine's, as far as this cluster gives out addresses: it is leased
/// to the machine, or was until the machine got no other, or is kept for it. Of an address in a network
/// where others give them out, they have to know; so has nobody of a machine that has an address of
/// this cluster.
pub fn is_of(state: &State, machine: &Machine, address: IpAddr) -> bool {
    let IpAddr::V4(address) = address.to_canonical() else {
        let others = !is_link_local(address) && are_given_by_others(state, None);
        return others && !is_addressed(state, machine);
    };
    let lease = state.lease(address).map(|record| &record.object);
    match lease.map(|lease| (lease.state, is_held(lease, machine))) {
        Some((LeaseState::Bound, own)) => return own,
        // Loaders do not renew, and may wait for longer than their lease.
        Some((LeaseState::Released | LeaseState::Expired, true)) => {
            return !is_addressed(state, machine);
        }
        // A declined one is somebody else's, whoever declined it.
        Some((LeaseState::Declined | LeaseState::Released | LeaseState::Expired, _)) | None => {}
    }
    let kept = state.object(ObjectKind::Reservation, &address.to_string());
    if let Some(Object::Reservation(kept)) = kept.map(|record| &record.object) {
        return is_for(kept, machine);
    }
    are_given_by_others(state, Some(address)) && !is_addressed(state, machine)
}

/// Such addresses everybody takes by himself (RFC 4291 §2.5.6).
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn is_held(lease: &Lease, machine: &Machine) -> bool {
    lease.machine == Some(machine.uuid) || lease.mac.is_some_and(|mac| machine.macs.contains(&mac))
}

fn is_for(kept: &Reservation, machine: &Machine) -> bool {
    kept.machine == Some(machine.uuid) || kept.mac.is_some_and(|mac| machine.macs.contains(&mac))
}

/// Whether the machine has an address of this cluster.
fn is_addressed(state: &State, machine: &Machine) -> bool {
    state.bound_leases(machine).next().is_some()
}

/// Whether others give out the addresses of the network that this one is in. A subnet of this cluster
/// says so, in which it has none to give or some for few. Of a network without a subnet it is so where
/// this cluster gives out none anywhere; else nobody is to come from there.
fn are_given_by_others(state: &State, address: Option<Ipv4Addr>) -> bool {
    let is_ours = |subnet: &Subnet| subnet.mode == SubnetMode::Full;
    match address.and_then(|address| state.subnet_with(&[address], address)) {
        Some(subnet) => !is_ours(subnet),
        None => !state
            .objects_after(ObjectKind::Subnet, None)
            .any(|record| matches!(&record.object, Object::Subnet(subnet) if is_ours(subnet))),
    }
}
