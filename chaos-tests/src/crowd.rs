//! Many clients at once, each as patient as a PXE ROM, and what they came to hold.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::iter::Peekable;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dhcproto::v4::{Message, MessageType};

use crate::dhcp::{Client, Port, RETRIES, Reply};
use crate::wire::{Mac, mac_text};

/// How often a crowd that waits asks whether it is enough.
const GLANCE: Duration = Duration::from_millis(50);

/// What one client is out for.
#[derive(Clone, Debug)]
pub struct Errand {
    /// Who.
    pub client: Client,
    /// None to find an address; else the address to get more time for, from whichever server
    /// (REBINDING).
    pub renewed: Option<Ipv4Addr>,
}

impl Errand {
    /// To find an address.
    pub fn seek(client: Client) -> Self {
        Self {
            client,
            renewed: None,
        }
    }

    /// To keep an address.
    pub fn renew(client: Client, address: Ipv4Addr) -> Self {
        Self {
            client,
            renewed: Some(address),
        }
    }
}

/// When clients set out.
#[derive(Clone, Copy, Debug)]
pub enum Arrivals {
    /// So many are on their way at any time: the next sets out when one has come home.
    InFlight(usize),
    /// So many set out a second, however those before them fare. What they took is counted from
    /// the moment they were due.
    PerSecond(f64),
}

/// How often clients repeat themselves.
#[derive(Clone, Debug)]
pub struct Patience {
    /// How long each copy of a message waits for its answer; after the last the client gives up.
    pub waits: Vec<Duration>,
    /// After so many unanswered REQUESTs a client discovers anew. None: it never does, as firmware
    /// that is bound to the server it chose (OVMF, most ROMs).
    pub anew_after: Option<usize>,
}

impl Patience {
    /// 4, 8, 16 and 32 seconds (PXE 2.1 §2.2.5), bound to the server that was chosen.
    pub fn rom() -> Self {
        Self {
            waits: RETRIES.to_vec(),
            anew_after: None,
        }
    }
}

/// An address that a client was given.
#[derive(Clone, Debug)]
pub struct Given {
    /// To whom.
    pub mac: Mac,
    /// Which.
    pub address: Ipv4Addr,
    /// Under which server identifier.
    pub server: Option<Ipv4Addr>,
    /// From its first message to its ACK.
    pub took: Duration,
    /// The part of it that it spent on timers of its own, which ran out.
    pub waited: Duration,
    /// When the ACK came.
    pub at: Instant,
}

impl Given {
    /// When its client sent its first message.
    pub fn set_out(&self) -> Instant {
        self.at.checked_sub(self.took).unwrap_or(self.at)
    }
}

/// A client that was not served; its machine does not boot.
#[derive(Clone, Debug)]
pub struct GaveUp {
    /// Who.
    pub mac: Mac,
    /// What it had asked for last.
    pub asking: MessageType,
    /// When.
    pub at: Instant,
}

/// What became of a crowd.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many have set out.
    pub started: usize,
    /// Those that were served, in the order of their ACKs.
    pub given: Vec<Given>,
    /// Those that gave up, as their ROM would.
    pub gave_up: Vec<GaveUp>,
    /// How often a client was not given what it was offered and had to begin anew.
    pub refused: usize,
    /// How many messages were sent again because no answer had come.
    pub repeats: usize,
}

/// One client on its way.
struct Seeker {
    client: Client,
    asking: Message,
    kind: MessageType,
    tries: usize,
    /// When the last copy was sent, and when its answer is missed.
    sent: Instant,
    next: Instant,
    began: Instant,
    waited: Duration,
}

/// All that are on their way, through one port.
struct Crowd<'a> {
    port: &'a Port,
    patience: &'a Patience,
    seekers: HashMap<u32, Seeker>,
    /// When which exchange may be due; of one that was answered meanwhile it is not true any more.
    timers: BinaryHeap<Reverse<(Instant, u32)>>,
    outcome: Outcome,
}

/// Has all clients find an address, at most `at_once` of them on their way at any time, until all
/// are served or have given up, or `until` says that it is enough.
pub fn seek(
    port: &Port,
    clients: &[Client],
    at_once: usize,
    until: impl FnMut(&Outcome) -> bool,
) -> Result<Outcome> {
    let patience = Patience {
        // Nobody says no to a client whose offer went to another in the meantime.
        anew_after: Some(2),
        ..Patience::rom()
    };
    let errands = clients.iter().cloned().map(Errand::seek);
    run(port, errands, Arrivals::InFlight(at_once), &patience, until)
}

/// Sends clients on their errands until all have come to an end, or `until` says that it is enough.
pub fn run(
    port: &Port,
    errands: impl Iterator<Item = Errand>,
    arrivals: Arrivals,
    patience: &Patience,
    mut until: impl FnMut(&Outcome) -> bool,
) -> Result<Outcome> {
    let mut crowd = Crowd {
        port,
        patience,
        seekers: HashMap::new(),
        timers: BinaryHeap::new(),
        outcome: Outcome::default(),
    };
    let mut errands = errands.peekable();
    let begin = Instant::now();
    while !until(&crowd.outcome) {
        let next_arrival = crowd.admit(&mut errands, arrivals, begin)?;
        if crowd.seekers.is_empty() && next_arrival.is_none() {
            break;
        }
        let now = Instant::now();
        while let Some(Reverse((due, xid))) = crowd.timers.peek().copied()
            && due <= now
        {
            crowd.timers.pop();
            crowd.repeat(xid, now)?;
        }
        let next_timer = crowd.timers.peek().map(|Reverse((due, _))| *due);
        let soon = [Some(now + GLANCE), next_timer, next_arrival];
        let deadline = soon.into_iter().flatten().min().unwrap_or(now);
        if let Some(reply) = port.next(deadline)? {
            crowd.hear(&reply)?;
        }
    }
    Ok(crowd.outcome)
}

