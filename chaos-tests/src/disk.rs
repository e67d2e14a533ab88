//! Disks that lose power or fail: a data directory on a file system of its own, whose image at any
//! moment holds what was synced and little else.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, umount2};
use nix::sys::statvfs::statvfs;

use crate::lab::{Lab, run};

/// Room for a node of a test; the file is sparse.
const SIZE: u64 = 1 << 30;

/// What a full disk has left.
const LEFT: u64 = 2 << 20;

/// `EXT4_IOC_SHUTDOWN` of Linux, and its flag that nothing more gets to the disk.
const SHUTDOWN: libc::Ioctl = 0x8004_587d;
const NO_LOG_FLUSH: u32 = 2;

/// A file system in a file, mounted on a directory.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// Makes a disk and mounts it where a node of this name keeps its data.
    pub fn for_node(lab: &Lab, name: &str) -> Result<Self> {
        Self::of_size(lab, name, SIZE)
    }

    /// As [`Disk::for_node`], with so many octets in all.
    pub fn of_size(lab: &Lab, name: &str, size: u64) -> Result<Self> {
        let image = lab.dir().join(format!("{name}.img"));
        let file = File::create(&image).context("making an image")?;
        file.set_len(size).context("making room in an image")?;
        run(Command::new("mkfs.ext4")
            .args(["-q", "-E", "nodiscard"])
            .arg(&image))?;
        Self::mount(image, lab.dir().join(name))
    }

    /// The journal commits by itself only after ten minutes: what reaches the image was synced.
    fn mount(image: PathBuf, at: PathBuf) -> Result<Self> {
        fs::create_dir_all(&at).with_context(|| format!("making {}", at.display()))?;
        run(Command::new("mount")
            .args(["-o", "loop,commit=600,noatime,errors=remount-ro"])
            .arg(&image)
            .arg(&at))?;
        Ok(Self { image, at })
    }

    /// From now on reads, writes and syncs fail with EIO.
    pub fn fail(&self) -> Result<()> {
        let dir = File::open(&self.at).context("opening the disk")?;
        // SAFETY: the call reads one u32, which lives until it returns.
        let done = unsafe { libc::ioctl(dir.as_raw_fd(), SHUTDOWN, &NO_LOG_FLUSH) };
        Errno::result(done).context("shutting the disk down")?;
        Ok(())
    }

    /// The file system finds an error in itself and becomes read-only, as a broken disk makes it.
    pub fn become_read_only(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("reading the mounts")?;
        let mount = mounts.lines().map(|line| line.split(' '));
        let device = mount
            .filter_map(|mut fields| Some((fields.next()?, fields.next()?)))
            .find(|(_, at)| Path::new(at) == self.at)
            .and_then(|(device, _)| Path::new(device).file_name())
            .context("the disk is not mounted")?;
        let trigger = Path::new("/sys/fs/ext4").join(device);
        fs::write(trigger.join("trigger_fs_error"), "1").context("making an error")?;
        let written = fs::write(self.at.join("written"), "");
        ensure!(written.is_err(), "the disk can be written to still");
        Ok(())
    }

    /// Another program takes all of the disk but next to nothing, until the answer is dropped.
    pub fn fill(&self) -> Result<Filled> {
        self.fill_but(LEFT)
    }

    /// Another program takes all of the disk but so many octets, until the answer is dropped.
    pub fn fill_but(&self, octets: u64) -> Result<Filled> {
        let found = statvfs(&self.at).context("looking at the disk")?;
        let left = found.blocks_available() * found.fragment_size();
        let path = self.at.join("filler");
        let length = left.saturating_sub(octets).to_string();
        run(Command::new("fallocate")
            .arg("--length")
            .arg(length)
            .arg(&path))?;
        Ok(Filled(path))
    }

    /// Stops every write and sync until the answer is dropped: a disk that is as slow as can be.
    pub fn hang(&self) -> Result<Hanging> {
        hang(&self.at)
    }

    /// As [`Disk::hang`], to be called again and again while the disk is there.
    pub fn staller(&self) -> impl Fn() -> Result<Hanging> + Send + use<> {
        let at = self.at.clone();
        move || hang(&at)
    }

    /// A disk that failed, mended: a copy of it, since whatever was started beside the old one may hold
    /// that one, and as long as anything does a mount of it may bring it back as it is. Its node may not
    /// run.
    pub fn mend(self) -> Result<Self> {
        let image = self.image.clone();
        self.restore(&image)
    }

    /// Throws a disk away. Nothing may use it any more.
    pub fn discard(self) -> Result<()> {
        fs::remove_file(&self.image).context("removing an image")
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

fn hang(at: &Path) -> Result<Hanging> {
    run(Command::new("fsfreeze").arg("--freeze").arg(at))?;
    Ok(Hanging(at.to_owned()))
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

/// A disk with no room for now.
#[derive(Debug)]
pub struct Filled(PathBuf);

impl Drop for Filled {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("cannot remove {}: {error:#}", self.0.display());
        }
    }
}

/// A disk on which nothing is written for now.
#[derive(Debug)]
pub struct Hanging(PathBuf);

impl Drop for Hanging {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("fsfreeze").arg("--unfreeze").arg(&self.0)) {
            eprintln!("cannot thaw {}: {error:#}", self.0.display());
        }
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
