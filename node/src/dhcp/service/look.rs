//! What the state and the peers say about a packet: who answers it, and what is to be done.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use dhcproto::v4::MessageType;
use muster_storage::Command;
use muster_storage::model::{NodeId, Subnet, Timestamp, Trouble};
use muster_storage::state::{Claim, State};

use super::{Asked, Exchange, Service, offered};
use crate::alert;
use crate::dhcp::decide::{Action, PeerView, Reason, decide, honoured, subnet_of};
use crate::dhcp::foreign::intruder;
use crate::dhcp::offers::{ClientHash, Notice, client_hash};
use crate::dhcp::request::Request;
use crate::dhcp::{metrics, rank, rendering};

/// What the cluster looks like to this node, read once for a batch.
pub(super) struct Standing {
    pub now: Timestamp,
    quorum: bool,
    caught_up: bool,
    live: Vec<NodeId>,
}

/// What is to be done about a packet.
pub(super) struct Looked {
    pub action: Action,
    /// The address to answer from.
    pub source: Ipv4Addr,
    /// By what the client is known.
    pub client: Option<ClientHash>,
}

impl Looked {
    /// The offer that it makes, or the address that a DISCOVER is given at once (RFC 4039).
    fn offered(&self, kind: MessageType) -> Option<Notice> {
        match &self.action {
            Action::Reply(reply) => offered(reply, self.client),
            Action::Propose(Command::Bind(bind)) if kind == MessageType::Discover => {
                Some(Notice::Offered(bind.address, self.client?))
            }
            _ => None,
        }
    }
}

/// What a first look at the state said.
pub(super) enum Verdict {
    /// Do this.
    Now(Looked),
    /// Others come first.
    After(Duration),
    /// Options have to be rendered first.
    Render,
}

/// How far a packet has come at this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// It is this node's before all others.
    First,
    /// The others have had, or need, no turn before this node.
    InTurn,
    /// And this node has caught up since.
    CaughtUp,
}

impl Service {
    /// Who answers, and what, when a packet comes in.
    pub(super) fn first_look(
        &self,
        state: &State,
        standing: &Standing,
        exchange: &Exchange,
    ) -> Verdict {
        let request = &*exchange.request;
        let copy = self.recent().is_copy(exchange.hash, exchange.received);
        self.note_choice(state, standing, exchange);
        let rank = self.rank(state, standing, request);
        if rank == Some(0) {
            self.tell_of_intruder(state, standing, exchange);
        }
        // A client that asks again was not heard, or its answer was lost: whoever can, answers.
        // All nodes choose the same address, so that more answers than one do no harm.
        let again = copy && matches!(request.kind, MessageType::Request | MessageType::Discover);
        let alone = again || self.only_here(exchange);
        match rank {
            Some(rank) if rank > 0 && !alone => {
                return Verdict::After(rank::delay(rank, request.relayed()));
            }
            _ if rendering::needed(state, request) => return Verdict::Render,
            // A node without a rank has no identifier here either: `decide` says so.
            _ => {}
        }
        let stage = if alone { Stage::InTurn } else { Stage::First };
        let looked = self.look_at(state, standing, exchange, stage);
        match looked.action {
            Action::Silent(Reason::LeftToPeer) => {
                Verdict::After(rank::delay_of_all(standing.live.len()))
            }
            _ => Verdict::Now(looked),
        }
    }

    /// Whether no peer can have the packet: it came by unicast from its client, or from a relay
    /// that sends to this node alone.
    fn only_here(&self, exchange: &Exchange) -> bool {
        let request = &*exchange.request;
        if request.relayed() {
            return self
                .recent()
                .is_only_here(request.giaddr, exchange.received);
        }
        let arrival = &request.arrival;
        arrival.link.contains(&arrival.destination)
    }

    /// A REQUEST heard by all tells which offer the client took (RFC 2131 §4.3.2).
    fn note_choice(&self, state: &State, standing: &Standing, exchange: &Exchange) {
        let request = &*exchange.request;
        let (Some(named), Some(address)) = (request.server_id, request.client.requested) else {
            return;
        };
        let Some(client) = known_as(state, request) else {
            return;
        };
        let mut recent = self.recent();
        if honoured(state, request, named, standing.now) {
            recent.chose(client, address, exchange.received);
        } else {
            recent.forget_offers(client);
        }
    }

    /// Tells people of a DHCP server that should not be there.
    fn tell_of_intruder(&self, state: &State, standing: &Standing, exchange: &Exchange) {
        let request = &*exchange.request;
        let Some((subnet, server)) = intruder(state, request, standing.now) else {
            return;
        };
        metrics::foreign(&subnet.name);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.is_news(server, exchange.received) {
            return;
        }
        drop(told);
        let client = request.client.mac;
        tracing::warn!(
            interface = exchange.link.name,
            subnet = subnet.name,
            %server,
            client = client.map(tracing::field::display),
            "a client chose a DHCP server that is no node of this cluster; name it in the subnet's foreign_servers if it may be there"
        );
        let trouble = Trouble::ForeignServer {
            subnet: subnet.name.clone(),
            server,
            client,
        };
        tokio::spawn(alert::raise(self.cluster.clone(), trouble));
    }

