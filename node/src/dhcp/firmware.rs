//! What firmware and loaders are told to boot, in the words that each of them understands.

use std::net::Ipv4Addr;

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
    /// Option 67.
    pub file: Option<String>,
    /// Option 43 for PXE ROMs.
    pub vendor_options: Option<Vec<u8>>,
}

/// The first-stage loader for an architecture (RFC 4578 §2.1 and the IANA registry); none for one
/// that nothing can be served to.
pub fn loader(architecture: u16) -> Option<&'static str> {
    match architecture {
        // PC BIOS, and its HTTP boot.
        0 | 20 => Some("undionly.kpxe"),
        // x86 UEFI, 32 bits.
        6 | 15 => Some("snponly-i386.efi"),
        // x86-64 UEFI; 9 is what old firmware sends for it.
        7 | 9 | 16 | 17 => Some("snponly.efi"),
        // ARM64 UEFI.
        11 | 19 => Some("snponly-arm64.efi"),
        _ => None,
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
    let ours = match firmware {
        Firmware::Ipxe => Some(script_url(request, address, boot_port)),
        Firmware::Pxe => loader(request.architecture.unwrap_or(0)).map(str::to_owned),
        Firmware::Http => {
            loader(request.architecture?).map(|file| format!("http://{address}:{boot_port}/{file}"))
        }
    };
    let file = overrides.file.clone().or(ours)?;
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
