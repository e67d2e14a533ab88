//! What to do about a request: RFC 2131 §4.3 and its table 4, under the rules of a cluster.
//!
//! Pure: the shell gives the state, what it knows about its peers, and the time, and does what the
//! [`Action`] says. Silence is the answer whenever another might be wrong.

mod confirm;
mod reason;
mod replies;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dhcproto::v4::MessageType;
use muster_storage::command::{Bind, Client, Command, Effect, Outcome, Traits};
use muster_storage::model::{Lease, LeaseState, NodeId, Subnet, SubnetMode, Timestamp};
use muster_storage::state::{Claim, Grant, Offer, State};

use super::parameters;
use super::reply::{Nak, Reply};
use super::request::Request;
use confirm::Confirmable;
pub use reason::Reason;

/// What the shell knows beside the state.
pub struct PeerView<'a> {
    /// This node.
    pub node: NodeId,
    /// An address of this node on the client's link that it may put into option 54, because it
    /// registered it by a committed entry.
    pub identifier: Option<Ipv4Addr>,
    /// Where clients of this link fetch boot files from this node.
    pub address: Ipv4Addr,
    /// Its HTTP boot port.
    pub boot_port: u16,
    /// Whether this node sees a leader that a quorum follows.
    pub quorum: bool,
    /// Whether it has, since it started, caught up with a leader's commit once.
    pub caught_up: bool,
    /// Whether it has caught up by read-index since this packet came.
    pub confirmed: bool,
    /// Whether a member is there.
    pub live: &'a dyn Fn(NodeId) -> bool,
    /// Who else may be about to take an address.
    pub claim: &'a dyn Fn(Ipv4Addr) -> Claim,
    /// Whether this node gives what falls to others as well, because they have had their turn.
    pub insist: bool,
    /// Whether a copy of the packet came before it: its sender was not served at once.
    pub again: bool,
    /// What is on offer to this client already.
    pub offered: Option<Ipv4Addr>,
    /// Renders an option's value that is a template.
    pub render: &'a dyn Fn(&str) -> Result<String, String>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // Made for one packet and used up at once: a box would cost more.
pub enum Action {
    /// Send this.
    Reply(Box<Reply>),
    /// Write this; [`conclude`] tells what to send when it is committed.
    Propose(Command),
    /// Catch up by read-index, then ask again with `confirmed`.
    Confirm,
    /// Send nothing.
    Silent(Reason),
}

/// In which state the client of a REQUEST is (RFC 2131 §4.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asking {
    /// It takes an offer.
    Selecting(Ipv4Addr),
    /// It has rebooted and remembers an address.
    InitReboot(Ipv4Addr),
    /// It extends its lease, by unicast (RENEWING) or broadcast (REBINDING).
    Renewing(Ipv4Addr),
}

impl Asking {
    fn of(request: &Request) -> Option<Self> {
        match (request.server_id, request.client.requested) {
            (Some(_), Some(address)) => Some(Self::Selecting(address)),
            (_, requested) if !request.ciaddr.is_unspecified() => requested
                .is_none_or(|address| address == request.ciaddr)
                .then_some(Self::Renewing(request.ciaddr)),
            (None, Some(address)) => Some(Self::InitReboot(address)),
            _ => None,
        }
    }

    fn address(self) -> Ipv4Addr {
        match self {
            Self::Selecting(address) | Self::InitReboot(address) | Self::Renewing(address) => {
                address
            }
        }
    }
}

/// What to do about `request`.
pub fn decide(state: &State, request: &Request, view: &PeerView<'_>, now: Timestamp) -> Action {
    let Some(subnet) = subnet_of(state, request, view, now) else {
        return Action::Silent(Reason::UnknownSubnet);
    };
    if subnet.mode == SubnetMode::Off {
        return Action::Silent(Reason::Off);
    }
    let Some(own) = own_identifier(request, view) else {
        return Action::Silent(Reason::NoIdentifier);
    };
    let case = Case {
        state,
        request,
        view,
        now,
        subnet,
        own,
    };
    if request.arrival.boot_server {
        return case.boot_server();
    }
    if subnet.mode == SubnetMode::Proxy {
        return case.proxy();
    }
    match request.kind {
        MessageType::Discover => case.discover(),
        MessageType::Request => case.request(),
        MessageType::Decline => case.decline(),
        MessageType::Release => case.release(),
        MessageType::Inform => case.inform(),
        _ => Action::Silent(Reason::Unsupported),
    }
}

