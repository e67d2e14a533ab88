//! A directory in which a cluster that was lost goes on as a new one: with its state and authority,
//! another id, and one member. What is left of the old one is of another cluster from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use muster_storage::command::Refounding;
use muster_storage::engine::Engine;
use muster_storage::model::{Member, Sha256};
use muster_storage::state::RowWrite;
use muster_storage::{
    Actor, Command, Effect, Entry, NodeId, Proposal, RequestId, Revision, State, Timestamp, schema,
};
use prost::Message;
use uuid::Uuid;

use crate::Error;
use crate::host::Host;
use crate::identity::{Files, Identity};
use crate::keyring::Keyring;
use crate::manage;
use crate::start::Open;
use crate::store::{Snapshot, claim, note};
use crate::tls::{Authority, Names, NodeKey, Sealer};
use crate::types::{LogId, Membership, StoredMembership, Vote};
use crate::wire::proto;

/// Log entries that are passed over: what the old cluster wrote after the state was kept is lost,
/// and its revisions must not come again with another meaning.
const PASSED_OVER: u64 = 1 << 24;

/// Term of the entry that makes the new cluster.
const TERM: u64 = 1;

/// Rows written at a time.
const ROWS: usize = 4096;

/// A new cluster in a directory.
#[derive(Clone, Debug)]
pub struct Refounded {
    /// Its id.
    pub cluster_id: Uuid,
    /// Its one member.
    pub node_id: NodeId,
    /// Revision of its first entry.
    pub revision: Revision,
}

/// Who is to be the one member. It tells its present address itself when it is started.
pub struct NewMember(Member);

impl NewMember {
    /// A node of which nothing is known but its name.
    pub fn named(name: &str) -> Self {
        Self(Member {
            id: NodeId::default(),
            name: name.to_owned(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            peer_port: 0,
            api_port: 0,
            boot_port: 0,
            version: String::new(),
            min_schema: schema::OLDEST,
            max_schema: schema::CURRENT,
            key_hash: Sha256([0; 32]),
            identifiers: Vec::new(),
        })
    }

    /// A node that was a member.
    pub fn like(member: &Member) -> Self {
        Self(member.clone())
    }
}

/// Writes a new cluster into `dir`, which has none: `state`, whose last entry is `last`, and the
/// authority, whose key `keyring` opens.
pub fn refound(
    dir: &Path,
    mut state: State,
    last: u64,
    keyring: &Sealer,
    NewMember(member): NewMember,
) -> Result<Refounded, Error> {
    let corrupt = |what: String| Error::Corrupt(what);
    let cluster = state.cluster().cloned();
    let cluster = cluster.ok_or_else(|| corrupt("the state is of no cluster".to_owned()))?;
    let old = &cluster.ca_key_sealed;
    let authority = Authority::open(&cluster.ca_pem, old, keyring, cluster.id)?;
    let (cluster_id, sealer, key) = (Uuid::new_v4(), Sealer::generate(), NodeKey::generate()?);
    let index = last.saturating_add(PASSED_OVER);
    let command = Command::Refound(Box::new(Refounding {
        cluster_id,
        ca_key_sealed: authority.sealed_key(&sealer, cluster_id)?,
        keyring: Keyring::open(&cluster, keyring)?
            .of_cluster(cluster_id)
            .sealed(&sealer)?,
        member: Member {
            key_hash: key.hash(),
            ..member
        },
    }));
    let member = apply(&mut state, index, command)?;
    let files = Files::open(dir)?;
    let identity = Identity {
        cluster_id,
        node_id: member.id.0,
        complete: true,
        has_log: true,
    };
    write_stores(dir, &state, index, &identity, &member)?;
    let names = Names {
        cluster: cluster_id,
        node: member.id.0,
        name: &member.name,
        address: member.address,
    };
    files.set_sealer(&sealer)?;
    files.set_node_key(&key.pem())?;
    let now = Timestamp(Host::Real.wall());
    files.set_node_certificate(&authority.sign(&names, &key.0, now)?.pem)?;
    files.set_ca_pem(authority.pem())?;
    // Last: without it the directory is no node's.
    files.set_identity(&identity)?;
    Ok(Refounded {
        cluster_id,
        node_id: member.id,
        revision: state.revision(),
    })
}

/// Makes the state a new cluster's; its member as it is recorded.
fn apply(state: &mut State, index: u64, command: Command) -> Result<Member, Error> {
    let entry = Entry {
        at: Timestamp(Host::Real.wall()),
        proposals: vec![Proposal {
            request: RequestId(Uuid::new_v4()),
            actor: Actor("node:recovery".to_owned()),
            if_match: None,
            remember: None,
            command,
        }],
    };
    let outcome = state.apply(Revision::new(index, 0), &entry).pop();
    let member = match outcome.map(|(outcome, _)| outcome.result) {
        Some(Ok(Effect::Member(id))) => state.member(id).cloned(),
        Some(Err(rejection)) => return Err(Error::Refused(rejection.to_string())),
        Some(Ok(_)) | None => None,
    };
    member.ok_or_else(|| Error::Corrupt("the new cluster has no member".to_owned()))
}

/// Log, rows and snapshot as they are when everything through `index` has been applied and purged,
/// and the member votes alone.
fn write_stores(
    dir: &Path,
    state: &State,
    index: u64,
    identity: &Identity,
    member: &Member,
) -> Result<(), Error> {
    let doing = || Error::io(format!("writing to {}", dir.display()));
    let id = LogId::from(proto::LogId {
        term: TERM,
        node: identity.node_id,
        index,
    });
    let voters = vec![BTreeSet::from([identity.node_id])];
    let nodes = BTreeMap::from([(identity.node_id, manage::address(member))]);
    let membership = Membership::new(voters, nodes)
        .map_err(|error| Error::Corrupt(format!("the new membership: {error}")))?;
    let membership = StoredMembership::new(Some(id), membership);
    let applied = proto::LogId::from(&id).encode_to_vec();

    let Open(engine) = &Open(Engine::open(dir).map_err(doing())?);
    let rows = state
        .rows()
        .map_err(|error| Error::Corrupt(error.to_string()))?;
    let notes = [
        (note::APPLIED, applied.clone()),
        (
            note::MEMBERSHIP,
            proto::StoredMembership::from(&membership).encode_to_vec(),
        ),
        (note::DIGEST, state.digest().0.to_vec()),
    ];
    let write = || -> std::io::Result<()> {
        for part in rows.chunks(ROWS) {
            let part: &[RowWrite] = part;
            engine.rows.write(part, &[])?;
        }
        engine.rows.write(&[], &notes)?;
        engine.rows.sync()?;
        // A node that joins is given the snapshot: the log has nothing for it.
        Snapshot::build(&*engine.rows, &dir.join("snapshots"))?;
        claim(&*engine.log, &identity.mark(), false)?;
        let vote = proto::Vote::from(&Vote::new_committed(TERM, identity.node_id));
        engine.log.set_note(note::VOTE, &vote.encode_to_vec())?;
        engine.log.set_note(note::COMMITTED, &applied)?;
        engine.log.purge(index, (note::PURGED, &applied))?;
        engine.log.sync()
    };
    write().map_err(doing())
}
