//! The replies to a request.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dhcproto::v4::MessageType;
use muster_storage::model::{Lease, NodeId};

use super::{Action, Case};
use crate::dhcp::parameters;
use crate::dhcp::reply::{Nak, Reply};

impl Case<'_> {
    pub(super) fn send(&self, reply: Reply) -> Action {
        Action::Reply(Box::new(reply))
    }

    pub(super) fn offer(&self, address: Ipv4Addr, secs: u32) -> Reply {
        self.reply(MessageType::Offer, address, Some(secs))
    }

    /// Carries the identifier that the client named: it takes no other (RFC 2131 §4.4.1). One that
    /// names none keeps the one that it has its address from, while that node is there.
    pub(super) fn ack(&self, lease: &Lease, secs: u32) -> Reply {
        let mut ack = self.reply(MessageType::Ack, lease.address, Some(secs));
        let demanded = self.request.relay.as_ref().and_then(|it| it.server_id);
        // A DISCOVER chooses nobody, whatever it says.
        let named = self.request.server_id;
        ack.server_id = named
            .filter(|_| self.request.kind == MessageType::Request)
            .or(demanded)
            .or_else(|| self.identifier_of(lease.node))
            .unwrap_or(self.own);
        ack
    }

    /// What a peer that is there calls itself on this link.
    fn identifier_of(&self, node: NodeId) -> Option<Ipv4Addr> {
        // A client that renews by unicast has chosen this node.
        let chosen = self.request.arrival.destination == self.own;
        let there = node != self.view.node && !chosen && (self.view.live)(node);
        let member = self.state.member(node).filter(|_| there)?;
        let identifiers = || member.identifiers.iter().copied();
        let near = identifiers().find(|address| self.subnet.cidr.contains(address));
        let link = &self.request.client.link;
        near.or_else(|| {
            identifiers().find(|address| self.state.subnet_with(link, *address).is_some())
        })
    }

    pub(super) fn nak(&self, why: Nak) -> Reply {
        Reply {
            kind: MessageType::Nak,
            server_id: self.request.server_id.unwrap_or(self.own),
            yiaddr: Ipv4Addr::UNSPECIFIED,
            lease_secs: None,
            boot: None,
            parameters: BTreeMap::new(),
            nak: Some(why),
        }
    }

    pub(super) fn reply(
        &self,
        kind: MessageType,
        yiaddr: Ipv4Addr,
        lease_secs: Option<u32>,
    ) -> Reply {
        Reply {
            kind,
            server_id: self.own,
            yiaddr,
            lease_secs,
            boot: parameters::boot(self.state, self.request, self.subnet, self.view, false),
            parameters: parameters::network(self.state, self.request, self.subnet, self.view),
            nak: None,
        }
    }
}
