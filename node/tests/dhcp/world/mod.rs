//! A small world for the DHCP tests: one subnet, a cluster of three, packets by hand.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use dhcproto::v4::MessageType;
use muster_node::dhcp::decide::{Action, PeerView, Reason, conclude, decide};
use muster_node::dhcp::reply::Reply;
use muster_node::dhcp::request::{Arrival, Malformed, Request};
use muster_storage::command::{Founding, PutMode};
use muster_storage::model::{
    Lease, Machine, Member, NodeId, Object, Octets, Reservation, Settings, Sha256, Subnet,
};
use muster_storage::state::Claim;
use muster_storage::{
    Actor, Command, Effect, Entry, Mac, Outcome, Proposal, RequestId, Revision, State, Timestamp,
};

/// Addresses of the three nodes on the link, all registered.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub const RELAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
pub const START: Timestamp = Timestamp(1_800_000_000_000);
pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x50];
pub const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0x51];

pub fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// State with its log position.
pub struct World {
    pub state: State,
    pub now: Timestamp,
    index: u64,
    pub node: NodeId,
    pub quorum: bool,
    pub caught_up: bool,
    pub identifier: Option<Ipv4Addr>,
    pub dead: Option<NodeId>,
    /// What is on offer to the client.
    pub offered: Option<Ipv4Addr>,
    /// What is on offer to others.
    pub claimed: Vec<Ipv4Addr>,
    /// Who claims the rest.
    pub claim: Claim,
    pub insist: bool,
    pub again: bool,
}

pub fn subnet() -> Subnet {
    serde_json::from_value(serde_json::json!({
        "name": "lab", "cidr": "10.77.0.0/24", "pools": ["10.77.0.100-10.77.0.199"],
        "routers": ["10.77.0.1"], "dns_servers": ["10.77.0.1"], "domain_name": "lab.example",
        "lease_secs": 3600, "options": {"42": "10.77.0.9", "interface-mtu": "1400"},
    }))
    .unwrap()
}

fn member(name: &str, address: Ipv4Addr) -> Member {
    Member {
        id: NodeId(0),
        name: name.to_owned(),
        address: IpAddr::V4(address),
        peer_port: 8093,
        api_port: 8092,
        boot_port: 8091,
        version: "0".to_owned(),
        min_schema: 1,
        max_schema: 1,
        key_hash: Sha256([0; 32]),
        identifiers: vec![address],
    }
}

impl World {
    /// The subnet `lab` as [`subnet`] has it.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// The subnet `lab`, changed.
    pub fn with(change: impl FnOnce(&mut Subnet)) -> Self {
        let mut world = Self {
            state: State::default(),
            now: START,
            index: 0,
            node: NodeId(0),
            quorum: true,
            caught_up: true,
            identifier: Some(NODE),
            dead: None,
            offered: None,
            claimed: Vec::new(),
            claim: Claim::None,
            insist: false,
            again: false,
        };
        world.apply(Command::Found(Box::new(Founding {
            cluster_id: uuid::Uuid::nil(),
            ca_pem: String::new(),
            ca_key_sealed: Octets::default(),
            keyring: Vec::new(),
            admin_password_hash: String::new(),
            member: member("a", NODE),
        })));
        world.node = world.state.member_named("a").unwrap().id;
        world.apply(Command::AddMember {
            member: Box::new(member("b", PEER)),
            token: None,
        });
        let mut lab = subnet();
        change(&mut lab);
        world.put(Object::Subnet(Box::new(lab)));
        world
    }

    pub fn apply(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let entry = Entry {
            at: self.now,
            proposals: vec![Proposal {
                request: RequestId(uuid::Uuid::nil()),
                actor: Actor("test".to_owned()),
                if_match: None,
                remember: None,
                command,
            }],
        };
        let revision = Revision::new(self.index, 0);
        let (outcome, _) = self.state.apply(revision, &entry).remove(0);
        outcome
    }

    pub fn put(&mut self, object: Object) {
        let outcome = self.apply(Command::Put {
            object,
            mode: PutMode::Apply,
        });
        assert!(outcome.result.is_ok(), "{outcome:?}");
    }

    pub fn reserve(&mut self, address: &str, mac: [u8; 6]) {
        self.put(Object::Reservation(Reservation {
            address: ip(address),
            mac: Some(Mac(mac)),
            client_id: None,
            machine: None,
            uuid: None,
            circuit_id: None,
            remote_id: None,
        }));
    }

    pub fn machine(&mut self, name: &str, mac: [u8; 6]) {
        self.machine_with(name, mac, |_| {});
    }

    pub fn machine_with(&mut self, name: &str, mac: [u8; 6], change: impl FnOnce(&mut Machine)) {
        let mut machine = Machine {
            uuid: uuid::Uuid::from_u128(1),
            name: name.to_owned(),
            macs: vec![Mac(mac)],
            bootenv: "local".to_owned(),
            profiles: Vec::new(),
            params: BTreeMap::new(),
            sealed: BTreeMap::new(),
            options: BTreeMap::new(),
            loaders: Default::default(),
            local_boot: None,
            labels: Default::default(),
        };
        change(&mut machine);
        self.put(Object::Machine(machine));
    }

