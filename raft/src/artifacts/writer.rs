//! Writing the bytes of an artifact, for as long as the disk has room to spare for them.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use muster_storage::blobs::BlobWriter;
use muster_storage::model::Sha256;

use crate::disk;
use crate::inner::Inner;

/// An artifact that is being written. It leaves to the log what that may need of the disk, also when
/// it turns out longer than was said. Dropped before [`ArtifactWriter::finish`], it leaves nothing
/// behind.
#[derive(Debug)]
pub struct ArtifactWriter {
    writer: BlobWriter,
    data_dir: PathBuf,
}

impl ArtifactWriter {
    /// Begins one of `size` octets, or of more.
    ///
    /// # Errors
    /// Of kind `StorageFull` when there is no room for it; else when the disk fails.
    pub(crate) fn begin(inner: &Inner, size: u64) -> io::Result<Self> {
        let data_dir = inner.options.data_dir.clone();
        check_room(&data_dir, size)?;
        Ok(Self {
            writer: inner.blobs.writer()?,
            data_dir,
        })
    }

    /// Adds bytes. Blocks.
    ///
    /// # Errors
    /// Of kind `StorageFull` when there is no room for them; else when the disk fails.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        check_room(&self.data_dir, bytes.len() as u64)?;
        self.writer.write(bytes)
    }

    /// The file, for reading what has been written so far by offset.
    pub(super) fn file(&self) -> io::Result<File> {
        self.writer.file()
    }

    /// Syncs the file and puts it in its place; returns its digest and length. Blocks.
    ///
    /// # Errors
    /// `InvalidData` when the digest is not the expected one; else when the disk fails.
    pub fn finish(self, expected: Option<Sha256>) -> io::Result<(Sha256, u64)> {
        self.writer.finish(expected)
    }
}

pub(super) fn check_room(data_dir: &Path, more: u64) -> io::Result<()> {
    disk::check_for_artifact(data_dir, more).inspect_err(|error| {
        if error.kind() == ErrorKind::StorageFull {
            metrics::counter!("muster_raft_artifacts_without_room_total").increment(1);
        }
    })
}
