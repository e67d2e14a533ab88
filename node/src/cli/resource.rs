//! The verbs of resources.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use muster_api::client::{Call, Payload};
use muster_storage::model::ObjectKind;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Context, Error, files};
use crate::config::{FileArgument, duration};

/// What can be done with objects.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// All of them.
    List,
    /// One of them.
    Get {
        /// Key.
        key: String,
    },
    /// Make new ones.
    Create(FileArgument),
    /// Make or replace, all or nothing.
    Apply(FileArgument),
    /// Change some fields (RFC 7396).
    Patch {
        /// Key.
        key: String,
        /// The changes.
        #[command(flatten)]
        file: FileArgument,
        /// Only if it is at this revision.
        #[arg(long, value_name = "REVISION")]
        if_match: Option<u64>,
    },
    /// Remove one.
    Delete {
        /// Key.
        key: String,
        /// Only if it is at this revision.
        #[arg(long, value_name = "REVISION")]
        if_match: Option<u64>,
    },
    /// Print what changes, until interrupted.
    Watch {
        /// Begin after this revision.
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
    },
}

/// What can be done with leases.
#[derive(Debug, Subcommand)]
pub enum LeaseVerb {
    /// All of them.
    List,
    /// One of them.
    Get {
        /// Address.
        key: String,
    },
    /// End one.
    Delete {
        /// Address.
        key: String,
    },
    /// Print what changes, until interrupted.
    Watch {
        /// Begin after this revision.
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
    },
}

/// What can be done with nodes.
#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// All of them.
    List,
    /// One of them.
    Get {
        /// Name or id.
        key: String,
    },
    /// Remove one for good.
    Delete {
        /// Name or id.
        key: String,
    },
    /// Print what changes, until interrupted.
    Watch {
        /// Begin after this revision.
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
    },
}

/// What can be done with artifacts.
#[derive(Debug, Subcommand)]
pub enum ArtifactVerb {
    /// All of them.
    List,
    /// One of them.
    Get {
        /// Path.
        key: String,
    },
    /// Keep a file on all nodes.
    Upload {
        /// The file.
        file: PathBuf,
        /// Path by which it is known.
        #[arg(long)]
        path: String,
        /// Refuse unless the bytes have this digest.
        #[arg(long, value_name = "HEX")]
        sha256: Option<String>,
    },
    /// Remove one.
    Delete {
        /// Path.
        key: String,
    },
    /// Print what changes, until interrupted.
    Watch {
        /// Begin after this revision.
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
    },
}

/// What can be done with users.
#[derive(Debug, Subcommand)]
pub enum UserVerb {
    /// List, get, create and so on.
    #[command(flatten)]
    Verb(Verb),
    /// Print a new token of a user.
    Token {
        /// User.
        name: String,
        /// How long it is valid.
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
        ttl: Duration,
        /// Instead: turn away all tokens of the user.
        #[arg(long)]
        revoke: bool,
    },
    /// Set a password; print it when it is made up here.
    Passwd {
        /// User.
        #[arg(default_value = "admin")]
        name: String,
        /// File with the new password, `-` for standard input [default: a random one].
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
}

/// What can be done with events.
#[derive(Debug, Subcommand)]
pub enum EventVerb {
    /// The history, as far as it is kept.
    List {
        /// Begin after this revision.
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
        /// Only of this kind, as in `machine`.
        #[arg(long)]
        kind: Option<String>,
    },
    /// Print what changes, until interrupted.
    Watch {
        /// Begin after this revision.
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
        /// Only of this kind, as in `machine`.
        #[arg(long)]
        kind: Option<String>,
    },
}

/// A verb on objects.
pub async fn run(context: &Context, resource: &str, verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::List => list(context, resource).await,
        Verb::Get { key } => get(context, resource, &key).await,
        Verb::Create(argument) => create(context, resource, &argument.file).await,
        Verb::Apply(argument) => apply(context, resource, &argument.file).await,
        Verb::Patch {
            key,
            file,
            if_match,
        } => {
            let call = Call::new(Method::PATCH, &[resource, &key]);
            let call = call.payload(Payload::Json(files::object(&file.file)?));
            context
                .printer
                .object(&context.client.json(matching(call, if_match)).await?)
        }
        Verb::Delete { key, if_match } => delete(context, resource, &key, if_match).await,
        Verb::Watch { after } => watch(context, Some(singular(resource)), after).await,
    }
}

/// A verb on leases.
pub async fn run_leases(context: &Context, verb: LeaseVerb) -> Result<(), Error> {
    match verb {
        LeaseVerb::List => list(context, "leases").await,
        LeaseVerb::Get { key } => get(context, "leases", &key).await,
        LeaseVerb::Delete { key } => delete(context, "leases", &key, None).await,
        LeaseVerb::Watch { after } => watch(context, Some("lease"), after).await,
    }
}

/// A verb on nodes.
pub async fn run_nodes(context: &Context, verb: NodeVerb) -> Result<(), Error> {
    match verb {
        NodeVerb::List => list(context, "nodes").await,
        NodeVerb::Get { key } => get(context, "nodes", &key).await,
        NodeVerb::Delete { key } => delete(context, "nodes", &key, None).await,
        NodeVerb::Watch { after } => watch(context, Some("node"), after).await,
    }
}

