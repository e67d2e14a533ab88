//! `muster node`: a data directory looked at without a server, and without writing to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use muster_api::view;
use muster_raft::Inspection;
use muster_storage::event::{Action, Subject};
use muster_storage::model::{Object, Record, Sha256};
use muster_storage::state::Row;
use muster_storage::{Change, Revision, State};
use serde_json::{Map, Value, json};
use sha2::Digest as _;

use super::output::Printer;
use super::{Error, recover};
use crate::config::NodeCommand;

/// What stands for a secret.
const SEALED: &str = "<sealed>";

/// Checks a directory, prints what it holds, or recovers it.
pub fn run(printer: Printer, dir: &Path, command: &NodeCommand) -> Result<(), Error> {
    match command {
        NodeCommand::Check => check(dir),
        NodeCommand::Dump => {
            let inspection = Inspection::open(dir)?;
            let mut out = BufWriter::new(io::stdout().lock());
            dump(&inspection, &mut out)?;
            Ok(out.flush()?)
        }
        NodeCommand::Recover {
            i_know_writes_may_be_lost,
        } => recover::run(printer, dir, *i_know_writes_may_be_lost),
    }
}

impl From<muster_raft::Error> for Error {
    fn from(error: muster_raft::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

fn check(dir: &Path) -> Result<(), Error> {
    let damages = muster_raft::damages(dir)?;
    let readable = !damages
        .iter()
        .any(|damage| matches!(damage.part, "log" | "state"));
    let mut report = match readable {
        true => summary(&Inspection::open(dir)?)?,
        false => json!({"applied": null, "log": null}),
    };
    let (artifacts, damaged) = check_artifacts(dir)?;
    report["artifacts"] = json!({"whole": artifacts, "damaged": damaged});
    report["damages"] = json!(damages);
    let mut out = io::stdout().lock();
    writeln!(out, "{report:#}")?;
    let mut problems: Vec<&str> = damages.iter().map(|damage| &*damage.problem).collect();
    if !damaged.is_empty() {
        problems
            .push("some artifacts are damaged: remove these files, and the node fetches them anew");
    }
    match problems.as_slice() {
        [] => Ok(()),
        problems => Err(Error::Failed(problems.join("\nmuster: "))),
    }
}

/// How far log and state of a directory reach.
fn summary(inspection: &Inspection) -> Result<Value, Error> {
    let log = inspection.log()?;
    let mut entries = 0u64;
    inspection.each_entry(0, |_, _| {
        entries = entries.saturating_add(1);
        Ok::<_, Error>(())
    })?;
    let end = inspection.replay(|_, _| Ok::<_, Error>(()))?;
    Ok(json!({
        "applied": {
            "index": inspection.applied(),
            "revision": inspection.state().revision().0,
            "digest": inspection.state().digest().to_string(),
        },
        "log": {
            "first": log.as_ref().map(|log| *log.start()),
            "last": log.as_ref().map(|log| *log.end()),
            "last_term": inspection.last()?.0,
            "entries": entries,
            "revision_at_end": end.revision().0,
        },
    }))
}

/// How many artifacts are whole, and which are not what their name says.
fn check_artifacts(dir: &Path) -> Result<(usize, Vec<String>), Error> {
    let (mut whole, mut damaged) = (0usize, Vec::new());
    for fan in list(&dir.join("artifacts"))? {
        for path in list(&fan)? {
            let name = path.file_name().and_then(|name| name.to_str());
            // Files of other names are being written, or not ours.
            let Some(Ok(sha256)) = name.map(str::parse::<Sha256>) else {
                continue;
            };
            match digest(&path) {
                Ok(found) if found == sha256 => whole = whole.saturating_add(1),
                Ok(_) | Err(_) => damaged.push(path.display().to_string()),
            }
        }
    }
    Ok((whole, damaged))
}

/// What is in a directory; nothing when there is none.
fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let listed = || {
        let entries = match std::fs::read_dir(dir) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(Vec::new());
            }
            entries => entries?,
        };
        entries.map(|entry| Ok(entry?.path())).collect()
    };
    listed()
        .map_err(|error: io::Error| Error::Failed(format!("reading {}: {error}", dir.display())))
}

fn digest(path: &Path) -> io::Result<Sha256> {
    let mut hasher = sha2::Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(Sha256(hasher.finalize().into()))
}

