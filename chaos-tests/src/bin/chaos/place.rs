//! Where the clients are, and who they are.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use muster_chaos::crowd::Patience;
use muster_chaos::dhcp::{Client, Port};

/// Where clients are plugged in, and what they are like.
#[derive(Args)]
pub struct Place {
    /// Clients are on the segment of this interface, and broadcast
    #[arg(long, value_name = "IF", conflicts_with = "relay")]
    interface: Option<String>,
    /// Clients are behind a relay agent that is this program, by this address of this host (UDP
    /// port 67); the servers must have a subnet with the address in it
    #[arg(long, value_name = "ADDRESS", requires = "servers")]
    relay: Option<Ipv4Addr>,
    /// Servers that the relay sends to
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    servers: Vec<Ipv4Addr>,
    /// Seconds that each copy of a message waits for its answer; after the last a client gives up
    #[arg(
        long,
        value_name = "SECONDS",
        value_delimiter = ',',
        default_value = "4,8,16,32"
    )]
    waits: Vec<f64>,
    /// The clients' MACs are 02:6d:FAMILY:…: clients of a family that was here before are known
    #[arg(long, default_value_t = 1)]
    family: u8,
}

impl Place {
    /// Plugs in.
    pub fn open(&self) -> Result<Port> {
        match (&self.interface, self.relay) {
            (Some(interface), _) => Port::direct_on(interface),
            (None, Some(relay)) => Port::relay_at(relay, &self.servers, Vec::new()),
            (None, None) => bail!("say where the clients are: --interface or --relay"),
        }
    }

    /// Bound to the server that was chosen, as firmware is.
    pub fn patience(&self) -> Patience {
        Patience {
            waits: self
                .waits
                .iter()
                .copied()
                .map(Duration::from_secs_f64)
                .collect(),
            anew_after: None,
        }
    }

    /// The family's `number`th.
    pub fn client(&self, number: u32, pxe: bool) -> Client {
        let client = Client::numbered(self.family, number);
        if pxe { client.pxe() } else { client }
    }
}