    /// This node's place among those that can answer: the live members with an identifier on the
    /// client's subnet; or, of a relayed packet, with any, because a relay reaches them all.
    pub(super) fn rank(
        &self,
        state: &State,
        standing: &Standing,
        request: &Request,
    ) -> Option<u32> {
        let nodes = self.servers(state, standing, request);
        rank::rank(request.sender(), chosen(state, request), &nodes, self.node)
    }

    /// Those that can answer.
    pub(super) fn servers(
        &self,
        state: &State,
        standing: &Standing,
        request: &Request,
    ) -> Vec<NodeId> {
        let subnets: Vec<&Subnet> = state.subnets_of_link(&request.client.link).collect();
        let on_link = |address: &Ipv4Addr| {
            let holds = |subnet: &&Subnet| request.relayed() || subnet.cidr.contains(address);
            subnets.iter().any(holds)
        };
        state
            .members()
            .filter(|member| member.id == self.node || standing.live.contains(&member.id))
            .filter(|member| member.identifiers.iter().any(on_link))
            .map(|member| member.id)
            .collect()
    }

    pub(super) fn look(&self, exchange: &Exchange, stage: Stage) -> Looked {
        let standing = self.standing();
        self.cluster
            .read(|state| self.look_at(state, &standing, exchange, stage))
    }

    fn look_at(
        &self,
        state: &State,
        standing: &Standing,
        exchange: &Exchange,
        stage: Stage,
    ) -> Looked {
        let client = known_as(state, &exchange.request);
        let (action, source) = self.view(state, standing, &exchange.asked(), stage, |view| {
            (
                decide(state, &exchange.request, view, standing.now),
                view.identifier.unwrap_or(Ipv4Addr::UNSPECIFIED),
            )
        });
        let looked = Looked {
            action,
            source,
            client,
        };
        if let Some(offered) = looked.offered(exchange.request.kind) {
            // At once: the next packet of the same batch must not be offered it too.
            self.recent().note(offered, Instant::now());
        }
        if let Action::Reply(reply) = &looked.action
            && stage == Stage::First
        {
            self.probe(state, exchange, reply);
        }
        looked
    }

    /// Calls `then` with what `decide` needs to know.
    pub(super) fn view<T>(
        &self,
        state: &State,
        standing: &Standing,
        asked: &Asked<'_>,
        stage: Stage,
        then: impl FnOnce(&PeerView<'_>) -> T,
    ) -> T {
        let request = asked.request;
        let client = known_as(state, request).unwrap_or_default();
        let now = Instant::now();
        let servers = match request.kind {
            MessageType::Discover => self.servers(state, standing, request),
            _ => Vec::new(),
        };
        let first = rank::first(request.sender(), chosen(state, request), &servers);
        let (offered, again) = {
            let recent = self.recent();
            let again = recent.came_again(asked.hash, now);
            (recent.offered_to(client, now), again)
        };
        let view = PeerView {
            node: self.node,
            identifier: None,
            address: Ipv4Addr::UNSPECIFIED,
            boot_port: self.options.boot_port,
            quorum: standing.quorum,
            caught_up: standing.caught_up,
            confirmed: stage == Stage::CaughtUp,
            insist: stage > Stage::First,
            again,
            live: &|node| node == self.node || standing.live.contains(&node),
            claim: &|address| {
                if self.recent().offered_to_other(address, client, now) {
                    return Claim::Offered;
                }
                match rank::first(&address.octets(), None, &servers) {
                    owner if owner == first => Claim::None,
                    owner if owner == Some(self.node) => Claim::Own,
                    _ => Claim::Peer,
                }
            },
            offered,
            render: &|text| {
                let rendered = asked.rendered.get(text).cloned();
                rendered.unwrap_or_else(|| Err("changed while it was rendered".to_owned()))
            },
        };
        let subnet = subnet_of(state, request, &view, standing.now);
        let identifier = subnet.and_then(|subnet| self.identifier(state, request, subnet));
        let advertised = match self.options.advertise {
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
    fn identifier(&self, state: &State, request: &Request, subnet: &Subnet) -> Option<Ipv4Addr> {
        let own = &state.member(self.node)?.identifiers;
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
                here().find(|it| request.relayed() || state.subnet_with(link, *it).is_some())
            })
    }

    pub(super) fn standing(&self) -> Standing {
        let quorum = self.cluster.has_quorum();
        Standing {
            now: self.cluster.now(),
            quorum,
            caught_up: self.cluster.caught_up_once(),
            live: self.live.borrow().iter().copied().map(NodeId).collect(),
        }
    }
}

/// The node that the client has to do with already: it named it, or has its address from it.
pub(super) fn chosen(state: &State, request: &Request) -> Option<NodeId> {
    if let Some(named) = request.server_id {
        return state.identifier(named).map(|identifier| identifier.node);
    }
    let address = match request.ciaddr.is_unspecified() {
        true => request.client.requested?,
        false => request.ciaddr,
    };
    state.lease(address).map(|record| record.object.node)
}

/// By what the client is known: on the first subnet of its link, so that all nodes say the same.
fn known_as(state: &State, request: &Request) -> Option<ClientHash> {
    let subnet = state.subnets_of_link(&request.client.link).next()?;
    let key = state.client_key(&request.client, subnet)?;
    Some(client_hash(&key))
}
