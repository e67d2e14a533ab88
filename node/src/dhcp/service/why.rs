//! Why a client gets what it gets: what this node would do about it now, and what it and its peers
//! refused it lately.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use dhcproto::v4::MessageType;
use muster_api::node::About;
use muster_storage::command::Client;
use muster_storage::model::NodeId;
use muster_storage::state::{Grant, State};
use serde_json::{Map, Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::look::Stage;
use super::sight::{Sight, Standing};
use super::{Asked, Exchange, Service};
use crate::dhcp::decide::{Action, choice, decide};
use crate::dhcp::metrics::label;
use crate::dhcp::refusals::{Refusal, Refused};
use crate::dhcp::rendering::Rendered;
use crate::dhcp::request::{Arrival, Relay, Request};

/// First octet of a message to peers, as other services gossip too.
const TAG: u8 = 0xd6;
const QUESTION: u8 = 1;
const ANSWER: u8 = 2;

/// How long peers are waited for.
const PATIENCE: Duration = Duration::from_millis(500);

/// A question to all peers about what they refused, or an answer to one.
fn message(kind: u8, number: u64, body: &impl serde::Serialize) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(TAG);
    bytes.put_u8(kind);
    bytes.put_u64(number);
    // These types have nothing that JSON cannot say.
    bytes.put_slice(&serde_json::to_vec(body).unwrap_or_default());
    bytes.freeze()
}

fn read(bytes: &[u8]) -> Option<(u8, u64, &[u8])> {
    let [TAG, kind, rest @ ..] = bytes else {
        return None;
    };
    let (number, body) = rest.split_first_chunk::<8>()?;
    Some((*kind, u64::from_be_bytes(*number), body))
}

impl Service {
    pub(super) fn note_refusal(&self, exchange: &Exchange, refused: Refused) {
        let mut refusals = self.refusals();
        refusals.note(&exchange.request, refused, Instant::now());
    }

    /// Answers a peer that asks what was refused. Says whether the message was about that.
    pub fn answer_peer(&self, bytes: &[u8]) -> bool {
        let Some((kind, number, body)) = read(bytes) else {
            return false;
        };
        if kind == QUESTION
            && let Ok(about) = serde_json::from_slice::<About>(body)
        {
            let told = self.refusals().about(about, Instant::now());
            self.cluster.gossip(message(ANSWER, number, &told));
        }
        true
    }

    /// What is remembered here and on the peers that are there, and who of these said nothing.
    pub async fn refused(&self, about: About) -> (Vec<(NodeId, Refusal)>, Vec<NodeId>) {
        let own = self.refusals().about(about, Instant::now());
        let mut found: Vec<_> = own.into_iter().map(|it| (self.node, it)).collect();
        let peers = self.live.borrow().clone();
        let mut unheard: BTreeSet<NodeId> = peers.into_iter().map(NodeId).collect();
        let mut gossips = self.cluster.gossips();
        let (number, _) = uuid::Uuid::new_v4().as_u64_pair();
        self.cluster.gossip(message(QUESTION, number, &about));
        let end = tokio::time::Instant::now() + PATIENCE;
        while !unheard.is_empty() {
            let (from, bytes) = match tokio::time::timeout_at(end, gossips.recv()).await {
                Ok(Ok(heard)) => heard,
                Ok(Err(RecvError::Lagged(_))) => continue,
                Ok(Err(RecvError::Closed)) | Err(_) => break,
            };
            let told = match read(&bytes) {
                Some((ANSWER, of, body)) if of == number => {
                    serde_json::from_slice::<Vec<Refusal>>(body)
                }
                _ => continue,
            };
            if unheard.remove(&from) {
                let told = told.unwrap_or_default();
                found.extend(told.into_iter().map(|it| (from, it)));
            }
        }
        found.sort_by_key(|(_, refusal)| refusal.secs_ago);
        (found, unheard.into_iter().collect())
    }

    /// What a DISCOVER of this client would be met with by this node now. Writes and offers nothing.
    pub fn would_answer(&self, client: &Client) -> Value {
        let standing = self.standing();
        self.cluster
            .read(|state| self.would_answer_in(state, &standing, client))
    }

