//! `muster render`: what a machine would get, and what would change.

use std::path::PathBuf;

use muster_api::client::{Call, Payload};
use reqwest::Method;
use serde_json::json;
use similar::TextDiff;

use super::{Context, Error, files};

/// A text for a machine.
pub struct Rendering {
    /// Name, UUID or MAC.
    pub machine: String,
    /// Name of the template.
    pub template: String,
    /// Contents for it, instead of those that the cluster has.
    pub file: Option<PathBuf>,
}

impl Rendering {
    /// Prints it.
    pub async fn print(&self, context: &Context) -> Result<(), Error> {
        let draft = self.draft()?;
        let text = self.fetch(context, &self.machine, draft.as_deref()).await?;
        context.printer.text(&text)
    }

    /// Prints what changes to it, as a unified diff: from the text of another machine, or else from
    /// what the cluster has for this one.
    pub async fn print_changes(
        &self,
        context: &Context,
        from: Option<String>,
    ) -> Result<(), Error> {
        let draft = self.draft()?;
        if draft.is_none() && from.is_none() {
            return Err(Error::Usage(
                "--diff needs something to compare with: --file FILE or --from MACHINE".to_owned(),
            ));
        }
        let other = from.as_ref().unwrap_or(&self.machine);
        let old = self.fetch(context, other, None).await?;
        let new = self.fetch(context, &self.machine, draft.as_deref()).await?;
        let label = |machine: &str, file: Option<&PathBuf>| match file {
            Some(file) => format!("{machine} {} ({})", self.template, file.display()),
            None => format!("{machine} {}", self.template),
        };
        let (before, after) = (label(other, None), label(&self.machine, self.file.as_ref()));
        let diff = TextDiff::from_lines(&old, &new);
        let mut unified = diff.unified_diff();
        context
            .printer
            .text(&unified.header(&before, &after).to_string())
    }

    fn draft(&self) -> Result<Option<String>, Error> {
        self.file.as_deref().map(files::text).transpose()
    }

    async fn fetch(
        &self,
        context: &Context,
        machine: &str,
        draft: Option<&str>,
    ) -> Result<String, Error> {
        let path = ["machines", machine, "render"];
        let call = match draft {
            None => Call::new(Method::GET, &path),
            Some(contents) => {
                Call::new(Method::POST, &path).payload(Payload::Json(json!({"contents": contents})))
            }
        };
        let response = context
            .client
            .send(call.query("template", self.template.as_str()))
            .await?;
        let text = response.text().await;
        text.map_err(|error| Error::Failed(error.to_string()))
    }
}
