//! What a node knows of its site, and what the others say of themselves.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use muster_api::node::Question;
use muster_api::view;
use muster_raft::{Cluster as Handle, Role};
use muster_storage::event::Subject;
use muster_storage::model::{NodeId, Object, ObjectKind, SubnetMode};
use muster_storage::{State, Timestamp};
use serde_json::Value;

use super::facts::{
    Alert, Clock, Cluster, Host, Incomplete, Member, Node, Site, Subnet, Unavailable, Unheard,
};
use super::host;
use crate::config::ServeOptions;
use crate::dhcp;
use crate::peers;

/// For a look at the machine.
const HOST: Duration = Duration::from_secs(5);

/// Objects that one look at the state goes through.
const LOOK_MAX: usize = 1024;

/// Objects of one sort that are told of.
const TOLD_MAX: usize = 200;

/// Alerts older than this are not told of, in milliseconds.
const ALERTS_FOR: u64 = 24 * 3600 * 1000;

const DAY: u64 = 24 * 3600 * 1000;

/// A node that looks at itself.
#[derive(Clone)]
pub struct Own {
    /// The cluster.
    pub cluster: Handle,
    /// DHCP.
    pub dhcp: dhcp::Server,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// How it was started.
    pub options: ServeOptions,
}

impl Own {
    /// What this node says of itself; with `probe` it looks for other DHCP servers first.
    pub async fn look(&self, probe: bool) -> Node {
        let (data_dir, options) = (self.data_dir.clone(), self.options.clone());
        let host = tokio::task::spawn_blocking(move || host::look(&data_dir, &options, true));
        // A disk that hangs holds it up for ever.
        let host = tokio::time::timeout(HOST, host);
        let (links, end, host) =
            tokio::join!(self.dhcp.facts(probe), self.cluster.certificate_end(), host);
        let now = self.cluster.now();
        Node {
            name: self.cluster.node_name().to_owned(),
            clock: wall().map(|wall| Clock {
                wall,
                cluster: now.0,
            }),
            certificate_days: end.map(|end| days(now, end)),
            links,
            host: match host {
                Ok(host) => host.unwrap_or_default(),
                Err(_) => Host {
                    data_dir: self.data_dir.clone(),
                    data_problems: vec![format!("its disk gave no answer within {HOST:?}")],
                    running: true,
                    ..Host::default()
                },
            },
            configuration: serde_json::to_value(&self.options).unwrap_or_default(),
        }
    }

    /// What can be known of the whole site from here.
    pub async fn site(&self, probe: bool) -> Site {
        let members = self.cluster.read(|state| {
            let members = state.members();
            members
                .map(|member| (member.id, member.name.clone()))
                .collect::<Vec<_>>()
        });
        let asked = members.into_iter().map(|(id, name)| async move {
            match id == self.cluster.node_id() {
                true => Ok(self.look(probe).await),
                false => self.ask(id, probe).await.map_err(|why| Unheard {
                    node: name.clone(),
                    why,
                }),
            }
        });
        let mut site = Site {
            cluster: Some(self.cluster()),
            ..Site::default()
        };
        for answer in futures::future::join_all(asked).await {
            match answer {
                Ok(node) => site.nodes.push(node),
                Err(unheard) => site.unheard.push(unheard),
            }
        }
        site
    }

    async fn ask(&self, node: NodeId, probe: bool) -> Result<Node, String> {
        let answer = peers::ask(&self.cluster, node, &Question::Facts { probe }).await;
        let answer = answer.map_err(|error| error.to_string())?;
        serde_json::from_value(answer)
            .map_err(|error| format!("it is of a version that speaks otherwise: {error}"))
    }

    /// What all nodes hold in common, as this one has it.
    fn cluster(&self) -> Cluster {
        let status = self.cluster.status();
        let name = |id: NodeId| {
            let node = status.nodes.iter().find(|node| node.id == id);
            node.map(|node| node.name.clone())
        };
        let now = self.cluster.now();
        Cluster {
            quorum: status.quorum,
            leader: status.leader.and_then(name),
            members: status.nodes.iter().map(member).collect(),
            subnets: self.cluster.read(subnets),
            unavailable: unavailable(&self.cluster),
            incomplete: incomplete(&self.cluster),
            alerts: self.cluster.read(|state| alerts(state, now)),
        }
    }
}

