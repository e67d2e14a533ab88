//! Many clients at once, each as patient as a PXE ROM, and what they came to hold.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dhcproto::v4::{Message, MessageType};

use crate::dhcp::{Client, Port, RETRIES, Reply};
use crate::wire::{Mac, mac_text};

/// An address that a client was given.
#[derive(Clone, Debug)]
pub struct Given {
    /// To whom.
    pub mac: Mac,
    /// Which.
    pub address: Ipv4Addr,
    /// Under which server identifier.
    pub server: Option<Ipv4Addr>,
    /// From its first DISCOVER to its ACK.
    pub took: Duration,
    /// When the ACK came.
    pub at: Instant,
}

/// What became of a crowd.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Those that were served, in the order of their ACKs.
    pub given: Vec<Given>,
    /// Those that gave up, as their ROM would; their machines do not boot.
    pub gave_up: Vec<Client>,
    /// How often a client was not given what it was offered and had to begin anew.
    pub refused: usize,
}

/// One client on its way.
struct Seeker<'a> {
    client: &'a Client,
    asking: Message,
    kind: MessageType,
    tries: usize,
    next: Instant,
    began: Instant,
}

/// Has all clients find an address, at most `at_once` of them on their way at any time, until all
/// are served or have given up, or `until` says that it is enough.
pub fn seek(
    port: &Port,
    clients: &[Client],
    at_once: usize,
    mut until: impl FnMut(&Outcome) -> bool,
) -> Result<Outcome> {
    let mut waiting: VecDeque<&Client> = clients.iter().collect();
    let mut seekers: HashMap<u32, Seeker<'_>> = HashMap::new();
    let mut outcome = Outcome::default();
    while !until(&outcome) {
        while seekers.len() < at_once
            && let Some(client) = waiting.pop_front()
        {
            start(port, &mut seekers, client, Instant::now())?;
        }
        if seekers.is_empty() {
            break;
        }
        let now = Instant::now();
        let due: Vec<u32> = seekers
            .iter()
            .filter(|(_, seeker)| seeker.next <= now)
            .map(|(xid, _)| *xid)
            .collect();
        for xid in due {
            repeat(port, &mut seekers, xid, &mut outcome)?;
        }
        // Often enough to ask `until`.
        let next = seekers.values().map(|seeker| seeker.next).min();
        let soon = Instant::now() + Duration::from_millis(50);
        if let Some(reply) = port.next(next.unwrap_or(soon).min(soon))? {
            hear(port, &mut seekers, &reply, &mut outcome)?;
        }
    }
    Ok(outcome)
}

fn start<'a>(
    port: &Port,
    seekers: &mut HashMap<u32, Seeker<'a>>,
    client: &'a Client,
    began: Instant,
) -> Result<()> {
    let asking = client.discover();
    port.send(&asking)?;
    seekers.insert(
        asking.xid(),
        Seeker {
            client,
            asking,
            kind: MessageType::Discover,
            tries: 1,
            next: Instant::now() + RETRIES[0],
            began,
        },
    );
    Ok(())
}

fn repeat(
    port: &Port,
    seekers: &mut HashMap<u32, Seeker<'_>>,
    xid: u32,
    outcome: &mut Outcome,
) -> Result<()> {
    let Some(seeker) = seekers.get_mut(&xid) else {
        return Ok(());
    };
    // Nobody says no to a client whose offer went to another in the meantime: it discovers anew.
    if seeker.kind == MessageType::Request && seeker.tries == 2 {
        return begin_anew(port, seekers, xid, outcome);
    }
    if let Some(wait) = RETRIES.get(seeker.tries) {
        port.send(&seeker.asking)?;
        seeker.tries += 1;
        seeker.next = Instant::now() + *wait;
    } else {
        outcome.gave_up.push(seeker.client.clone());
        seekers.remove(&xid);
    }
    Ok(())
}

fn begin_anew(
    port: &Port,
    seekers: &mut HashMap<u32, Seeker<'_>>,
    xid: u32,
    outcome: &mut Outcome,
) -> Result<()> {
    let Some(seeker) = seekers.remove(&xid) else {
        return Ok(());
    };
    outcome.refused += 1;
    start(port, seekers, seeker.client, seeker.began)
}

fn hear(
    port: &Port,
    seekers: &mut HashMap<u32, Seeker<'_>>,
    reply: &Reply,
    outcome: &mut Outcome,
) -> Result<()> {
    let xid = reply.message.xid();
    let Some(seeker) = seekers.get_mut(&xid) else {
        return Ok(());
    };
    match (&seeker.kind, reply.kind()) {
        // The first offer wins; later ones find the client requesting.
        (MessageType::Discover, Some(MessageType::Offer)) => {
            seeker.asking = seeker.client.select(reply)?;
            port.send(&seeker.asking)?;
            seeker.kind = MessageType::Request;
            seeker.tries = 1;
            seeker.next = Instant::now() + RETRIES[0];
        }
        (MessageType::Request, Some(MessageType::Ack)) => {
            outcome.given.push(Given {
                mac: seeker.client.mac,
                address: reply.address(),
                server: reply.server(),
                took: seeker.began.elapsed(),
                at: reply.at,
            });
            seekers.remove(&xid);
        }
        (MessageType::Request, Some(MessageType::Nak)) => {
            begin_anew(port, seekers, xid, outcome)?;
        }
        _ => {}
    }
    Ok(())
}

/// Invariant 1 as clients see it: no address was given to two of them.
pub fn one_owner(given: &[Given]) -> Result<()> {
    let mut owners: HashMap<Ipv4Addr, Mac> = HashMap::new();
    for one in given {
        let owner = *owners.entry(one.address).or_insert(one.mac);
        ensure!(
            owner == one.mac,
            "{} was given to {} and to {}",
            one.address,
            mac_text(owner),
            mac_text(one.mac)
        );
    }
    Ok(())
}
