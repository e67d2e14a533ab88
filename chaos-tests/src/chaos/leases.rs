//! DHCP clients: they get addresses, ask for more time, give them back, say that they are in use, or
//! forget them, on the segment and behind a relay, and write down what they were told.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dhcproto::v4::{DhcpOption, Message, MessageType};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::history::{Exchange, History, Record, Said, Want};
use super::seats::Seats;
use crate::dhcp::{Client, Port, RETRIES, Reply};
use crate::lab::{Host, Lab};
use crate::wire::{Mac, mac_text};

/// Promised lease time: short, so that addresses change hands within a run.
pub const LEASE: u32 = 40;
/// The clients' network; machines have reservations in it.
pub const SUBNET: &str = "\
kind: settings
name: cluster
decline_secs: 30
---
kind: subnet
name: lab
cidr: 10.77.0.0/16
pools: [10.77.8.0-10.77.11.255]
routers: [10.77.0.1]
lease_secs: 40
";
/// Addresses of the pool that many clients ask for.
const COVETED: u8 = 24;
/// Clients that one port has.
const CLIENTS: u32 = 24;
/// How long one that has an address waits for an answer; it asks again some other time.
const RENEWING: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// What a client holds.
#[derive(Clone, Debug)]
struct Held {
    address: Ipv4Addr,
    /// Server identifier, and where it is if the ACK came from itself.
    server: Option<Ipv4Addr>,
    at: Option<(Mac, Ipv4Addr)>,
    until: Instant,
}

/// A number of clients that take turns.
pub struct Leases<'a> {
    seats: &'a Seats,
    history: &'a History,
    host: Host,
    relayed: bool,
    family: u8,
}

/// An answer, or none, with the times that count.
struct Told {
    start: Instant,
    requested: Instant,
    reply: Option<Reply>,
}

impl<'a> Leases<'a> {
    /// Clients of a family of their own; behind the `number`th relay if they are relayed.
    pub fn new(
        lab: &Lab,
        seats: &'a Seats,
        history: &'a History,
        number: u8,
        relayed: bool,
    ) -> Result<Self> {
        let address = relayed.then(|| Ipv4Addr::new(10, 77, 0, 200 + number));
        let host = lab.host(&format!("dhcp{number}"), address)?;
        crate::fleet::widen(&host)?;
        Ok(Self {
            seats,
            history,
            host,
            relayed,
            family: 0x40 + number,
        })
    }

    /// Until it is over.
    pub fn run(&self, seed: u64, over: &AtomicBool) -> Result<()> {
        let mut chance = StdRng::seed_from_u64(seed);
        let clients: Vec<Client> = (0..CLIENTS)
            .map(|number| Client::numbered(self.family, number))
            .collect();
        let mut held: Vec<Option<Held>> = vec![None; clients.len()];
        let mut port = self.open(&self.seats.addresses())?;
        while !over.load(Ordering::Relaxed) {
            port.relay_to(&self.seats.addresses());
            let index = chance.random_range(0..clients.len());
            let (Some(client), Some(slot)) = (clients.get(index), held.get_mut(index)) else {
                continue;
            };
            *slot = self.act(&port, client, slot.take(), &mut chance, over)?;
            thread::sleep(Duration::from_millis(chance.random_range(50..350)));
        }
        Ok(())
    }

    fn open(&self, servers: &[Ipv4Addr]) -> Result<Port> {
        match self.relayed {
            true => Port::relay(&self.host, servers, Vec::new()),
            false => Port::direct(&self.host),
        }
    }

    /// What a client does when it is its turn; what it holds afterwards.
    fn act(
        &self,
        port: &Port,
        client: &Client,
        held: Option<Held>,
        chance: &mut StdRng,
        over: &AtomicBool,
    ) -> Result<Option<Held>> {
        let Some(held) = held.filter(|held| held.until > Instant::now()) else {
            let coveted = chance.random_bool(0.5).then(|| coveted(chance));
            return self.bind(port, client, coveted, over);
        };
        match chance.random_range(0..20) {
            0..3 => self.bind(port, client, Some(held.address), over),
            3..7 if held.at.is_some() && !self.relayed => {
                self.more(port, client, held, Want::Renew)
            }
            3..12 => self.more(port, client, held, Want::Rebind),
            12..14 => self.more(port, client, held, Want::Reboot),
            14..18 => self.give_back(port, client, &held, Want::Release),
            18 => self.give_back(port, client, &held, Want::Decline),
            // It is switched off, and forgets.
            _ => Ok(None),
        }
    }

    /// As patient as a ROM, and it begins anew when it is refused.
    fn bind(
        &self,
        port: &Port,
        client: &Client,
        wished: Option<Ipv4Addr>,
        over: &AtomicBool,
    ) -> Result<Option<Held>> {
        let start = Instant::now();
        loop {
            let mut discover = client.discover();
            if let Some(address) = wished {
                let options = discover.opts_mut();
                options.insert(DhcpOption::RequestedIpAddress(address));
            }
            let offer = ask(port, &discover, &RETRIES, &[MessageType::Offer], over)?;
            let mut told = Told {
                start,
                requested: offer.requested,
                reply: None,
            };
            if let Some(offer) = offer.reply {
                let request = client.select(&offer)?;
                let answers = [MessageType::Ack, MessageType::Nak];
                let answer = ask(port, &request, &RETRIES, &answers, over)?;
                (told.requested, told.reply) = (answer.requested, answer.reply);
            }
            let refused = told.reply.as_ref().and_then(Reply::kind) == Some(MessageType::Nak);
            let Some(held) = self.note(client, Want::Bind, &told, None, over)? else {
                if refused && !over.load(Ordering::Relaxed) {
                    continue;
                }
                return Ok(None);
            };
            return Ok(Some(held));
        }
    }

