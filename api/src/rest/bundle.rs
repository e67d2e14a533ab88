//! Many objects in one command, all or nothing.

use std::collections::BTreeMap;

use axum::extract::State;
use muster_storage::command::PutMode;
use muster_storage::model::{Object, ObjectKind};
use muster_storage::{Command, Effect};
use serde_json::{Value, json};
use uuid::Uuid;

use super::extract::{Json, On, Params};
use super::objects::{ATTEMPTS, busy, settle_together};
use super::trial::{self, Force};
use super::write::{Caller, write};
use crate::input::Draft;
use crate::problem::Problem;
use crate::{App, Shared, view};

/// Writes an array of objects, each with its `kind`, in any order.
pub async fn apply(
    State(app): State<Shared>,
    On(caller): On,
    Params(force): Params<Force>,
    Json(body): Json,
) -> Result<axum::Json<Value>, Problem> {
    let Value::Array(items) = body else {
        return Err(Problem::new(
            "invalid",
            "an array of objects is expected, each with its `kind`",
        ));
    };
    if items.len() > Command::MANY_MAX {
        let detail = format!("a bundle may have {} objects; split it", Command::MANY_MAX);
        return Err(Problem::new("too_large", detail));
    }
    let mut drafts = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let place = |problem: Problem| problem.inside(&format!("object {}", index + 1));
        let draft = Draft::new(None, item).map_err(place)?;
        if draft.kind == ObjectKind::Artifact {
            let advice = "artifacts are uploaded: muster artifacts upload FILE --path PATH";
            return Err(place(Problem::invalid("kind", advice)));
        }
        drafts.push(draft.with_password_hashed().await.map_err(place)?);
    }
    for _ in 0..ATTEMPTS {
        match apply_now(&app, caller.clone(), drafts.clone(), force).await {
            // A secret that was to be put back has changed since it was read.
            Err(problem) if problem.code == "stale" => {}
            result => return result,
        }
    }
    Err(busy())
}

async fn apply_now(
    app: &App,
    caller: Caller,
    mut drafts: Vec<Draft>,
    force: Force,
) -> Result<axum::Json<Value>, Problem> {
    let guards = app.cluster.read(|state| {
        let uuids = name_machines(state, &mut drafts);
        let find = |key: &str| {
            let known = || state.machine(key).map(|machine| machine.uuid);
            uuids.get(key).copied().or_else(known)
        };
        let mut guards = Vec::new();
        for draft in &mut drafts {
            let kept = draft.keep_secrets(state);
            if let (Some(revision), Some(key)) = (kept, draft.key()) {
                guards.push(Command::Expect {
                    kind: draft.kind,
                    key: key.to_owned(),
                    revision,
                });
            }
            draft.settle_machine(find)?;
        }
        Ok::<_, Problem>(guards)
    })?;
    let mut objects = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let place = format!(
            "{} `{}`",
            draft.kind,
            draft.key().unwrap_or("without a name")
        );
        objects.push(draft.parse().map_err(|problem| problem.inside(&place))?);
    }
    let before = settle_together(app, &mut objects, force)?;
    let report = trial::before_write(app, &objects, &[], force).await?;

    let order = |object: &Object| {
        ObjectKind::ALL
            .iter()
            .position(|kind| *kind == object.kind())
    };
    objects.sort_by_key(order);
    let keys: Vec<(ObjectKind, String)> = objects.iter().map(|o| (o.kind(), o.key())).collect();
    let puts = objects.into_iter().map(|object| Command::Put {
        object,
        mode: PutMode::Apply,
    });
    let sealed_before = before
        .iter()
        .filter(|command| matches!(command, Command::Put { .. }))
        .count();
    let commands = guards.into_iter().chain(before).chain(puts).collect();
    let outcome = write(app, caller, None, Command::Many(commands)).await?;
    let effects = match outcome.result {
        Ok(Effect::Many(effects)) => effects,
        _ => Vec::new(),
    };
    // What only guards says nothing.
    let effects = effects
        .into_iter()
        .filter(|effect| *effect != Effect::Done)
        .skip(sealed_before);
    let items: Vec<Value> = keys
        .into_iter()
        .zip(effects)
        .map(|((kind, key), effect)| {
            let created = matches!(effect, Effect::Stored { created: true, .. });
            json!({"kind": kind.singular(), "key": key, "created": created})
        })
        .collect();
    let mut answer = json!({"items": items, "revision": outcome.revision.0});
    if let Some(report) = report {
        answer[view::TRIAL] = report.to_value();
    }
    Ok(axum::Json(answer))
}

/// Gives new machines a UUID where a reservation of the same bundle names them.
fn name_machines(state: &muster_storage::State, drafts: &mut [Draft]) -> BTreeMap<String, Uuid> {
    let named: Vec<String> = drafts
        .iter()
        .filter(|draft| draft.kind == ObjectKind::Reservation)
        .filter_map(|draft| draft.fields.get("machine")?.as_str().map(str::to_owned))
        .collect();
    let mut uuids = BTreeMap::new();
    for draft in drafts
        .iter_mut()
        .filter(|draft| draft.kind == ObjectKind::Machine)
    {
        let Some(name) = draft.key().filter(|name| named.iter().any(|n| n == name)) else {
            continue;
        };
        let name = name.to_owned();
        let known = state.machine(&name).map(|machine| machine.uuid);
        let sent = draft
            .fields
            .get("uuid")
            .and_then(Value::as_str)
            .and_then(|u| u.parse().ok());
        let uuid = known.or(sent).unwrap_or_else(Uuid::new_v4);
        draft
            .fields
            .entry("uuid")
            .or_insert_with(|| uuid.to_string().into());
        uuids.insert(name, uuid);
    }
    uuids
}
