//! `muster doctor`.

use muster_api::client::{Call, Error as ClientError};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Connection, Context, Error};
use crate::config::DoctorOptions;
use crate::dhcp::facts::links;
use crate::doctor::{Finding, Node, Severity, Site, host, judge};
use crate::serve;

pub async fn run(
    context: &Context,
    connection: &Connection,
    options: &DoctorOptions,
) -> Result<(), Error> {
    let findings = findings(&diagnosis(context, connection, options).await?)?;
    if context.printer.for_programs() {
        context.printer.object(&json!(findings))?;
    } else {
        context.printer.text(&for_people(&findings))?;
    }
    let errors = findings.iter().filter(|it| it.severity == Severity::Error);
    match errors.count() {
        0 => Ok(()),
        errors => Err(Error::Failed(format!("{errors} errors were found"))),
    }
}

/// What a node that answers says of the site; else what can be seen of this machine: `findings`, and
/// the facts that they follow from.
pub(super) async fn diagnosis(
    context: &Context,
    connection: &Connection,
    options: &DoctorOptions,
) -> Result<Value, Error> {
    let call = Call::new(Method::GET, &["diagnosis"]).query("probe", options.probe.to_string());
    let here = connection.endpoint.is_empty() || connection.socket.is_some();
    let (mut findings, running) = match context.client.json(call).await {
        Ok(diagnosis) => return Ok(diagnosis),
        // It runs, and says why it does not serve.
        Err(ClientError::Problem {
            status: 503,
            detail,
            ..
        }) if here => (vec![out_of_service(detail)], true),
        Err(ClientError::Unreachable { .. }) if here => (Vec::new(), false),
        Err(error) => return Err(error.into()),
    };
    let site = Site {
        nodes: vec![this_machine(connection, options, running)],
        ..Site::default()
    };
    findings.extend(judge(&site));
    Ok(json!({"findings": findings, "nodes": site.nodes}))
}

/// The findings of a diagnosis.
pub(super) fn findings(diagnosis: &Value) -> Result<Vec<Finding>, Error> {
    let findings = diagnosis.get("findings").cloned().unwrap_or_default();
    serde_json::from_value(findings).map_err(|error| {
        Error::Failed(format!(
            "the node is of a version that speaks otherwise: {error}"
        ))
    })
}

fn out_of_service(detail: String) -> Finding {
    Finding {
        severity: Severity::Error,
        check: "process".to_owned(),
        node: None,
        finding: detail,
        meaning: "this node serves nothing".to_owned(),
        next: "read its log; when it waits to join, see that the others are reached".to_owned(),
    }
}

fn this_machine(connection: &Connection, options: &DoctorOptions, running: bool) -> Node {
    let serve = &options.serve;
    let mut host = host::look(&connection.data_dir, serve, running);
    if !running && let Err(error) = serve::check(&connection.data_dir, serve) {
        host.settings_problems.push(error.to_string());
    }
    // What cannot be read is among the problems of the settings.
    let wanted = serve::interfaces(&serve.dhcp_interfaces).ok();
    let links = wanted.and_then(|wanted| links(&wanted).ok());
    Node {
        name: serve.node_name.clone().unwrap_or_default(),
        links: links.unwrap_or_default(),
        host,
        ..Node::default()
    }
}

/// As a text.
pub(super) fn for_people(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "nothing is wrong\n".to_owned();
    }
    let lines = findings.iter().map(|it| {
        let severity = match it.severity {
            Severity::Error => "ERROR",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        let node = it.node.iter().map(|node| format!(" on {node}"));
        format!(
            "{severity}  {}{}: {}\n    means: {}\n    next:  {}\n",
            it.check,
            node.collect::<String>(),
            it.finding,
            it.meaning,
            it.next
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}
