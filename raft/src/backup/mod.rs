//! Backups: a node's rows at one revision, with the key to the cluster's secrets sealed by a
//! passphrase. `docs/operate/backup.md` says how they are used.

mod restore;
mod seal;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use muster_storage::backup::{self, ArtifactNote, Header, Writer};
use muster_storage::engine::Rows;
use muster_storage::model::Object;
use muster_storage::state::{Digest, Row};
use prost::Message;
use tempfile::TempDir;

pub use restore::{Restored, restore};

use crate::Error;
use crate::inner::Inner;
use crate::store::note;
use crate::wire::proto;

/// Writes a backup of what this node has applied. Blocks.
pub fn write(
    inner: &Inner,
    passphrase: &str,
    artifacts: bool,
    out: impl Write,
) -> Result<Header, Error> {
    let sealer = inner
        .sealer
        .as_ref()
        .ok_or_else(|| Error::Refused("this node has no keyring".to_owned()))?;
    let keys = seal::seal(sealer, passphrase, inner.cluster_id)?;
    let writing = || Error::io("writing a backup");
    // Rows go on changing: what is written is a copy. A crash leaves it to the next start.
    let parent = inner.memory.snapshots();
    let dir = TempDir::with_prefix_in("backup-", parent).map_err(writing())?;
    let files = dir.path().join("rows");
    let rows = inner.memory.rows();
    rows.checkpoint(&files).map_err(writing())?;
    let rows = rows.open_checkpoint(&files).map_err(writing())?;
    let header = header(&*rows, &inner.options.version)?;

    let mut writer = Writer::new(out);
    let mut sections = || -> io::Result<()> {
        writer.section(backup::HEADER, &serde_json::to_vec_pretty(&header)?)?;
        writer.section(backup::KEYS, &keys)?;
        let mut notes = Vec::new();
        writer.rows(&*rows, |key, value| {
            notes.extend(artifact(key, value, artifacts)?);
            Ok(())
        })?;
        writer.section(backup::ARTIFACTS, &serde_json::to_vec_pretty(&notes)?)?;
        // Two paths may name the same bytes.
        notes.sort_by_key(|note| note.sha256);
        notes.dedup_by_key(|note| note.sha256);
        for note in notes.iter().filter(|note| note.included) {
            let file = File::open(inner.blobs.path(&note.sha256))?;
            let name = format!("{}{}", backup::BLOBS, note.sha256);
            if writer.stream(&name, note.size, file)? != note.sha256 {
                return Err(io::Error::other(format!(
                    "artifact {} is damaged on this node",
                    note.path
                )));
            }
        }
        Ok(())
    };
    sections().map_err(writing())?;
    let mut out = writer.finish().map_err(writing())?;
    out.flush().map_err(writing())?;
    Ok(header)
}

/// What a copy of rows is of.
fn header(rows: &dyn Rows, version: &str) -> Result<Header, Error> {
    let reading = || Error::io("reading the rows");
    let corrupt = |what: &str| Error::Corrupt(format!("the rows have no {what}"));
    let (mut meta, mut cluster) = (None, None);
    // They sort before all others.
    for (key, value) in rows.page(None, 2).map_err(reading())? {
        match Row::decode(&key, &value).map_err(|error| Error::Corrupt(error.to_string()))? {
            (_, Row::Meta(found)) => meta = Some(found),
            (_, Row::Cluster(found)) => cluster = Some(found),
            _ => {}
        }
    }
    let meta = meta.ok_or_else(|| corrupt("position"))?;
    let note = |name| {
        let found = rows.note(name).map_err(reading())?;
        found.ok_or_else(|| corrupt(name))
    };
    let digest = <[u8; 16]>::try_from(note(note::DIGEST)?).map_err(|_| corrupt("digest"))?;
    Ok(Header {
        format: backup::FORMAT,
        version: version.to_owned(),
        cluster_id: cluster.ok_or_else(|| corrupt("cluster"))?.id,
        revision: meta.revision,
        applied: proto::LogId::decode(&*note(note::APPLIED)?)
            .map_err(|error| Error::Corrupt(error.to_string()))?
            .index,
        at: meta.time,
        digest: Digest(digest),
    })
}

/// The artifact that a row is of.
fn artifact(key: &[u8], value: &[u8], included: bool) -> io::Result<Option<ArtifactNote>> {
    let (_, row) = Row::decode(key, value).map_err(io::Error::other)?;
    let Row::Object(record) = row else {
        return Ok(None);
    };
    Ok(match record.object {
        Object::Artifact(artifact) => Some(ArtifactNote {
            path: artifact.path,
            sha256: artifact.sha256,
            size: artifact.size,
            included,
        }),
        _ => None,
    })
}

/// A backup that is whole.
#[derive(Clone, Debug)]
pub struct Backup {
    /// Of what it is.
    pub header: Header,
    /// Rows in it.
    pub rows: u64,
    /// Artifacts that the state names.
    pub artifacts: Vec<ArtifactNote>,
}

impl Backup {
    /// Reads a backup and checks all of it: checksums, that every row can be read, and the digest
    /// over all rows; with the passphrase also that it opens the key.
    ///
    /// # Errors
    /// When it is damaged, cut short or of a newer format, with the name of the section; or the
    /// passphrase is wrong.
    pub fn check(file: &Path, passphrase: Option<&str>) -> Result<Self, Error> {
        let (mut count, mut digest) = (0u64, Digest::default());
        let mut artifacts = Vec::new();
        let mut keys = Vec::new();
        // A wrong checksum says more, and is known at the end.
        let mut bad = None;
        let header = read(file, |name, contents| {
            if name.starts_with(backup::ROWS) {
                let rows = backup::rows(name, contents)?;
                count = count.saturating_add(rows.len() as u64);
                let pairs = rows.iter().map(|(key, value)| (&key[..], &value[..]));
                digest = digest.plus(Digest::of(pairs));
                for (key, value) in &rows {
                    if let Err(error) = Row::decode(key, value) {
                        bad.get_or_insert(damaged(name, &error));
                    }
                }
            } else if name == backup::KEYS {
                contents
                    .read_to_end(&mut keys)
                    .map_err(backup::Error::Disk)?;
            } else if name == backup::ARTIFACTS {
                let mut text = Vec::new();
                contents
                    .read_to_end(&mut text)
                    .map_err(backup::Error::Disk)?;
                let parsed = serde_json::from_slice(&text);
                artifacts = parsed.unwrap_or_else(|error| {
                    bad.get_or_insert(damaged(name, &error));
                    Vec::new()
                });
            }
            Ok::<_, Error>(())
        })?;
        if let Some(error) = bad {
            return Err(error.into());
        }
        if digest != header.digest {
            return Err(Error::Corrupt(format!(
                "the rows of the backup have digest {digest}, its header says {}",
                header.digest
            )));
        }
        if let Some(passphrase) = passphrase {
            seal::open(&keys, passphrase, header.cluster_id)?;
        }
        Ok(Self {
            header,
            rows: count,
            artifacts,
        })
    }
}

fn damaged(section: &str, problem: &dyn std::error::Error) -> backup::Error {
    backup::Error::Damaged {
        section: section.to_owned(),
        problem: problem.to_string(),
    }
}

fn read(
    file: &Path,
    each: impl FnMut(&str, &mut dyn io::Read) -> Result<(), Error>,
) -> Result<Header, Error> {
    let opened = File::open(file);
    let opened = opened.map_err(Error::io(format!("reading {}", file.display())))?;
    backup::read(io::BufReader::with_capacity(1 << 20, opened), each)
}
