//! What the state and the peers say about a packet: who answers it, and what is to be done.

use std::net::Ipv4Addr;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use dhcproto::v4::MessageType;
use muster_storage::Command;
use muster_storage::model::Trouble;
use muster_storage::state::State;

use super::sight::{Sight, Standing};
use super::{Exchange, Service, offered};
use crate::alert;
use crate::dhcp::decide::{Action, Reason, decide, honoured};
use crate::dhcp::foreign::intruder;
use crate::dhcp::offers::{ClientHash, Notice};
use crate::dhcp::{metrics, rank, rendering};

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
    Now(Box<Looked>),
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
        let sight = Sight::new(self, state, standing, exchange.asked());
        let request = &*exchange.request;
        let copy = self.recent().is_copy(exchange.hash, exchange.received);
        self.note_choice(&sight, exchange.received);
        self.note_given_back(state, exchange);
        let rank = sight.rank();
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
        let looked = self.look_at(&sight, exchange, stage);
        match looked.action {
            Action::Silent(Reason::LeftToPeer) => {
                Verdict::After(rank::delay_of_all(standing.live.len()))
            }
            _ => Verdict::Now(Box::new(looked)),
        }
    }

    /// Notes what a client is promised without a write: what all nodes let others have must not be it.
    fn note_promise(&self, state: &State, action: &Action) {
        if let Action::Reply(reply) = action
            && reply.kind == MessageType::Ack
            && let Some(secs) = reply.lease_secs
            && let Some(record) = state.lease(reply.yiaddr)
        {
            self.cluster.promise(&record.object, secs);
        }
    }

    /// Notes what a client gives back, whoever writes that: what it was promised before is over.
    fn note_given_back(&self, state: &State, exchange: &Exchange) {
        let request = &*exchange.request;
        let address = match request.kind {
            MessageType::Release => Some(request.ciaddr),
            MessageType::Decline => request.client.requested,
            _ => None,
        };
        let lease = address.and_then(|address| state.lease(address));
        if let Some(lease) = lease.map(|record| &record.object)
            && state.is_of(lease, &request.client)
        {
            let ago = exchange.received.elapsed();
            self.cluster.end_promise(lease, ago);
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
    fn note_choice(&self, sight: &Sight<'_>, received: Instant) {
        let request = sight.asked.request;
        let (Some(named), Some(address)) = (request.server_id, request.client.requested) else {
            return;
        };
        let Some(client) = sight.client() else {
            return;
        };
        let mut recent = self.recent();
        if honoured(sight.state, request, named, sight.standing.now) {
            recent.chose(client, address, received);
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
        self.note_intruder(server, &subnet.name);
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
            mac = client.map(tracing::field::display),
            "a client chose a DHCP server that is no node of this cluster; name it in the subnet's foreign_servers if it may be there"
        );
        let trouble = Trouble::ForeignServer {
            subnet: subnet.name.clone(),
            server,
            client,
        };
        tokio::spawn(alert::raise(self.cluster.clone(), trouble));
    }

    pub(super) fn look(&self, exchange: &Exchange, stage: Stage) -> Looked {
        let standing = self.standing();
        self.cluster.read(|state| {
            let sight = Sight::new(self, state, &standing, exchange.asked());
            self.look_at(&sight, exchange, stage)
        })
    }

    fn look_at(&self, sight: &Sight<'_>, exchange: &Exchange, stage: Stage) -> Looked {
        let (action, source) = sight.view(stage, |view| {
            (
                decide(sight.state, &exchange.request, view, sight.standing.now),
                view.identifier.unwrap_or(Ipv4Addr::UNSPECIFIED),
            )
        });
        self.note_promise(sight.state, &action);
        let looked = Looked {
            action,
            source,
            client: sight.client(),
        };
        if let Some(offered) = looked.offered(exchange.request.kind) {
            // At once: the next packet of the same batch must not be offered it too.
            self.recent().note(offered, Instant::now());
        }
        if let Action::Reply(reply) = &looked.action
            && stage == Stage::First
        {
            self.probe(sight.state, exchange, reply);
        }
        looked
    }
}
