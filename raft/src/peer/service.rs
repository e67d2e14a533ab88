//! The peer protocol's calls, each checked before it reaches anything.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use muster_storage::NodeId;
use muster_storage::model::Sha256;
use openraft::raft::VoteRequest;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Response, Status, Streaming};
use uuid::Uuid;

use super::header;
use super::serve::Origin;
use crate::inner::Inner;
use crate::store::Receiver;
use crate::tls::{PeerCertificate, peer_name};
use crate::types::{RaftSnapshot, TypeConfig, Vote};
use crate::wire::{proto, required_vote};
use crate::{artifacts, ask, desk, drain, join, manage, pulse, renew, succession};

type Reply<T> = Result<Response<T>, Status>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a removed node is told.
pub const REMOVED: &str = "this node was removed from the cluster";

/// Answers peers on behalf of a node.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

impl Service {
    /// A service for this node.
    pub fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// Whether a member is known at this address.
    pub fn is_members_address(&self, address: IpAddr) -> bool {
        self.inner.memory.read(|state| {
            state
                .members()
                .any(|member| member.address.to_canonical() == address)
        })
    }

    /// Who calls: a present member of this cluster that means this very node.
    fn check(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
        for_raft: bool,
    ) -> Result<Caller, Status> {
        let field = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
        let inner = &self.inner;
        if field(header::CLUSTER) != Some(&inner.cluster_id.to_string()) {
            return Err(Status::permission_denied("this node is of another cluster"));
        }
        if field(header::TO) != Some(&inner.id.0.to_string()) {
            return Err(Status::permission_denied("this is another node"));
        }
        let from: u64 = field(header::FROM)
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Status::permission_denied("the caller does not say who it is"))?;
        let certificate = extensions
            .get::<Origin>()
            .and_then(|origin| origin.certificate.as_ref())
            .ok_or_else(|| Status::unauthenticated("a client certificate is needed"))?;
        if !certificate.is_for(inner.cluster_id, from) {
            return Err(Status::permission_denied(
                "the certificate is another node's",
            ));
        }
        let caller = Caller {
            id: from,
            certificate: certificate.clone(),
        };
        self.admit(&caller, for_raft)?;
        Ok(caller)
    }

    /// Whether a node may call: a member with its own key may, or with one that took its place. One
    /// that the state does not know yet may take part in Raft, where a call is taken without asking who
    /// is a member (Ongaro, "Consensus", §4.1): a node that was given an old snapshot hears of a leader
    /// that joined since then from that leader alone. Its certificate says that it is of this cluster.
    fn admit(&self, caller: &Caller, for_raft: bool) -> Result<(), Status> {
        let from = caller.id;
        let known = self
            .inner
            .memory
            .read(|state| match state.member(NodeId(from)) {
                Some(member) => Known::Member(member.key_hash),
                None if state.cluster().is_none() => Known::Nothing,
                // Ids come from revisions: one that this node has passed without the member being
                // there was removed, a later one has not been heard of yet.
                None if state.revision().0 > from => Known::Removed,
                None => Known::NotYet,
            });
        let not_yet = || {
            Err(Status::failed_precondition(
                "the caller is not a member here",
            ))
        };
        match known {
            Known::Member(key) if caller.has_key(self.inner.cluster_id, key) => Ok(()),
            Known::Member(_) => Err(Status::permission_denied(
                "the certificate's key is not the member's",
            )),
            Known::Removed => Err(Status::permission_denied(REMOVED)),
            Known::Nothing | Known::NotYet if for_raft => Ok(()),
            Known::Nothing | Known::NotYet => not_yet(),
        }
    }

    /// A call that only members make.
    fn guard<T>(&self, request: Request<T>) -> Result<(u64, T), Status> {
        let caller = self.check(request.metadata(), request.extensions(), false)?;
        Ok((caller.id, request.into_inner()))
    }

    /// A call of Raft's own.
    fn guard_raft<T>(&self, request: Request<T>) -> Result<(Caller, T), Status> {
        let caller = self.check(request.metadata(), request.extensions(), true)?;
        Ok((caller, request.into_inner()))
    }
}

/// Who calls.
#[derive(Clone)]
struct Caller {
    id: u64,
    certificate: PeerCertificate,
}

impl Caller {
    fn has_key(&self, cluster: Uuid, key: Sha256) -> bool {
        let name = peer_name(cluster, self.id);
        self.certificate.has_key(&name, key.0)
    }
}

