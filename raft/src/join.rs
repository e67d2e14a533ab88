//! Joining: what the joiner asks, and what the cluster answers.

use std::sync::Arc;
use std::time::Duration;

use muster_storage::model::{Member, Sha256};
use muster_storage::{Actor, Command, Effect, NodeId, Proposal, Rejection, RequestId, State};
use tonic::Status;
use uuid::Uuid;

use crate::identity::{Files, Identity};
use crate::inner::Inner;
use crate::options::Options;
use crate::peer::join_channel;
use crate::tls::{self, Authority, Names, NodeKey, Request, Sealer, Token};
use crate::wire::proto;
use crate::wire::proto::peer_client::PeerClient;
use crate::{Error, clock, desk, manage};

/// What a directory gained by joining or founding.
pub struct Admission {
    /// Who this node is.
    pub identity: Identity,
    /// Where the others' peer links listen.
    pub members: Vec<(u64, String)>,
}

fn refused(problem: impl ToString) -> proto::JoinReply {
    proto::JoinReply {
        problem: problem.to_string(),
        ..Default::default()
    }
}

/// Admits a joiner, or asks the leader to.
pub async fn admit(
    inner: &Arc<Inner>,
    request: proto::JoinRequest,
) -> Result<proto::JoinReply, Status> {
    inner
        .check_running()
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let (leading, leader) = {
        let view = inner.view();
        (view.leads_quorum(inner.id.0), view.leader)
    };
    if leading {
        return match admit_as_leader(inner, request).await {
            Ok(reply) => Ok(reply),
            Err(Error::TokenRefused) => Ok(proto::JoinReply {
                token_refused: true,
                ..Default::default()
            }),
            Err(Error::NotAdmitted(problem)) => Ok(refused(problem)),
            Err(error) => Err(Status::unavailable(error.to_string())),
        };
    }
    match leader {
        Some(leader) if leader != inner.id.0 => {
            let link = inner.links.to(leader);
            let mut fast = link
                .map_err(|error| Status::unavailable(error.to_string()))?
                .fast;
            fast.join(request).await.map(tonic::Response::into_inner)
        }
        _ => Err(Status::unavailable("the cluster has no leader just now")),
    }
}

fn check_token(state: &State, hash: &Sha256) -> Result<(), Error> {
    state
        .join_token(hash)
        .filter(|token| token.expires_at > state.time())
        .map(drop)
        .ok_or(Error::TokenRefused)
}

async fn admit_as_leader(
    inner: &Arc<Inner>,
    request: proto::JoinRequest,
) -> Result<proto::JoinReply, Error> {
    let hash = Token::hash(&request.secret);
    // Cheap refusal before anything is written; `apply` decides.
    inner.memory.read(|state| check_token(state, &hash))?;
    let csr = Request::parse(&request.csr)?;
    let member = member_of(&request, csr.key_hash())?;
    let sealer = inner
        .sealer
        .as_ref()
        .ok_or_else(|| Error::NotAdmitted("a cluster in memory takes no members".into()))?;
    // A joiner whose answer was lost asks again with the same key.
    let known = inner.memory.read(|state| {
        state
            .member_named(&member.name)
            .filter(|known| known.key_hash == member.key_hash)
            .map(|known| known.id)
    });
    let id = match known {
        // It has had a log, and may have lost it: it must not vote again under its old number.
        Some(id) if inner.view().all_voters().contains(&id.0) => {
            return Err(Error::NotAdmitted(format!(
                "node {} has been in the cluster with this key already; remove it with `muster \
                 cluster remove {}`, empty its data directory and join anew",
                id.0, member.name
            )));
        }
        Some(id) => {
            update_member(inner, id, &member).await?;
            id
        }
        None => add_member(inner, member.clone(), hash).await?,
    };
    inner.tend.notify_one();
    let authority = Authority::of(&inner.memory, sealer)?.ok_or(Error::NoLeader)?;
    let now = clock::present(&inner.memory);
    let names = Names {
        cluster: inner.cluster_id,
        node: id.0,
        name: &member.name,
        address: member.address,
    };
    Ok(proto::JoinReply {
        node: id.0,
        cluster: inner.cluster_id.to_string(),
        ca_pem: authority.pem().to_owned(),
        certificate_pem: authority.sign_request(&names, &csr, now)?.pem,
        keyring: sealer.key().to_vec().into(),
        members: inner.memory.read(|state| {
            state
                .members()
                .map(|member| proto::Node {
                    id: member.id.0,
                    address: manage::address(member).0,
                })
                .collect()
        }),
        ..Default::default()
    })
}

/// A joiner that asks again may have moved in between; the cluster must dial where it is now.
async fn update_member(inner: &Arc<Inner>, id: NodeId, member: &Member) -> Result<(), Error> {
    let known = inner.memory.read(|state| state.member(id).cloned());
    let Some(known) = known else {
        return Ok(());
    };
    let now = Member {
        id,
        identifiers: known.identifiers.clone(),
        ..member.clone()
    };
    if now == known {
        return Ok(());
    }
    let proposal = Proposal {
        request: RequestId(Uuid::new_v4()),
        actor: Actor(format!("node:{}", member.name)),
        if_match: None,
        remember: None,
        command: Command::UpdateMember(Box::new(now)),
    };
    match desk::propose(inner, proposal).await?.result {
        Ok(_) => Ok(()),
        Err(rejection) => Err(Error::NotAdmitted(rejection.to_string())),
    }
}

