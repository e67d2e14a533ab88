//! Opening what a request names, and reading it block by block.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_tftp::packet;
use futures::AsyncRead;
use futures::io::Sink;
use muster_raft::Transfers;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};

use crate::boot::facts::OnceSent;
use crate::boot::script::Language;
use crate::boot::{Client, Problem, Reader, Target, Tree, metrics, without_token};
use crate::spans::{Protocol, Visit};

/// Transfers at a time; each has a socket and a buffer.
const ACTIVE_MAX: usize = 1024;

/// Transfers at a time to one address: firmware runs one, and what it gave up still runs.
const ACTIVE_PER_CLIENT_MAX: usize = 32;

/// How long one request may keep others from being opened. What takes longer is opened while the
/// others go on, and its size cannot be told to the client.
const PATIENCE: Duration = Duration::from_millis(30);

/// The same for what is rendered for GRUB, which takes a file of unknown size for an empty one: as
/// long as a quorum is waited for.
const PATIENCE_GRUB: Duration = Duration::from_millis(250);

/// Opens what is asked for.
pub(super) struct Handler {
    tree: Tree,
    active: Active,
    /// Where requests are opened and rendered: not on the thread that sends.
    opener: Handle,
}

impl Handler {
    /// Opens requests on the runtime that this is called in.
    pub(super) fn new(tree: Tree, active: Active) -> Self {
        Self {
            tree,
            active,
            opener: Handle::current(),
        }
    }
}

impl async_tftp::server::Handler for Handler {
    type Reader = Transfer;
    type Writer = Sink;

    async fn read_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
    ) -> Result<(Transfer, Option<u64>), packet::Error> {
        let address = client.ip().to_canonical();
        let Some(place) = self.active.enter(address) else {
            metrics::transferred("busy", 0);
            tracing::debug!(%address, "TFTP request refused: too many transfers");
            return Err(packet::Error::Msg(
                "too many transfers, ask again".to_owned(),
            ));
        };
        let path = path.to_string_lossy().into_owned();
        let client = Client {
            address,
            uefi_http: false,
            visit: Visit::now(Protocol::Tftp),
        };
        let patience = patience(&path);
        let mut opening = self.opener.spawn(open(self.tree.clone(), client, path));
        let opened = timeout(patience, &mut opening).await;
        let (state, length, fact) = match opened {
            Ok(opened) => {
                let (reader, length, fact) = settle(opened).map_err(|error| refusal(&error))?;
                (State::Reading(reader), Some(length), fact)
            }
            Err(_) => (State::Opening(opening), None, None),
        };
        let transfer = Transfer {
            opener: self.opener.clone(),
            state,
            octets: 0,
            result: "cut",
            fact,
            _place: place,
        };
        Ok((transfer, length))
    }

    async fn write_req_open(
        &mut self,
        client: &SocketAddr,
        _: &Path,
        _: Option<u64>,
    ) -> Result<Sink, packet::Error> {
        metrics::transferred("denied", 0);
        tracing::debug!(address = %client, "TFTP write refused");
        Err(packet::Error::PermissionDenied)
    }
}

/// What is read, how long it is, and what is known once it was read.
type Opened = (Compat<Reader>, u64, Option<OnceSent>);

fn target(path: &str) -> Option<Target> {
    match path.split_once('?') {
        Some((path, query)) => Target::parse(path, Some(query)),
        None => Target::parse(path, None),
    }
}

fn patience(path: &str) -> Duration {
    match target(path) {
        Some(Target::Config(config)) if config.language == Language::Grub => PATIENCE_GRUB,
        _ => PATIENCE,
    }
}

async fn open(tree: Tree, client: Client, path: String) -> Result<Opened, Problem> {
    let found = match target(&path) {
        Some(target) => tree.find(&target, client).await,
        None => Err(Problem::NotFound(
            "there is nothing at this path".to_owned(),
        )),
    };
    let opened = match found {
        Ok(content) => {
            let (length, fact) = (content.length, content.fact.clone());
            let reader = content.reader(tree.cluster()).await;
            reader.map(|reader| (reader.compat(), length, fact))
        }
        Err(problem) => Err(problem),
    };
    let client = client.address;
    let path = without_token(&path);
    match &opened {
        Ok((_, length, _)) => {
            tracing::debug!(address = %client, path, bytes = length, "TFTP request")
        }
        // Firmware asks for files that may not be there: nothing to worry about.
        Err(problem @ Problem::NotFound(_)) => {
            tracing::debug!(address = %client, path, error = %problem, "TFTP request");
            metrics::transferred("not_found", 0);
        }
        Err(problem) => {
            tracing::warn!(address = %client, path, error = %problem, "TFTP request failed");
            metrics::transferred("failed", 0);
        }
    }
    opened
}

