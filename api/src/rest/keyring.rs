//! A new key for the cluster's secrets.

use axum::extract::State;
use muster_storage::command::PutMode;
use muster_storage::{Command, State as Remembered};
use serde_json::{Value, json};

use super::extract::On;
use super::objects::{ATTEMPTS, busy};
use super::write::{Caller, write};
use crate::input;
use crate::problem::Problem;
use crate::{App, Shared};

/// Objects that are sealed anew in one write.
const PART: usize = 500;

/// Seals all secrets with a new key, then forgets the keys before it. Given again after it was cut
/// short, it does the whole anew.
pub async fn rotate(
    State(app): State<Shared>,
    On(caller): On,
) -> Result<axum::Json<Value>, Problem> {
    let installed = app.cluster.read(|state| {
        let install = state.open_install()?;
        let machine = state.machine_with_uuid(install.machine)?;
        Some(machine.name.clone())
    });
    if let Some(machine) = installed {
        let detail = format!(
            "machine `{machine}` is being installed, and would not be known by its token any more: \
             wait until it is done, or `muster machines cancel {machine}`"
        );
        return Err(Problem::new("conflict", detail));
    }
    tracing::info!(actor = caller.actor.0, "rotating the keyring");
    let caller = caller.without_key();
    let key = app.cluster.add_key(caller.actor.clone()).await?;
    let mut sealed = 0usize;
    let mut failures = 0usize;
    loop {
        let step = match reseal_some(&app, caller.clone(), key).await {
            Ok(0) => {
                let drop_older = Command::DropKeys { below: key };
                match write(&app, caller.clone(), None, drop_older).await {
                    Ok(_) => return Ok(axum::Json(json!({"key": key, "sealed": sealed}))),
                    Err(problem) => Err(problem),
                }
            }
            step => step,
        };
        match step {
            Ok(count) => sealed = sealed.saturating_add(count),
            // Others write what is sealed, too.
            Err(problem) if matches!(problem.code, "stale" | "conflict" | "not_found") => {
                failures += 1;
                if failures > ATTEMPTS {
                    return Err(busy());
                }
            }
            Err(problem) => return Err(problem),
        }
    }
}

/// Seals some of what is sealed with older keys; how many objects.
async fn reseal_some(app: &App, caller: Caller, key: u32) -> Result<usize, Problem> {
    let part = |state: &Remembered| -> Vec<_> {
        let records = state.sealed_below(key).take(PART);
        records.cloned().collect()
    };
    let part = app.cluster.read(part);
    if part.is_empty() {
        return Ok(0);
    }
    let keyring = app.cluster.keyring()?;
    let mut commands = Vec::with_capacity(2 * part.len());
    for record in &part {
        let mut object = record.object.clone();
        input::reseal(&keyring, &mut object)
            .map_err(|problem| problem.inside(&format!("{} `{}`", object.kind(), object.key())))?;
        commands.push(Command::Expect {
            kind: object.kind(),
            key: object.key(),
            revision: record.revision,
        });
        let mode = PutMode::Reseal;
        commands.push(Command::Put { object, mode });
    }
    write(app, caller, None, Command::Many(commands)).await?;
    Ok(part.len())
}
