//! The machine that a node runs on, or is to run on.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::facts::{Disk, Host};
use super::ports::{self, Wanted};
use crate::config::ServeOptions;

/// What PCs' firmware is sent to unless something else is chosen.
const LOADERS: [&str; 2] = ["undionly.kpxe", "snponly.efi"];

/// Files whose sizes are looked at; those of a directory beyond that count as nothing.
const FILES_COUNTED: usize = 100_000;

/// Looks at the machine, as far as this process may. Blocks.
pub fn look(data_dir: &Path, options: &ServeOptions, running: bool) -> Host {
    let mut host = Host {
        data_dir: data_dir.to_owned(),
        loader_dir: options.loader_dir.clone(),
        ports: ports::look(&wanted(options)),
        open_files: getrlimit(Resource::RLIMIT_NOFILE)
            .ok()
            .map(|(_, hard)| hard),
        running,
        ..Host::default()
    };
    look_at_data(data_dir, &mut host);
    look_at_loaders(&options.loader_dir, &mut host);
    host
}

/// Where a node with these options listens.
fn wanted(options: &ServeOptions) -> Vec<Wanted> {
    let tcp = |service, port| Wanted {
        service,
        protocol: "tcp",
        port,
    };
    let udp = |service, port| Wanted {
        service,
        protocol: "udp",
        port,
    };
    let mut wanted = vec![
        tcp("API", options.api_port),
        tcp("boot files", options.boot_port),
        tcp("peer link", options.peer_port),
        udp("TFTP", options.tftp_port),
    ];
    if options.dhcp_interfaces.trim() != "none" {
        wanted.push(udp("DHCP", options.dhcp_port));
        wanted.push(udp("proxyDHCP", options.proxy_dhcp_port));
    }
    wanted
}

fn look_at_data(dir: &Path, host: &mut Host) {
    let shown = dir.display();
    let mut problem = |text: String| host.data_problems.push(text);
    match std::fs::metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return problem(format!("{shown} does not exist"));
        }
        Err(error) => return problem(format!("{shown} cannot be looked at: {error}")),
        Ok(found) if !found.is_dir() => return problem(format!("{shown} is no directory")),
        Ok(found) => {
            host.data_exposed = found.permissions().mode() & 0o077 != 0 && has_secrets(dir);
            let own = nix::unistd::geteuid().as_raw();
            if own != 0 && found.uid() != own {
                let owner = found.uid();
                problem(format!("{shown} belongs to user {owner}, not to {own}"));
            } else if let Err(error) = access(dir, AccessFlags::R_OK | AccessFlags::W_OK) {
                problem(format!("{shown} cannot be written to: {error}"));
            }
        }
    }
    match muster_raft::belongs_to_cluster(dir) {
        Ok(true) => {}
        Ok(false) if host.running => problem(format!("{shown} belongs to no cluster")),
        Ok(false) => {}
        Err(error) => problem(error.to_string()),
    }
    host.sizes = sizes(dir);
    host.disk = statvfs(dir).ok().map(|found| {
        let block = found.fragment_size();
        Disk {
            size: found.blocks().saturating_mul(block),
            free: found.blocks_available().saturating_mul(block),
        }
    });
}

/// Octets of each thing in a directory, with all that is below it.
fn sizes(dir: &Path) -> BTreeMap<String, u64> {
    let mut left = FILES_COUNTED;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, size(&entry.path(), &mut left))
        })
        .collect()
}

fn size(path: &Path, left: &mut usize) -> u64 {
    *left = left.saturating_sub(1);
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() && *left > 0 => {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.fold(0, |sum: u64, entry| {
                sum.saturating_add(size(&entry.path(), left))
            })
        }
        Ok(found) => found.len(),
        Err(_) => 0,
    }
}

/// Whether a file with a key can be read by others than its owner.
fn has_secrets(dir: &Path) -> bool {
    let mut entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let exposed = |entry: std::fs::DirEntry| {
        let public = ["ca.pem", "muster.sock"];
        let name = entry.file_name();
        let known = name.to_str().is_some_and(|name| public.contains(&name));
        let mode = entry.metadata().map(|it| it.permissions().mode());
        !known && mode.is_ok_and(|mode| mode & 0o077 != 0)
    };
    entries.any(exposed)
}

fn look_at_loaders(dir: &Path, host: &mut Host) {
    if let Err(error) = std::fs::read_dir(dir) {
        host.loader_problem = Some(format!("{} cannot be read: {error}", dir.display()));
        return;
    }
    let missing = LOADERS.iter().filter(|name| !dir.join(name).is_file());
    host.loaders_missing = missing.map(|name| (*name).to_owned()).collect();
}