impl Crowd<'_> {
    /// Sends out whoever may go now; when the next one does, if that is a matter of time.
    fn admit(
        &mut self,
        errands: &mut Peekable<impl Iterator<Item = Errand>>,
        arrivals: Arrivals,
        begin: Instant,
    ) -> Result<Option<Instant>> {
        match arrivals {
            Arrivals::InFlight(most) => {
                while self.seekers.len() < most
                    && let Some(errand) = errands.next()
                {
                    self.outcome.started += 1;
                    self.start(errand, Instant::now())?;
                }
                Ok(None)
            }
            Arrivals::PerSecond(rate) => {
                while errands.peek().is_some() {
                    let after = Duration::from_secs_f64(self.outcome.started as f64 / rate);
                    let due = begin + after;
                    if due > Instant::now() {
                        return Ok(Some(due));
                    }
                    if let Some(errand) = errands.next() {
                        self.outcome.started += 1;
                        self.start(errand, due)?;
                    }
                }
                Ok(None)
            }
        }
    }

    fn start(&mut self, errand: Errand, began: Instant) -> Result<()> {
        let Errand { client, renewed } = errand;
        let (asking, kind) = match renewed {
            None => (client.discover(), MessageType::Discover),
            Some(address) => (client.renew(address), MessageType::Request),
        };
        let now = Instant::now();
        self.ask(Seeker {
            client,
            asking,
            kind,
            tries: 0,
            sent: now,
            next: now,
            began,
            waited: Duration::ZERO,
        })
    }

    /// Sends what a client asks; it has not waited for as long as it can.
    fn ask(&mut self, mut seeker: Seeker) -> Result<()> {
        let (now, xid) = (Instant::now(), seeker.asking.xid());
        let Some(wait) = self.patience.waits.get(seeker.tries) else {
            self.outcome.gave_up.push(GaveUp {
                mac: seeker.client.mac,
                asking: seeker.kind,
                at: now,
            });
            return Ok(());
        };
        let seconds = now.duration_since(seeker.began).as_secs();
        seeker
            .asking
            .set_secs(u16::try_from(seconds).unwrap_or(u16::MAX));
        self.port.send(&seeker.asking)?;
        seeker.tries += 1;
        seeker.sent = now;
        seeker.next = now + *wait;
        self.timers.push(Reverse((seeker.next, xid)));
        self.seekers.insert(xid, seeker);
        Ok(())
    }

    /// No answer has come in time.
    fn repeat(&mut self, xid: u32, now: Instant) -> Result<()> {
        let due = |seeker: &Seeker| seeker.next <= now;
        if !self.seekers.get(&xid).is_some_and(due) {
            return Ok(());
        }
        let Some(mut seeker) = self.seekers.remove(&xid) else {
            return Ok(());
        };
        seeker.waited += seeker.next.duration_since(seeker.sent);
        let selecting =
            seeker.kind == MessageType::Request && seeker.asking.ciaddr().is_unspecified();
        if selecting && self.patience.anew_after == Some(seeker.tries) {
            return self.begin_anew(seeker);
        }
        if seeker.tries < self.patience.waits.len() {
            self.outcome.repeats += 1;
        }
        self.ask(seeker)
    }

    fn begin_anew(&mut self, mut seeker: Seeker) -> Result<()> {
        self.outcome.refused += 1;
        seeker.asking = seeker.client.discover();
        seeker.kind = MessageType::Discover;
        seeker.tries = 0;
        self.ask(seeker)
    }

    fn hear(&mut self, reply: &Reply) -> Result<()> {
        let Some(mut seeker) = self.seekers.remove(&reply.message.xid()) else {
            return Ok(());
        };
        match (seeker.kind, reply.kind()) {
            // The first offer wins; later ones find the client requesting.
            (MessageType::Discover, Some(MessageType::Offer)) => {
                seeker.asking = seeker.client.select(reply)?;
                seeker.kind = MessageType::Request;
                seeker.tries = 0;
                self.ask(seeker)
            }
            (MessageType::Request, Some(MessageType::Ack)) => {
                self.outcome.given.push(Given {
                    mac: seeker.client.mac,
                    address: reply.address(),
                    server: reply.server(),
                    took: reply.at.duration_since(seeker.began),
                    waited: seeker.waited,
                    at: reply.at,
                });
                Ok(())
            }
            (MessageType::Request, Some(MessageType::Nak)) => self.begin_anew(seeker),
            _ => {
                self.seekers.insert(reply.message.xid(), seeker);
                Ok(())
            }
        }
    }
}

/// Addresses that were given to two clients, with the first two of them each.
pub fn given_twice(given: &[Given]) -> Vec<(Ipv4Addr, [Mac; 2])> {
    let mut owners: HashMap<Ipv4Addr, Mac> = HashMap::new();
    let mut twice = Vec::new();
    for one in given {
        let owner = *owners.entry(one.address).or_insert(one.mac);
        if owner != one.mac {
            twice.push((one.address, [owner, one.mac]));
        }
    }
    twice
}

/// Invariant 1 as clients see it: no address was given to two of them.
pub fn one_owner(given: &[Given]) -> Result<()> {
    if let Some((address, [one, other])) = given_twice(given).first() {
        ensure!(
            one == other,
            "{address} was given to {} and to {}",
            mac_text(*one),
            mac_text(*other)
        );
    }
    Ok(())
}
