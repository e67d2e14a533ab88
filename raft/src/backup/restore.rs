//! Preparing a data directory from a backup.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use muster_storage::State;
use muster_storage::backup::{self, ArtifactNote, Header};
use muster_storage::blobs::Blobs;
use muster_storage::model::Sha256;

use super::{Backup, read, seal};
use crate::Error;
use crate::refound::{NewMember, Refounded, refound};

/// What was made of a backup.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Of what the backup is.
    pub header: Header,
    /// The new cluster.
    pub refounded: Refounded,
    /// Artifacts that the state names and the backup does not hold.
    pub missing: Vec<ArtifactNote>,
}

/// Prepares the empty directory `dir`, so that the node that is started on it is a new cluster with
/// the state of the backup. Nothing is written before the whole file has been checked.
///
/// # Errors
/// When the directory is not empty, the file is damaged, or the passphrase is wrong.
pub fn restore(
    file: &Path,
    dir: &Path,
    passphrase: &str,
    node_name: &str,
) -> Result<Restored, Error> {
    check_empty(dir)?;
    let Backup {
        header, artifacts, ..
    } = Backup::check(file, Some(passphrase))?;
    fs::create_dir_all(dir).map_err(Error::io(format!("making {}", dir.display())))?;
    let writing = || Error::io(format!("writing to {}", dir.display()));
    let blobs = Blobs::open(dir).map_err(writing())?;
    let mut rows = Vec::new();
    let mut keys = Vec::new();
    read(file, |name, contents| {
        if name.starts_with(backup::ROWS) {
            rows.append(&mut backup::rows(name, contents)?);
        } else if name == backup::KEYS {
            contents.read_to_end(&mut keys).map_err(writing())?;
        } else if let Some(sha256) = name.strip_prefix(backup::BLOBS) {
            let sha256 = sha256.parse::<Sha256>();
            let sha256 = sha256.map_err(|error| Error::Corrupt(format!("{name}: {error}")))?;
            store(&blobs, sha256, contents).map_err(writing())?;
        }
        Ok(())
    })?;
    let keyring = seal::open(&keys, passphrase, header.cluster_id)?;
    let state = State::load(rows).map_err(|error| Error::Corrupt(error.to_string()))?;
    let refounded = refound(
        dir,
        state,
        header.applied,
        &keyring,
        NewMember::named(node_name),
    )?;
    Ok(Restored {
        header,
        refounded,
        missing: artifacts
            .into_iter()
            .filter(|note| !note.included)
            .collect(),
    })
}

fn check_empty(dir: &Path) -> Result<(), Error> {
    let reading = Error::io(format!("reading {}", dir.display()));
    let first = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(reading(error)),
    };
    match first {
        None => Ok(()),
        Some(_) => Err(Error::Refused(format!(
            "{} is not empty; a backup is restored into an empty directory",
            dir.display()
        ))),
    }
}

fn store(blobs: &Blobs, sha256: Sha256, contents: &mut dyn Read) -> io::Result<()> {
    let mut writer = blobs.writer()?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = contents.read(&mut buffer)?;
        if count == 0 {
            return writer.finish(Some(sha256)).map(drop);
        }
        writer.write(buffer.get(..count).unwrap_or_default())?;
    }
}
