//! The names under which loaders ask for their configuration.
//!
//! pxelinux asks for `pxelinux.cfg/` with the UUID of the firmware, `01-` and the MAC, its address in
//! hexadecimal, shorter and shorter, and `default`; GRUB for `grub.cfg-` with the MAC and the address
//! likewise, and `grub.cfg`. Both put before it the directory that they were loaded from, or one that
//! they were built with.

use std::net::Ipv4Addr;

use muster_storage::model::Mac;
use uuid::Uuid;

use super::script::Language;

/// Whose configuration is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The machine with this MAC.
    Mac(Mac),
    /// The machine with this UUID.
    Uuid(Uuid),
    /// Who leases this address.
    Address(Ipv4Addr),
    /// Who leases the address that the request comes from.
    Sender,
}

/// A configuration that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the loader understands.
    pub language: Language,
    /// Whom it is for.
    pub who: Who,
    /// The directory that the loader asks in, with a slash at its end; empty at the top.
    pub directory: String,
}

/// What a path under one of those names means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A configuration.
    Config(Config),
    /// None: part of an address is no machine's name.
    Nothing,
}

/// Reads a path without leading slashes; none when it is no such name.
pub fn parse(path: &str) -> Option<Named> {
    let (language, directory, name) = split(path)?;
    let who = match name {
        None => Who::Sender,
        Some(name) => match of_machine(name)? {
            Some(who) => who,
            None => return Some(Named::Nothing),
        },
    };
    Some(Named::Config(Config {
        language,
        who,
        directory: directory.to_owned(),
    }))
}

/// Who reads it, the directory, and what is said of the machine, if anything.
fn split(path: &str) -> Option<(Language, &str, Option<&str>)> {
    let at = path.rfind('/').map_or(0, |slash| slash + 1);
    let (directory, name) = path.split_at_checked(at)?;
    if let Some(directory) = directory.strip_suffix("pxelinux.cfg/")
        && (directory.is_empty() || directory.ends_with('/'))
    {
        let name = Some(name).filter(|name| *name != "default");
        return Some((Language::Pxelinux, directory, name));
    }
    match name.strip_prefix("grub.cfg")? {
        "" => Some((Language::Grub, directory, None)),
        rest => Some((Language::Grub, directory, Some(rest.strip_prefix('-')?))),
    }
}

/// Whom a name means; in it none when it means no machine, and none at all when it is no name of one.
fn of_machine(name: &str) -> Option<Option<Who>> {
    // 1 is Ethernet (RFC 1700).
    if let Some(mac) = name.strip_prefix("01-") {
        return mac.parse().ok().map(|mac| Some(Who::Mac(mac)));
    }
    if name.len() == 36 {
        return name.parse().ok().map(|uuid| Some(Who::Uuid(uuid)));
    }
    let hexadecimal = |octet: u8| matches!(octet, b'0'..=b'9' | b'A'..=b'F');
    if name.is_empty() || name.len() > 8 || !name.bytes().all(hexadecimal) {
        return None;
    }
    let address = u32::from_str_radix(name, 16).ok()?;
    Some((name.len() == 8).then_some(Who::Address(Ipv4Addr::from(address))))
}

/// The UUID with its first three fields in the other order of octets: pxelinux writes them as they
/// come in option 97, little-endian, and operating systems show them big-endian.
pub fn swapped(uuid: Uuid) -> Uuid {
    Uuid::from_bytes_le(uuid.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 0x50]);

    #[test]
    fn loaders_ask_by_these_names() {
        use Language::{Grub, Pxelinux};
        let uuid = Uuid::from_u128(0x3322_1100_5544_7766_8899_5254_0077_0001);
        let address = Who::Address(Ipv4Addr::new(10, 77, 0, 110));
        let config = |language, directory: &str, who| {
            Some(Named::Config(Config {
                language,
                who,
                directory: directory.to_owned(),
            }))
        };
        for (path, expected) in [
            (
                "pxelinux.cfg/33221100-5544-7766-8899-525400770001",
                config(Pxelinux, "", Who::Uuid(uuid)),
            ),
            (
                "pxelinux.cfg/01-52-54-00-00-00-50",
                config(Pxelinux, "", Who::Mac(MAC)),
            ),
            ("pxelinux.cfg/0A4D006E", config(Pxelinux, "", address)),
            ("pxelinux.cfg/0A4D006", Some(Named::Nothing)),
            ("pxelinux.cfg/0", Some(Named::Nothing)),
            ("pxelinux.cfg/default", config(Pxelinux, "", Who::Sender)),
            (
                "boot/bios/pxelinux.cfg/01-52-54-00-00-00-50",
                config(Pxelinux, "boot/bios/", Who::Mac(MAC)),
            ),
            // InfiniBand, and what is no name at all.
            ("pxelinux.cfg/20-52-54-00-00-00-50", None),
            ("pxelinux.cfg/01-52-54-00-00-00", None),
            ("pxelinux.cfg/0a4d006e", None),
            ("pxelinux.cfg/menu.cfg", None),
            ("pxelinux.cfg/", None),
            ("pxelinux.cfg/0A4D006E0", None),
            ("pxelinux.cfg/+A4D006E", None),
            ("notpxelinux.cfg/default", None),
            ("default", None),
            ("grub/grub.cfg", config(Grub, "grub/", Who::Sender)),
            ("grub.cfg", config(Grub, "", Who::Sender)),
            (
                "EFI/debian/grub.cfg",
                config(Grub, "EFI/debian/", Who::Sender),
            ),
            (
                "boot/grub/grub.cfg-01-52-54-00-00-00-50",
                config(Grub, "boot/grub/", Who::Mac(MAC)),
            ),
            (
                "grub/grub.cfg-01-52:54:00:00:00:50",
                config(Grub, "grub/", Who::Mac(MAC)),
            ),
            ("grub/grub.cfg-0A4D006E", config(Grub, "grub/", address)),
            ("grub/grub.cfg-0A4D", Some(Named::Nothing)),
            ("grub/grub.cfg-", None),
            ("grub/grub.cfg-01-", None),
            ("grub/grub.cfg2", None),
            ("grub/grubenv", None),
            ("grub/x86_64-efi/command.lst", None),
        ] {
            assert_eq!(parse(path), expected, "{path}");
        }
    }

    #[test]
    fn uuid_is_found_in_either_order() {
        let sent = Uuid::from_u128(0x3322_1100_5544_7766_8899_5254_0077_0001);
        let shown = Uuid::from_u128(0x0011_2233_4455_6677_8899_5254_0077_0001);
        assert_eq!((swapped(sent), swapped(shown)), (shown, sent));
    }
}
