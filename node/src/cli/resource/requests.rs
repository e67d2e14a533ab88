//! What the verbs ask the API, and what they print of the answers.

use muster_api::client::{Call, Payload};
use muster_storage::model::ObjectKind;
use reqwest::Method;
use serde_json::Value;

use super::super::{Context, Error, files};
use crate::config::FileArgument;

/// `muster apply`: what was written, or what stands against all of it.
pub async fn apply_bundle(context: &Context, argument: &FileArgument) -> Result<(), Error> {
    let objects = files::objects(&argument.file)?;
    let answer = send_bundle(context, objects, argument.force).await?;
    context
        .printer
        .list(items(answer), &["kind", "key", "created"])
}

async fn send_bundle(context: &Context, objects: Vec<Value>, force: bool) -> Result<Value, Error> {
    // A bundle may be written twice: the second time nothing changes.
    let call = Call::new(Method::POST, &["apply"]).payload(Payload::Json(Value::Array(objects)));
    Ok(context.client.json(forced(call, force)).await?)
}

/// Writes also what is refused because of what machines would get.
pub fn forced(call: Call, force: bool) -> Call {
    match force {
        true => call.query("force", "true"),
        false => call,
    }
}

pub async fn list(context: &Context, resource: &str) -> Result<(), Error> {
    let items = pages(context, &Call::new(Method::GET, &[resource]), None).await?;
    context.printer.list(items, columns(resource))
}

/// All pages of a list.
pub async fn pages(
    context: &Context,
    call: &Call,
    after: Option<String>,
) -> Result<Vec<Value>, Error> {
    pages_up_to(context, call, after, usize::MAX).await
}

/// Pages of a list until there are so many items, or no more.
pub async fn pages_up_to(
    context: &Context,
    call: &Call,
    after: Option<String>,
    enough: usize,
) -> Result<Vec<Value>, Error> {
    let mut all = Vec::new();
    let mut next = after;
    loop {
        let page = match &next {
            Some(after) => call.clone().query("after", after),
            None => call.clone(),
        };
        let page = context.client.json(page).await?;
        next = page.get("next").and_then(Value::as_str).map(str::to_owned);
        all.extend(items(page));
        if next.is_none() || all.len() >= enough {
            return Ok(all);
        }
    }
}

pub fn items(mut page: Value) -> Vec<Value> {
    match page.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

pub async fn get(context: &Context, resource: &str, key: &str) -> Result<(), Error> {
    let call = Call::new(Method::GET, &[resource, key]);
    context.printer.object(&context.client.json(call).await?)
}

pub async fn create(
    context: &Context,
    resource: &str,
    argument: &FileArgument,
) -> Result<(), Error> {
    let mut created = Vec::new();
    for object in files::objects(&argument.file)? {
        let call = Call::new(Method::POST, &[resource]).payload(Payload::Json(object));
        created.push(context.client.json(forced(call, argument.force)).await?);
    }
    show(context, resource, created)
}

pub async fn apply(
    context: &Context,
    resource: &str,
    argument: &FileArgument,
) -> Result<(), Error> {
    let mut objects = files::objects(&argument.file)?;
    for object in &mut objects {
        if let Value::Object(fields) = object {
            fields
                .entry("kind")
                .or_insert_with(|| singular(resource).into());
            if fields.get("kind").and_then(Value::as_str) != Some(singular(resource)) {
                return Err(Error::Usage(format!(
                    "only {resource} are expected here; see `muster apply`"
                )));
            }
        }
    }
    let answer = send_bundle(context, objects, argument.force).await?;
    let mut written = Vec::new();
    for item in items(answer) {
        let key = item.get("key").and_then(Value::as_str).unwrap_or_default();
        let call = Call::new(Method::GET, &[resource, key]);
        written.push(context.client.json(call).await?);
    }
    show(context, resource, written)
}

/// One object as one object, several as a list.
fn show(context: &Context, resource: &str, mut objects: Vec<Value>) -> Result<(), Error> {
    match (objects.pop(), objects.is_empty()) {
        (Some(object), true) => context.printer.object(&object),
        (last, _) => {
            objects.extend(last);
            context.printer.list(objects, columns(resource))
        }
    }
}

pub async fn delete(
    context: &Context,
    resource: &str,
    key: &str,
    if_match: Option<u64>,
    force: bool,
) -> Result<(), Error> {
    let call = forced(Call::new(Method::DELETE, &[resource, key]), force);
    context.client.send(matching(call, if_match)).await?;
    context
        .printer
        .done(&format!("{} {key} is deleted", singular(resource)))
}

pub fn matching(call: Call, revision: Option<u64>) -> Call {
    match revision {
        Some(revision) => call.header("if-match", format!("\"{revision}\"")),
        None => call,
    }
}

pub async fn watch(context: &Context, kind: Option<&str>, after: Option<u64>) -> Result<(), Error> {
    let filter: Vec<(&str, &str)> = kind.map(|kind| ("kind", kind)).into_iter().collect();
    let mut events = context
        .client
        .events(&filter, after.map(|after| after.to_string()));
    loop {
        let event = events.next().await?;
        if event.event == "gone" {
            return Err(Error::Failed(event.data));
        }
        let value: Value = serde_json::from_str(&event.data)
            .map_err(|error| Error::Failed(format!("an event cannot be read: {error}")))?;
        context.printer.event(&value)?;
    }
}

pub fn singular(resource: &str) -> &str {
    match resource.parse::<ObjectKind>() {
        Ok(kind) => kind.singular(),
        Err(_) => resource.strip_suffix('s').unwrap_or(resource),
    }
}

/// What a table shows of a resource.
pub fn columns(resource: &str) -> &'static [&'static str] {
    match resource {
        "machines" => &["name", "uuid", "macs", "bootenv", "profiles", "available"],
        "subnets" => &[
            "name",
            "cidr",
            "pools",
            "routers",
            "lease_secs",
            "mode",
            "match",
        ],
        "reservations" => &[
            "address",
            "mac",
            "client_id",
            "machine",
            "uuid",
            "circuit_id",
            "remote_id",
            "available",
        ],
        "templates" => &["name", "available", "problems", "updated_at"],
        "bootenvs" => &["name", "kernel", "initrds", "available", "problems"],
        "profiles" => &["name", "params", "updated_at"],
        "params" => &["name", "schema", "default", "secure"],
        "settings" => &[
            "name",
            "unknown_bootenv",
            "lease_secs",
            "lease_margin_secs",
            "decline_secs",
            "install_attempts",
            "boot_stall_secs",
            "finalize_after_secs",
        ],
        "artifacts" => &["path", "size", "sha256", "holders", "missing", "updated_at"],
        "leases" => &[
            "address",
            "subnet",
            "mac",
            "hostname",
            "machine",
            "state",
            "promised_until",
            "node",
        ],
        "nodes" => &[
            "id",
            "name",
            "address",
            "role",
            "live",
            "applied_revision",
            "lag",
            "version",
        ],
        "events" => &["at", "revision", "actor", "action", "kind", "key"],
        _ => &["name", "created_at", "updated_at"],
    }
}
