//! DHCP servers on our links that are none of ours.
//!
//! What they send goes to port 68, where a server does not listen. But a client says whose offer it
//! takes to all servers (RFC 2131 §4.3.2, SELECTING): that is how they are seen.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcproto::v4::MessageType;
use muster_storage::model::{Subnet, SubnetMode, Timestamp};
use muster_storage::state::State;
use serde::{Deserialize, Serialize};

use super::decide::{committed, honoured};
use super::request::Request;

/// How long a server that was told of is not told of again.
const QUIET: Duration = Duration::from_secs(3600);

/// How long one that was seen is remembered for whoever asks.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// Servers that are told of in that time: anybody can name any server.
const SERVERS_MAX: usize = 64;

/// The server that a client took and that should not be there, and the subnet of the client.
///
/// Beside a server that makes the leases (`proxy`), or where nobody is served (`off`), every server
/// may be there; elsewhere those that the subnet names as `foreign_servers`.
pub fn intruder<'a>(
    state: &'a State,
    request: &Request,
    now: Timestamp,
) -> Option<(&'a Subnet, Ipv4Addr)> {
    let named = request.server_id?;
    let selecting = request.kind == MessageType::Request && request.client.requested.is_some();
    if !selecting || honoured(state, request, named, now) {
        return None;
    }
    let subnet = intruded(state, &request.client.link, named, now)?;
    Some((subnet, named))
}

/// The subnet of a link on which this server should not be.
pub fn intruded<'a>(
    state: &'a State,
    link: &[Ipv4Addr],
    server: Ipv4Addr,
    now: Timestamp,
) -> Option<&'a Subnet> {
    let nobody = server.is_unspecified() || server.is_broadcast() || server.is_multicast();
    // A node that has just begun has not registered its addresses yet.
    let ours = || state.members().any(|member| member.address == server);
    if nobody || committed(state, server, now) || ours() {
        return None;
    }
    let subnets = || state.subnets_of_link(link);
    let expected = subnets().any(|subnet| {
        matches!(subnet.mode, SubnetMode::Proxy | SubnetMode::Off)
            || subnet.foreign_servers.contains(&server)
    });
    subnets().next().filter(|_| !expected)
}

/// A server that should not be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intruder {
    /// What it calls itself (option 54).
    pub server: Ipv4Addr,
    /// Name of the subnet.
    pub subnet: String,
    /// When it was seen last.
    pub secs_ago: u64,
}

/// Servers that were seen lately and should not be there.
#[derive(Debug, Default)]
pub struct Intruders(HashMap<Ipv4Addr, (String, Instant)>);

impl Intruders {
    /// One was seen.
    pub fn note(&mut self, server: Ipv4Addr, subnet: &str, now: Instant) {
        if self.0.len() < SERVERS_MAX || self.0.contains_key(&server) {
            self.0.insert(server, (subnet.to_owned(), now));
        }
    }

    /// Those of the last hours.
    pub fn seen(&mut self, now: Instant) -> Vec<Intruder> {
        let secs = |at: Instant| now.saturating_duration_since(at).as_secs();
        self.0.retain(|_, (_, at)| secs(*at) < REMEMBERED.as_secs());
        let seen = self.0.iter().map(|(server, (subnet, at))| Intruder {
            server: *server,
            subnet: subnet.clone(),
            secs_ago: secs(*at),
        });
        let mut seen: Vec<Intruder> = seen.collect();
        seen.sort_by_key(|intruder| intruder.server);
        seen
    }
}

/// Servers that were told of lately.
#[derive(Debug, Default)]
pub struct Told(HashMap<Ipv4Addr, Instant>);

impl Told {
    /// Whether a server that was seen is to be told of now.
    pub fn is_news(&mut self, server: Ipv4Addr, now: Instant) -> bool {
        self.0
            .retain(|_, told| now.saturating_duration_since(*told) < QUIET);
        if self.0.contains_key(&server) || self.0.len() >= SERVERS_MAX {
            return false;
        }
        self.0.insert(server, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_told_of_once_in_a_while_and_a_flood_is_bounded() {
        let (mut told, now) = (Told::default(), Instant::now());
        let server = Ipv4Addr::new(10, 77, 0, 9);
        assert!(told.is_news(server, now));
        assert!(!told.is_news(server, now + QUIET / 2));
        assert!(told.is_news(server, now + QUIET));
        let news = (0..1000).filter(|it| told.is_news(Ipv4Addr::from(*it), now + QUIET));
        assert_eq!(news.count(), SERVERS_MAX - 1);
        assert!(told.is_news(Ipv4Addr::from(7), now + 2 * QUIET));
    }
}
