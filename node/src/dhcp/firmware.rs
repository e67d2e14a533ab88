//! What firmware and loaders are told to boot, in the words that each of them understands.

use std::net::Ipv4Addr;

use muster_storage::model::{Loader, Platform};

use super::request::{Firmware, Request};

/// Boot data of one reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// `siaddr` and option 66: where the file is.
    pub server: Option<Ipv4Addr>,
    /// Option 66 as the subnet wrote it, when it is no address.
    pub server_name: Option<String>,
    /// `file` and option 67.
    pub file: String,
    /// Further options by code: 43, 60, 97, 175.
    pub options: Vec<(u8, Vec<u8>)>,
}

/// What people say about boot data; it overrides our own choice.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `next_server`.
    pub next_server: Option<Ipv4Addr>,
    /// Option 66.
    pub server_name: Option<String>,
    /// Option 67, before `loader`.
    pub file: Option<String>,
    /// What the machine, its profiles or its subnet have its firmware load.
    pub loader: Option<Loader>,
    /// Option 43 for PXE ROMs.
    pub vendor_options: Option<Vec<u8>>,
}

/// Who asks, by protocol and architecture (RFC 4578 §2.1 and the IANA registry); none for an
/// architecture that nothing can be served to.
pub fn platform(firmware: Firmware, architecture: u16) -> Option<Platform> {
    let of_family = match architecture {
        // PC BIOS, and its HTTP boot.
        0 | 20 => [Platform::Bios, Platform::HttpBios, Platform::IpxeBios],
        // x86 UEFI, 32 bits.
        6 | 15 => [Platform::UefiIa32, Platform::HttpIa32, Platform::IpxeIa32],
        // x86-64 UEFI; 9 is what old firmware sends for it.
        7 | 9 | 16 | 17 => [Platform::UefiX64, Platform::HttpX64, Platform::IpxeX64],
        // ARM64 UEFI.
        11 | 19 => [
            Platform::UefiArm64,
            Platform::HttpArm64,
            Platform::IpxeArm64,
        ],
        _ => return None,
    };
    let [pxe, http, ipxe] = of_family;
    Some(match firmware {
        Firmware::Pxe => pxe,
        Firmware::Http => http,
        Firmware::Ipxe => ipxe,
    })
}

/// Who sent the request. A PXE ROM that does not say is a PC's.
pub fn platform_of(request: &Request) -> Option<Platform> {
    let firmware = request.firmware?;
    let architecture = match firmware {
        Firmware::Http => request.architecture?,
        Firmware::Pxe | Firmware::Ipxe => request.architecture.unwrap_or(0),
    };
    platform(firmware, architecture)
}

/// The loader of the distribution's `ipxe` package, where nobody chose another.
pub fn default_loader(platform: Platform) -> &'static str {
    match platform {
        Platform::Bios | Platform::HttpBios | Platform::IpxeBios => "undionly.kpxe",
        Platform::UefiX64 | Platform::HttpX64 | Platform::IpxeX64 => "snponly.efi",
        Platform::UefiIa32 | Platform::HttpIa32 | Platform::IpxeIa32 => "snponly-i386.efi",
        Platform::UefiArm64 | Platform::HttpArm64 | Platform::IpxeArm64 => "snponly-arm64.efi",
    }
}

/// What the client loads, on the node at `address`.
fn file(
    request: &Request,
    firmware: Firmware,
    address: Ipv4Addr,
    boot_port: u16,
    chosen: Option<&Loader>,
) -> Option<String> {
    let platform = platform_of(request);
    let loader = |platform| match chosen {
        Some(loader) => loader.as_str().to_owned(),
        None => default_loader(platform).to_owned(),
    };
    match firmware {
        Firmware::Pxe => platform.map(loader),
        Firmware::Http => {
            let file = loader(platform?);
            match file.contains("://") {
                true => Some(file),
                false => Some(format!("http://{address}:{boot_port}/{file}")),
            }
        }
        // It is chained from the script, where the second iPXE can be told from the first.
        Firmware::Ipxe if request.ipxe_fetches_by_http => match chosen {
            Some(loader) if loader.ipxe_chips().is_none() => Some(loader.as_str().to_owned()),
            _ => Some(script_url(request, address, boot_port)),
        },
        // It could not fetch the script.
        Firmware::Ipxe => platform.map(loader),
    }
}

/// Boot data for the client that sent `request`, from the node at `address`. None for clients
/// that did not ask: an operating system takes a boot file name for something else.
pub fn boot(
    request: &Request,
    address: Ipv4Addr,
    boot_port: u16,
    overrides: &Overrides,
    proxy: bool,
) -> Option<Boot> {
    let firmware = request.firmware?;
    let chosen = overrides.loader.as_ref();
    let ours = || file(request, firmware, address, boot_port, chosen);
    let file = overrides.file.clone().or_else(ours)?;
    let named = overrides.server_name.as_deref();
    let server = overrides
        .next_server
        .or_else(|| named.and_then(|name| name.parse().ok()))
        .unwrap_or(address);
    let mut boot = Boot {
        server: Some(server),
        server_name: overrides
            .server_name
            .clone()
            .filter(|name| name.parse::<Ipv4Addr>().is_err()),
        file,
        options: Vec::new(),
    };
    match firmware {
        // Saves three seconds in which iPXE waits for a proxyDHCP server; beside a foreign DHCP
        // server that proxy is us, so it must wait, and knows us by the class.
        Firmware::Ipxe if proxy => boot.options.push((60, b"PXEClient".to_vec())),
        Firmware::Ipxe => boot.options.push((175, vec![176, 1, 1])),
        Firmware::Pxe => {
            boot.options.push((60, b"PXEClient".to_vec()));
            // PXE 2.1 §2.4.1, discovery control: no prompt, no discovery, boot the named file.
            let own = || vec![6, 1, 8, 255];
            let vendor = overrides.vendor_options.clone().unwrap_or_else(own);
            boot.options.push((43, vendor));
        }
        Firmware::Http => boot.options.push((60, b"HTTPClient".to_vec())),
    }
    // RFC 4578 §2.3: the reply carries the machine identifier of the request.
    if let Some(id) = &request.machine_id {
        boot.options.push((97, id.clone()));
    }
    Some(boot)
}

/// The per-machine iPXE script on the node at `address`.
fn script_url(request: &Request, address: Ipv4Addr, boot_port: u16) -> String {
    let query = match request.client.mac {
        Some(mac) => format!("?mac={mac}"),
        None => String::new(),
    };
    format!("http://{address}:{boot_port}/boot.ipxe{query}")
}
