//! Where the nodes of a cluster serve, and on which link the synthetic client is.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use muster_api::client::Call;
use reqwest::Method;
use serde_json::Value;

use super::super::resource::pages_up_to;
use super::super::{Context, Error};
use super::client::Server;
use crate::config::DrillOptions;

/// Subnets that are looked at.
const SUBNETS_MAX: usize = 1000;

/// Where the nodes are, and on which link the client is to be.
pub struct Site {
    /// Names of the nodes.
    pub names: Vec<String>,
    /// Numbers and names: nodes may be given by either.
    numbers: BTreeMap<String, String>,
    /// Name of the leader, if there is one.
    pub leader: Option<String>,
    servers: Vec<Server>,
    /// An address on the client's link; else why there is none.
    pub link: Result<Ipv4Addr, String>,
}

impl Site {
    /// By the word of the node that is asked.
    pub async fn look(context: &Context, options: &DrillOptions) -> Result<Self, Error> {
        let get = |path: &'static str| context.client.json(Call::new(Method::GET, &[path]));
        let (nodes, cluster, diagnosis) = (
            get("nodes").await?,
            get("cluster").await?,
            get("diagnosis").await?,
        );
        let items = |of: &Value| of.get("items").and_then(Value::as_array).cloned();
        let nodes = items(&nodes).unwrap_or_default();
        let text = |of: &Value, name: &str| of.get(name)?.as_str().map(str::to_owned);
        let numbers: BTreeMap<String, String> = nodes
            .iter()
            .filter_map(|node| Some((node.get("id")?.to_string(), text(node, "name")?)))
            .collect();
        let leader = cluster.get("leader").map(ToString::to_string);
        let subnets = Call::new(Method::GET, &["subnets"]);
        let subnets = pages_up_to(context, &subnets, None, SUBNETS_MAX).await?;
        Ok(Self {
            names: nodes.iter().filter_map(|node| text(node, "name")).collect(),
            leader: leader.and_then(|leader| numbers.get(&leader).cloned()),
            numbers,
            servers: nodes
                .iter()
                .filter_map(|node| server(node, &diagnosis))
                .collect(),
            link: link(&subnets, options.subnet.as_deref()),
        })
    }

    /// The name of a node that is given by its name or its number.
    pub fn name_of(&self, node: String) -> String {
        self.numbers.get(&node).cloned().unwrap_or(node)
    }

    /// The nodes at one of their ports.
    pub fn at(&self, port: impl Fn(&Server) -> Option<u16>) -> Vec<SocketAddr> {
        let servers = self.servers.iter();
        servers
            .filter_map(|server| Some(SocketAddr::new(server.address, port(server)?)))
            .collect()
    }
}

/// Where a node serves, by its record and by how it says that it was started.
fn server(node: &Value, diagnosis: &Value) -> Option<Server> {
    let name = node.get("name")?;
    let mut told = diagnosis.get("nodes")?.as_array()?.iter();
    let told = told.find(|it| it.get("name") == Some(name));
    let configured = |field: &str| told?.pointer(&format!("/configuration/{field}"));
    let port = |value: Option<&Value>| u16::try_from(value?.as_u64()?).ok();
    let dhcp = configured("dhcp_interfaces").and_then(Value::as_str) != Some("none");
    Some(Server {
        address: node.get("address")?.as_str()?.parse().ok()?,
        api: port(node.get("api_port"))?,
        boot: port(node.get("boot_port"))?,
        tftp: port(configured("tftp_port")).unwrap_or(69),
        dhcp: dhcp.then(|| port(configured("dhcp_port")).unwrap_or(67)),
    })
}

/// An address on the link of a subnet: the one that is named, else the first that serves everyone.
fn link(subnets: &[Value], wanted: Option<&str>) -> Result<Ipv4Addr, String> {
    let text = |subnet: &Value, name: &str| subnet.get(name)?.as_str().map(str::to_owned);
    let fits = |subnet: &&Value| match wanted {
        Some(wanted) => text(subnet, "name").as_deref() == Some(wanted),
        None => {
            let pools = subnet.get("pools").and_then(Value::as_array);
            text(subnet, "mode").as_deref() == Some("full")
                && pools.is_some_and(|it| !it.is_empty())
        }
    };
    let subnet = subnets.iter().find(fits).ok_or_else(|| match wanted {
        Some(wanted) => format!("there is no subnet `{wanted}`"),
        None => "no subnet serves everyone from a pool".to_owned(),
    })?;
    let cidr = text(subnet, "cidr").unwrap_or_default();
    let cidr: Ipv4Net = cidr.parse().map_err(|_| format!("`{cidr}` is no subnet"))?;
    Ok(cidr.network())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_client_is_on_a_subnet_that_serves_everyone() {
        let subnet = |name: &str, mode: &str, pools: &[&str]| json!({"name": name, "mode": mode, "pools": pools, "cidr": "10.77.0.0/24"});
        let subnets = [
            subnet("off", "off", &["10.77.0.1"]),
            subnet("empty", "full", &[]),
            json!({"name": "lab", "mode": "full", "pools": ["x"], "cidr": "10.78.0.0/16"}),
        ];
        assert_eq!(link(&subnets, None), Ok(Ipv4Addr::new(10, 78, 0, 0)));
        assert_eq!(link(&subnets, Some("off")), Ok(Ipv4Addr::new(10, 77, 0, 0)));
        assert!(link(&subnets, Some("nowhere")).is_err());
        assert!(link(&[], None).is_err());
    }
}