    /// Asks for more time, or whether all is as before; what it has without an answer it keeps.
    fn more(&self, port: &Port, client: &Client, held: Held, want: Want) -> Result<Option<Held>> {
        let message = match want {
            Want::Reboot => client.reboot(held.address),
            _ => client.renew(held.address),
        };
        let never = AtomicBool::new(false);
        let answers = [MessageType::Ack, MessageType::Nak];
        if let Port::Direct(wire) = port {
            // What is sent to its address is to find it.
            wire.hold(held.address, client.mac);
        }
        let told = match (want, held.at) {
            (Want::Renew, Some(server)) => {
                let start = Instant::now();
                port.send_to(&message, server)?;
                let [_, wait] = RENEWING;
                let reply = hear(port, &message, &answers, start + wait)?;
                Told {
                    start,
                    requested: start,
                    reply,
                }
            }
            _ => ask(port, &message, &RENEWING, &answers, &never)?,
        };
        if let Port::Direct(wire) = port {
            wire.let_go(held.address);
        }
        let refused = told.reply.as_ref().and_then(Reply::kind) == Some(MessageType::Nak);
        let more = self.note(client, want, &told, Some(held.address), &never)?;
        Ok(more.or_else(|| (!refused).then_some(held)))
    }

    /// Nobody answers, so nothing is waited for.
    fn give_back(
        &self,
        port: &Port,
        client: &Client,
        held: &Held,
        want: Want,
    ) -> Result<Option<Held>> {
        let Some(server) = held.server else {
            return Ok(None);
        };
        let now = Instant::now();
        // It has stopped using the address before it says so.
        let told = Told {
            start: now,
            requested: now,
            reply: None,
        };
        let never = AtomicBool::new(false);
        self.note(client, want, &told, Some(held.address), &never)?;
        port.send(&match want {
            Want::Decline => client.decline(held.address, server),
            _ => client.release(held.address, server),
        })?;
        Ok(None)
    }

    /// Writes an exchange down; what the client holds by it.
    fn note(
        &self,
        client: &Client,
        want: Want,
        told: &Told,
        address: Option<Ipv4Addr>,
        over: &AtomicBool,
    ) -> Result<Option<Held>> {
        let reply = told.reply.as_ref();
        let said = match reply.and_then(Reply::kind) {
            Some(MessageType::Ack) => Said::Ack,
            Some(MessageType::Nak) => Said::Nak,
            _ => Said::Nothing,
        };
        // It was told to stop, which is not the servers' fault.
        if said == Said::Nothing && want == Want::Bind && over.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let given = reply.filter(|_| said == Said::Ack);
        let seconds = given.and_then(Reply::seconds);
        let end = reply.map_or_else(Instant::now, |reply| reply.at);
        self.history.add(Record::Exchange(Exchange {
            start: self.history.at(told.start),
            requested: self.history.at(told.requested),
            end: self.history.at(end),
            mac: mac_text(client.mac),
            relayed: self.relayed,
            want,
            said,
            address: given.map(Reply::address).or(address),
            seconds,
            from: reply.map(|reply| *reply.from.ip()),
        }));
        let Some(reply) = given else { return Ok(None) };
        let seconds = seconds.context("an ACK without a time")?;
        Ok(Some(Held {
            address: reply.address(),
            server: reply.server(),
            at: reply.from_mac.map(|mac| (mac, *reply.from.ip())),
            until: told.requested + Duration::from_secs(u64::from(seconds)),
        }))
    }
}

fn coveted(chance: &mut StdRng) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 8, chance.random_range(0..COVETED))
}

/// Sends copies of a message until it is answered or the last has been waited for. The time of a lease
/// is counted from the first copy, as it cannot be told which was answered.
fn ask(
    port: &Port,
    message: &Message,
    waits: &[Duration],
    kinds: &[MessageType],
    over: &AtomicBool,
) -> Result<Told> {
    let start = Instant::now();
    let mut reply = None;
    for wait in waits {
        port.send(message)?;
        reply = hear(port, message, kinds, Instant::now() + *wait)?;
        if reply.is_some() || over.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(Told {
        start,
        requested: start,
        reply,
    })
}

fn hear(
    port: &Port,
    message: &Message,
    kinds: &[MessageType],
    deadline: Instant,
) -> Result<Option<Reply>> {
    while let Some(reply) = port.next(deadline)? {
        let wanted = reply.kind().is_some_and(|kind| kinds.contains(&kind));
        if wanted && reply.message.xid() == message.xid() {
            return Ok(Some(reply));
        }
    }
    Ok(None)
}