fn dump(inspection: &Inspection, out: &mut impl Write) -> Result<(), Error> {
    let state = inspection.state();
    let rows = state
        .rows()
        .map_err(|error| Error::Failed(error.to_string()))?;
    for row in rows {
        let value = row.value.unwrap_or_default();
        let (_, row) =
            Row::decode(&row.key, &value).map_err(|error| Error::Failed(error.to_string()))?;
        if let Some((revision, kind, object)) = of_row(state, row) {
            line(out, "state", revision, &kind, "present", object)?;
        }
    }
    inspection.replay(|state, changes| {
        for change in changes {
            let (kind, object) = of_change(state, change);
            let action = match change.action {
                Action::Created => "created",
                Action::Updated => "updated",
                Action::Deleted => "deleted",
            };
            line(out, "log", change.revision, kind, action, object)?;
        }
        Ok::<_, Error>(())
    })?;
    Ok(())
}

fn line(
    out: &mut impl Write,
    source: &str,
    revision: Revision,
    kind: &str,
    action: &str,
    object: Value,
) -> Result<(), Error> {
    let members = BTreeMap::from([
        ("source", Value::from(source)),
        ("revision", revision.0.into()),
        ("kind", kind.into()),
        ("action", action.into()),
        ("object", object),
    ]);
    Ok(writeln!(out, "{}", json!(members))?)
}

/// Revision, kind and JSON form of a row; history is left out.
fn of_row(state: &State, row: Row) -> Option<(Revision, String, Value)> {
    let whole = state.revision();
    Some(match row {
        Row::Event(_) => return None,
        Row::Meta(meta) => {
            let object = json!({"schema": meta.schema, "time": view::time(meta.time)});
            (meta.revision, "meta".into(), object)
        }
        Row::Cluster(cluster) => {
            let object = json!({"id": cluster.id, "ca_pem": cluster.ca_pem, "ca_key_sealed": SEALED, "keyring": SEALED});
            (whole, "cluster".into(), object)
        }
        Row::Member(record) => (
            record.revision,
            "node".into(),
            Value::Object(view::member(&record)),
        ),
        Row::Identifier(identifier) => (whole, "identifier".into(), json!(identifier)),
        Row::JoinToken(token) => {
            let object = json!({"expires_at": view::time(token.expires_at), "hash": SEALED});
            (whole, "join_token".into(), object)
        }
        Row::Token(token) => {
            let object = json!({"user": token.user, "expires_at": view::time(token.expires_at), "hash": SEALED});
            (whole, "token".into(), object)
        }
        Row::Object(record) => {
            let kind = record.object.kind().singular().to_owned();
            (record.revision, kind, of_object(state, &record.object))
        }
        Row::Lease(record) => (record.revision, "lease".into(), view::lease(state, &record)),
        Row::Remembered(remembered) => {
            let object = json!({"request": remembered.request, "effect": remembered.effect});
            (remembered.revision, "remembered".into(), object)
        }
        Row::Report(report) => {
            let object = json!({"machine": report.machine, "at": view::time(report.at), "body": report.body});
            (whole, "report".into(), object)
        }
        Row::Install(install) => (whole, "install".into(), view::install(state, &install)),
        Row::Lock(lock) => (whole, "lock".into(), view::lock(state, &lock)),
        Row::Timeline(timeline) => {
            let facts: Vec<Value> = timeline
                .facts
                .iter()
                .map(|it| view::fact(state, it))
                .collect();
            let object = json!({"machine": timeline.machine, "facts": facts});
            (whole, "timeline".into(), object)
        }
    })
}

fn of_object(state: &State, object: &Object) -> Value {
    let mut fields: Map<String, Value> = view::public_fields(state, object);
    if matches!(object, Object::User(_)) {
        fields.insert("password_hash".into(), SEALED.into());
    }
    Value::Object(fields)
}

fn of_change<'a>(state: &State, change: &'a Change) -> (&'a str, Value) {
    let object = match &change.subject {
        Subject::Object(object) => of_object(state, object),
        Subject::Lease(lease) => view::lease(
            state,
            &Record {
                revision: change.revision,
                created_at: lease.bound_at,
                updated_at: change.at,
                object: lease.clone(),
            },
        ),
        Subject::Member(_)
        | Subject::Report(_)
        | Subject::Alert(_)
        | Subject::Install(_)
        | Subject::Schema(_)
        | Subject::Lock(_) => view::change(state, change)
            .get("object")
            .cloned()
            .unwrap_or_default(),
    };
    (change.subject.kind(), object)
}
