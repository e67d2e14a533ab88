//! What a template sees.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use muster_raft::{Cluster, Keyring, Purpose};
use muster_storage::State;
use muster_storage::model::{Machine, Member, Sealed};
use muster_storage::state::{Kept, ParamValue};
use serde_json::{Map, Value, json};

/// A node as a template and a machine see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// What machines reach.
    pub address: IpAddr,
    /// HTTP port of the boot service.
    pub boot_port: u16,
}

impl NodeView {
    /// A member as machines see it.
    pub fn of(member: &Member) -> Self {
        Self {
            name: member.name.clone(),
            address: member.address,
            boot_port: member.boot_port,
        }
    }

    /// Base URL of the boot service, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", SocketAddr::new(self.address, self.boot_port))
    }

    /// Base URL of a machine's files on this node.
    pub fn machine_url(&self, machine: &Machine) -> String {
        format!("{}/machines/{}", self.url(), machine.uuid)
    }

    fn to_value(&self) -> Value {
        json!({"name": self.name, "address": self.address, "url": self.url()})
    }
}

/// The variable that holds the params.
pub(super) const PARAMS: &str = "params";

/// What a template sees: the variables `machine`, `node`, `nodes`, `params`; and those params that
/// are secrets, which are in none of them yet.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub variables: Arc<Value>,
    pub secrets: Vec<Secret>,
}

impl Seen {
    /// With an address for a machine that has none now: it has one when it boots.
    pub fn with_address(mut self) -> Self {
        let machine = Arc::make_mut(&mut self.variables).get_mut("machine");
        if let Some(machine) = machine.and_then(Value::as_object_mut) {
            machine
                .entry("address")
                .or_insert_with(|| ANY_ADDRESS.into());
        }
        self
    }
}

/// Of documentation (RFC 5737): nobody has it.
const ANY_ADDRESS: &str = "192.0.2.1";

/// A param that is a secret.
#[derive(Clone, Debug)]
pub(super) struct Secret {
    pub name: String,
    /// For which it is sealed.
    pub place: String,
    pub sealed: Sealed,
}

impl Secret {
    /// Its value; none when it does not open.
    pub fn open(&self, keyring: &Keyring) -> Option<Value> {
        let opened = keyring.open_sealed(Purpose::Params, &self.sealed, &self.place);
        serde_json::from_slice(&opened.ok()?).ok()
    }
}

/// What everybody may see of params, and the rest.
pub(super) fn split(values: BTreeMap<&str, ParamValue<'_>>) -> (Map<String, Value>, Vec<Secret>) {
    let mut params = Map::new();
    let mut secrets = Vec::new();
    for (name, found) in values {
        match found.value {
            Kept::Plain(value) => {
                params.insert(name.to_owned(), value.clone());
            }
            Kept::Sealed(sealed) => secrets.push(Secret {
                name: name.to_owned(),
                place: found.from.place(name),
                sealed: sealed.clone(),
            }),
        }
    }
    (params, secrets)
}

/// This node, and all live nodes: this one first, and those that are about to stop last.
pub fn nodes(cluster: &Cluster) -> (NodeView, Vec<NodeView>) {
    let mut peers = cluster.peers();
    peers.retain(|peer| peer.live || peer.own);
    peers.sort_by_key(|peer| (peer.draining, !peer.own, peer.id));
    let views: Vec<NodeView> = peers
        .into_iter()
        .map(|peer| NodeView {
            name: peer.name,
            address: peer.address,
            boot_port: peer.boot_port,
        })
        .collect();
    let own = |view: &&NodeView| view.name == cluster.node_name();
    let this = views.iter().find(own).cloned().unwrap_or_else(|| NodeView {
        // Only while this node is not a member any more.
        name: cluster.node_name().to_owned(),
        address: cluster.advertise(),
        boot_port: 0,
    });
    (this, views)
}

/// For whom, and from which node, a template is rendered.
#[derive(Clone, Debug)]
pub struct RenderContext<'a> {
    /// The machine; none for a client that no machine owns.
    pub machine: Option<&'a Machine>,
    /// The node that answers.
    pub node: NodeView,
    /// All live nodes, the answering one first.
    pub nodes: Vec<NodeView>,
    /// The machine's token, in what is for the machine alone.
    pub token: Option<String>,
}

impl RenderContext<'_> {
    /// What a template sees.
    pub(super) fn seen(&self, state: &State, values: BTreeMap<&str, ParamValue<'_>>) -> Seen {
        let mut variables = Map::new();
        if let Some(machine) = self.machine {
            variables.insert("machine".to_owned(), self.machine_value(state, machine));
        }
        variables.insert("node".to_owned(), self.node.to_value());
        let nodes = self.nodes.iter().map(NodeView::to_value).collect();
        variables.insert("nodes".to_owned(), Value::Array(nodes));
        let (params, secrets) = split(values);
        variables.insert(PARAMS.to_owned(), Value::Object(params));
        Seen {
            variables: Arc::new(Value::Object(variables)),
            secrets,
        }
    }

    fn machine_value(&self, state: &State, machine: &Machine) -> Value {
        let macs: Vec<String> = machine.macs.iter().map(ToString::to_string).collect();
        let urls: Vec<String> = self
            .nodes
            .iter()
            .map(|node| node.machine_url(machine))
            .collect();
        let lease = state.bound_leases(machine).next();
        let address = lease.map(|lease| lease.address.to_string());
        let mut value = json!({
            "name": machine.name,
            "uuid": machine.uuid,
            "mac": macs.first(),
            "macs": macs,
            "bootenv": machine.bootenv,
            "profiles": machine.profiles,
            "labels": machine.labels,
            "url": self.node.machine_url(machine),
            "urls": urls,
        });
        // Absent, not null, so that a template that needs it fails where it is missing.
        let optional = [("address", address), ("token", self.token.clone())];
        if let Some(fields) = value.as_object_mut() {
            let given = optional
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)));
            fields.extend(given.map(|(name, value)| (name.to_owned(), Value::String(value))));
        }
        value
    }
}