/// What to send when the command that [`decide`] proposed is committed.
///
/// A refusal is a fact that a quorum agreed on, so it may become a NAK; in SELECTING only when the
/// address is known to be another's, because silence about what was never ours is right.
pub fn conclude(
    state: &State,
    request: &Request,
    outcome: &Outcome,
    view: &PeerView<'_>,
    now: Timestamp,
) -> Result<Option<Reply>, Reason> {
    if !matches!(request.kind, MessageType::Request | MessageType::Discover) {
        return match outcome.result {
            Ok(_) => Ok(None),
            Err(_) => Err(Reason::NotHolder),
        };
    }
    let subnet = subnet_of(state, request, view, now).ok_or(Reason::UnknownSubnet)?;
    let own = own_identifier(request, view).ok_or(Reason::NoIdentifier)?;
    let case = Case {
        state,
        request,
        view,
        now,
        subnet,
        own,
    };
    match &outcome.result {
        Ok(Effect::Bound(lease)) => {
            let promised = state.promise(&request.client, subnet);
            // Committed just now by the leader's clock, with room beyond the promise.
            Ok(Some(case.ack(lease, promised)))
        }
        Ok(_) => Err(Reason::Refused),
        Err(_) => match Asking::of(request) {
            Some(Asking::InitReboot(_) | Asking::Renewing(_))
                if request.kind == MessageType::Request =>
            {
                Ok(Some(case.nak(Nak::NotForClient)))
            }
            Some(Asking::Selecting(address)) if case.was_offered_in_vain(address) => {
                Ok(Some(case.nak(Nak::NotForClient)))
            }
            _ => Err(Reason::Refused),
        },
    }
}

/// The subnet that serves a client: of several that share its link, the one that holds the address
/// that it has, asks for, or is to be offered; else the first.
pub fn subnet_of<'a>(
    state: &'a State,
    request: &Request,
    view: &PeerView<'_>,
    now: Timestamp,
) -> Option<&'a Subnet> {
    let link = &request.client.link;
    let mut subnets = state.subnets_of_link(link);
    let first = subnets.next()?;
    if subnets.next().is_none() {
        return Some(first);
    }
    let about = match request.kind {
        MessageType::Discover => choice(state, request, view, now).map(|offer| offer.address),
        _ if request.ciaddr.is_unspecified() => request.client.requested,
        _ => Some(request.ciaddr),
    };
    about
        .and_then(|address| state.subnet_with(link, address))
        .or(Some(first))
}

/// The address to offer. One that was offered stays the client's choice while it is free, so that
/// a copy of a DISCOVER, here or at a peer, does not put two addresses on offer to it.
pub fn choice(
    state: &State,
    request: &Request,
    view: &PeerView<'_>,
    now: Timestamp,
) -> Option<Offer> {
    let choose = |client: &Client| state.offer(client, view.claim, now);
    let client = &request.client;
    let offer = choose(client)?;
    if offer.rule != Grant::Pool || view.offered.is_none() {
        return Some(offer);
    }
    choose(&Client {
        requested: view.offered,
        ..client.clone()
    })
}

/// What option 54 of a reply says: what the relay wants (RFC 5107), else this node's address.
fn own_identifier(request: &Request, view: &PeerView<'_>) -> Option<Ipv4Addr> {
    let relay = request.relay.as_ref().and_then(|relay| relay.server_id);
    relay.or(view.identifier)
}

/// Whether an identifier is this cluster's: that of a member, or of a removed one while leases
/// live that it may have granted, or the one that the relay of this packet demands.
pub fn honoured(state: &State, request: &Request, identifier: Ipv4Addr, now: Timestamp) -> bool {
    let override_ = request.relay.as_ref().and_then(|relay| relay.server_id);
    committed(state, identifier, now) || override_ == Some(identifier)
}

/// Whether an identifier is that of a member, or of a removed one while leases live that it may have
/// granted.
pub fn committed(state: &State, identifier: Ipv4Addr, now: Timestamp) -> bool {
    let known = state.identifier(identifier);
    known.is_some_and(|known| known.until.is_none_or(|until| until > now))
}

/// One request with all that its rules look at.
struct Case<'a> {
    state: &'a State,
    request: &'a Request,
    view: &'a PeerView<'a>,
    now: Timestamp,
    subnet: &'a Subnet,
    own: Ipv4Addr,
}