    fn would_answer_in(&self, state: &State, standing: &Standing, client: &Client) -> Value {
        let mut answer = Map::new();
        let mut add = |name: &str, value: Value| answer.insert(name.to_owned(), value);
        add("mac", client.mac.map(|mac| mac.to_string()).into());
        let own = state.member(self.node).map(|member| &member.identifiers);
        let own: &[Ipv4Addr] = own.map_or(&[], Vec::as_slice);
        let here: Vec<Ipv4Addr> = own
            .iter()
            .copied()
            .filter(|address| state.subnet_with(&client.link, *address).is_some())
            .collect();
        let on_link = !here.is_empty();
        let addresses = if on_link { &here } else { own };
        let Some(request) = imagined(client.clone(), addresses, on_link) else {
            return Value::Object(answer);
        };
        let name = |node: NodeId| match state.member(node) {
            Some(member) => member.name.clone(),
            None => node.to_string(),
        };
        let rendered = Rendered::default();
        let asked = Asked {
            request: &request,
            hash: 0,
            rendered: &rendered,
        };
        let sight = Sight::new(self, state, standing, asked);
        let first = sight.first();
        add("node", name(self.node).into());
        add("first", first.map(name).into());
        let stage = match first == Some(self.node) {
            true => Stage::First,
            false => Stage::InTurn,
        };
        let (action, offer) = sight.view(stage, |view| {
            (
                decide(state, &request, view, standing.now),
                choice(state, &request, view, standing.now),
            )
        });
        let subnets = state.subnets_of_link(&client.link);
        let link: Vec<&str> = subnets.map(|subnet| subnet.name.as_str()).collect();
        add("subnets", json!(link));
        match action {
            Action::Reply(reply) => {
                add("outcome", label(reply.kind).into());
                add("address", reply.yiaddr.to_string().into());
                add("lease_secs", reply.lease_secs.into());
                let why = offer.as_ref().map(|offer| explain(offer.rule));
                add("rule", offer.map(|offer| rule(offer.rule)).into());
                add("why", why.into());
            }
            Action::Silent(reason) => {
                add("outcome", "silence".into());
                add("reason", reason.label().into());
                add("why", reason.explain().into());
            }
            Action::Confirm | Action::Propose(_) => {
                add("outcome", "pending".into());
                add("why", "this node would first ask a quorum".into());
            }
        }
        Value::Object(answer)
    }
}

/// A DISCOVER of a client as the state knows it, as if it came in at a node with these addresses now:
/// on their link, or else through a relay. None when the client has no link.
fn imagined(client: Client, own: &[Ipv4Addr], on_link: bool) -> Option<Request> {
    let link = *client.link.first()?;
    let mut chaddr = [0; 16];
    let mac = client.mac.map(|mac| mac.0).unwrap_or_default();
    for (to, from) in chaddr.iter_mut().zip(mac) {
        *to = from;
    }
    let hlen = if client.mac.is_some() { 6 } else { 0 };
    let option = client.relay.as_ref().map(|relay| relay.0.as_slice());
    let giaddr = match on_link {
        true => Ipv4Addr::UNSPECIFIED,
        false => link,
    };
    Some(Request {
        kind: MessageType::Discover,
        htype: 1,
        hlen,
        chaddr,
        xid: 0,
        flags: 0,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        giaddr,
        server_id: None,
        parameters: Vec::new(),
        max_size: None,
        firmware: None,
        ipxe_fetches_by_http: true,
        architecture: None,
        machine_id: None,
        relay: option.and_then(|option| Relay::read(option).ok()),
        rapid_commit: false,
        subnet_selection: None,
        client,
        arrival: Arrival {
            link: own.into(),
            source: SocketAddrV4::new(giaddr, 68),
            destination: Ipv4Addr::BROADCAST,
            boot_server: false,
        },
    })
}

fn rule(rule: Grant) -> &'static str {
    match rule {
        Grant::Reservation => "reservation",
        Grant::Binding => "binding",
        Grant::Previous => "previous address",
        Grant::Requested => "requested",
        Grant::Pool => "pool",
    }
}

fn explain(rule: Grant) -> &'static str {
    match rule {
        Grant::Reservation => "a reservation names the client",
        Grant::Binding => "the client has it",
        Grant::Previous => "the client had it before, and nobody else may have it since",
        Grant::Requested => "it is free, and the client asks for it or it is on offer to it",
        Grant::Pool => "it is free, and the next in the client's own order over its pool",
    }
}
