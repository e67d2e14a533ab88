//! How a cluster goes from one version to the next, one node at a time, and its schema after them.
//!
//! [`judge`] decides on what a node sees; it takes part in nothing. What it says is advice to whoever
//! stops the nodes: [`crate::drain`] refuses by itself what would stop writes.

use muster_storage::{Actor, Command, NodeId, Proposal, RequestId, Timestamp};
use semver::Version;
use uuid::Uuid;

use crate::Error;
use crate::inner::Inner;
use crate::status::{self, NodeStatus, Role, Status};

/// Entries by which a node may be behind the furthest, at any moment of a busy cluster.
const LAG_MAX: u64 = 1024;

/// How far an upgrade is, and what comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// The version that all nodes are to have.
    pub to: String,
    /// Schema that the cluster behaves as.
    pub schema: u16,
    /// The newest that all nodes support.
    pub supported: u16,
    /// Since when all nodes have supported a newer one.
    pub raisable_since: Option<Timestamp>,
    /// When the cluster goes on to it by itself.
    pub raise_due: Option<Timestamp>,
    /// Nodes that do not have the version yet, in the order in which they are to get it: the leader
    /// is the last.
    pub left: Vec<String>,
    /// The one of them that is being upgraded: it is draining.
    pub under_way: Option<String>,
    /// Why no node may be taken down now. Empty: the first of `left` may be.
    pub not_now: Vec<String>,
}

/// What the state says of schemas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schemas {
    /// Schema that the cluster behaves as.
    pub present: u16,
    /// The newest that all nodes support.
    pub supported: u16,
    /// Since when that has been a newer one.
    pub raisable_since: Option<Timestamp>,
    /// When the cluster goes on by itself.
    pub raise_due: Option<Timestamp>,
}

/// What a node sees of an upgrade to a version, or to the newest that any node has.
pub fn of(inner: &Inner, to: Option<String>) -> Upgrade {
    let schemas = inner.memory.read(|state| Schemas {
        present: state.schema(),
        supported: state.common_schema(),
        raisable_since: state.raisable_since(),
        raise_due: state.raise_due(),
    });
    judge(&status::of(inner), schemas, to)
}

/// What is left to do, and why nothing may be done now.
pub fn judge(status: &Status, schemas: Schemas, to: Option<String>) -> Upgrade {
    let newest = || {
        let versions = status.nodes.iter().map(|node| &node.version);
        versions.max_by_key(|version| order(version)).cloned()
    };
    let to = to.or_else(newest).unwrap_or_default();
    let mut left: Vec<&NodeStatus> = status
        .nodes
        .iter()
        .filter(|node| node.version != to)
        .collect();
    // One that is draining first: what was begun is ended.
    left.sort_by_key(|node| (!node.draining, status.leader == Some(node.id), node.id));
    let under_way = left.first().filter(|node| node.draining);
    Upgrade {
        schema: schemas.present,
        supported: schemas.supported,
        raisable_since: schemas.raisable_since,
        raise_due: schemas.raise_due,
        not_now: not_now(status, under_way.map(|node| node.id)),
        under_way: under_way.map(|node| node.name.clone()),
        left: left.iter().map(|node| node.name.clone()).collect(),
        to,
    }
}

/// What is no version comes before every one.
fn order(version: &str) -> Option<Version> {
    Version::parse(version).ok()
}

/// Every reason why no node may be taken down, but for one that is under way already.
fn not_now(status: &Status, under_way: Option<NodeId>) -> Vec<String> {
    let mut reasons = Vec::new();
    if !status.quorum {
        reasons.push("there is no quorum".to_owned());
    }
    for node in &status.nodes {
        let name = &node.name;
        if !node.live {
            reasons.push(format!("node `{name}` is not live; start it, or remove it"));
            continue;
        }
        if node.draining && under_way != Some(node.id) {
            reasons.push(format!(
                "node `{name}` is draining; stop it and start it again"
            ));
        }
        if let Some(fault) = &node.fault {
            reasons.push(format!("node `{name}`: {fault}"));
        }
        if node.role == Role::Learner {
            reasons.push(format!("node `{name}` is joining still"));
        }
        if let Some(lag) = node.lag.filter(|lag| *lag > LAG_MAX) {
            reasons.push(format!("node `{name}` is {lag} log entries behind"));
        }
    }
    reasons
}

