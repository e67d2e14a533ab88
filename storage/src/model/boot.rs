//! What firmware loads first, and how a machine is sent to its own disk.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Who can be told which file to load: firmware by its processor and protocol, and iPXE that is in a
/// ROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// PC BIOS, by PXE.
    Bios,
    /// x86-64 UEFI, by PXE.
    UefiX64,
    /// 32-bit x86 UEFI, by PXE.
    UefiIa32,
    /// ARM64 UEFI, by PXE.
    UefiArm64,
    /// PC BIOS, by HTTP.
    HttpBios,
    /// x86-64 UEFI, by HTTP Boot.
    HttpX64,
    /// 32-bit x86 UEFI, by HTTP Boot.
    HttpIa32,
    /// ARM64 UEFI, by HTTP Boot.
    HttpArm64,
    /// iPXE on PC BIOS.
    IpxeBios,
    /// iPXE on x86-64 UEFI.
    IpxeX64,
    /// iPXE on 32-bit x86 UEFI.
    IpxeIa32,
    /// iPXE on ARM64 UEFI.
    IpxeArm64,
}

impl Platform {
    /// Whether it takes files by URL.
    pub fn takes_urls(self) -> bool {
        !matches!(
            self,
            Self::Bios | Self::UefiX64 | Self::UefiIa32 | Self::UefiArm64
        )
    }

    /// Whether it is iPXE.
    pub fn is_ipxe(self) -> bool {
        matches!(
            self,
            Self::IpxeBios | Self::IpxeX64 | Self::IpxeIa32 | Self::IpxeArm64
        )
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Longest name of a loader: the field of a DHCP packet, which ends with a NUL (RFC 2131 §2).
pub const LOADER_NAME_MAX: usize = 127;

/// A file to load: one of the loader directory, the path of an artifact, or a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Loader(String);

/// No name of a loader.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is no loader: write the name of a file in the loader directory, the path of an artifact, \
     or a URL of http; at most {LOADER_NAME_MAX} printable characters without space, \\ % ? #"
)]
pub struct BadLoader(String);

impl Loader {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is somewhere else.
    pub fn is_url(&self) -> bool {
        self.0.contains("://")
    }

    /// The last part of the name.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// If it is iPXE with one driver only, for the firmware's own network stack: what it may call the
    /// chip of its network card, which tells it from other iPXE.
    pub fn ipxe_chips(&self) -> Option<&'static [&'static str]> {
        let name = self.file_name();
        if name.starts_with("undionly") {
            Some(&["undionly"])
        } else if name.starts_with("snponly") {
            // By the protocol that the firmware offers.
            Some(&["SNP", "NII"])
        } else {
            None
        }
    }
}

impl TryFrom<String> for Loader {
    type Error = BadLoader;

    fn try_from(text: String) -> Result<Self, BadLoader> {
        let path = match text.split_once("://") {
            Some(("http" | "https" | "tftp", path)) => path,
            Some(_) => return Err(BadLoader(text)),
            None => &text,
        };
        let plain = |segment: &str| !matches!(segment, "" | "." | "..");
        let fits = text.len() <= LOADER_NAME_MAX
            && text
                .bytes()
                .all(|octet| octet.is_ascii_graphic() && !b"\\%?#".contains(&octet))
            && path.split('/').all(plain);
        if fits {
            Ok(Self(text))
        } else {
            Err(BadLoader(text))
        }
    }
}

impl From<Loader> for String {
    fn from(loader: Loader) -> Self {
        loader.0
    }
}

/// Loaders by who loads them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<Platform, Loader>",
    into = "BTreeMap<Platform, Loader>"
)]
pub struct Loaders(BTreeMap<Platform, Loader>);

/// Why loaders cannot be what was written.
#[derive(Debug, thiserror::Error)]
pub enum BadLoaders {
    /// PXE loads files by TFTP from the server that its DHCP answer names.
    #[error("`{0}` cannot load a URL: name a file or an artifact")]
    Url(Platform),
    /// It would load itself again and again.
    #[error(
        "`{0}` cannot load `{1}`: iPXE that has drivers of its own cannot be told from the iPXE that \
         loads it, and would be loaded again and again; name an undionly or snponly build"
    )]
    Endless(Platform, String),
}

impl Loaders {
    /// The one for a platform.
    pub fn get(&self, platform: Platform) -> Option<&Loader> {
        self.0.get(&platform)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Platform, &Loader)> {
        self.0.iter().map(|(platform, loader)| (*platform, loader))
    }

    /// Whether none is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<BTreeMap<Platform, Loader>> for Loaders {
    type Error = BadLoaders;

    fn try_from(loaders: BTreeMap<Platform, Loader>) -> Result<Self, BadLoaders> {
        for (platform, loader) in &loaders {
            if loader.is_url() && !platform.takes_urls() {
                return Err(BadLoaders::Url(*platform));
            }
            if platform.is_ipxe() && loader.file_name().starts_with("ipxe") {
                let name = loader.as_str().to_owned();
                return Err(BadLoaders::Endless(*platform, name));
            }
        }
        Ok(Self(loaders))
    }
}

impl From<Loaders> for BTreeMap<Platform, Loader> {
    fn from(loaders: Loaders) -> Self {
        loaders.0
    }
}

/// How a machine that is to boot its disk gets there from the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LocalBoot {
    /// What each firmware and loader does best.
    #[default]
    Auto,
    /// The loader ends, and the firmware goes on with its next boot entry.
    Exit,
    /// The loader boots the first disk itself.
    Sanboot,
    /// There is no loader: firmware is told that its file does not exist, and goes on.
    Refuse,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaders_are_names_paths_and_urls() {
        for (text, good) in [
            ("pxelinux.0", true),
            ("boot/grub/grubnetx64.efi.signed", true),
            ("http://10.77.0.9/a.efi", true),
            ("https://boot.example/a.efi", true),
            ("", false),
            ("/pxelinux.0", false),
            ("a//b", false),
            ("../secret", false),
            ("a/./b", false),
            ("a b", false),
            ("a\\b", false),
            ("a%2fb", false),
            ("a?b", false),
            ("a\0", false),
            ("ä", false),
            ("http://", false),
            ("file://etc/passwd", false),
        ] {
            assert_eq!(Loader::try_from(text.to_owned()).is_ok(), good, "{text}");
        }
        for (length, good) in [(LOADER_NAME_MAX, true), (LOADER_NAME_MAX + 1, false)] {
            assert_eq!(Loader::try_from("x".repeat(length)).is_ok(), good);
        }
    }

    #[test]
    fn loaders_fit_those_who_load_them() {
        for (json, good) in [
            (
                r#"{"bios": "pxelinux.0", "http-x64": "http://10.0.0.1/x.efi"}"#,
                true,
            ),
            (
                r#"{"ipxe-bios": "undionly.kpxe", "ipxe-x64": "snponly.efi"}"#,
                true,
            ),
            (
                r#"{"ipxe-bios": "pxelinux.0", "http-arm64": "a", "uefi-ia32": "b"}"#,
                true,
            ),
            (r#"{"bios": "http://10.0.0.1/pxelinux.0"}"#, false),
            (r#"{"uefi-x64": "tftp://10.0.0.1/a.efi"}"#, false),
            (r#"{"ipxe-x64": "ipxe.efi"}"#, false),
            (r#"{"ipxe-bios": "mine/ipxe.pxe"}"#, false),
            (r#"{"uefi": "a.efi"}"#, false),
        ] {
            assert_eq!(
                serde_json::from_str::<Loaders>(json).is_ok(),
                good,
                "{json}"
            );
        }
    }
}
