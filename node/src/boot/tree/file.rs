//! What is below `/machines/UUID/`: the rendered files of its bootenv, and what a machine is told
//! about itself. What has secrets in it is for whoever shows the machine's token.

use muster_api::machine_token;
use muster_api::template::{self, Job, RenderContext};
use muster_raft::Keyring;
use muster_storage::State;
use muster_storage::model::{Machine, ObjectKind};
use uuid::Uuid;

use super::{CATCH_UP, CONFIRM, Content, Problem, Tree, text_content};
use crate::boot::metadata;
use crate::boot::stamp::Stamp;

/// What there is at a path.
enum Found {
    /// A file of the bootenv, as everybody may see it, and as the machine may.
    File { open: Job, whole: Job },
    /// What every machine is told.
    Told(String),
}

impl Tree {
    /// The text at a path of a machine; with its token, also one that has secrets.
    pub(super) async fn file(
        &self,
        machine: Uuid,
        path: &str,
        token: Option<&str>,
    ) -> Result<Content, Problem> {
        let confirmed = self.confirm(CONFIRM).await;
        let keyring = self.cluster.keyring().map_err(|_| Problem::Interrupted)?;
        let is_good = |token| machine_token::is_good(&self.cluster, machine, token);
        let mut found = self.found(machine, path, token, &keyring);
        // This node may not know yet what others know.
        if !confirmed && (found.is_none() || !token.is_none_or(is_good)) {
            if !self.confirm(CATCH_UP.saturating_sub(CONFIRM)).await {
                return Err(Problem::Unconfirmed);
            }
            found = self.found(machine, path, token, &keyring);
        }
        let Some((found, stamp)) = found else {
            return Err(Problem::NotFound(format!(
                "machine {machine} boots nothing that has a file `{path}`"
            )));
        };
        // A wrong token is refused, so that nobody takes what is for everybody for what they wanted.
        if !token.is_none_or(is_good) {
            return Err(Problem::Token);
        }
        let private = token.is_some();
        let text = match found {
            _ if !private && metadata::NAMES.contains(&path) => return Err(Problem::Private),
            Found::Told(text) => text,
            Found::File { whole, .. } if private => rendered(whole).await?,
            Found::File { open, whole } => for_everybody(open, whole).await?,
        };
        Ok(Content {
            stamp: Some(stamp),
            ..text_content(text)
        })
    }

    fn found(
        &self,
        uuid: Uuid,
        path: &str,
        token: Option<&str>,
        keyring: &Keyring,
    ) -> Option<(Found, Stamp)> {
        let (node, nodes) = template::nodes(&self.cluster);
        self.cluster.read(|state| {
            let machine = state.machine_with_uuid(uuid)?;
            let Some((bootenv, template)) = file_of(state, machine, path) else {
                let params = template::params(state, machine, keyring);
                let text = metadata::text(state, machine, &params, path)?;
                return Some((Found::Told(text), Stamp::of(state, machine, [])));
            };
            let job = |token| {
                let context = RenderContext {
                    machine: Some(machine),
                    node: node.clone(),
                    nodes: nodes.clone(),
                    token,
                };
                Job::named(state, &context, template)
            };
            // The token that was shown and no other: one of a boot does not tell that of an install.
            let token = token.unwrap_or(machine_token::HIDDEN).to_owned();
            let found = Found::File {
                open: job(None),
                whole: job(Some(token)).with_secrets(keyring.clone()),
            };
            let made_of = [
                (ObjectKind::Template, template),
                (ObjectKind::Bootenv, bootenv),
            ];
            Some((found, Stamp::of(state, machine, made_of)))
        })
    }
}

async fn rendered(job: Job) -> Result<String, Problem> {
    let has_secrets = job.has_secrets();
    let text = template::on_pool(|| job.run()).await;
    text.map_err(|_| Problem::Interrupted)?
        .map_err(|problem| Problem::Render(problem.told_to_all(has_secrets)))
}

/// What everybody may have: made without secrets and token, and given only if that makes no
/// difference.
async fn for_everybody(open: Job, whole: Job) -> Result<String, Problem> {
    let rendered = template::on_pool(|| template::run_all(vec![open, whole])).await;
    let mut rendered = rendered.map_err(|_| Problem::Interrupted)?.into_iter();
    match (rendered.next(), rendered.next()) {
        (Some(Ok(open)), Some(Ok(whole))) if open == whole => Ok(open),
        (Some(Ok(_)), _) | (_, Some(Ok(_))) => Err(Problem::Private),
        // Of the two this one has no secret in it.
        (Some(Err(problem)), _) => Err(Problem::Render(problem)),
        (None, _) => Err(Problem::Interrupted),
    }
}

/// The bootenv that a machine boots, if it has a file at this path, and the file's template.
fn file_of<'a>(state: &'a State, machine: &Machine, path: &str) -> Option<(&'a str, &'a str)> {
    let bootenv = state.bootenv(&machine.bootenv)?;
    let file = bootenv.files.iter().find(|file| file.path == path)?;
    Some((&bootenv.name, &file.template))
}
