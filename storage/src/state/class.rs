//! Which classes a client is in, and what it gets by them.

use std::net::Ipv4Addr;

use uuid::Uuid;

use super::table::State;
use crate::command::Client;
use crate::model::{Class, Condition, Lease, Machine, Octets, Subnet};

/// Sub-options of option 82 (RFC 3046 §2.0).
const CIRCUIT_ID: u8 = 1;
const REMOTE_ID: u8 = 2;

impl State {
    /// The classes of `subnet` that a client is in, in their order, each with its place.
    pub(super) fn classes_of<'a>(
        &'a self,
        client: &'a Client,
        subnet: &'a Subnet,
    ) -> impl Iterator<Item = (usize, &'a Class)> {
        let classes = subnet.classes.iter().enumerate();
        classes.filter(move |(_, class)| self.meets(client, subnet, &class.condition))
    }

    /// The class whose pools a client gets new addresses from; none for the subnet's own.
    pub(super) fn pool_class(&self, client: &Client, subnet: &Subnet) -> Option<usize> {
        self.classes_of(client, subnet)
            .find(|(_, class)| !class.pools.is_empty())
            .map(|(place, _)| place)
    }

    /// Whether a class on the client's link looks at what its packets say.
    pub fn has_classes(&self, link: &[Ipv4Addr]) -> bool {
        self.subnets_of_link(link)
            .any(|subnet| !subnet.classes.is_empty())
    }

    /// Options as they are written for a client, those that come before others last: of the subnet,
    /// its classes, the machine.
    pub fn options_of<'a>(
        &'a self,
        client: &'a Client,
        subnet: &'a Subnet,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let own = subnet.options.iter();
        own.map(|(key, value)| (key.as_str(), value.as_str()))
            .chain(self.special_options_of(client, subnet))
    }

    /// As [`State::options_of`], without what the subnet says to all.
    pub fn special_options_of<'a>(
        &'a self,
        client: &'a Client,
        subnet: &'a Subnet,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        // The first class comes before the others.
        let classes: Vec<&Class> = self.classes_of(client, subnet).map(|(_, it)| it).collect();
        let classes = classes.into_iter().rev();
        classes
            .flat_map(|class| &class.options)
            .chain(
                self.machine_of(client)
                    .into_iter()
                    .flat_map(|machine| &machine.options),
            )
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// `siaddr` as the first class or the subnet has it.
    pub fn next_server_of(&self, client: &Client, subnet: &Subnet) -> Option<Ipv4Addr> {
        self.classes_of(client, subnet)
            .find_map(|(_, class)| class.next_server)
            .or(subnet.next_server)
    }

    fn machine_of(&self, client: &Client) -> Option<&Machine> {
        client.mac.and_then(|mac| self.machine_with_mac(mac))
    }

    fn meets(&self, client: &Client, subnet: &Subnet, condition: &Condition) -> bool {
        let traits = &client.traits;
        let vendor = traits.vendor_class.as_deref();
        let users = || traits.user_classes.iter().map(String::as_str);
        let bootenv = || self.machine_of(client).map(|machine| &machine.bootenv);
        fits(&condition.vendor_classes, |wanted| {
            vendor.is_some_and(|class| like(class, wanted))
        }) && fits(&condition.user_classes, |wanted| {
            users().any(|class| like(class, wanted))
        }) && fits(&condition.enterprises, |wanted| {
            traits.enterprises.contains(wanted)
        }) && fits(&condition.architectures, |wanted| {
            traits.architectures.contains(wanted)
        }) && fits(&condition.relays, |wanted| traits.giaddr == Some(*wanted))
            && fits(&condition.circuit_ids, |wanted| {
                self.agent_id(client, subnet, CIRCUIT_ID) == Some(wanted.0.as_slice())
            })
            && fits(&condition.remote_ids, |wanted| {
                self.agent_id(client, subnet, REMOTE_ID) == Some(wanted.0.as_slice())
            })
            && fits(&condition.bootenvs, |wanted| bootenv() == Some(wanted))
            && condition
                .known
                .is_none_or(|known| known == self.machine_of(client).is_some())
    }

    /// What the relay calls the client's port (RFC 3046 §3.1).
    pub(super) fn circuit_id<'a>(
        &'a self,
        client: &'a Client,
        subnet: &Subnet,
    ) -> Option<&'a [u8]> {
        self.agent_id(client, subnet, CIRCUIT_ID)
    }

    /// What the relay calls the client (RFC 3046 §3.2).
    pub(super) fn remote_id<'a>(&'a self, client: &'a Client, subnet: &Subnet) -> Option<&'a [u8]> {
        self.agent_id(client, subnet, REMOTE_ID)
    }

    fn agent_id<'a>(&'a self, client: &'a Client, subnet: &Subnet, code: u8) -> Option<&'a [u8]> {
        let sent = client.relay.as_ref();
        // A renewal by unicast comes without it.
        let relay = sent.or_else(|| self.last_lease(client, subnet)?.relay.as_ref())?;
        sub_option(relay, code)
    }

    /// The UUID of the client's firmware, which an operating system does not send.
    pub(super) fn uuid_of(&self, client: &Client, subnet: &Subnet) -> Option<Uuid> {
        let sent = client.traits.uuid;
        sent.or_else(|| self.last_lease(client, subnet)?.uuid)
    }

    /// The lease that the client had last on `subnet`.
    fn last_lease(&self, client: &Client, subnet: &Subnet) -> Option<&Lease> {
        let key = self.client_key(client, subnet)?;
        self.leases_of(&key)
            .map(|record| &record.object)
            .filter(|lease| lease.subnet == subnet.name)
            .max_by_key(|lease| (lease.bound_at, lease.address))
    }
}

/// Whether one of a list fits, where one is wanted.
fn fits<T>(list: &[T], one: impl FnMut(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(one)
}

fn like(text: &str, wanted: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => text == wanted,
    }
}

/// The value of a sub-option of option 82.
fn sub_option(relay: &Octets, wanted: u8) -> Option<&[u8]> {
    let mut rest = relay.0.as_slice();
    while let [code, length, after @ ..] = rest {
        let (value, next) = after.split_at_checked(usize::from(*length))?;
        if *code == wanted {
            return Some(value);
        }
        rest = next;
    }
    None
}
