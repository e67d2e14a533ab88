//! The verbs of resources.

pub mod leases;
pub mod machines;
mod requests;
mod upload;
pub mod users;

use std::path::PathBuf;

use clap::Subcommand;
use muster_api::client::{Call, Payload};
use muster_storage::model::Sha256;
use reqwest::Method;

use super::{Context, Error, files};
use crate::config::FileArgument;

use requests::{
    apply, columns, create, delete, forced, get, list, matching, pages, singular, watch,
};
pub use requests::{apply_bundle, pages_up_to};

/// What can be done with every resource.
#[derive(Debug, Subcommand)]
pub enum Look {
    /// All of them.
    List,
    /// One of them.
    Get {
        /// Key.
        key: String,
    },
    /// Remove one.
    Delete {
        /// Key.
        key: String,
        /// Only if it is at this revision.
        #[arg(long, value_name = "REVISION")]
        if_match: Option<u64>,
        /// Also when machines could not be given their texts any more.
        #[arg(long)]
        force: bool,
    },
    /// Print what changes, until interrupted.
    Watch {
        /// Begin after this revision.
        #[arg(long, value_name = "REVISION")]
        after: Option<u64>,
    },
}

/// What can be done with objects.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List, get, delete, watch.
    #[command(flatten)]
    Look(Look),
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
}

/// What can be done with artifacts.
#[derive(Debug, Subcommand)]
pub enum ArtifactVerb {
    /// List, get, delete, watch.
    #[command(flatten)]
    Look(Look),
    /// Keep files on all nodes. What breaks off goes on, also when the node is started again.
    Upload {
        /// The file; or several, or directories.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Path by which it is known; several files, and those of directories, are below it.
        #[arg(long)]
        path: String,
        /// Refuse unless the bytes have this digest.
        #[arg(long, value_name = "HEX")]
        sha256: Option<Sha256>,
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

/// A verb that every resource has.
pub async fn look(context: &Context, resource: &str, verb: Look) -> Result<(), Error> {
    match verb {
        Look::List => list(context, resource).await,
        Look::Get { key } => get(context, resource, &key).await,
        Look::Delete {
            key,
            if_match,
            force,
        } => delete(context, resource, &key, if_match, force).await,
        Look::Watch { after } => watch(context, Some(singular(resource)), after).await,
    }
}

/// A verb on nodes, which come and go but are not edited.
pub async fn look_at_nodes(context: &Context, verb: Look) -> Result<(), Error> {
    if let Look::Delete {
        if_match: Some(_), ..
    } = verb
    {
        return Err(Error::Usage("a node has no --if-match".to_owned()));
    }
    look(context, "nodes", verb).await
}

/// A verb on objects.
pub async fn run(context: &Context, resource: &str, verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::Look(verb) => look(context, resource, verb).await,
        Verb::Create(argument) => create(context, resource, &argument).await,
        Verb::Apply(argument) => apply(context, resource, &argument).await,
        Verb::Patch {
            key,
            file,
            if_match,
        } => {
            let call = Call::new(Method::PATCH, &[resource, &key]);
            let call = call.payload(Payload::Json(files::object(&file.file)?));
            let call = forced(call, file.force);
            context
                .printer
                .object(&context.client.json(matching(call, if_match)).await?)
        }
    }
}

/// A verb on artifacts.
pub async fn run_artifacts(context: &Context, verb: ArtifactVerb) -> Result<(), Error> {
    match verb {
        ArtifactVerb::Look(verb) => look(context, "artifacts", verb).await,
        ArtifactVerb::Upload {
            files,
            path,
            sha256,
        } => upload::run(context, &files, &path, sha256).await,
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