    pub fn settings(&mut self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.state.settings();
        change(&mut settings);
        self.put(Object::Settings(settings));
    }

    pub fn pass(&mut self, secs: u64) {
        self.now = self.now.plus_secs(secs);
    }

    pub fn view<T>(&self, confirmed: bool, then: impl FnOnce(&PeerView<'_>) -> T) -> T {
        then(&PeerView {
            node: self.node,
            identifier: self.identifier,
            address: NODE,
            boot_port: 8091,
            quorum: self.quorum,
            caught_up: self.caught_up,
            confirmed,
            live: &|node| Some(node) != self.dead,
            claim: &|address| match self.claimed.contains(&address) {
                true => Claim::Offered,
                false => self.claim,
            },
            insist: self.insist,
            again: self.again,
            offered: self.offered,
            render: &|text| Ok(text.replace("{{ node }}", "10.77.0.1")),
        })
    }

    /// What is decided at first sight.
    pub fn decide(&self, packet: &Packet) -> Action {
        let request = packet.request();
        self.view(false, |view| decide(&self.state, &request, view, self.now))
    }

    /// What is decided after catching up.
    pub fn decide_confirmed(&self, packet: &Packet) -> Action {
        let request = packet.request();
        self.view(true, |view| decide(&self.state, &request, view, self.now))
    }

    /// What the client gets in the end: catches up and commits as the shell does.
    pub fn answer(&mut self, packet: &Packet) -> Result<Option<Reply>, Reason> {
        let request = packet.request();
        let mut action = self.decide(packet);
        if action == Action::Confirm {
            action = self.decide_confirmed(packet);
        }
        match action {
            Action::Reply(reply) => Ok(Some(*reply)),
            Action::Silent(reason) => Err(reason),
            Action::Confirm => panic!("asked to confirm what is confirmed"),
            Action::Propose(command) => {
                assert!(self.quorum, "a write without a quorum: {command:?}");
                let outcome = self.apply(command);
                self.view(true, |view| {
                    conclude(&self.state, &request, &outcome, view, self.now)
                })
            }
        }
    }

    /// The reply that the client gets, which must be one.
    pub fn reply(&mut self, packet: &Packet) -> Reply {
        self.answer(packet)
            .expect("an answer")
            .expect("a reply and not only an effect")
    }

    /// DISCOVER, OFFER, REQUEST, ACK; returns the address.
    pub fn lease(&mut self, mac: [u8; 6]) -> Ipv4Addr {
        let offer = self.reply(&Packet::discover(mac));
        assert_eq!(offer.kind, MessageType::Offer);
        let ack = self.reply(&Packet::select(mac, offer.yiaddr));
        assert_eq!(ack.kind, MessageType::Ack);
        assert_eq!(ack.yiaddr, offer.yiaddr);
        ack.yiaddr
    }

    pub fn bound(&self, address: Ipv4Addr) -> Option<&Lease> {
        self.state.lease(address).map(|record| &record.object)
    }
}

/// A client's packet.
#[derive(Clone, Debug)]
pub struct Packet {
    pub header: [u8; 240],
    pub options: Vec<(u8, Vec<u8>)>,
    pub arrival: Arrival,
}

impl Packet {
    pub fn new(kind: MessageType, mac: [u8; 6]) -> Self {
        let mut header = [0; 240];
        header[0] = 1;
        header[1] = 1;
        header[2] = 6;
        header[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        header[28..34].copy_from_slice(&mac);
        header[236..240].copy_from_slice(&[99, 130, 83, 99]);
        Self {
            header,
            options: vec![(53, vec![kind.into()])],
            arrival: Arrival {
                link: [NODE].into(),
                source: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
                destination: Ipv4Addr::BROADCAST,
                boot_server: false,
            },
        }
    }

    pub fn discover(mac: [u8; 6]) -> Self {
        Self::new(MessageType::Discover, mac)
    }

    /// REQUEST in SELECTING, naming this node.
    pub fn select(mac: [u8; 6], address: Ipv4Addr) -> Self {
        Self::new(MessageType::Request, mac)
            .option(50, &address.octets())
            .option(54, &NODE.octets())
    }

    /// REQUEST in INIT-REBOOT.
    pub fn reboot(mac: [u8; 6], address: Ipv4Addr) -> Self {
        Self::new(MessageType::Request, mac).option(50, &address.octets())
    }

    /// REQUEST in RENEWING.
    pub fn renew(mac: [u8; 6], address: Ipv4Addr) -> Self {
        Self::new(MessageType::Request, mac)
            .ciaddr(address)
            .unicast(address)
    }

    /// REQUEST in REBINDING.
    pub fn rebind(mac: [u8; 6], address: Ipv4Addr) -> Self {
        Self::new(MessageType::Request, mac).ciaddr(address)
    }

    pub fn option(mut self, code: u8, value: &[u8]) -> Self {
        self.options.retain(|(have, _)| *have != code);
        self.options.push((code, value.to_vec()));
        self
    }

    pub fn without(mut self, code: u8) -> Self {
        self.options.retain(|(have, _)| *have != code);
        self
    }

    pub fn ciaddr(mut self, address: Ipv4Addr) -> Self {
        self.header[12..16].copy_from_slice(&address.octets());
        self
    }

    pub fn giaddr(mut self, address: Ipv4Addr) -> Self {
        self.header[24..28].copy_from_slice(&address.octets());
        self.arrival.source = SocketAddrV4::new(address, 67);
        self.arrival.destination = NODE;
        self
    }

    pub fn unicast(mut self, source: Ipv4Addr) -> Self {
        self.arrival.source = SocketAddrV4::new(source, 68);
        self.arrival.destination = NODE;
        self
    }

    pub fn broadcast_flag(mut self) -> Self {
        self.header[10] = 0x80;
        self
    }

    pub fn pxe(self, architecture: u16) -> Self {
        let class = format!("PXEClient:Arch:{architecture:05}:UNDI:003000");
        self.option(60, class.as_bytes())
            .option(93, &architecture.to_be_bytes())
            .option(97, &[0; 17])
            .option(55, &[1, 3, 43, 60, 66, 67, 97])
    }

    pub fn ipxe(self) -> Self {
        self.pxe(0)
            .option(77, b"iPXE")
            .option(175, &[0xb1, 1, 1])
            .option(55, &[1, 3, 6, 66, 67, 175])
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.to_vec();
        for (code, value) in &self.options {
            for part in value.chunks(255) {
                bytes.extend([*code, part.len() as u8]);
                bytes.extend(part);
            }
            if value.is_empty() {
                bytes.extend([*code, 0]);
            }
        }
        bytes.push(255);
        bytes
    }

    pub fn parse(&self) -> Result<Request, Malformed> {
        Request::parse(&self.bytes(), self.arrival.clone())
    }

    pub fn request(&self) -> Request {
        self.parse().expect("a request")
    }
}

/// A reply as a client reads it.
#[derive(Clone, Debug)]
pub struct Read {
    pub bytes: Vec<u8>,
    /// In the order of the options field, then `file`, then `sname`.
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Read {
    pub fn of(reply: &Reply, packet: &Packet) -> Self {
        Self::bytes(reply.encode(&packet.request()))
    }

    pub fn bytes(bytes: Vec<u8>) -> Self {
        let mut options = Vec::new();
        Self::field(&bytes[240..], &mut options);
        let overload = options
            .iter()
            .find(|(code, _)| *code == 52)
            .map_or(0, |(_, value)| value[0]);
        if overload & 1 != 0 {
            Self::field(&bytes[108..236], &mut options);
        }
        if overload & 2 != 0 {
            Self::field(&bytes[44..108], &mut options);
        }
        Self { bytes, options }
    }

    fn field(mut rest: &[u8], options: &mut Vec<(u8, Vec<u8>)>) {
        loop {
            match rest {
                [255, ..] => return,
                [0, after @ ..] => rest = after,
                [code, length, after @ ..] => {
                    let (value, next) = after.split_at(usize::from(*length));
                    match options.last_mut() {
                        Some((last, whole)) if last == code => whole.extend(value),
                        _ => options.push((*code, value.to_vec())),
                    }
                    rest = next;
                }
                _ => panic!("no end option"),
            }
        }
    }

    pub fn codes(&self) -> Vec<u8> {
        self.options.iter().map(|(code, _)| *code).collect()
    }

    pub fn get(&self, code: u8) -> Option<&[u8]> {
        let mut found = self.options.iter().filter(|(have, _)| *have == code);
        let first = found.next().map(|(_, value)| value.as_slice());
        assert!(found.next().is_none(), "option {code} twice");
        first
    }

    pub fn address(&self, at: usize) -> Ipv4Addr {
        let octets: [u8; 4] = self.bytes[at..at + 4].try_into().unwrap();
        octets.into()
    }

    pub fn file(&self) -> String {
        let field = &self.bytes[108..236];
        let end = field.iter().position(|octet| *octet == 0).unwrap();
        String::from_utf8(field[..end].to_vec()).unwrap()
    }
}

/// The lease that an outcome made.
pub fn bound(outcome: &Outcome) -> &Lease {
    match &outcome.result {
        Ok(Effect::Bound(lease)) => lease,
        other => panic!("not bound: {other:?}"),
    }
}

/// Why nothing is sent, if so.
pub fn silent(action: &Action) -> Option<Reason> {
    match action {
        Action::Silent(reason) => Some(*reason),
        _ => None,
    }
}

pub fn release(mac: [u8; 6], address: Ipv4Addr) -> Packet {
    Packet::new(MessageType::Release, mac)
        .ciaddr(address)
        .unicast(address)
        .option(54, &NODE.octets())
}

pub fn decline(mac: [u8; 6], address: Ipv4Addr) -> Packet {
    Packet::new(MessageType::Decline, mac)
        .option(50, &address.octets())
        .option(54, &NODE.octets())
}
