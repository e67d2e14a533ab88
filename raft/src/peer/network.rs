//! openraft's network traits on the peer link.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::RaftNetworkFactory;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::{CHUNK_BYTES, Link, Links, root_cause};
use crate::host::Host;
use crate::store::Snapshot;
use crate::types::{Address, RaftSnapshot, TypeConfig, Vote};
use crate::wire::{Malformed, proto, required_vote};

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

/// Makes openraft's clients.
pub struct Network {
    links: Arc<Links>,
}

impl Network {
    /// A factory over the node's links.
    pub fn new(links: Arc<Links>) -> Self {
        Self { links }
    }

    fn client(&self, target: u64, heartbeat: bool) -> Client {
        // Without a link every call fails as if the peer were away, which is then true.
        Client {
            link: self.links.to(target).ok(),
            host: self.links.host().clone(),
            heartbeat,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, _node: &Address) -> Client {
        self.client(target, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &Address) -> Client {
        self.client(target, true)
    }
}

/// openraft's client for one peer.
pub struct Client {
    link: Option<Link>,
    host: Host,
    heartbeat: bool,
}

fn failed(status: &Status) -> RPCError<TypeConfig> {
    match status.code() {
        // The peer is there but did not do it; try again soon.
        Code::Internal | Code::Cancelled | Code::DeadlineExceeded => {
            RPCError::Network(NetworkError::from_string(status))
        }
        _ => RPCError::Unreachable(Unreachable::from_string(root_cause(status))),
    }
}

fn malformed(error: Malformed) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(error))
}

fn late(what: &str) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(format!("{what} timed out")))
}

impl Client {
    fn link(&self) -> Rpc<Link> {
        self.link
            .clone()
            .ok_or_else(|| RPCError::Unreachable(Unreachable::from_string("no link to the peer")))
    }

    async fn send_heartbeat(
        link: Link,
        request: AppendEntriesRequest<TypeConfig>,
        limit: Duration,
    ) -> Rpc<StreamAppendResult<TypeConfig>> {
        let mut fast = link.fast;
        let call = fast.heartbeat(proto::AppendRequest::from(request));
        let reply = tokio::time::timeout(limit, call)
            .await
            .map_err(|_| late("heartbeat"))?
            .map_err(|status| failed(&status))?;
        reply.into_inner().try_into().map_err(malformed)
    }

    async fn ask_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        pre: bool,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let mut fast = self.link()?.fast;
        let call = fast.vote(proto::VoteRequest::from((request, pre)));
        let reply = tokio::time::timeout(option.hard_ttl(), call)
            .await
            .map_err(|_| late("vote"))?
            .map_err(|status| failed(&status))?;
        reply.into_inner().try_into().map_err(malformed)
    }
}

impl NetBackoff<TypeConfig> for Client {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

impl NetStreamAppend<TypeConfig> for Client {
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        async move {
            // openraft waits out its back-off inside this stream: dialling before the first
            // message is pulled would try a dead peer without end and without pause.
            let Some(first) = input.next().await else {
                return Ok(futures::stream::empty().boxed());
            };
            let link = self.link()?;
            if self.heartbeat {
                let reply = Self::send_heartbeat(link, first, option.hard_ttl()).await;
                return Ok(futures::stream::once(async { reply }).boxed());
            }
            let requests = futures::stream::once(async { first })
                .chain(input)
                .map(proto::AppendRequest::from);
            let mut bulk = link.bulk;
            let replies = bulk
                .append(requests)
                .await
                .map_err(|status| failed(&status))?
                .into_inner();
            Ok(replies
                .map(|reply| match reply {
                    Ok(reply) => reply.try_into().map_err(malformed),
                    Err(status) => Err(failed(&status)),
                })
                .boxed())
        }
        .boxed()
    }
}

impl NetVote<TypeConfig> for Client {
    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.ask_vote(request, false, option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.ask_vote(request, true, option).await
    }
}

impl NetTransferLeader<TypeConfig> for Client {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let mut fast = self.link()?.fast;
        let call = fast.transfer_leader(proto::TransferRequest::from(&request));
        let reply = tokio::time::timeout(option.hard_ttl(), call)
            .await
            .map_err(|_| late("transfer"))?
            .map_err(|status| failed(&status))?
            .into_inner();
        if reply.refused.is_empty() {
            Ok(Ok(()))
        } else {
            Err(RPCError::Network(NetworkError::from_string(reply.refused)))
        }
    }
}

impl NetSnapshot<TypeConfig> for Client {
    type SnapshotData = Arc<Snapshot>;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut bulk = self.link()?.bulk;
        let (sender, receiver) = mpsc::channel(4);
        let data = Arc::clone(&snapshot.snapshot);
        // The reader ends by itself when the receiver is dropped.
        let host = self.host.clone();
        let reader = tokio::spawn(async move { send_pieces(&host, &vote, data, &sender).await });
        let call = bulk.snapshot(tokio_stream::wrappers::ReceiverStream::new(receiver));
        tokio::pin!(cancel);
        let reply = tokio::select! {
            closed = &mut cancel => return Err(closed.into()),
            reply = tokio::time::timeout(option.hard_ttl(), call) => reply,
        };
        let reply = reply
            .map_err(|_| late("snapshot"))?
            .map_err(|status| failed(&status));
        let read = reader.await;
        if let Ok(Err(error)) = &read
            && is_damage(error)
        {
            tracing::error!(%error, "the snapshot on the disk is damaged");
            snapshot.snapshot.doubt();
        }
        if let Ok(Err(error)) = read
            && reply.is_err()
        {
            return Err(RPCError::Network(NetworkError::from_string(format!(
                "cannot read the snapshot: {error}"
            )))
            .into());
        }
        let vote = required_vote(reply?.into_inner().vote).map_err(malformed)?;
        Ok(SnapshotResponse::new(vote))
    }
}

/// Whether a file of a snapshot is not what it was, or not there.
fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidData | io::ErrorKind::NotFound
    )
}

async fn send_pieces(
    host: &Host,
    vote: &Vote,
    snapshot: Arc<Snapshot>,
    sender: &mpsc::Sender<proto::SnapshotPiece>,
) -> io::Result<()> {
    use proto::snapshot_piece::Piece;
    let send = async |piece| {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the peer went away");
        let piece = proto::SnapshotPiece { piece: Some(piece) };
        sender.send(piece).await.map_err(gone)
    };
    send(Piece::Header(proto::SnapshotHeader {
        vote: Some(vote.into()),
        manifest: Some(snapshot.manifest().clone()),
    }))
    .await?;
    for (announced, path) in snapshot.files() {
        let mut file = host.blocking(None, move || File::open(path)).await?;
        let mut hasher = crc32fast::Hasher::new();
        loop {
            let read = host.blocking(None, move || -> io::Result<_> {
                let mut chunk = vec![0; CHUNK_BYTES];
                let count = file.read(&mut chunk)?;
                chunk.truncate(count);
                Ok((file, chunk))
            });
            let (rest, chunk) = read.await?;
            if chunk.is_empty() {
                break;
            }
            hasher.update(&chunk);
            send(Piece::Bytes(Bytes::from(chunk))).await?;
            file = rest;
        }
        if hasher.finalize() != announced.crc {
            let problem = format!("{} is not what was written", announced.name);
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
    }
    Ok(())
}
