//! Reports of drills, which are kept among the artifacts.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use muster_api::client::{Call, Error as ClientError, Payload};
use reqwest::Method;
use serde_json::{Value, json};

use super::super::resource::pages_up_to;
use super::super::{Context, Error};
use super::report::Report;

/// Where reports are kept, among the artifacts.
const PLACE: &str = "drills/";

/// Reports that are listed.
const REPORTS_MAX: usize = 1000;

/// How often a report is tried to be kept: the node that keeps it may be the one that failed.
const KEEPING: u32 = 30;

/// Keeps a report among the artifacts.
pub async fn keep(context: &Context, report: &Report) -> Result<(), Error> {
    let path = format!("{PLACE}{}.json", report.name);
    for _ in 0..KEEPING {
        let call = Call::new(Method::PUT, &["artifacts", &path]);
        let call = call.payload(Payload::Json(json!(report)));
        match context.client.send(call).await {
            Ok(_) => return context.printer.done(&format!("kept as {}", report.name)),
            Err(ClientError::Problem { status, .. }) if status < 500 => break,
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
    Err(Error::Failed(
        "the report could not be kept; it is above".to_owned(),
    ))
}

fn name_of(artifact: &Value) -> Option<&str> {
    let path = artifact.get("path")?.as_str()?;
    path.strip_prefix(PLACE)?.strip_suffix(".json")
}

/// Prints a line of each report.
pub async fn list(context: &Context) -> Result<(), Error> {
    let call = Call::new(Method::GET, &["artifacts"]);
    // Those after `drills.`, which all of them come after.
    let found = pages_up_to(context, &call, Some("drills.".to_owned()), REPORTS_MAX).await?;
    let names: Vec<&str> = found.iter().filter_map(name_of).collect();
    let mut rows = Vec::new();
    for name in names {
        let report = fetch(context, name).await?;
        let gap = |of: &str| report.services.get(of).and_then(|it| it.longest_gap_ms);
        rows.push(json!({
            "name": report.name,
            "drill": report.drill,
            "node": report.node,
            "at": report.at,
            "new_leader_ms": report.new_leader_ms,
            "dhcp_gap_ms": gap("dhcp"),
            "tftp_gap_ms": gap("tftp"),
            "http_gap_ms": gap("http"),
            "api_gap_ms": gap("api"),
        }));
    }
    let columns = [
        "name",
        "node",
        "new_leader_ms",
        "dhcp_gap_ms",
        "tftp_gap_ms",
        "http_gap_ms",
        "api_gap_ms",
    ];
    context.printer.list(rows, &columns)
}

/// Reads a report from whichever node gives it: artifacts are served with the boot files.
pub async fn fetch(context: &Context, name: &str) -> Result<Report, Error> {
    let path = format!("{PLACE}{name}.json");
    context
        .client
        .json(Call::new(Method::GET, &["artifacts", &path]))
        .await?;
    let nodes = context
        .client
        .json(Call::new(Method::GET, &["nodes"]))
        .await?;
    let nodes = nodes.get("items").and_then(Value::as_array).cloned();
    let failed = |why: String| Error::Failed(format!("the report {name} cannot be read: {why}"));
    let mut last = failed("no node could be asked".to_owned());
    // Of plain HTTP: no authorities are needed, and a machine may have none.
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]);
    let http = http.build();
    let http = http.map_err(|error| failed(error.to_string()))?;
    for node in nodes.unwrap_or_default() {
        let address = node.get("address").and_then(Value::as_str);
        let address: Option<IpAddr> = address.and_then(|it| it.parse().ok());
        let port = node.get("boot_port").and_then(Value::as_u64);
        let port = port.and_then(|port| u16::try_from(port).ok());
        let Some((address, port)) = address.zip(port) else {
            continue;
        };
        let url = format!("http://{}/artifacts/{path}", SocketAddr::new(address, port));
        let asked = http.get(url).timeout(Duration::from_secs(3)).send().await;
        let answer = match asked.and_then(reqwest::Response::error_for_status) {
            Ok(answer) => answer.json::<Report>().await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(report) => return Ok(report),
            Err(error) => last = failed(error.to_string()),
        }
    }
    Err(last)
}
