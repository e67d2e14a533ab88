//! `muster backup` and `muster restore`.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_api::client::Call;
use muster_raft::Backup;
use reqwest::Method;
use serde_json::{Value, json};

use super::output::Printer;
use super::{Context, Error, files};
use crate::config::{BackupOptions, RestoreOptions};

/// The name of the restored node, until it is started and says its own.
const NAME: &str = "restored";

/// Makes a backup of a running cluster. The file appears under its name when it is whole, checked
/// and on the disk.
pub async fn make(context: &Context, options: &BackupOptions) -> Result<(), Error> {
    let passphrase = passphrase(options.passphrase_file.as_deref())?;
    let partial = Partial::new(&options.file)?;
    let call = Call::new(Method::GET, &["cluster", "backup"])
        .query("artifacts", options.artifacts.to_string())
        .header("muster-passphrase", STANDARD.encode(&passphrase))
        .streamed();
    let mut response = context.client.send(call).await?;
    if response.headers().contains_key("muster-stale") {
        eprintln!("muster: this node has no quorum: the backup may lack what was written last");
    }
    let mut file = partial.create()?;
    while let Some(piece) = response
        .chunk()
        .await
        .map_err(|error| Error::Failed(format!("the backup broke off: {error}")))?
    {
        file.write_all(&piece).map_err(partial.failed())?;
    }
    file.sync_all().map_err(partial.failed())?;
    drop(file);
    let backup = Backup::check(&partial.path, Some(&passphrase))?;
    partial.keep(&options.file)?;
    context.printer.object(&described(&options.file, &backup))
}

/// Checks a backup.
pub fn check(printer: Printer, options: &BackupOptions) -> Result<(), Error> {
    let passphrase = options.passphrase_file.as_deref();
    let passphrase = passphrase.map(|file| self::passphrase(Some(file)));
    let backup = Backup::check(&options.file, passphrase.transpose()?.as_deref())?;
    printer.object(&described(&options.file, &backup))
}

/// Prepares a data directory from a backup.
pub fn restore(printer: Printer, dir: &Path, options: &RestoreOptions) -> Result<(), Error> {
    let passphrase = passphrase(Some(&options.passphrase_file))?;
    super::keep_private();
    let restored = muster_raft::restore(&options.file, dir, &passphrase, NAME)?;
    let missing: Vec<&String> = restored.missing.iter().map(|note| &note.path).collect();
    printer.object(&json!({
        "data_dir": dir,
        "cluster_id": restored.refounded.cluster_id,
        "revision": restored.refounded.revision.0,
        "backup": {
            "cluster_id": restored.header.cluster_id,
            "revision": restored.header.revision.0,
            "at": restored.header.at.to_string(),
        },
        "artifacts_missing": missing,
    }))?;
    printer.done(
        "Start the node with `muster serve` on this directory, then let others join it with empty \
         directories. No node of the old cluster may run.",
    )
}

fn described(file: &Path, backup: &Backup) -> Value {
    let included = backup.artifacts.iter().filter(|note| note.included);
    json!({
        "file": file,
        "cluster_id": backup.header.cluster_id,
        "version": backup.header.version,
        "revision": backup.header.revision.0,
        "at": backup.header.at.to_string(),
        "rows": backup.rows,
        "digest": backup.header.digest.to_string(),
        "artifacts": {"named": backup.artifacts.len(), "included": included.count()},
    })
}

fn passphrase(file: Option<&Path>) -> Result<String, Error> {
    let file = file.ok_or_else(|| Error::Usage("--passphrase-file is needed".to_owned()))?;
    files::secret(file)
}

/// A file beside the one that is to be, removed unless it is kept.
pub(super) struct Partial {
    path: PathBuf,
    dir: PathBuf,
}

impl Partial {
    pub(super) fn new(file: &Path) -> Result<Self, Error> {
        let name = file
            .file_name()
            .ok_or_else(|| Error::Usage(format!("{} is no name of a file", file.display())))?;
        let dir = match file.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        let partial = format!(".{}.{}", name.to_string_lossy(), std::process::id());
        Ok(Self {
            path: dir.join(partial),
            dir,
        })
    }

    fn failed(&self) -> impl FnOnce(std::io::Error) -> Error {
        let path = self.path.display().to_string();
        move |error| Error::Failed(format!("writing {path}: {error}"))
    }

    /// For nobody else's eyes: it holds password hashes and params.
    pub(super) fn create(&self) -> Result<File, Error> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        options.open(&self.path).map_err(self.failed())
    }

    pub(super) fn keep(&self, name: &Path) -> Result<(), Error> {
        let keep = || {
            fs::rename(&self.path, name)?;
            File::open(&self.dir)?.sync_all()
        };
        keep().map_err(self.failed())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Once it is kept there is none.
        let _ = fs::remove_file(&self.path);
    }
}
