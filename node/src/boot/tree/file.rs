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
        let mut found = self.found(machine, path, &keyring);
        if found.is_none() && !confirmed {
            if !self.confirm(CATCH_UP.saturating_sub(CONFIRM)).await {
                return Err(Problem::Unconfirmed);
            }
            found = self.found(machine, path, &keyring);
        }
        let Some((found, stamp)) = found else {
            return Err(Problem::NotFound(format!(
                "machine {machine} boots nothing that has a file `{path}`"
            )));
        };
        // A wrong token is refused, so that nobody takes what is for everybody for what they wanted.
        let private = match token {
            Some(token) if !machine_token::is_good(&self.cluster, machine, token) => {
                return Err(Problem::Token);
            }
            Some(_) => true,
            None => false,
        };
        let text = match found {
            _ if !private && metadata::NAMES.contains(&path) => return Err(Problem::Private),
            Found::Told(text) => text,
            Found::File { whole, .. } if private => template::on_pool(|| whole.run())
                .await
                .map_err(|_| Problem::Interrupted)?
                .map_err(Problem::Render)?,
            Found::File { open, whole } => for_everybody(open, whole).await?,
        };
        Ok(Content {
            stamp: Some(stamp),
            ..text_content(text)
        })
    }

    fn found(&self, uuid: Uuid, path: &str, keyring: &Keyring) -> Option<(Found, Stamp)> {
        let (node, nodes) = template::nodes(&self.cluster);
        let now = self.cluster.now();
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
            let token = machine_token::issue(state, keyring, uuid, now);
            let found = Found::File {
                open: job(None),
                whole: job(token).with_secrets(keyring.clone()),
            };
            let made_of = [
                (ObjectKind::Template, template),
                (ObjectKind::Bootenv, bootenv),
            ];
            Some((found, Stamp::of(state, machine, made_of)))
        })
    }
}

/// What everybody may have: made without secrets, and given only if that makes no difference.
async fn for_everybody(open: Job, whole: Job) -> Result<String, Problem> {
    let rendered = template::on_pool(move || {
        if open.has_secrets() {
            let mut both = template::run_all(vec![open, whole]);
            return (both.pop(), both.pop());
        }
        let open = open.run();
        // What fails may lack the token only.
        let whole = open.is_err().then(|| whole.run());
        (whole, Some(open))
    });
    match rendered.await.map_err(|_| Problem::Interrupted)? {
        (None, Some(Ok(open))) => Ok(open),
        (Some(Ok(whole)), Some(Ok(open))) if open == whole => Ok(open),
        (Some(Ok(_)), _) => Err(Problem::Private),
        (Some(Err(problem)), _) | (None, Some(Err(problem))) => Err(Problem::Render(problem)),
        (None, None) => Err(Problem::Interrupted),
    }
}

/// The bootenv that a machine boots, if it has a file at this path, and the file's template.
fn file_of<'a>(state: &'a State, machine: &Machine, path: &str) -> Option<(&'a str, &'a str)> {
    let bootenv = state.bootenv(&machine.bootenv)?;
    let file = bootenv.files.iter().find(|file| file.path == path)?;
    Some((&bootenv.name, &file.template))
}
