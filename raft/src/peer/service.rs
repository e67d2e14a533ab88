//! The peer protocol's calls, each checked before it reaches anything.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use muster_storage::NodeId;
use muster_storage::model::Sha256;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::header;
use super::serve::Origin;
use crate::cluster::Inner;
use crate::store::Receiver;
use crate::types::{RaftSnapshot, Vote};
use crate::wire::{proto, required_vote};
use crate::{artifacts, desk, join, manage, pulse};

type Reply<T> = Result<Response<T>, Status>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers peers on behalf of a node.
pub struct Service {
    inner: Arc<Inner>,
}

impl Service {
    /// A service for this node.
    pub fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// Who calls: a present member of this cluster that means this very node.
    fn check(&self, metadata: &MetadataMap, extensions: &Extensions) -> Result<u64, Status> {
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
        inner.memory.read(|state| match state.member(NodeId(from)) {
            Some(member) if certificate.key_hash() != Some(member.key_hash.0) => Err(
                Status::permission_denied("the certificate's key is not the member's"),
            ),
            // Ids come from revisions: one that this node has passed without the member being
            // there was removed, a later one has not been heard of yet.
            None if state.revision().0 > from => Err(Status::permission_denied(
                "this node was removed from the cluster",
            )),
            _ => Ok(from),
        })
    }

    fn guard<T>(&self, request: Request<T>) -> Result<(u64, T), Status> {
        let from = self.check(request.metadata(), request.extensions())?;
        Ok((from, request.into_inner()))
    }
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
        let (_, requests) = self.guard(request)?;
        // What cannot be read ends the stream; the leader starts another.
        let requests = futures::stream::unfold(requests, |mut requests| async move {
            let request = requests.message().await.ok()??.try_into().ok()?;
            Some((request, requests))
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
        Ok(Response::new(Box::pin(replies)))
    }

    async fn heartbeat(&self, request: Request<proto::AppendRequest>) -> Reply<proto::AppendReply> {
        let (_, request) = self.guard(request)?;
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
        let (_, request) = self.guard(request)?;
        let pre = request.pre;
        let request = request.try_into()?;
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
        let (_, request) = self.guard(request)?;
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
        let (_, mut pieces) = self.guard(request)?;
        let Some(Piece::Header(header)) = pieces.message().await?.and_then(|piece| piece.piece)
        else {
            return Err(Status::invalid_argument("a snapshot without its header"));
        };
        let vote: Vote = required_vote(header.vote)?;
        let manifest = header
            .manifest
            .ok_or_else(|| Status::invalid_argument("a snapshot without its manifest"))?;
        let memory = Arc::clone(&self.inner.memory);
        let blocking = |error: tokio::task::JoinError| Status::internal(error.to_string());
        let parent = memory.snapshots().clone();
        let mut receiver = tokio::task::spawn_blocking(move || Receiver::start(&parent, manifest))
            .await
            .map_err(blocking)?
            .map_err(fatal)?;
        while let Some(piece) = pieces.message().await? {
            let Some(Piece::Bytes(bytes)) = piece.piece else {
                return Err(Status::invalid_argument("a second header in a snapshot"));
            };
            receiver =
                tokio::task::spawn_blocking(move || receiver.write(&bytes).map(|()| receiver))
                    .await
                    .map_err(blocking)?
                    .map_err(fatal)?;
        }
        let rows = Arc::clone(memory.rows());
        let snapshot = tokio::task::spawn_blocking(move || receiver.finish(&*rows))
            .await
            .map_err(blocking)?
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

    type PulseStream = Replies<proto::Beat>;

    async fn pulse(&self, request: Request<Streaming<proto::Beat>>) -> Reply<Self::PulseStream> {
        let (from, beats) = self.guard(request)?;
        Ok(Response::new(pulse::answer(
            Arc::clone(&self.inner),
            from,
            beats,
        )))
    }

    async fn hold(&self, request: Request<proto::HoldRequest>) -> Reply<proto::HoldReply> {
        let (from, request) = self.guard(request)?;
        let sha = digest(&request.sha256)?;
        let held = artifacts::hold(&self.inner, sha, Some(from)).await;
        Ok(Response::new(proto::HoldReply { held: held.is_ok() }))
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
