//! What a node is, settled from flags and from the machine.

use std::net::IpAddr;
use std::path::Path;

use muster_raft::belongs_to_cluster;
use nix::ifaddrs::getifaddrs;

use super::Error;
use crate::config::ServeOptions;

/// Its name, and where others reach it.
pub(super) struct Settings {
    pub node_name: String,
    pub advertise: IpAddr,
    pub api_port: u16,
}

impl Settings {
    pub fn new(data_dir: &Path, options: &ServeOptions) -> Result<Self, Error> {
        if !belongs_to_cluster(data_dir)? {
            check_beginning(data_dir, options).map_err(Error::Usage)?;
        }
        Ok(Self {
            node_name: match &options.node_name {
                Some(name) => name.clone(),
                None => hostname()?,
            },
            advertise: match options.advertise {
                Some(address) => address,
                None => only_global_address()?,
            },
            api_port: options.api_port,
        })
    }
}

/// Whether an empty data directory can be begun with: once it belongs to a cluster, nobody asks.
fn check_beginning(data_dir: &Path, options: &ServeOptions) -> Result<(), String> {
    match (options.found, peers(options).is_empty()) {
        (false, true) => Err(format!(
            "{} belongs to no cluster: give --found to found a new one, or --join HOST:8093 \
             --join-token-file FILE to join one. (If this node was in a cluster, its disk has \
             been erased: remove it there with `muster cluster remove NODE` and join anew.)",
            data_dir.display()
        )),
        (true, false) => Err("--found and --join exclude each other".to_owned()),
        (false, false) if token_file(options).is_none() => Err(
            "--join needs --join-token-file FILE, with what `muster cluster join-token` printed"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

/// Whom to join; a variable may be set to nothing.
pub(super) fn peers(options: &ServeOptions) -> Vec<String> {
    let peers = options.join.iter().map(|peer| peer.trim());
    let peers = peers.filter(|peer| !peer.is_empty());
    peers.map(str::to_owned).collect()
}

pub(super) fn token_file(options: &ServeOptions) -> Option<&Path> {
    let path = options.join_token_file.as_deref();
    path.filter(|path| !path.as_os_str().is_empty())
}

fn hostname() -> Result<String, Error> {
    let name = nix::sys::utsname::uname().map_err(|error| Error::System {
        doing: "asking for the hostname".to_owned(),
        source: error.into(),
    })?;
    let name = name.nodename().to_string_lossy().into_owned();
    let short = name.split('.').next().unwrap_or_default();
    if short.is_empty() {
        return Err(Error::Usage(
            "this machine has no hostname: give --node-name".to_owned(),
        ));
    }
    Ok(short.to_owned())
}

/// The one address of this machine that others can reach, when there is just one.
fn only_global_address() -> Result<IpAddr, Error> {
    let all = getifaddrs().map_err(|error| Error::System {
        doing: "listing interfaces".to_owned(),
        source: error.into(),
    })?;
    let addresses: Vec<IpAddr> = all
        .filter_map(|entry| Some(IpAddr::V4(entry.address?.as_sockaddr_in()?.ip())))
        .filter(is_global)
        .collect();
    match addresses.as_slice() {
        [address] => Ok(*address),
        [] => Err(Error::Usage(
            "this machine has no address that others can reach: give --advertise IP".to_owned(),
        )),
        several => {
            let listed: Vec<String> = several.iter().map(ToString::to_string).collect();
            Err(Error::Usage(format!(
                "this machine has several addresses ({}): give --advertise IP with the one that \
                 peers and machines reach",
                listed.join(", ")
            )))
        }
    }
}

fn is_global(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}
