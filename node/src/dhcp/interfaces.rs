//! Which network interfaces are served, and with which addresses.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

/// Which interfaces to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interfaces {
    /// Every one that is up, has an IPv4 address and is not the loopback.
    All,
    /// No DHCP.
    None,
    /// These, as soon as they are up and have an IPv4 address.
    Named(Vec<String>),
}

/// An interface that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index; another one means another interface of the same name.
    pub index: u32,
    /// Its IPv4 addresses, in the kernel's order: the primary one first.
    pub addresses: Vec<Ipv4Addr>,
}

impl Interfaces {
    fn wants(&self, name: &str, flags: InterfaceFlags) -> bool {
        match self {
            Self::All => {
                flags.contains(InterfaceFlags::IFF_BROADCAST)
                    && !flags.contains(InterfaceFlags::IFF_LOOPBACK)
            }
            Self::None => false,
            Self::Named(names) => names.iter().any(|wanted| wanted == name),
        }
    }

    /// The interfaces to serve now, by name.
    ///
    /// # Errors
    /// When the kernel does not list its interfaces.
    pub fn present(&self) -> nix::Result<BTreeMap<String, Interface>> {
        let mut found: BTreeMap<String, Interface> = BTreeMap::new();
        for entry in getifaddrs()? {
            // An alias is listed under its label, `eth0:1`.
            let label = entry.interface_name.as_str();
            let name = label.split(':').next().unwrap_or(label);
            let up = entry.flags.contains(InterfaceFlags::IFF_UP);
            let address = entry
                .address
                .as_ref()
                .and_then(|address| address.as_sockaddr_in())
                .map(|address| address.ip());
            let (true, Some(address)) = (up && self.wants(name, entry.flags), address) else {
                continue;
            };
            // It may be gone since it was listed.
            let Ok(index) = if_nametoindex(name) else {
                continue;
            };
            found
                .entry(name.to_owned())
                .or_insert_with(|| Interface {
                    name: name.to_owned(),
                    index,
                    addresses: Vec::new(),
                })
                .addresses
                .push(address);
        }
        Ok(found)
    }
}
