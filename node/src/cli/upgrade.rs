//! `muster cluster upgrade`, `finalize` and `drain`: one node at a time.

use std::time::Duration;

use muster_api::client::{Call, Payload};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::output::{plain, table};
use super::{Context, Error};
use crate::config::{UpgradeCommand, Wanted};

/// Between two looks at what runs on a node that is drained.
const LOOK: Duration = Duration::from_millis(250);

pub async fn run(context: &Context, command: UpgradeCommand) -> Result<(), Error> {
    match command {
        UpgradeCommand::Status(wanted) => status(context, wanted).await,
        UpgradeCommand::Check(wanted) => {
            let upgrade = look(context, wanted).await?;
            may_go_on(&upgrade)?;
            context.printer.done(&match next_of(&upgrade) {
                Some(node) => format!("node {node} may be taken down now"),
                None => format!("all nodes have {}", text(&upgrade, "to")),
            })
        }
        UpgradeCommand::Next { wanted, wait } => {
            let upgrade = look(context, wanted).await?;
            let Some(node) = next_of(&upgrade) else {
                return Ok(());
            };
            may_go_on(&upgrade)?;
            drain(context, node, wait).await?;
            context.printer.text(&format!("{node}\n"))
        }
    }
}

/// Goes on to the newest schema that all nodes support.
pub async fn finalize(context: &Context) -> Result<(), Error> {
    let call = Call::new(Method::POST, &["cluster", "finalize"]).payload(Payload::Json(json!({})));
    let answer = context.client.json(call).await?;
    context.printer.done(&format!(
        "the cluster is at schema {}",
        text(&answer, "schema")
    ))
}

/// Makes a node ready to be stopped, and gives what runs on it this long to end.
pub async fn drain(context: &Context, node: &str, wait: Duration) -> Result<(), Error> {
    let body = Payload::Json(json!({"node": node}));
    let call = Call::new(Method::POST, &["cluster", "drain"]).payload(body);
    context.client.send(call).await?;
    let end = Instant::now() + wait;
    while Instant::now() < end {
        let call = Call::new(Method::GET, &["nodes", node]);
        let running = context.client.json(call).await?;
        // One that cannot say need not be waited for.
        if running
            .get("transfers")
            .and_then(Value::as_u64)
            .unwrap_or(0)
            == 0
        {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

async fn look(context: &Context, wanted: Wanted) -> Result<Value, Error> {
    let mut call = Call::new(Method::GET, &["cluster", "upgrade"]);
    if let Some(to) = wanted.to {
        call = call.query("to", to);
    }
    Ok(context.client.json(call).await?)
}

async fn status(context: &Context, wanted: Wanted) -> Result<(), Error> {
    let upgrade = look(context, wanted).await?;
    if context.printer.for_programs() {
        return context.printer.object(&upgrade);
    }
    let nodes = context
        .client
        .json(Call::new(Method::GET, &["cluster"]))
        .await?;
    let nodes = nodes.get("nodes").and_then(Value::as_array);
    let columns = [
        "name",
        "version",
        "role",
        "live",
        "draining",
        "transfers",
        "lag",
        "fault",
    ];
    let table = table(nodes.map_or(&[][..], Vec::as_slice), &columns);
    context
        .printer
        .text(&format!("{}\n{table}", for_people(&upgrade)))
}

/// The cluster's way from version to version, in words.
fn for_people(upgrade: &Value) -> String {
    let left = texts(upgrade, "left");
    let mut lines = vec![match left.as_slice() {
        [] => format!("all nodes have {}", text(upgrade, "to")),
        left => format!("to {}: left are {}", text(upgrade, "to"), left.join(", ")),
    }];
    if let Some(node) = upgrade.get("under_way").and_then(Value::as_str) {
        lines.push(format!("under way: {node} is draining"));
    }
    lines.push(match upgrade.get("raisable_since") {
        Some(Value::String(_)) => {
            let by_itself = match upgrade.get("raise_due").and_then(Value::as_str) {
                Some(due) => format!("by itself at {due}, or "),
                None => String::new(),
            };
            format!(
                "schema {}; on to {} {by_itself}by `muster cluster finalize`; until then any node can go back",
                text(upgrade, "schema"),
                text(upgrade, "supported_schema"),
            )
        }
        _ => format!("schema {}", text(upgrade, "schema")),
    });
    let not_now = texts(upgrade, "not_now");
    lines.extend(not_now.iter().map(|reason| format!("not now: {reason}")));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Fails with every reason why no node may be taken down now.
fn may_go_on(upgrade: &Value) -> Result<(), Error> {
    match texts(upgrade, "not_now").as_slice() {
        [] => Ok(()),
        reasons => Err(Error::Failed(format!(
            "no node may be taken down now: {}",
            reasons.join("; ")
        ))),
    }
}

fn next_of(upgrade: &Value) -> Option<&str> {
    texts(upgrade, "left").first().copied()
}

fn texts<'a>(of: &'a Value, name: &str) -> Vec<&'a str> {
    let array = of.get(name).and_then(Value::as_array);
    array
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn text(of: &Value, name: &str) -> String {
    of.get(name).map(plain).unwrap_or_default()
}
