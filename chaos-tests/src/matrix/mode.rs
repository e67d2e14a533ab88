//! Which firmware, and by what loader it comes to its system.

use clap::ValueEnum;
use serde::Serialize;

use crate::machine::Firmware;

/// Loaders that the cluster has as artifacts: (file, path).
pub const ARTIFACTS: [(&str, &str); 3] = [
    (PXELINUX, "pxelinux/pxelinux.0"),
    (
        "/usr/lib/syslinux/modules/bios/ldlinux.c32",
        "pxelinux/ldlinux.c32",
    ),
    (GRUB, "grubnetx64.efi.signed"),
];

const PXELINUX: &str = "/usr/lib/PXELINUX/pxelinux.0";
const GRUB: &str = "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed";

/// Which firmware, and how it comes to its system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// SeaBIOS; the card's ROM is iPXE
    BiosIpxe,
    /// SeaBIOS; the ROM's iPXE loads another iPXE
    BiosUndionly,
    /// SeaBIOS; the ROM's iPXE loads pxelinux by TFTP
    BiosPxelinux,
    /// OVMF by PXE, then iPXE; HTTP Boot comes next in its boot order
    UefiPxe,
    /// OVMF by PXE, then GRUB; HTTP Boot comes next in its boot order
    UefiGrub,
    /// OVMF by HTTP Boot, then iPXE; PXE comes next in its boot order
    UefiHttp,
}

/// A first-stage loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loader {
    /// What it is asked for by, or a part of it.
    pub name: &'static str,
    /// Where it is on this host.
    pub file: &'static str,
}

impl Mode {
    /// Those that come to their system by iPXE, and come up whenever a node dies. GRUB and pxelinux ask
    /// one server only until they have their configuration.
    pub const WITH_IPXE: [Self; 4] = [
        Self::BiosIpxe,
        Self::BiosUndionly,
        Self::UefiPxe,
        Self::UefiHttp,
    ];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::BiosIpxe => "BIOS, iPXE ROM",
            Self::BiosUndionly => "BIOS, undionly",
            Self::BiosPxelinux => "BIOS, pxelinux",
            Self::UefiPxe => "UEFI PXE",
            Self::UefiGrub => "UEFI PXE, GRUB",
            Self::UefiHttp => "UEFI HTTP",
        }
    }

    /// What the machine starts with.
    pub fn firmware(self) -> Firmware {
        match self {
            Self::BiosIpxe | Self::BiosUndionly | Self::BiosPxelinux => Firmware::Bios,
            Self::UefiPxe | Self::UefiGrub => Firmware::Uefi,
            Self::UefiHttp => Firmware::UefiHttpThenPxe,
        }
    }

    /// BIOS begins its boot order anew when nothing has booted, as servers are set to.
    pub fn arguments(self) -> &'static [&'static str] {
        match self.firmware() {
            Firmware::Bios => &["-action", "reboot=reset", "-boot", "reboot-timeout=5000"],
            _ => &[],
        }
    }

    /// The machine's `loaders`.
    pub fn loaders(self) -> &'static str {
        match self {
            Self::BiosIpxe | Self::UefiPxe | Self::UefiHttp => "{}",
            Self::BiosUndionly => "{ipxe-bios: undionly.kpxe}",
            Self::BiosPxelinux => "{ipxe-bios: pxelinux/pxelinux.0}",
            Self::UefiGrub => "{uefi-x64: grubnetx64.efi.signed}",
        }
    }

    /// What the firmware loads.
    pub fn loader(self) -> Option<Loader> {
        let (name, file) = match self {
            Self::BiosIpxe => return None,
            Self::BiosUndionly => ("undionly.kpxe", "/usr/lib/ipxe/undionly.kpxe"),
            Self::BiosPxelinux => ("pxelinux.0", PXELINUX),
            Self::UefiPxe | Self::UefiHttp => ("snponly.efi", "/usr/lib/ipxe/snponly.efi"),
            Self::UefiGrub => ("grubnetx64", GRUB),
        };
        Some(Loader { name, file })
    }

    /// Whether that is iPXE, which asks for an address of its own.
    pub fn loads_ipxe(self) -> bool {
        matches!(self, Self::BiosUndionly | Self::UefiPxe | Self::UefiHttp)
    }

    /// What the script is asked for by.
    pub fn script(self) -> &'static str {
        match self {
            Self::BiosPxelinux => "pxelinux.cfg/01-",
            Self::UefiGrub => "grub.cfg-01-",
            Self::BiosIpxe | Self::BiosUndionly | Self::UefiPxe | Self::UefiHttp => "boot.ipxe",
        }
    }
}
