//! Disks that lose power: a data directory on a file system of its own, whose image at any moment
//! holds what was synced and little else.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use crate::lab::{Lab, run};

/// Room for a node of a test; the file is sparse.
const SIZE: u64 = 1 << 30;

/// A file system in a file, mounted on a directory.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Makes a disk and mounts it where a node of this name keeps its data.
    pub fn for_node(lab: &Lab, name: &str) -> Result<Self> {
        let image = lab.dir().join(format!("{name}.img"));
        let file = File::create(&image).context("making an image")?;
        file.set_len(SIZE).context("making room in an image")?;
        run(Command::new("mkfs.ext4")
            .args(["-q", "-E", "nodiscard"])
            .arg(&image))?;
        Self::mount(image, lab.dir().join(name))
    }

    /// The journal commits by itself only after ten minutes: what reaches the image was synced.
    fn mount(image: PathBuf, at: PathBuf) -> Result<Self> {
        fs::create_dir_all(&at).with_context(|| format!("making {}", at.display()))?;
        run(Command::new("mount")
            .args(["-o", "loop,commit=600,noatime"])
            .arg(&image)
            .arg(&at))?;
        Ok(Self { image, at })
    }

    /// Writes out all that was written so far, as minutes without a power cut would.
    pub fn settle(&self) -> Result<()> {
        run(Command::new("sync").arg("-f").arg(&self.at)).map(drop)
    }

    /// Copies, under a name, what a power cut at this moment would leave.
    pub fn snapshot(&self, name: &str) -> Result<PathBuf> {
        let snapshot = self.image.with_extension(name);
        copy(&self.image, &snapshot)?;
        Ok(snapshot)
    }

    /// Goes on from a snapshot: what was not in it is gone. Nothing may use the disk meanwhile.
    pub fn restore(self, snapshot: &Path) -> Result<Self> {
        let (image, at) = (self.image.clone(), self.at.clone());
        // The kernel may still write to the file of the old one.
        let next = image.with_extension("next");
        copy(snapshot, &next)?;
        drop(self);
        fs::rename(&next, &image).context("putting a snapshot in place")?;
        Self::mount(image, at)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("--sparse=always").arg(from).arg(to)).map(drop)
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Detached at once, whoever still looks at it.
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

/// Unmounts what a killed test left mounted below a directory.
pub(crate) fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.map(Path::new).filter(|point| point.starts_with(dir)) {
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
}
