//! Whether what is sent to an address is sent to a machine.
//!
//! A boot script is asked for by hardware address, which anybody can guess, over plain HTTP. What it
//! has in it that is for the machine alone it has only for the address that the machine holds.

use std::net::IpAddr;

use muster_storage::State;
use muster_storage::model::{LeaseState, Machine, Object, ObjectKind, SubnetMode};

/// Whether an address is the machine's, as far as this cluster gives out addresses: it is leased
/// to the machine or was last, or is kept for it. Others answer for addresses of other networks.
pub fn is_of(state: &State, machine: &Machine, address: IpAddr) -> bool {
    let IpAddr::V4(address) = address.to_canonical() else {
        return true;
    };
    if let Some(lease) = state.lease(address).map(|record| &record.object) {
        // Loaders do not renew, and may wait for longer than their lease.
        if lease.mac.is_some_and(|mac| machine.macs.contains(&mac)) {
            return true;
        }
        if lease.state == LeaseState::Bound {
            return false;
        }
    }
    let kept = state.object(ObjectKind::Reservation, &address.to_string());
    if let Some(Object::Reservation(kept)) = kept.map(|record| &record.object) {
        return kept.machine == Some(machine.uuid)
            || kept.mac.is_some_and(|mac| machine.macs.contains(&mac));
    }
    let mut subnets = state.objects_after(ObjectKind::Subnet, None);
    !subnets.any(|record| match &record.object {
        Object::Subnet(subnet) => {
            let leases = matches!(subnet.mode, SubnetMode::Full | SubnetMode::ReservedOnly);
            leases && subnet.cidr.contains(&address)
        }
        _ => false,
    })
}