/// What the state says of a caller.
enum Known {
    /// With this key.
    Member(Sha256),
    /// This node has no state yet.
    Nothing,
    Removed,
    NotYet,
}

fn fatal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn digest(bytes: &[u8]) -> Result<Sha256, Status> {
    bytes
        .try_into()
        .map(Sha256)
        .map_err(|_| Status::invalid_argument("not a SHA-256 digest"))
}

#[tonic::async_trait]
impl proto::peer_server::Peer for Service {
    async fn join(&self, request: Request<proto::JoinRequest>) -> Reply<proto::JoinReply> {
        join::admit(&self.inner, request.into_inner())
            .await
            .map(Response::new)
    }

    type AppendStream = Replies<proto::AppendReply>;

    async fn append(
        &self,
        request: Request<Streaming<proto::AppendRequest>>,
    ) -> Reply<Self::AppendStream> {
        let (caller, requests) = self.guard_raft(request)?;
        let ended = Arc::new(OnceLock::new());
        let (service, why) = (self.clone(), Arc::clone(&ended));
        // What cannot be read ends the stream; the leader starts another.
        let requests = futures::stream::unfold(requests, move |mut requests| {
            let (service, caller, why) = (service.clone(), caller.clone(), Arc::clone(&why));
            async move {
                let request = requests.message().await.ok()??.try_into().ok()?;
                // The stream may outlive the membership.
                if let Err(status) = service.admit(&caller, true) {
                    let _ = why.set(status);
                    return None;
                }
                Some((request, requests))
            }
        });
        let inner = Arc::clone(&self.inner);
        let results = self.inner.raft.stream_append(requests);
        let replies = results.map(move |result| {
            let _alive = &inner;
            match result {
                Ok(result) => Ok(result.into()),
                Err(error) => Err(fatal(error)),
            }
        });
        let last = futures::stream::iter(std::iter::from_fn(move || ended.get().cloned().map(Err)));
        Ok(Response::new(Box::pin(replies.chain(last.take(1)))))
    }