impl Case<'_> {
    /// RFC 2131 §4.3.1. Writes nothing: the address is decided when it is requested.
    fn discover(&self) -> Action {
        if self.view.quorum && !(self.view.caught_up || self.view.confirmed) {
            // What it takes for free may be somebody's: the offer would be lost.
            return Action::Confirm;
        }
        let Some(offer) = choice(self.state, self.request, self.view, self.now) else {
            return Action::Silent(Reason::NoAddress);
        };
        let claim = match offer.rule {
            Grant::Pool => (self.view.claim)(offer.address),
            _ => Claim::None,
        };
        match claim {
            Claim::Peer | Claim::Offered if !self.view.insist => {
                return Action::Silent(Reason::LeftToPeer);
            }
            // Of two that are offered one address one loses, and its ROM may give up. Offers lapse,
            // so who asks again gets one rather than none.
            Claim::Offered if !self.view.again => return Action::Silent(Reason::AllOffered),
            _ => {}
        }
        if !self.view.quorum {
            // Only what can be confirmed without a write is worth offering.
            return match self.confirmable(offer.address) {
                Confirmable::Yes(_, secs) => self.send(self.offer(offer.address, secs)),
                Confirmable::No => Action::Silent(Reason::NoQuorum),
                Confirmable::Unchecked => self.check(),
            };
        }
        if self.request.rapid_commit && self.subnet.rapid_commit {
            return self.commit_at_once(offer.address);
        }
        self.send(self.offer(offer.address, offer.lease_secs))
    }

    /// RFC 4039 §3: the ACK, and the write that it needs, without an OFFER.
    fn commit_at_once(&self, address: Ipv4Addr) -> Action {
        match self.confirmable(address) {
            Confirmable::Yes(lease, secs) => self.send(self.ack(lease, secs)),
            Confirmable::No => self.bind(address),
            Confirmable::Unchecked => self.check(),
        }
    }

    /// RFC 2131 §4.3.2.
    fn request(&self) -> Action {
        let Some(asking) = Asking::of(self.request) else {
            return Action::Silent(Reason::Incomplete);
        };
        if self.names_foreign_server() {
            return Action::Silent(Reason::ForeignServer);
        }
        match self.confirmable(asking.address()) {
            Confirmable::Yes(lease, secs) => return self.send(self.ack(lease, secs)),
            Confirmable::No => {}
            Confirmable::Unchecked => return self.check(),
        }
        if !self.view.quorum {
            return Action::Silent(Reason::NoQuorum);
        }
        match asking {
            Asking::Selecting(address) => self.bind(address),
            Asking::InitReboot(address) | Asking::Renewing(address) => self.remembered(address),
        }
    }

    /// A client that believes it has `address`: bind it if it is right, say no if it is known to
    /// be wrong, be silent if nothing is known (RFC 2131 §4.3.2).
    fn remembered(&self, address: Ipv4Addr) -> Action {
        let Some(key) = self.state.client_key(&self.request.client, self.subnet) else {
            return Action::Silent(Reason::UnknownClient);
        };
        let owed = self
            .state
            .offer(&self.request.client, &|_| Claim::None, self.now)
            .filter(|offer| matches!(offer.rule, Grant::Reservation | Grant::Binding))
            .map(|offer| offer.address);
        if owed == Some(address) {
            return self.bind(address);
        }
        let known: Vec<&Lease> = self
            .state
            .leases_of(&key)
            .map(|record| &record.object)
            .filter(|lease| self.on_link(&lease.subnet))
            // One that was never its own, only offered and found in use, says nothing.
            .filter(|lease| lease.state != LeaseState::Declined || lease.address == address)
            .collect();
        let was_its_own = known
            .iter()
            .any(|lease| lease.address == address && lease.state != LeaseState::Declined);
        if owed.is_none() && was_its_own {
            return self.bind(address);
        }
        // What is left is a NAK or silence for want of knowledge: both only after catching up.
        if !self.view.confirmed {
            return Action::Confirm;
        }
        if owed.is_some() || !known.is_empty() {
            return self.send(self.nak(Nak::NotForClient));
        }
        let link = &self.request.client.link;
        if self.state.subnet_with(link, address).is_none() && self.subnet.mode == SubnetMode::Full {
            return self.send(self.nak(Nak::NotForNetwork));
        }
        Action::Silent(Reason::UnknownClient)
    }

    /// Whether an address that was offered to this client was found in use, went to another, or is kept
    /// for another that gave it back. It is told so: firmware that took an offer waits a minute for its
    /// answer, and does not discover anew without one.
    fn was_offered_in_vain(&self, address: Ipv4Addr) -> bool {
        let key = self.state.client_key(&self.request.client, self.subnet);
        self.state.lease(address).is_some_and(|record| {
            let lease = &record.object;
            let own = key.as_ref() == Some(&lease.client);
            !lease.free && (!own || lease.state == LeaseState::Declined)
        })
    }

    fn on_link(&self, name: &str) -> bool {
        let mut subnets = self.state.subnets_of_link(&self.request.client.link);
        subnets.any(|subnet| subnet.name == name)
    }

    /// RFC 2131 §4.3.3.
    fn decline(&self) -> Action {
        let (Some(address), Some(_)) = (self.request.client.requested, self.request.server_id)
        else {
            return Action::Silent(Reason::Incomplete);
        };
        self.give_up(address, |client| Command::Decline {
            client: Box::new(client),
            address,
        })
    }

    /// RFC 2131 §4.3.4.
    fn release(&self) -> Action {
        let address = self.request.ciaddr;
        if address.is_unspecified() {
            return Action::Silent(Reason::Incomplete);
        }
        self.give_up(address, |client| Command::Release {
            client: Box::new(client),
            address,
            sent: None,
        })
    }

    fn give_up(&self, address: Ipv4Addr, command: impl FnOnce(Client) -> Command) -> Action {
        if self.names_foreign_server() {
            return Action::Silent(Reason::ForeignServer);
        }
        if !self.view.quorum {
            return Action::Silent(Reason::NoQuorum);
        }
        let holds = self.state.lease(address).is_some_and(|record| {
            let lease = &record.object;
            lease.state == LeaseState::Bound && self.state.is_of(lease, &self.request.client)
        });
        match (holds, self.view.confirmed) {
            (true, _) => Action::Propose(command(self.request.client.clone())),
            (false, false) => Action::Confirm,
            (false, true) => Action::Silent(Reason::NotHolder),
        }
    }

    /// RFC 2131 §4.3.5: parameters without a lease.
    fn inform(&self) -> Action {
        let request = self.request;
        let no_way_back = request.ciaddr.is_unspecified()
            && request.arrival.source.ip().is_unspecified()
            && !request.relayed();
        if no_way_back {
            return Action::Silent(Reason::Incomplete);
        }
        self.send(self.reply(MessageType::Ack, Ipv4Addr::UNSPECIFIED, None))
    }

    /// PXE 2.1 §2.2.3: a boot server's answer on port 4011.
    fn boot_server(&self) -> Action {
        let kind = match self.request.kind {
            MessageType::Discover => MessageType::Offer,
            MessageType::Request | MessageType::Inform => MessageType::Ack,
            _ => return Action::Silent(Reason::Unsupported),
        };
        self.boot_only(kind)
    }

    /// PXE 2.1 §2.2.2: boot data beside a foreign DHCP server, which makes the lease.
    fn proxy(&self) -> Action {
        match self.request.kind {
            MessageType::Discover => self.boot_only(MessageType::Offer),
            _ => Action::Silent(Reason::NotForProxy),
        }
    }

    fn boot_only(&self, kind: MessageType) -> Action {
        match parameters::boot(self.state, self.request, self.subnet, self.view, true) {
            None => Action::Silent(Reason::NotForProxy),
            boot => self.send(Reply {
                kind,
                server_id: self.own,
                yiaddr: Ipv4Addr::UNSPECIFIED,
                lease_secs: None,
                boot,
                parameters: BTreeMap::new(),
                nak: None,
            }),
        }
    }

    fn names_foreign_server(&self) -> bool {
        self.request
            .server_id
            .is_some_and(|named| !honoured(self.state, self.request, named, self.now))
    }

    fn bind(&self, address: Ipv4Addr) -> Action {
        let mut client = self.request.client.clone();
        if !self.state.has_classes(&client.link) {
            // Nothing looks at the rest, and the log is written for every new lease.
            client.traits = Traits {
                uuid: client.traits.uuid,
                ..Traits::default()
            };
        }
        Action::Propose(Command::Bind(Box::new(Bind {
            client,
            address,
            node: self.view.node,
        })))
    }
}
