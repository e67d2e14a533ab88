//! What the state and the peers say about a packet before any rule does: each thing is looked up once,
//! and only when somebody asks for it.

use std::cell::OnceCell;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use dhcproto::v4::MessageType;
use muster_storage::model::{NodeId, Subnet, Timestamp};
use muster_storage::state::{Claim, State};

use super::look::Stage;
use super::{Asked, Service};
use crate::dhcp::decide::{PeerView, subnet_of};
use crate::dhcp::offers::{ClientHash, client_hash};
use crate::dhcp::rank;

/// What the cluster looks like to this node, read once for a batch.
pub(super) struct Standing {
    pub now: Timestamp,
    quorum: bool,
    caught_up: bool,
    /// Peers that are there and not about to stop.
    pub live: Vec<NodeId>,
    /// Whether this node is about to stop.
    draining: bool,
}

impl Service {
    pub(super) fn standing(&self) -> Standing {
        let quorum = self.cluster.has_quorum();
        Standing {
            now: self.cluster.now(),
            quorum,
            caught_up: self.cluster.caught_up_once(),
            draining: self.cluster.is_draining(),
            live: self.live.borrow().iter().copied().map(NodeId).collect(),
        }
    }
}

/// One packet, seen in one state.
pub(super) struct Sight<'a> {
    service: &'a Service,
    pub state: &'a State,
    pub standing: &'a Standing,
    pub asked: Asked<'a>,
    client: OnceCell<Option<ClientHash>>,
    servers: OnceCell<Vec<NodeId>>,
}

impl<'a> Sight<'a> {
    pub fn new(
        service: &'a Service,
        state: &'a State,
        standing: &'a Standing,
        asked: Asked<'a>,
    ) -> Self {
        Self {
            service,
            state,
            standing,
            asked,
            client: OnceCell::new(),
            servers: OnceCell::new(),
        }
    }

    /// By what the client is known: on the first subnet of its link, so that all nodes say the same.
    pub fn client(&self) -> Option<ClientHash> {
        *self.client.get_or_init(|| {
            let client = &self.asked.request.client;
            let subnet = self.state.subnets_of_link(&client.link).next()?;
            let key = self.state.client_key(client, subnet)?;
            Some(client_hash(&key))
        })
    }

    /// Those that can answer: the live members with an identifier on the client's subnet; or, of a
    /// relayed packet, with any, because a relay reaches them all.
    pub fn servers(&self) -> &[NodeId] {
        self.servers.get_or_init(|| {
            let request = self.asked.request;
            let subnets = || self.state.subnets_of_link(&request.client.link);
            let relayed = request.relayed() && subnets().next().is_some();
            let on_link = |address: &Ipv4Addr| {
                relayed || subnets().any(|subnet| subnet.cidr.contains(address))
            };
            let live = &self.standing.live;
            self.state
                .members()
                .filter(|member| member.id == self.service.node || live.contains(&member.id))
                .filter(|member| member.identifiers.iter().any(on_link))
                .map(|member| member.id)
                .collect()
        })
    }

    /// This node's place among those that can answer: the last when it is about to stop.
    pub fn rank(&self) -> Option<u32> {
        let sender = self.asked.request.sender();
        let servers = self.servers();
        let rank = rank::rank(sender, self.chosen(), servers, self.service.node);
        match self.standing.draining {
            true => rank.map(|rank| rank.max(rank::last(servers))),
            false => rank,
        }
    }

    /// The one of them that comes before all others.
    pub fn first(&self) -> Option<NodeId> {
        let sender = self.asked.request.sender();
        rank::first(sender, self.chosen(), self.servers())
    }

    /// The node that the client has to do with already: it named it, or has its address from it.
    fn chosen(&self) -> Option<NodeId> {
        let request = self.asked.request;
        if let Some(named) = request.server_id {
            return self.state.identifier(named).map(|known| known.node);
        }
        let address = match request.ciaddr.is_unspecified() {
            true => request.client.requested?,
            false => request.ciaddr,
        };
        self.state.lease(address).map(|record| record.object.node)
    }

    /// Calls `then` with what `decide` needs to know.
    pub fn view<T>(&self, stage: Stage, then: impl FnOnce(&PeerView<'_>) -> T) -> T {
        let Asked {
            request,
            hash,
            rendered,
        } = self.asked;
        let (node, standing) = (self.service.node, self.standing);
        let client = self.client().unwrap_or_default();
        let now = Instant::now();
        // Who else could be meant matters to those who seek an address alone.
        let (first, servers) = match request.kind {
            MessageType::Discover => (self.first(), self.servers()),
            _ => (None, &[][..]),
        };
        let (offered, again) = {
            let recent = self.service.recent();
            let again = recent.came_again(hash, now);
            (recent.offered_to(client, now), again)
        };
        let view = PeerView {
            node,
            identifier: None,
            address: Ipv4Addr::UNSPECIFIED,
            boot_port: self.service.options.boot_port,
            quorum: standing.quorum,
            caught_up: standing.caught_up,
            confirmed: stage == Stage::CaughtUp,
            insist: stage > Stage::First,
            again,
            live: &|it| it == node || standing.live.contains(&it),
            claim: &|address| {
                let recent = self.service.recent();
                if recent.offered_to_other(address, client, now) {
                    return Claim::Offered;
                }
                match rank::first(&address.octets(), None, servers) {
                    owner if owner == first => Claim::None,
                    owner if owner == Some(node) => Claim::Own,
                    _ => Claim::Peer,
                }
            },
            offered,
            render: &|text| {
                let rendered = rendered.get(text).cloned();
                rendered.unwrap_or_else(|| Err("changed while it was rendered".to_owned()))
            },
        };
        let subnet = subnet_of(self.state, request, &view, standing.now);
        let identifier = subnet.and_then(|subnet| self.identifier(subnet));
        let advertised = match self.service.options.advertise {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        // On its own link a client reaches us at the address there; through a relay, where we say.
        let address = match (request.relayed(), identifier, advertised) {
            (false, Some(on_link), _) => on_link,
            (_, _, Some(advertised)) => advertised,
            (_, identifier, None) => identifier.unwrap_or(Ipv4Addr::UNSPECIFIED),
        };
        then(&PeerView {
            identifier,
            address,
            ..view
        })
    }

    /// The registered address of this node to answer from: the one that the packet came to, else
    /// one on the client's subnet, else on another that shares its link.
    fn identifier(&self, subnet: &Subnet) -> Option<Ipv4Addr> {
        let request = self.asked.request;
        let own = &self.state.member(self.service.node)?.identifiers;
        if own.contains(&request.arrival.destination) {
            return Some(request.arrival.destination);
        }
        let here = || {
            let link = request.arrival.link.iter();
            link.copied().filter(|address| own.contains(address))
        };
        here()
            .find(|address| subnet.cidr.contains(address))
            .or_else(|| {
                let link = &request.client.link;
                here().find(|it| request.relayed() || self.state.subnet_with(link, *it).is_some())
            })
    }
}