/// A verb on artifacts.
pub async fn run_artifacts(context: &Context, verb: ArtifactVerb) -> Result<(), Error> {
    match verb {
        ArtifactVerb::List => list(context, "artifacts").await,
        ArtifactVerb::Get { key } => get(context, "artifacts", &key).await,
        ArtifactVerb::Upload { file, path, sha256 } => {
            let call = Call::new(Method::PUT, &["artifacts", &path]).payload(Payload::File(file));
            let call = match sha256 {
                Some(sha256) => call.query("sha256", sha256),
                None => call,
            };
            context.printer.object(&context.client.json(call).await?)
        }
        ArtifactVerb::Delete { key } => delete(context, "artifacts", &key, None).await,
        ArtifactVerb::Watch { after } => watch(context, Some("artifact"), after).await,
    }
}

/// A verb on users.
pub async fn run_users(context: &Context, verb: UserVerb) -> Result<(), Error> {
    match verb {
        UserVerb::Verb(verb) => run(context, "users", verb).await,
        UserVerb::Token {
            name, revoke: true, ..
        } => {
            let call = Call::new(Method::DELETE, &["users", &name, "tokens"]);
            context.client.send(call).await?;
            context
                .printer
                .done(&format!("all tokens of {name} are revoked"))
        }
        UserVerb::Token {
            name,
            ttl,
            revoke: false,
        } => {
            let body = json!({"ttl_secs": ttl.as_secs()});
            let call = Call::new(Method::POST, &["users", &name, "tokens"]);
            let answer = context
                .client
                .json(call.payload(Payload::Json(body)))
                .await?;
            let token = answer
                .get("token")
                .and_then(Value::as_str)
                .unwrap_or_default();
            context.printer.text(&format!("{token}\n"))
        }
        UserVerb::Passwd {
            name,
            password_file,
        } => {
            let (password, made_up) = match password_file {
                Some(path) => (files::secret(&path)?, false),
                None => {
                    let random = muster_api::auth::random_secret();
                    (
                        random.map_err(|problem| Error::Failed(problem.detail))?,
                        true,
                    )
                }
            };
            let call = Call::new(Method::PUT, &["users", &name, "password"]);
            let body = json!({"password": password});
            context
                .client
                .send(call.payload(Payload::Json(body)))
                .await?;
            match made_up {
                true => context.printer.text(&format!("{password}\n")),
                false => context
                    .printer
                    .done(&format!("the password of {name} is set")),
            }
        }
    }
}

/// A verb on events.
pub async fn run_events(context: &Context, verb: EventVerb) -> Result<(), Error> {
    match verb {
        EventVerb::Watch { after, kind } => watch(context, kind.as_deref(), after).await,
        EventVerb::List { after, kind } => {
            let mut call = Call::new(Method::GET, &["events"]);
            if let Some(kind) = kind {
                call = call.query("kind", kind);
            }
            let items = pages(context, &call, after.map(|after| after.to_string())).await?;
            context.printer.list(items, columns("events"))
        }
    }
}

/// `muster apply`: what was written, or what stands against all of it.
pub async fn apply_bundle(context: &Context, path: &Path) -> Result<(), Error> {
    let answer = send_bundle(context, files::objects(path)?).await?;
    context
        .printer
        .list(items(answer), &["kind", "key", "created"])
}

async fn send_bundle(context: &Context, objects: Vec<Value>) -> Result<Value, Error> {
    // A bundle may be written twice: the second time nothing changes.
    let call = Call::new(Method::POST, &["apply"]).payload(Payload::Json(Value::Array(objects)));
    Ok(context.client.json(call).await?)
}

async fn list(context: &Context, resource: &str) -> Result<(), Error> {
    let items = pages(context, &Call::new(Method::GET, &[resource]), None).await?;
    context.printer.list(items, columns(resource))
}

/// All pages of a list.
async fn pages(context: &Context, call: &Call, after: Option<String>) -> Result<Vec<Value>, Error> {
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
        if next.is_none() {
            return Ok(all);
        }
    }
}

fn items(mut page: Value) -> Vec<Value> {
    match page.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

async fn get(context: &Context, resource: &str, key: &str) -> Result<(), Error> {
    let call = Call::new(Method::GET, &[resource, key]);
    context.printer.object(&context.client.json(call).await?)
}

async fn create(context: &Context, resource: &str, path: &Path) -> Result<(), Error> {
    let mut created = Vec::new();
    for object in files::objects(path)? {
        let call = Call::new(Method::POST, &[resource]).payload(Payload::Json(object));
        created.push(context.client.json(call).await?);
    }
    show(context, resource, created)
}

async fn apply(context: &Context, resource: &str, path: &Path) -> Result<(), Error> {
    let mut objects = files::objects(path)?;
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
    let answer = send_bundle(context, objects).await?;
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

async fn delete(
    context: &Context,
    resource: &str,
    key: &str,
    if_match: Option<u64>,
) -> Result<(), Error> {
    let call = Call::new(Method::DELETE, &[resource, key]);
    context.client.send(matching(call, if_match)).await?;
    context
        .printer
        .done(&format!("{} {key} is deleted", singular(resource)))
}

fn matching(call: Call, revision: Option<u64>) -> Call {
    match revision {
        Some(revision) => call.header("if-match", format!("\"{revision}\"")),
        None => call,
    }
}

async fn watch(context: &Context, kind: Option<&str>, after: Option<u64>) -> Result<(), Error> {
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

fn singular(resource: &str) -> &str {
    match resource.parse::<ObjectKind>() {
        Ok(kind) => kind.singular(),
        Err(_) => resource.strip_suffix('s').unwrap_or(resource),
    }
}

/// What a table shows of a resource.
fn columns(resource: &str) -> &'static [&'static str] {
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
        "reservations" => &["address", "mac", "client_id", "machine", "available"],
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
        ],
        "artifacts" => &["path", "size", "sha256", "updated_at"],
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