/// Goes on to the newest schema that any node supports, if all do: what older binaries do not know may
/// be written from then on, and none of them can be started again. The schema; the present one when
/// there is no newer.
pub async fn finalize(inner: &Inner, actor: Actor) -> Result<u16, Error> {
    crate::reads::barrier(inner).await?;
    // The newest that anyone has: who does not is named by the refusal.
    let (schema, to) = inner.memory.read(|state| {
        let newest = state.members().map(|member| member.max_schema).max();
        (state.schema(), newest.unwrap_or(state.schema()))
    });
    if to <= schema {
        return Ok(schema);
    }
    if let Some(why) = unsure(&status::of(inner)) {
        return Err(Error::Refused(why));
    }
    let proposal = Proposal {
        request: RequestId(Uuid::new_v4()),
        actor,
        if_match: None,
        remember: None,
        command: Command::RaiseSchema { to },
    };
    let outcome = crate::desk::propose(inner, proposal).await?;
    outcome
        .result
        .map(|_| to)
        .map_err(|rejection| Error::Refused(rejection.to_string()))
}

/// Why it is not sure which binaries the members have: one that is not there may come back with the
/// one that it had before.
pub fn unsure(status: &Status) -> Option<String> {
    let away = status.nodes.iter().filter(|node| !node.live);
    let away: Vec<&str> = away.map(|node| node.name.as_str()).collect();
    (!away.is_empty()).then(|| {
        format!(
            "{} must be live, so that it is sure which muster they have; start them, or remove them",
            away.join(", ")
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use muster_storage::Revision;

    use super::*;

    fn node(id: u64, version: &str) -> NodeStatus {
        NodeStatus {
            id: NodeId(id),
            name: format!("n{id}"),
            address: [10, 0, 0, 1].into(),
            role: Role::Voter,
            revision: Some(Revision(9)),
            lag: Some(0),
            last_contact_ms: Some(0),
            version: version.into(),
            live: true,
            fault: None,
            draining: false,
            transfers: Some(0),
        }
    }

    /// Led by n2.
    fn cluster(versions: [&str; 3]) -> Status {
        Status {
            cluster_id: Uuid::nil(),
            leader: Some(NodeId(2)),
            revision: Revision(9),
            quorum: true,
            nodes: (1..).zip(versions).map(|(id, it)| node(id, it)).collect(),
        }
    }

    fn left(status: &Status, to: Option<&str>) -> Vec<String> {
        judge(status, Schemas::default(), to.map(str::to_owned)).left
    }

    #[test]
    fn the_leader_comes_last() {
        let (old, new) = ("0.9.0", "0.10.0");
        assert_eq!(
            left(&cluster([old, old, old]), Some(new)),
            ["n1", "n3", "n2"]
        );
        // By number, not by letter.
        assert_eq!(left(&cluster([new, old, old]), None), ["n3", "n2"]);
        assert_eq!(left(&cluster([new, old, new]), None), ["n2"]);
        assert!(left(&cluster([new, new, new]), None).is_empty());
        // Back.
        assert_eq!(left(&cluster([new, old, old]), Some(old)), ["n1"]);
    }

    #[test]
    fn what_was_begun_is_ended_first() {
        let mut status = cluster(["1.0.0", "1.0.0", "1.1.0"]);
        status.nodes.get_mut(1).unwrap().draining = true;
        let upgrade = judge(&status, Schemas::default(), None);
        assert_eq!(upgrade.under_way.as_deref(), Some("n2"));
        assert_eq!(upgrade.left, ["n2", "n1"]);
        assert!(upgrade.not_now.is_empty(), "{:?}", upgrade.not_now);
    }

    #[test]
    fn nothing_is_taken_down_while_anything_is_amiss() {
        type Change = fn(&mut Status);
        let cases: [(Change, &str); 6] = [
            (|it| it.quorum = false, "no quorum"),
            (
                |it| it.nodes.last_mut().unwrap().live = false,
                "`n3` is not live",
            ),
            (
                |it| it.nodes.last_mut().unwrap().draining = true,
                "`n3` is draining",
            ),
            (
                |it| it.nodes.last_mut().unwrap().fault = Some("its disk is full".into()),
                "`n3`: its disk is full",
            ),
            (
                |it| it.nodes.last_mut().unwrap().role = Role::Learner,
                "`n3` is joining",
            ),
            (
                |it| it.nodes.last_mut().unwrap().lag = Some(5000),
                "5000 log entries",
            ),
        ];
        for (change, why) in cases {
            let mut status = cluster(["1.0.0", "1.0.0", "1.1.0"]);
            change(&mut status);
            let reasons = judge(&status, Schemas::default(), None).not_now;
            assert!(
                matches!(&reasons[..], [reason] if reason.contains(why)),
                "{reasons:?} for {why}"
            );
        }
        let mut far = cluster(["1.0.0", "1.0.0", "1.1.0"]);
        far.nodes.last_mut().unwrap().lag = Some(3);
        assert!(judge(&far, Schemas::default(), None).not_now.is_empty());
    }

    #[test]
    fn a_node_that_is_away_leaves_it_open_which_binary_it_has() {
        let mut status = cluster(["1.1.0", "1.1.0", "1.1.0"]);
        assert_eq!(unsure(&status), None);
        status.nodes.first_mut().unwrap().live = false;
        assert!(unsure(&status).unwrap().contains("n1"));
    }
}
