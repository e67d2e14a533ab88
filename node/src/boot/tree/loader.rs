//! What loaders and firmware fetch by names that they were built with.

use std::io;
use std::net::IpAddr;
use std::time::UNIX_EPOCH;

use muster_storage::State;
use muster_storage::model::{Loader, LocalBoot, Mac, Platform};
use muster_storage::state::{BootClient, BootTarget};

use super::super::names::{self, Config, Who};
use super::{CONFIRM, Client, Content, Problem, Source, Tree, leased_to};

/// Media types by which UEFI tells what it loads (UEFI 2.10 §24.7.3.1); without one that it knows, it
/// takes only names that end in `.efi`, `.iso` or `.img`.
const EFI: &str = "application/efi";
const EFI_CD: &str = "application/vnd.efi-iso";
const EFI_DISK: &str = "application/vnd.efi-img";
const OCTETS: &str = "application/octet-stream";

pub(super) fn media_type(path: &str) -> &'static str {
    // Debian names what is signed so.
    let path = path.strip_suffix(".signed").unwrap_or(path);
    match path.rsplit_once('.') {
        Some((_, "efi" | "EFI")) => EFI,
        Some((_, "iso")) => EFI_CD,
        Some((_, "img")) => EFI_DISK,
        _ => OCTETS,
    }
}

impl Tree {
    /// What a loader asks for by a name of its own. Of its several names it tries the next at once
    /// when one is not there.
    pub(super) async fn config(&self, config: &Config, client: Client) -> Result<Content, Problem> {
        let mac = match config.who {
            Who::Mac(mac) => Some(mac),
            Who::Sender => None,
            Who::Uuid(uuid) => self.cluster.read(|state| {
                let machine = |uuid| state.machine_with_uuid(uuid);
                let machine = machine(uuid).or_else(|| machine(names::swapped(uuid)));
                machine.and_then(|machine| machine.macs.first().copied())
            }),
            Who::Address(address) => self.cluster.read(|state| leased_to(state, address.into())),
        };
        match (mac, config.who) {
            (None, Who::Uuid(_) | Who::Address(_)) => Err(Problem::NotFound(
                "no machine is known by this name".to_owned(),
            )),
            _ => {
                let directory = &config.directory;
                Ok(self.script(config.language, directory, mac, client).await)
            }
        }
    }

    /// A loader, or what one asks for by a name that it was built with. It asks for much that is
    /// never there, so nobody else is asked, whatever this node may have missed.
    pub(super) async fn loader(&self, name: &str, client: Client) -> Result<Content, Problem> {
        if let Some(machine) = self.refuses_loaders(client).await {
            return Err(Problem::NotFound(format!("{machine} boots its local disk")));
        }
        let found = match name.contains('/') {
            true => None,
            false => self.loader_file(name).await?,
        };
        let content = found.or_else(|| self.known_artifact(name, None));
        let content =
            content.ok_or_else(|| Problem::NotFound(format!("there is no loader `{name}`")))?;
        let media = match media_type(name) {
            // The name says nothing, but it was told to boot this.
            OCTETS if client.uefi_http => EFI,
            media => media,
        };
        Ok(Content { media, ..content })
    }

    /// The machine that asks, if its firmware is sent to its own disk by not finding a loader. It is
    /// told so only when a quorum confirms it: a loader asks again what to do.
    async fn refuses_loaders(&self, client: Client) -> Option<String> {
        let refuses = |state: &State| {
            let mac = leased_to(state, client.address)?;
            let plan = state.boot_plan(&BootClient { mac });
            let refuses = match state.local_boot(plan.machine) {
                LocalBoot::Refuse => true,
                LocalBoot::Auto => client.uefi_http,
                LocalBoot::Exit | LocalBoot::Sanboot => false,
            };
            let name = || plan.machine.map_or(mac.to_string(), |it| it.name.clone());
            (refuses && plan.target == BootTarget::Local).then(name)
        };
        self.cluster.read(refuses)?;
        match self.confirm(CONFIRM).await {
            true => self.cluster.read(refuses),
            false => None,
        }
    }

    async fn loader_file(&self, name: &str) -> Result<Option<Content>, Problem> {
        let path = self.loader_dir.join(name);
        let metadata = match tokio::fs::metadata(&path).await {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Ok(None),
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename => Ok(None),
                    _ => Err(Problem::Disk(error)),
                };
            }
        };
        let modified = metadata.modified().ok();
        let modified = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(Some(Content {
            length: metadata.len(),
            etag: format!(
                "{:x}-{:x}",
                metadata.len(),
                modified.unwrap_or_default().as_nanos()
            ),
            media: OCTETS,
            source: Source::File(path),
            fact: None,
            stamp: None,
        }))
    }
}

/// iPXE that clients of this one's link are to load first.
pub(super) fn fuller(state: &State, mac: Option<Mac>, address: IpAddr) -> Vec<(Platform, Loader)> {
    let IpAddr::V4(address) = address.to_canonical() else {
        return Vec::new();
    };
    let Some(subnet) = state.subnet_of_holder(address) else {
        return Vec::new();
    };
    let ipxe = [
        Platform::IpxeBios,
        Platform::IpxeX64,
        Platform::IpxeIa32,
        Platform::IpxeArm64,
    ];
    ipxe.into_iter()
        .filter_map(|platform| {
            let loader = state.loader(mac, subnet, platform)?;
            Some((platform, loader.clone()))
        })
        .filter(|(_, loader)| loader.ipxe_chips().is_some())
        .collect()
}
