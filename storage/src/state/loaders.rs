//! Which file a machine's firmware loads first, and how the machine is sent to its own disk.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use super::params::GLOBAL;
use super::table::State;
use crate::model::{
    LeaseState, Loader, Loaders, LocalBoot, Mac, Machine, Platform, Profile, Subnet,
};

/// Who chose a loader.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Machine(&'a str),
    Profile(&'a str),
    Subnet(&'a str),
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine(name) => write!(f, "machine `{name}`"),
            Self::Profile(name) => write!(f, "profile `{name}`"),
            Self::Subnet(name) => write!(f, "subnet `{name}`"),
        }
    }
}

impl State {
    /// What the firmware with this MAC was chosen to load: machine, its profiles in order, the
    /// profile `global`, subnet; none where all of them leave it to Muster.
    pub fn loader<'a>(
        &'a self,
        mac: Option<Mac>,
        subnet: &'a Subnet,
        platform: Platform,
    ) -> Option<&'a Loader> {
        self.loaders_by_precedence(mac, Some(subnet))
            .find_map(|(_, loaders)| loaders.get(platform))
    }

    /// All that was chosen for this MAC, by platform, each with who chose it, in words for people.
    pub fn chosen_loaders(
        &self,
        mac: Mac,
        subnet: Option<&Subnet>,
    ) -> BTreeMap<Platform, (String, Loader)> {
        let mut chosen = BTreeMap::new();
        for (origin, loaders) in self.loaders_by_precedence(Some(mac), subnet) {
            for (platform, loader) in loaders.iter() {
                let from = || (origin.to_string(), loader.clone());
                chosen.entry(platform).or_insert_with(from);
            }
        }
        chosen
    }

    fn loaders_by_precedence<'a>(
        &'a self,
        mac: Option<Mac>,
        subnet: Option<&'a Subnet>,
    ) -> impl Iterator<Item = (Origin<'a>, &'a Loaders)> {
        let machine = mac.and_then(|mac| self.machine_with_mac(mac));
        let own = machine
            .into_iter()
            .map(|machine| (Origin::Machine(&machine.name), &machine.loaders));
        let profiles = self
            .profiles_of(machine)
            .map(|profile| (Origin::Profile(&profile.name), &profile.loaders));
        let subnet = subnet.map(|subnet| (Origin::Subnet(&subnet.name), &subnet.loaders));
        own.chain(profiles).chain(subnet)
    }

    /// How a machine, or one that nobody knows, is sent to its own disk: machine, its profiles in
    /// order, the profile `global`.
    pub fn local_boot(&self, machine: Option<&Machine>) -> LocalBoot {
        let own = machine.and_then(|machine| machine.local_boot);
        own.or_else(|| {
            self.profiles_of(machine)
                .find_map(|profile| profile.local_boot)
        })
        .unwrap_or_default()
    }

    /// The subnet of the client that has an address.
    pub fn subnet_of_holder(&self, address: Ipv4Addr) -> Option<&Subnet> {
        let lease = &self.lease(address)?.object;
        let bound = lease.state == LeaseState::Bound;
        self.subnet(&lease.subnet).filter(|_| bound)
    }

    /// Loaders that are artifacts by their paths, and are not there.
    pub(super) fn loader_problems(&self, loaders: &Loaders) -> Vec<String> {
        loaders
            .iter()
            .filter(|(_, loader)| !loader.is_url() && loader.as_str().contains('/'))
            .filter(|(_, loader)| self.artifact(loader.as_str()).is_none())
            .map(|(platform, loader)| {
                let path = loader.as_str();
                format!("loader of `{platform}`: artifact `{path}` has not been uploaded")
            })
            .collect()
    }

    fn profiles_of<'a>(
        &'a self,
        machine: Option<&'a Machine>,
    ) -> impl Iterator<Item = &'a Profile> {
        let names = machine.into_iter().flat_map(|machine| &machine.profiles);
        names
            .map(String::as_str)
            .chain([GLOBAL])
            .filter_map(|name| self.profile(name))
    }
}