/// What became of opening, as an error that TFTP has a code for.
fn settle(opened: Result<Result<Opened, Problem>, tokio::task::JoinError>) -> io::Result<Opened> {
    match opened {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(Problem::NotFound(_))) => Err(io::ErrorKind::NotFound.into()),
        Ok(Err(problem)) => Err(io::Error::other(problem)),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn refusal(error: &io::Error) -> packet::Error {
    match error.kind() {
        io::ErrorKind::NotFound => packet::Error::FileNotFound,
        _ => packet::Error::Msg(error.to_string()),
    }
}

/// What is sent to one client.
pub(super) struct Transfer {
    /// Where it was opened: what reading begins, as a connection to a peer, is to outlive this thread.
    opener: Handle,
    state: State,
    octets: u64,
    result: &'static str,
    fact: Option<OnceSent>,
    _place: Place,
}

enum State {
    Opening(JoinHandle<Result<Opened, Problem>>),
    Reading(Compat<Reader>),
}

impl AsyncRead for Transfer {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let transfer = self.get_mut();
        let _entered = transfer.opener.enter();
        loop {
            let polled = match &mut transfer.state {
                State::Opening(opening) => {
                    let opened = ready!(Pin::new(opening).poll(context));
                    let (reader, _, fact) = settle(opened)?;
                    transfer.state = State::Reading(reader);
                    transfer.fact = fact;
                    continue;
                }
                State::Reading(reader) => ready!(Pin::new(reader).poll_read(context, buffer)),
            };
            match &polled {
                Ok(0) => {
                    transfer.result = "read";
                    if let Some(fact) = transfer.fact.take() {
                        fact.sent();
                    }
                }
                Ok(length) => {
                    transfer.octets = transfer.octets.saturating_add(*length as u64);
                }
                Err(_) => transfer.result = "failed",
            }
            return Poll::Ready(polled);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        match &self.state {
            State::Opening(opening) => opening.abort(),
            State::Reading(_) => metrics::transferred(self.result, self.octets),
        }
    }
}

/// The transfers that run, by client. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Active {
    clients: Arc<Mutex<HashMap<IpAddr, usize>>>,
    /// Told how many there are.
    transfers: Transfers,
}

impl Active {
    /// None yet; tells `transfers` how many there are.
    pub(super) fn told_to(transfers: Transfers) -> Self {
        Self {
            transfers,
            ..Self::default()
        }
    }

    fn tell(&self, running: usize) {
        metrics::transfers(running);
        self.transfers.set_tftp(running);
    }

    /// A place for one more transfer, if there is room.
    fn enter(&self, client: IpAddr) -> Option<Place> {
        let mut clients = self.lock();
        let total: usize = clients.values().sum();
        let own = clients.entry(client).or_default();
        if total >= ACTIVE_MAX || *own >= ACTIVE_PER_CLIENT_MAX {
            if *own == 0 {
                clients.remove(&client);
            }
            return None;
        }
        *own += 1;
        self.tell(total + 1);
        Some(Place {
            active: self.clone(),
            client,
        })
    }

    /// How many run.
    pub(super) fn count(&self) -> usize {
        self.lock().values().sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One running transfer; given back when dropped.
struct Place {
    active: Active,
    client: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.active.lock();
        if let Some(own) = clients.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                clients.remove(&self.client);
            }
        }
        self.active.tell(clients.values().sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let active = Active::default();
        let client = |n: u8| IpAddr::from([10, 0, 0, n]);
        let of_one: Vec<Place> = (0..ACTIVE_PER_CLIENT_MAX)
            .filter_map(|_| active.enter(client(1)))
            .collect();
        assert_eq!(of_one.len(), ACTIVE_PER_CLIENT_MAX);
        assert!(active.enter(client(1)).is_none());
        let of_others: Vec<Place> = (2..=255)
            .flat_map(|n| (0..ACTIVE_PER_CLIENT_MAX).map(move |_| n))
            .filter_map(|n| active.enter(client(n)))
            .collect();
        assert_eq!(of_one.len() + of_others.len(), ACTIVE_MAX);
        drop(of_others);
        assert_eq!(active.count(), ACTIVE_PER_CLIENT_MAX);
        drop(of_one);
        assert_eq!(active.count(), 0);
        assert!(active.lock().is_empty());
    }
}
