//! `muster cluster`.

use muster_api::client::{Call, Payload};
use reqwest::Method;
use serde_json::{Value, json};

use super::output::table;
use super::{Context, Error, upgrade};
use crate::config::ClusterCommand;

pub async fn run(context: &Context, command: ClusterCommand) -> Result<(), Error> {
    let post = |path: &str, body: Value| {
        Call::new(Method::POST, &["cluster", path]).payload(Payload::Json(body))
    };
    match command {
        ClusterCommand::Status => status(context).await,
        ClusterCommand::JoinToken { revoke: true, .. } => {
            let call = Call::new(Method::DELETE, &["cluster", "join-tokens"]);
            context.client.send(call).await?;
            context.printer.done("all join tokens are revoked")
        }
        ClusterCommand::JoinToken { ttl, revoke: false } => {
            let body = json!({"ttl_secs": ttl.as_secs()});
            let answer = context.client.json(post("join-tokens", body)).await?;
            let token = answer
                .get("token")
                .and_then(Value::as_str)
                .unwrap_or_default();
            context.printer.text(&format!("{token}\n"))
        }
        ClusterCommand::Remove { node } => {
            context
                .client
                .send(Call::new(Method::DELETE, &["nodes", &node]))
                .await?;
            context.printer.done(&format!("node {node} is removed"))
        }
        ClusterCommand::Replace { dead, new } => {
            context
                .client
                .send(post("replace", json!({"dead": dead, "new": new})))
                .await?;
            context
                .printer
                .done(&format!("node {new} is in the place of node {dead}"))
        }
        ClusterCommand::Transfer { node } => {
            context
                .client
                .send(post("transfer", json!({"node": node})))
                .await?;
            context.printer.done("leadership is handed over")
        }
        ClusterCommand::RenewCertificates { node } => {
            context
                .client
                .send(post("renew-certificates", json!({"node": node})))
                .await?;
            context.printer.done(&match node {
                Some(node) => format!("node {node} has a new certificate"),
                None => "all nodes have new certificates".to_owned(),
            })
        }
        ClusterCommand::RotateKeys => {
            let answer = context.client.json(post("rotate-keys", json!({}))).await?;
            context.printer.object(&answer)
        }
        ClusterCommand::Drill(_) => Err(Error::Usage("a drill is begun elsewhere".to_owned())),
        ClusterCommand::Drain { node, wait } => {
            upgrade::drain(context, &node, wait).await?;
            context.printer.done(&format!("node {node} may be stopped"))
        }
        ClusterCommand::Upgrade(command) => upgrade::run(context, command).await,
        ClusterCommand::Finalize => upgrade::finalize(context).await,
    }
}

async fn status(context: &Context) -> Result<(), Error> {
    let status = context
        .client
        .json(Call::new(Method::GET, &["cluster"]))
        .await?;
    if context.printer.for_programs() {
        context.printer.object(&status)?;
    } else {
        context.printer.text(&for_people(&status))?;
    }
    match status.get("quorum") {
        Some(Value::Bool(true)) => Ok(()),
        _ => Err(Error::NoQuorum),
    }
}

fn for_people(status: &Value) -> String {
    let nodes = status
        .get("nodes")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    let leader = nodes
        .iter()
        .find(|node| node.get("id") == status.get("leader"));
    let leader = leader
        .and_then(|node| node.get("name"))
        .and_then(Value::as_str);
    let text = |name: &str| {
        status
            .get(name)
            .map(ToString::to_string)
            .unwrap_or_default()
    };
    let columns = [
        "id",
        "name",
        "address",
        "role",
        "live",
        "draining",
        "revision",
        "lag",
        "last_contact_ms",
        "version",
        "fault",
    ];
    let minority = match status.get("minority_since").and_then(Value::as_str) {
        Some(since) => format!(
            "\nminority mode since {since}: nothing new is promised or written, committed leases are confirmed"
        ),
        None => String::new(),
    };
    format!(
        "cluster {}  leader {}  revision {}  quorum {}{minority}\n\n{}",
        text("cluster_id").trim_matches('"'),
        leader.unwrap_or("none"),
        text("revision"),
        if status.get("quorum") == Some(&Value::Bool(true)) {
            "yes"
        } else {
            "no"
        },
        table(nodes, &columns),
    )
}
