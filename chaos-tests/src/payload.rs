//! What machines boot and are installed with, assembled by the scripts in `deploy/`, which take no time
//! once it is there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::run;

/// The kernel and initrd that lab machines boot, and the busybox that clients are made of.
#[derive(Clone, Debug)]
pub struct Payload {
    dir: PathBuf,
}

impl Payload {
    /// `deploy/payload.sh`.
    pub fn assemble() -> Result<Self> {
        let dir = assemble("payload", &["vmlinuz", "initrd.img", "busybox"])?;
        Ok(Self { dir })
    }

    /// A Debian kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// An initrd that fetches its file, shows it, calls back and switches the machine off.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd.img")
    }

    /// Debian's static busybox: `udhcpc`, `tftp`, `wget`.
    pub fn busybox(&self) -> PathBuf {
        self.dir.join("busybox")
    }
}

/// The kernel and initrd that write an image to a disk.
#[derive(Clone, Debug)]
pub struct Installer {
    dir: PathBuf,
}

impl Installer {
    /// `deploy/installer.sh`.
    pub fn assemble() -> Result<Self> {
        let dir = assemble("installer", &["vmlinuz", "initrd.img"])?;
        Ok(Self { dir })
    }

    /// A Debian kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The installer itself.
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd.img")
    }
}

/// `deploy/disk.sh`: a small image of a disk that boots, says whose it is, and switches the machine off.
pub fn small_image() -> Result<PathBuf> {
    Ok(assemble("disk", &["disk.img.gz"])?.join("disk.img.gz"))
}

/// `deploy/debian.sh`: an image of a disk with Debian on it, which takes minutes the first time.
pub fn debian_image() -> Result<PathBuf> {
    Ok(assemble("debian", &["debian.img.gz"])?.join("debian.img.gz"))
}

/// Has `deploy/NAME.sh` make what it makes, in the directory that all share.
fn assemble(name: &str, files: &[&str]) -> Result<PathBuf> {
    let cache = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) => PathBuf::from(home).join(".cache"),
        _ => bail!("neither XDG_CACHE_HOME nor HOME is set"),
    };
    let dir = cache.join("muster").join(name);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/{name}.sh"));
    run(Command::new(&script).arg(&dir)).with_context(|| format!("assembling the {name}"))?;
    for file in files {
        let file = dir.join(file);
        ensure!(file.exists(), "{} is not there", file.display());
    }
    Ok(dir)
}
