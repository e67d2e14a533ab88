//! Wall clocks that can be set, one for each node: `libfaketime` stands before the C library in its
//! process and moves `CLOCK_REALTIME` by what a file says. Clocks that nobody can set (monotonic,
//! boot time) are left as they are, and so is the host's own clock.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where Debian's `libfaketime` is, below the directory of the architecture.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// The wall clock of one node.
#[derive(Clone, Debug)]
pub struct WallClock {
    library: PathBuf,
    file: PathBuf,
}

impl WallClock {
    /// A clock whose setting is kept in this file, and is right at first.
    pub fn at(file: PathBuf) -> Result<Self> {
        let clock = Self {
            library: library()?,
            file,
        };
        clock.set(0)?;
        Ok(clock)
    }

    /// What its process must have in its environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        let file = self.file.display().to_string();
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", file),
            // The file is read once a second: a jump is seen within one.
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// From now on it is wrong by so many milliseconds.
    pub fn set(&self, offset: i64) -> Result<()> {
        let sign = if offset < 0 { '-' } else { '+' };
        let part = self.file.with_extension("part");
        let size = offset.unsigned_abs();
        let text = format!("{sign}{}.{:03}\n", size / 1000, size % 1000);
        fs::write(&part, text).context("writing the setting of a clock")?;
        fs::rename(&part, &self.file).context("setting a clock")
    }
}

fn library() -> Result<PathBuf> {
    let directories = fs::read_dir("/usr/lib").context("listing /usr/lib")?;
    let mut paths = directories
        .flatten()
        .map(|entry| entry.path().join(Path::new(LIBRARY)));
    paths
        .find(|path| path.is_file())
        .context("no libfaketime, which sets the clocks of nodes: run `make setup`")
}
