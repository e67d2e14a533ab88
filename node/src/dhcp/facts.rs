//! What a node can say of the links that it serves.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::foreign::{Intruder, intruded};
use super::interfaces::{Interface, Interfaces};
use super::relays::Seen;
use super::{Server, search};

/// The links of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Links {
    /// Whether DHCP is to be served at all.
    pub serves: bool,
    /// Interfaces that are served.
    pub interfaces: Vec<Link>,
    /// Interfaces that are to be served and are down, without an address, or not there.
    pub absent: Vec<String>,
    /// Relays that forwarded something since the node was started.
    pub relays: Vec<Seen>,
    /// Servers that should not be there.
    pub intruders: Vec<Intruder>,
    /// Whether servers were looked for now; else those are known that clients chose.
    pub probed: bool,
    /// Why servers cannot be looked for, by interface.
    pub deaf: Vec<String>,
}

/// An interface that is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<Ipv4Addr>,
}

impl Interfaces {
    /// Those that are to be served by name and are not there.
    fn absent<'a>(&'a self, present: impl Fn(&str) -> bool + 'a) -> Vec<String> {
        match self {
            Self::All | Self::None => Vec::new(),
            Self::Named(names) => {
                let absent = names.iter().filter(|name| !present(name));
                absent.cloned().collect()
            }
        }
    }
}

/// The links that are to be served, as the kernel has them.
///
/// # Errors
/// When the kernel does not list its interfaces.
pub fn links(wanted: &Interfaces) -> nix::Result<Links> {
    let present = wanted.present()?;
    Ok(Links {
        serves: *wanted != Interfaces::None,
        absent: wanted.absent(|name| present.contains_key(name)),
        interfaces: present
            .into_values()
            .map(|interface| Link {
                name: interface.name,
                addresses: interface.addresses,
            })
            .collect(),
        ..Links::default()
    })
}

impl Server {
    /// What this node knows of its links; with `probe` it asks who else serves there.
    pub async fn facts(&self, probe: bool) -> Links {
        let mut links = links(&self.options.interfaces).unwrap_or_default();
        if probe {
            self.probe(&mut links).await;
        }
        links.relays = self.service.relays();
        links.intruders = self.service.intruders();
        links
    }

    /// Looks for servers on all links at once, and remembers those that should not be there.
    async fn probe(&self, links: &mut Links) {
        let present = self.options.interfaces.present().unwrap_or_default();
        let asked = present.into_values().map(|interface| async move {
            let found = search::servers(&interface).await;
            (interface, found)
        });
        for (
            Interface {
                name, addresses, ..
            },
            found,
        ) in futures::future::join_all(asked).await
        {
            match found {
                Ok(servers) => self.cluster.read(|state| {
                    for server in servers {
                        let now = self.cluster.now();
                        if let Some(subnet) = intruded(state, &addresses, server, now) {
                            self.service.note_intruder(server, &subnet.name);
                        }
                    }
                }),
                Err(problem) => links.deaf.push(format!("{name}: {problem}")),
            }
        }
        links.probed = true;
    }
}