async fn add_member(inner: &Arc<Inner>, member: Member, token: Sha256) -> Result<NodeId, Error> {
    let proposal = Proposal {
        request: RequestId(Uuid::new_v4()),
        actor: Actor(format!("node:{}", member.name)),
        if_match: None,
        remember: None,
        command: Command::AddMember {
            member: Box::new(member),
            token: Some(token),
        },
    };
    match desk::propose(inner, proposal).await?.result {
        Ok(Effect::Member(id)) => Ok(id),
        Ok(_) => Err(Error::NotAdmitted("the cluster gave no number".into())),
        Err(Rejection::TokenRefused) => Err(Error::TokenRefused),
        Err(rejection) => Err(Error::NotAdmitted(rejection.to_string())),
    }
}

fn member_of(request: &proto::JoinRequest, key_hash: Sha256) -> Result<Member, Error> {
    let bad = |what: &str| Error::NotAdmitted(format!("{what} of the joining node is not valid"));
    let port = |port: u32, what: &str| u16::try_from(port).map_err(|_| bad(what));
    let schema = |number: u32| u16::try_from(number).map_err(|_| bad("the schema"));
    if request.name.is_empty() || request.name.len() > 253 || !request.name.is_ascii() {
        return Err(bad("the name"));
    }
    Ok(Member {
        id: NodeId::default(),
        name: request.name.clone(),
        address: request.address.parse().map_err(|_| bad("the address"))?,
        peer_port: port(request.peer_port, "the peer port")?,
        api_port: port(request.api_port, "the API port")?,
        boot_port: port(request.boot_port, "the boot port")?,
        version: request.version.clone(),
        min_schema: schema(request.min_schema)?,
        max_schema: schema(request.max_schema)?,
        key_hash,
        identifiers: Vec::new(),
    })
}

/// Joins by one of `peers`, waiting as long as it takes for one that admits this node; gives up
/// only when the token is refused.
pub async fn join(
    files: &Files,
    options: &Options,
    peers: &[String],
    token: &str,
) -> Result<Admission, Error> {
    let token: Token = token.parse()?;
    let key = match files.node_key()? {
        Some(pem) => NodeKey::from_pem(&pem)?,
        None => {
            let key = NodeKey::generate()?;
            files.set_node_key(&key.pem())?;
            key
        }
    };
    let request = proto::JoinRequest {
        secret: token.secret.to_vec().into(),
        name: options.node_name.clone(),
        address: options.advertise.to_string(),
        peer_port: options.peer_port.into(),
        api_port: options.api_port.into(),
        boot_port: options.boot_port.into(),
        version: options.version.clone(),
        min_schema: muster_storage::schema::OLDEST.into(),
        max_schema: muster_storage::schema::CURRENT.into(),
        csr: Request::make(&key.0)?.into(),
    };
    let mut pause = Duration::from_millis(100);
    loop {
        for peer in peers {
            match ask(peer, &token, request.clone()).await {
                Ok(reply) => return settle(files, &token, reply),
                Err(Error::TokenRefused) => return Err(Error::TokenRefused),
                // A namesake may be removed yet, for example.
                Err(error @ Error::NotAdmitted(_)) => tracing::error!(%peer, %error, "cannot join"),
                Err(error) => tracing::info!(%peer, %error, "cannot join yet"),
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(3));
    }
}

async fn ask(
    peer: &str,
    token: &Token,
    request: proto::JoinRequest,
) -> Result<proto::JoinReply, Error> {
    let channel = join_channel(peer, tls::join_client(token.pin)?).await?;
    let call = PeerClient::new(channel);
    let mut call = call.max_decoding_message_size(16 << 20);
    let reply = tokio::time::timeout(Duration::from_secs(15), call.join(request)).await;
    let status = |status: Status| Error::Io {
        doing: format!("asking {peer} to be admitted"),
        source: std::io::Error::other(status.message().to_owned()),
    };
    let reply = reply
        .map_err(|_| Error::Timeout)?
        .map_err(status)?
        .into_inner();
    if reply.token_refused {
        Err(Error::TokenRefused)
    } else if reply.problem.is_empty() {
        Ok(reply)
    } else {
        Err(Error::NotAdmitted(reply.problem))
    }
}

fn settle(files: &Files, token: &Token, reply: proto::JoinReply) -> Result<Admission, Error> {
    let bad =
        |what: &str| Error::NotAdmitted(format!("{what} in the cluster's answer is not valid"));
    if tls::pin(&reply.ca_pem)? != token.pin {
        return Err(bad("the authority"));
    }
    let key: [u8; 32] = reply.keyring[..]
        .try_into()
        .map_err(|_| bad("the keyring"))?;
    let identity = Identity {
        cluster_id: reply.cluster.parse().map_err(|_| bad("the cluster"))?,
        node_id: reply.node,
        complete: true,
        has_log: false,
    };
    files.set_sealer(&Sealer::new(key))?;
    files.set_ca_pem(&reply.ca_pem)?;
    files.set_node_certificate(&reply.certificate_pem)?;
    files.set_identity(&identity)?;
    let members = reply.members.into_iter();
    Ok(Admission {
        identity,
        members: members.map(|node| (node.id, node.address)).collect(),
    })
}
