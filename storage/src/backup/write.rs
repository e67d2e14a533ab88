//! Writing a backup, section by section.

use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256 as Hasher};

use super::{END, ROWS, SUMS};
use crate::engine::Rows;
use crate::model::Sha256;

/// Octets of rows in one section.
const SECTION_OCTETS: usize = 4 << 20;
/// Rows read at a time.
const PAGE: usize = 1024;

/// Writes the sections of a backup. Without [`Writer::finish`] the file is known to be cut short.
pub struct Writer<W: Write> {
    tar: tar::Builder<W>,
    sums: String,
}

/// Hashes what is read through it.
pub(super) struct Hashing<R> {
    inner: R,
    hasher: Hasher,
    /// Octets so far.
    pub length: u64,
}

impl<R> Hashing<R> {
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Hasher::new(),
            length: 0,
        }
    }

    pub fn sum(self) -> Sha256 {
        Sha256(self.hasher.finalize().into())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.length = self.length.saturating_add(count as u64);
        Ok(count)
    }
}

impl<W: Write> Writer<W> {
    /// Begins a backup.
    pub fn new(out: W) -> Self {
        Self {
            tar: tar::Builder::new(out),
            sums: String::new(),
        }
    }

    fn append(&mut self, name: &str, size: u64, from: impl Read) -> io::Result<Sha256> {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        // It holds password hashes and params.
        header.set_mode(0o600);
        header.set_mtime(0);
        let mut from = Hashing::new(from.take(size));
        self.tar.append_data(&mut header, name, &mut from)?;
        if from.length == size {
            return Ok(from.sum());
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{name} is shorter than {size} octets"),
        ))
    }

    /// Adds a section of `size` octets.
    ///
    /// # Errors
    /// When something cannot be read or written, or there are fewer octets.
    pub fn stream(&mut self, name: &str, size: u64, from: impl Read) -> io::Result<Sha256> {
        let sum = self.append(name, size, from)?;
        self.sums.push_str(&format!("{sum}  {name}\n"));
        Ok(sum)
    }

    /// Adds a section.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn section(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.stream(name, bytes.len() as u64, bytes).map(drop)
    }

    /// Adds all rows of a store, which must not change meanwhile; `seen` gets each.
    ///
    /// # Errors
    /// When something cannot be read or written.
    pub fn rows(
        &mut self,
        rows: &dyn Rows,
        mut seen: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut number = 0u32;
        let mut section = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = rows.page(after.as_deref(), PAGE)?;
            let last = page.last().map(|(key, _)| key.clone());
            for (key, value) in page {
                seen(&key, &value)?;
                for part in [&key, &value] {
                    let length = u32::try_from(part.len()).map_err(io::Error::other)?;
                    section.extend_from_slice(&length.to_be_bytes());
                }
                section.extend_from_slice(&key);
                section.extend_from_slice(&value);
            }
            if section.len() >= SECTION_OCTETS || (last.is_none() && !section.is_empty()) {
                self.section(&format!("{ROWS}{number:06}"), &section)?;
                section.clear();
                number = number.saturating_add(1);
            }
            match last {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    /// Writes the checksums and the end.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        let sums = std::mem::take(&mut self.sums);
        let sum = self.append(SUMS, sums.len() as u64, sums.as_bytes())?;
        let end = format!("{sum}  {SUMS}\n");
        self.append(END, end.len() as u64, end.as_bytes())?;
        self.tar.into_inner()
    }
}
