//! Machines: what they are, and how they are installed.

use std::collections::BTreeMap;

use clap::Subcommand;
use muster_api::client::{Call, Payload};
use reqwest::Method;
use serde_json::json;

use super::super::{Context, Error};
use super::{Verb, requests};

/// What can be done with machines.
#[derive(Debug, Subcommand)]
pub enum MachineVerb {
    /// What can be done with objects.
    #[command(flatten)]
    Object(Verb),
    /// Install a machine: it boots a bootenv that `installs`, until it says that it is installed.
    Install {
        /// Name, UUID or MAC.
        machine: String,
        /// What installs it.
        #[arg(long, value_name = "NAME")]
        bootenv: String,
        /// Boots that it may take [default: the setting `install_attempts`].
        #[arg(long, value_name = "N")]
        attempts: Option<u32>,
    },
    /// Cancel the install of a machine, which boots its disk.
    Cancel {
        /// Name, UUID or MAC.
        machine: String,
    },
    /// Keep a machine from being changed, installed or deleted.
    Lock {
        /// Name, UUID or MAC.
        machine: String,
        /// Why.
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Let a machine be changed again.
    Unlock {
        /// Name, UUID or MAC.
        machine: String,
    },
    /// Set labels of a machine, and remove labels.
    Label {
        /// Name, UUID or MAC.
        machine: String,
        /// NAME=VALUE to set, NAME- to remove.
        #[arg(required = true, value_name = "LABEL", value_parser = label)]
        labels: Vec<(String, Option<String>)>,
    },
    /// List the machines that have a label.
    Labelled {
        /// NAME or NAME=VALUE.
        label: String,
    },
    /// Print the params of a machine: each with its value, and where that comes from.
    Params {
        /// Name, UUID or MAC.
        machine: String,
    },
    /// Print what nodes saw of how a machine boots, the last facts.
    Timeline {
        /// Name, UUID or MAC.
        machine: String,
    },
}

/// What a table shows of a timeline.
const FACTS: &[&str] = &[
    "at", "node", "fact", "boots", "attempt", "address", "name", "path", "phase", "why", "times",
];

/// What a table shows of params.
const PARAMS: &[&str] = &["name", "value", "from", "problem"];

/// A verb on machines.
pub async fn run(context: &Context, verb: MachineVerb) -> Result<(), Error> {
    let call = |method, machine: &str, what| Call::new(method, &["machines", machine, what]);
    match verb {
        MachineVerb::Object(verb) => super::run(context, "machines", verb).await,
        MachineVerb::Install {
            machine,
            bootenv,
            attempts,
        } => {
            let order = json!({"bootenv": bootenv, "attempts": attempts});
            let call = call(Method::POST, &machine, "install").payload(Payload::Json(order));
            context.printer.object(&context.client.json(call).await?)
        }
        MachineVerb::Cancel { machine } => {
            let call = call(Method::DELETE, &machine, "install");
            context.client.send(call).await?;
            let done = format!("the install of {machine} is cancelled");
            context.printer.done(&done)
        }
        MachineVerb::Lock { machine, reason } => {
            let why = json!({"reason": reason});
            let call = call(Method::PUT, &machine, "lock").payload(Payload::Json(why));
            context.printer.object(&context.client.json(call).await?)
        }
        MachineVerb::Unlock { machine } => {
            let call = call(Method::DELETE, &machine, "lock");
            context.client.send(call).await?;
            context.printer.done(&format!("{machine} is unlocked"))
        }
        MachineVerb::Label { machine, labels } => {
            let changes: BTreeMap<_, _> = labels.into_iter().collect();
            let call =
                call(Method::PATCH, &machine, "labels").payload(Payload::Json(json!(changes)));
            context.client.send(call).await?;
            context.printer.done(&format!("{machine} is labelled"))
        }
        MachineVerb::Labelled { label } => {
            let call = Call::new(Method::GET, &["machines"]).query("label", label);
            let machines = requests::pages(context, &call, None).await?;
            context
                .printer
                .list(machines, requests::columns("machines"))
        }
        MachineVerb::Params { machine } => {
            let page = context.client.json(call(Method::GET, &machine, "params"));
            context.printer.list(requests::items(page.await?), PARAMS)
        }
        MachineVerb::Timeline { machine } => {
            let page = context.client.json(call(Method::GET, &machine, "timeline"));
            context.printer.list(requests::items(page.await?), FACTS)
        }
    }
}

/// `NAME=VALUE`, or `NAME-` for one that is to go.
fn label(text: &str) -> Result<(String, Option<String>), String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((name, value)), _) => Ok((name.to_owned(), Some(value.to_owned()))),
        (None, Some(name)) => Ok((name.to_owned(), None)),
        (None, None) => Err("write NAME=VALUE to set a label, or NAME- to remove it".to_owned()),
    }
}
