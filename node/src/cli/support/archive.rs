//! The file itself: a compressed tar archive, into which nothing goes but through [`scrub`].

use std::fs::File;
use std::io;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use super::scrub;
use crate::cli::Error;

/// An archive that is being written.
pub struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    /// The directory that everything is in.
    name: String,
}

impl Archive {
    /// An archive in a file, with everything in one directory.
    pub fn new(file: File, name: String) -> Self {
        let compressed = GzEncoder::new(file, Compression::default());
        Self {
            tar: tar::Builder::new(compressed),
            name,
        }
    }

    /// Adds a text.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn text(&mut self, file: &str, text: &str) -> Result<(), Error> {
        self.add(file, &scrub::text(text))
    }

    /// Adds a value.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn json(&mut self, file: &str, value: &Value) -> Result<(), Error> {
        self.add(file, &format!("{:#}\n", scrub::value(value)))
    }

    fn add(&mut self, file: &str, text: &str) -> Result<(), Error> {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        let path = format!("{}/{file}", self.name);
        let added = self.tar.append_data(&mut header, &path, text.as_bytes());
        added.map_err(|error| Error::Failed(format!("writing {path}: {error}")))
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> io::Result<File> {
        self.tar.into_inner()?.finish()
    }
}
