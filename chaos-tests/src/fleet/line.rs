//! DHCP for many clients at once on one segment: each thread asks for its own machine.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};

use crate::dhcp::{Client, Port, Reply};

/// How often the listener looks whether all have gone home.
const GLANCE: Duration = Duration::from_millis(100);

/// What is heard on a segment, handed to whom it is for.
#[derive(Debug)]
pub struct Line<'a> {
    port: &'a Port,
    waiting: Mutex<HashMap<u32, Sender<Reply>>>,
    over: AtomicBool,
    repeats: Mutex<BTreeMap<&'static str, usize>>,
}

/// How a client asks for an address (`waits` in order; after the last it gives up).
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// What its DISCOVERs and REQUESTs are called in reports.
    pub names: [&'static str; 2],
    /// How long each copy of a DISCOVER waits.
    pub discover: &'static [Duration],
    /// How long each copy of a REQUEST waits.
    pub request: &'static [Duration],
    /// How long offers are collected before one is chosen.
    pub collects: Collects,
    /// Whether it hears broadcasts only.
    pub broadcast: bool,
    /// Whether it hears NAKs.
    pub hears_refusals: bool,
}

/// Which of several offers is taken, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collects {
    /// The first, at once.
    First,
    /// The first that came, when the time of the DISCOVER is over (OVMF).
    FirstOfWait,
    /// The first at once if it says that no proxyDHCP server is to be waited for, else the last of so
    /// long a time (iPXE).
    Last(Duration),
}

impl<'a> Line<'a> {
    /// On this port, which nobody else reads.
    pub fn new(port: &'a Port) -> Self {
        Self {
            port,
            waiting: Mutex::default(),
            over: AtomicBool::new(false),
            repeats: Mutex::default(),
        }
    }

    /// Hands out what is heard until [`Line::close`].
    pub fn listen(&self) -> Result<()> {
        while !self.over.load(Ordering::Relaxed) {
            let Some(reply) = self.port.next(Instant::now() + GLANCE)? else {
                continue;
            };
            if let Some(client) = self.waiting().get(&reply.message.xid()) {
                // It may just have given up.
                let _ = client.send(reply);
            }
        }
        Ok(())
    }

    /// Ends [`Line::listen`].
    pub fn close(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// How many messages were sent again because no answer had come, by who sent what.
    pub fn repeats(&self) -> BTreeMap<&'static str, usize> {
        let repeats = self.repeats.lock().unwrap_or_else(PoisonError::into_inner);
        repeats.clone()
    }

    /// DISCOVER, OFFER, REQUEST, ACK as a client does it; the ACK. Offers that are not `acceptable`
    /// are not heard.
    pub fn acquire(
        &self,
        client: &Client,
        manner: &Manner,
        acceptable: impl Fn(&Reply) -> bool,
    ) -> Result<Reply> {
        let offer = self.discover(client, manner, acceptable)?;
        let request = client.select(&offer)?;
        let what = manner.names[1];
        let ack = self.ask(request, what, manner, manner.request, |answers, end| {
            first(answers, end, |reply| match reply.kind() {
                Some(MessageType::Ack) => reply.server() == offer.server(),
                Some(MessageType::Nak) => manner.hears_refusals,
                _ => false,
            })
        })?;
        ensure!(
            ack.kind() == Some(MessageType::Ack),
            "{client} is refused {}, which it was offered",
            offer.address()
        );
        ensure!(
            ack.address() == offer.address(),
            "{client} is offered {} and given {}",
            offer.address(),
            ack.address()
        );
        Ok(ack)
    }

    fn discover(
        &self,
        client: &Client,
        manner: &Manner,
        acceptable: impl Fn(&Reply) -> bool,
    ) -> Result<Reply> {
        let wanted = |reply: &Reply| reply.kind() == Some(MessageType::Offer) && acceptable(reply);
        self.ask(
            client.discover(),
            manner.names[0],
            manner,
            manner.discover,
            |answers, end| {
                let chosen = first(answers, end, wanted)?;
                Some(match manner.collects {
                    Collects::First => chosen,
                    Collects::FirstOfWait => {
                        std::thread::sleep(end.saturating_duration_since(Instant::now()));
                        chosen
                    }
                    Collects::Last(_) if says_no_proxy(&chosen) => chosen,
                    Collects::Last(window) => {
                        let until = Instant::now() + window;
                        let more = std::iter::from_fn(|| first(answers, until, wanted));
                        more.last().unwrap_or(chosen)
                    }
                })
            },
        )
    }

    /// Sends copies of a message until `choose` finds an answer within the time of one.
    fn ask(
        &self,
        mut message: Message,
        what: &'static str,
        manner: &Manner,
        waits: &[Duration],
        choose: impl Fn(&Receiver<Reply>, Instant) -> Option<Reply>,
    ) -> Result<Reply> {
        let xid = message.xid();
        if manner.broadcast {
            message.set_flags(Flags::default().set_broadcast());
        }
        let (sender, answers) = channel();
        self.waiting().insert(xid, sender);
        let began = Instant::now();
        let mut answer = Ok(None);
        for (copy, wait) in waits.iter().enumerate() {
            message.set_secs(u16::try_from(began.elapsed().as_secs()).unwrap_or(u16::MAX));
            if copy > 0 {
                let mut repeats = self.repeats.lock().unwrap_or_else(PoisonError::into_inner);
                *repeats.entry(what).or_default() += 1;
            }
            answer = self
                .port
                .send(&message)
                .map(|()| choose(&answers, Instant::now() + *wait));
            if !matches!(answer, Ok(None)) {
                break;
            }
        }
        self.waiting().remove(&xid);
        match answer? {
            Some(reply) => Ok(reply),
            None => bail!(
                "no answer to {} copies of {what} in {:.1} s",
                waits.len(),
                began.elapsed().as_secs_f64()
            ),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u32, Sender<Reply>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first answer before `end` that is `wanted`.
fn first(
    answers: &Receiver<Reply>,
    end: Instant,
    wanted: impl Fn(&Reply) -> bool,
) -> Option<Reply> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match answers.recv_timeout(left) {
            Ok(reply) if wanted(&reply) => return Some(reply),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Option 175.176 of 1: no proxyDHCP server is to be waited for.
fn says_no_proxy(reply: &Reply) -> bool {
    octets(reply, 175).is_some_and(|value| value.windows(3).any(|part| part == [176, 1, 1]))
}

/// Whether a reply is for UEFI's HTTP Boot, which takes no other.
pub fn is_for_http(reply: &Reply) -> bool {
    octets(reply, 60) == Some(b"HTTPClient")
}

fn octets(reply: &Reply, code: u8) -> Option<&[u8]> {
    match reply.option(OptionCode::from(code)) {
        Some(DhcpOption::BootfileName(value) | DhcpOption::ClassIdentifier(value)) => Some(value),
        Some(DhcpOption::Unknown(option)) => Some(option.data()),
        _ => None,
    }
}

/// What a reply says about booting: the server and the file there.
pub fn boot_file(reply: &Reply) -> Option<(Ipv4Addr, String)> {
    let file = octets(reply, 67).or_else(|| reply.message.fname())?;
    let file = file.split(|octet| *octet == 0).next()?;
    let file = String::from_utf8(file.to_vec()).ok()?;
    (!file.is_empty()).then(|| (reply.message.siaddr(), file))
}