    async fn heartbeat(&self, request: Request<proto::AppendRequest>) -> Reply<proto::AppendReply> {
        let (_, request) = self.guard_raft(request)?;
        let request: openraft::raft::AppendEntriesRequest<_> = request.try_into()?;
        let previous = request.prev_log_id;
        let last = request.entries.last().map(|e| e.log_id).or(previous);
        let response = self
            .inner
            .raft
            .append_entries(request)
            .await
            .map_err(fatal)?;
        use openraft::raft::{AppendEntriesResponse as R, StreamAppendError};
        let result = match response {
            R::Success => Ok(last),
            R::PartialSuccess(id) => Ok(id),
            R::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote)),
            R::Conflict => match previous {
                Some(id) => Err(StreamAppendError::Conflict(id)),
                None => return Err(Status::internal("a conflict before the first entry")),
            },
        };
        Ok(Response::new(result.into()))
    }

    async fn vote(&self, request: Request<proto::VoteRequest>) -> Reply<proto::VoteReply> {
        let (_, request) = self.guard_raft(request)?;
        let pre = request.pre;
        let mut request: VoteRequest<TypeConfig> = request.try_into()?;
        // There is nobody whose lease this node would have to keep.
        request.leadership_transfer |= succession::ended_leader(&self.inner).is_some();
        let raft = &self.inner.raft;
        let response = if pre {
            raft.pre_vote(request).await
        } else {
            raft.vote(request).await
        };
        Ok(Response::new(response.map_err(fatal)?.into()))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferRequest>,
    ) -> Reply<proto::TransferReply> {
        let (_, request) = self.guard_raft(request)?;
        let result = self
            .inner
            .raft
            .handle_transfer_leader(request.try_into()?)
            .await
            .map_err(fatal)?;
        Ok(Response::new(proto::TransferReply {
            refused: result
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default(),
        }))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotPiece>>,
    ) -> Reply<proto::SnapshotReply> {
        use proto::snapshot_piece::Piece;
        let (_, mut pieces) = self.guard_raft(request)?;
        let Some(Piece::Header(header)) = pieces.message().await?.and_then(|piece| piece.piece)
        else {
            return Err(Status::invalid_argument("a snapshot without its header"));
        };
        let vote: Vote = required_vote(header.vote)?;
        let manifest = header
            .manifest
            .ok_or_else(|| Status::invalid_argument("a snapshot without its manifest"))?;
        let memory = Arc::clone(&self.inner.memory);
        let host = memory.host();
        let parent = memory.snapshots().clone();
        let mut receiver = host
            .blocking(None, move || Receiver::start(&parent, manifest))
            .await
            .map_err(fatal)?;
        while let Some(piece) = pieces.message().await? {
            let Some(Piece::Bytes(bytes)) = piece.piece else {
                return Err(Status::invalid_argument("a second header in a snapshot"));
            };
            receiver = host
                .blocking(None, move || receiver.write(&bytes).map(|()| receiver))
                .await
                .map_err(fatal)?;
        }
        let rows = Arc::clone(memory.rows());
        let snapshot = host
            .blocking(Some(memory.jobs()), move || receiver.finish(&*rows))
            .await
            .map_err(fatal)?;
        let snapshot = RaftSnapshot {
            meta: snapshot.meta().map_err(fatal)?,
            snapshot: Arc::new(snapshot),
        };
        let response = self
            .inner
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(fatal)?;
        Ok(Response::new(proto::SnapshotReply {
            vote: Some((&response.vote).into()),
        }))
    }

    async fn propose(&self, request: Request<proto::ProposeRequest>) -> Reply<proto::ProposeReply> {
        let (_, request) = self.guard(request)?;
        desk::serve(&self.inner, request).await.map(Response::new)
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Reply<proto::ReadIndexReply> {
        self.guard(request)?;
        let index = self.inner.own_read_index().await;
        Ok(Response::new(proto::ReadIndexReply { index }))
    }

    async fn manage(&self, request: Request<proto::ManageRequest>) -> Reply<proto::ManageReply> {
        let (_, request) = self.guard(request)?;
        Ok(Response::new(manage::serve(&self.inner, request).await))
    }

    async fn drain(&self, request: Request<proto::DrainRequest>) -> Reply<proto::OrderReply> {
        self.guard(request)?;
        Ok(Response::new(drain::serve(&self.inner).await))
    }

    async fn renew(&self, request: Request<proto::RenewRequest>) -> Reply<proto::OrderReply> {
        self.guard(request)?;
        Ok(Response::new(renew::serve(&self.inner).await))
    }

    async fn is_draining(
        &self,
        request: Request<proto::IsDrainingRequest>,
    ) -> Reply<proto::IsDrainingReply> {
        self.guard(request)?;
        let draining = drain::claimed(&self.inner);
        Ok(Response::new(proto::IsDrainingReply { draining }))
    }

    async fn ask(&self, request: Request<proto::AskRequest>) -> Reply<proto::AskReply> {
        let (_, request) = self.guard(request)?;
        Ok(Response::new(ask::serve(&self.inner, request).await))
    }

    type PulseStream = Replies<proto::Beat>;

    async fn pulse(&self, request: Request<Streaming<proto::Beat>>) -> Reply<Self::PulseStream> {
        let caller = self.check(request.metadata(), request.extensions(), false)?;
        let (service, from) = (self.clone(), caller.id);
        let still = move || service.admit(&caller, false);
        Ok(Response::new(pulse::answer(
            Arc::clone(&self.inner),
            from,
            request.into_inner(),
            still,
        )))
    }

    async fn hold(&self, request: Request<proto::HoldRequest>) -> Reply<proto::HoldReply> {
        let (from, request) = self.guard(request)?;
        let sha = digest(&request.sha256)?;
        let held = artifacts::hold(&self.inner, sha, request.size, Some(from)).await;
        Ok(Response::new(proto::HoldReply {
            held: held.is_ok(),
            full: held.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull),
        }))
    }

    async fn holdings(
        &self,
        request: Request<proto::HoldingsRequest>,
    ) -> Reply<proto::HoldingsReply> {
        self.guard(request)?;
        Ok(Response::new(artifacts::holdings::serve(&self.inner)))
    }

    type FetchStream = Replies<proto::FetchPiece>;

    async fn fetch(&self, request: Request<proto::FetchRequest>) -> Reply<Self::FetchStream> {
        let (_, request) = self.guard(request)?;
        let sha = digest(&request.sha256)?;
        let pieces = artifacts::read(&self.inner.blobs, sha, request.offset)
            .await
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Status::not_found("this node lacks the artifact"),
                _ => fatal(error),
            })?;
        let pieces = pieces.map(|piece: std::io::Result<Bytes>| match piece {
            Ok(bytes) => Ok(proto::FetchPiece { bytes }),
            Err(error) => Err(fatal(error)),
        });
        Ok(Response::new(Box::pin(pieces)))
    }
}