fn wall() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_millis()).ok()
}

fn days(now: Timestamp, end: Timestamp) -> i64 {
    let days = |time: Timestamp| i64::try_from(time.0 / DAY).unwrap_or(i64::MAX);
    days(end).saturating_sub(days(now))
}

fn member(node: &muster_raft::NodeStatus) -> Member {
    Member {
        name: node.name.clone(),
        address: Some(node.address),
        live: node.live,
        voter: node.role == Role::Voter,
        draining: node.draining,
        lag: node.lag.unwrap_or_default(),
        fault: node.fault.clone(),
        version: node.version.clone(),
    }
}

fn subnets(state: &State) -> Vec<Subnet> {
    let subnets = state.objects_after(ObjectKind::Subnet, None);
    let served = subnets.filter_map(|record| match &record.object {
        Object::Subnet(subnet) if subnet.mode != SubnetMode::Off => Some(subnet),
        _ => None,
    });
    served
        .take(TOLD_MAX)
        .map(|subnet| {
            let (taken, pool) = state.pool_usage(&subnet.name);
            let servers = state.members().filter(|member| {
                let mut addresses = member.identifiers.iter();
                addresses.any(|address| subnet.cidr.contains(address))
            });
            Subnet {
                name: subnet.name.clone(),
                pool,
                taken,
                servers: servers.map(|member| member.name.clone()).collect(),
            }
        })
        .collect()
}

/// Goes through all objects of a kind; the state is let go of in between, as there may be many.
fn each(cluster: &Handle, kind: ObjectKind, mut look: impl FnMut(&State, &Object)) {
    let mut after: Option<String> = None;
    loop {
        let seen = cluster.read(|state| {
            let page = state.objects_after(kind, after.as_deref()).take(LOOK_MAX);
            page.fold((0, None), |(seen, _), record| {
                look(state, &record.object);
                (seen + 1, Some(record.object.key()))
            })
        });
        match seen {
            (LOOK_MAX, Some(last)) => after = Some(last),
            _ => return,
        }
    }
}

fn unavailable(cluster: &Handle) -> Vec<Unavailable> {
    let mut found = Vec::new();
    for kind in ObjectKind::ALL {
        each(cluster, kind, |state, object| {
            if found.len() >= TOLD_MAX {
                return;
            }
            let problems = state.problems(object);
            if !problems.is_empty() {
                found.push(Unavailable {
                    kind: kind.singular().to_owned(),
                    key: object.key(),
                    problems,
                });
            }
        });
    }
    found
}

fn incomplete(cluster: &Handle) -> Vec<Incomplete> {
    let placement = cluster.placement();
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let mut found = Vec::new();
    each(cluster, ObjectKind::Artifact, |_, object| {
        let Object::Artifact(artifact) = object else {
            return;
        };
        let missing = owned(placement.missing(&artifact.sha256));
        if !missing.is_empty() && found.len() < TOLD_MAX {
            found.push(Incomplete {
                path: artifact.path.clone(),
                missing,
                holders: owned(placement.holders(&artifact.sha256)),
            });
        }
    });
    found
}

/// The last alerts, newest first.
fn alerts(state: &State, now: Timestamp) -> Vec<Alert> {
    let kept = state.events_after(state.history_start());
    let alerts = kept.into_iter().flatten().filter_map(|change| {
        let Subject::Alert(alert) = &change.subject else {
            return None;
        };
        let recent = change.at.0.saturating_add(ALERTS_FOR) > now.0;
        recent.then(|| Alert {
            at: change.at.to_string(),
            kind: alert.trouble.label().to_owned(),
            about: about(&view::change(state, change)),
        })
    });
    let mut alerts: Vec<Alert> = alerts.collect();
    alerts.reverse();
    alerts.truncate(TOLD_MAX);
    alerts
}

/// What an event is about, as `name value` by commas.
fn about(event: &Value) -> String {
    let fields = event.get("object").and_then(Value::as_object);
    let fields = fields.into_iter().flatten().filter(|(_, it)| !it.is_null());
    let said = fields.map(|(name, value)| match value {
        Value::String(text) => format!("{name} {text}"),
        other => format!("{name} {other}"),
    });
    said.collect::<Vec<_>>().join(", ")
}
