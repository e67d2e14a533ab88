//! `muster support bundle`: one file for whoever is to help from afar. All that goes into it goes
//! through [`scrub`] first.

mod archive;
mod scrub;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use muster_api::client::Call;
use muster_storage::Timestamp;
use muster_storage::model::ObjectKind;
use reqwest::Method;
use serde_json::{Value, json};

use super::backup::Partial;
use super::resource::pages_up_to;
use super::{Connection, Context, Error, doctor};
use crate::config::BundleOptions;
use archive::Archive;

/// Objects of one kind, and leases.
const OBJECTS_MAX: usize = 10_000;

/// Events, the last.
const EVENTS_MAX: usize = 5000;

/// Events that are looked through for them.
const HISTORY_MAX: usize = 200_000;

/// Machines whose boots failed lately.
const TIMELINES_MAX: usize = 50;

pub async fn bundle(
    context: &Context,
    connection: &Connection,
    options: &BundleOptions,
) -> Result<(), Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    let name = format!(
        "muster-support-{}",
        Timestamp(now).to_string().replace(':', "")
    );
    let file = match &options.file {
        Some(file) => file.clone(),
        None => PathBuf::from(format!("{name}.tar.gz")),
    };
    let partial = Partial::new(&file)?;
    let mut archive = Archive::new(partial.create()?, name);
    archive.text("version", env!("CARGO_PKG_VERSION"))?;
    let diagnosis = doctor::diagnosis(context, connection, &options.doctor).await?;
    archive.text(
        "findings.txt",
        &doctor::for_people(&doctor::findings(&diagnosis)?),
    )?;
    let running = diagnosis.get("cluster").is_some();
    archive.json("diagnosis.json", &diagnosis)?;
    if running {
        Gathering {
            context,
            archive: &mut archive,
            problems: Vec::new(),
        }
        .all(&diagnosis)
        .await?;
    }
    let sync = archive.finish().and_then(|file| file.sync_all());
    sync.map_err(|error| Error::Failed(format!("writing {}: {error}", file.display())))?;
    partial.keep(&file)?;
    context.printer.object(&json!({"file": file}))
}

/// What nodes that answer give.
struct Gathering<'a> {
    context: &'a Context,
    archive: &'a mut Archive,
    problems: Vec<String>,
}

impl Gathering<'_> {
    /// Whatever can be had; what cannot is noted.
    async fn all(mut self, diagnosis: &Value) -> Result<(), Error> {
        self.one("cluster.json", &["cluster"]).await?;
        for kind in ObjectKind::ALL {
            let call = Call::new(Method::GET, &[kind.plural()]);
            let found = pages_up_to(self.context, &call, None, OBJECTS_MAX).await;
            self.list(&format!("objects/{}.json", kind.plural()), found)?;
        }
        let call = Call::new(Method::GET, &["leases"]);
        let leases = pages_up_to(self.context, &call, None, OBJECTS_MAX).await;
        self.list("objects/leases.json", leases)?;
        let failed = self.events().await?;
        for machine in failed {
            let file = format!("timelines/{machine}.json");
            self.one(&file, &["machines", &machine, "timeline"]).await?;
        }
        for node in nodes(diagnosis) {
            self.one(&format!("nodes/{node}/log.json"), &["nodes", &node, "log"])
                .await?;
            self.metrics(&node).await?;
        }
        let problems = self.problems.join("\n");
        self.archive.text("problems.txt", &problems)
    }

    async fn one(&mut self, file: &str, path: &[&str]) -> Result<(), Error> {
        match self.context.client.json(Call::new(Method::GET, path)).await {
            Ok(value) => self.archive.json(file, &value),
            Err(error) => {
                self.problems.push(format!("{file}: {error}"));
                Ok(())
            }
        }
    }

    fn list(&mut self, file: &str, found: Result<Vec<Value>, Error>) -> Result<(), Error> {
        match found {
            Ok(items) => self.archive.json(file, &Value::Array(items)),
            Err(error) => {
                self.problems.push(format!("{file}: {error}"));
                Ok(())
            }
        }
    }

    /// The last events; the machines that failed by them.
    async fn events(&mut self) -> Result<Vec<String>, Error> {
        let call = Call::new(Method::GET, &["events"]);
        let mut found = pages_up_to(self.context, &call, None, HISTORY_MAX).await;
        let mut failed = Vec::new();
        if let Ok(events) = &mut found {
            events.drain(..events.len().saturating_sub(EVENTS_MAX));
            failed = failed_machines(events);
        }
        self.list("events.json", found)?;
        Ok(failed)
    }

    async fn metrics(&mut self, node: &str) -> Result<(), Error> {
        let call = Call::new(Method::GET, &["nodes", node, "metrics"]);
        let text = match self.context.client.send(call).await {
            Ok(answer) => answer.text().await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match text {
            Ok(text) => self
                .archive
                .text(&format!("nodes/{node}/metrics.txt"), &text),
            Err(error) => {
                self.problems.push(format!("metrics of {node}: {error}"));
                Ok(())
            }
        }
    }
}

/// Names of the members, of which some may not answer.
fn nodes(diagnosis: &Value) -> Vec<String> {
    let members = diagnosis.pointer("/cluster/members");
    let members = members.and_then(Value::as_array).into_iter().flatten();
    let names = members.filter_map(|member| member.get("name")?.as_str());
    names.map(str::to_owned).collect()
}

/// Machines that did not boot or were not installed, the latest first.
fn failed_machines(events: &[Value]) -> Vec<String> {
    let mut failed: Vec<String> = Vec::new();
    for event in events.iter().rev() {
        let text = |path| event.pointer(path).and_then(Value::as_str);
        let of_a_boot = matches!(text("/key"), Some("install_failed" | "boot_stalled"));
        let machine = text("/object/machine").filter(|_| of_a_boot);
        match machine {
            Some(machine) if !failed.iter().any(|it| it == machine) => {
                failed.push(machine.to_owned());
            }
            _ => {}
        }
        if failed.len() >= TIMELINES_MAX {
            break;
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_that_failed_are_found_in_the_events() {
        let event = |key, machine| json!({"key": key, "object": {"machine": machine}});
        let events = [
            event("install_failed", "m1"),
            event("m3", "m3"),
            event("boot_stalled", "m2"),
            event("boot_stalled", "m1"),
            json!({"key": "install_failed"}),
        ];
        assert_eq!(failed_machines(&events), ["m1", "m2"]);
    }
}
