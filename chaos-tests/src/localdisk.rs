//! Local disks: one that boots to a line on the serial port and switches the machine off, enough to tell
//! whether firmware came to it, and one with nothing on it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::machine::Firmware;

/// What the machine writes when its disk boots.
pub const BOOTED: &str = "MUSTER-LOCAL-DISK";

/// Where BIOS loads a boot sector, and how long it is.
const SECTOR: u16 = 0x7c00;
const SECTOR_LENGTH: usize = 512;

/// 16-bit code: writes the text at 0x7c29 to COM1, then asks the chip set for soft-off.
const BIOS_CODE: [u8; 0x29] = [
    0x31, 0xc0, 0x8e, 0xd8, 0xfc, // ds = 0, count up
    0xbe, 0x29, 0x7c, // si = text
    0xac, 0x84, 0xc0, 0x74, 0x12, // next octet; after the last, off
    0x88, 0xc4, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, // until the port is free
    0x88, 0xe0, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xe9, // write it
    0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd, // off, or halt
];

/// The same in 64-bit code that runs wherever it is loaded, as UEFI starts it.
const UEFI_CODE: [u8; 0x2e] = [
    0xfc, 0x48, 0x8d, 0x35, 0x26, 0x00, 0x00, 0x00, // rsi = text
    0xac, 0x84, 0xc0, 0x74, 0x14, // next octet; after the last, off
    0x88, 0xc4, 0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74,
    0xfb, // until the port is free
    0x88, 0xe0, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xe7, // write it
    0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xf4, 0xeb,
    0xfd, // off, or halt
];

/// Makes a disk and returns what QEMU needs to be told of it.
pub fn make(lab: &Lab, firmware: Firmware) -> Result<Vec<String>> {
    let place = lab.dir().join(lab.unique("disk"));
    let file = match firmware {
        Firmware::Bios => {
            fs::write(&place, boot_sector()).context("writing a disk")?;
            place.display().to_string()
        }
        // QEMU makes a FAT file system of a directory.
        Firmware::Uefi | Firmware::UefiHttp | Firmware::UefiHttpThenPxe => {
            let boot: PathBuf = place.join("EFI/BOOT");
            fs::create_dir_all(&boot).context("making an EFI system partition")?;
            fs::write(boot.join("BOOTX64.EFI"), application()).context("writing a loader")?;
            format!("fat:{}", place.display())
        }
    };
    Ok(arguments(&format!("{file},format=raw,readonly=on")))
}

/// An empty disk, and what QEMU needs to be told of it. It keeps what is written to it.
pub fn empty(lab: &Lab, mebibytes: u64) -> Result<Vec<String>> {
    let place = lab.dir().join(lab.unique("disk"));
    let file = fs::File::create(&place).context("making a disk")?;
    file.set_len(mebibytes << 20).context("making a disk")?;
    Ok(arguments(&format!("{},format=raw", place.display())))
}

/// It comes after the network in the boot order.
fn arguments(file: &str) -> Vec<String> {
    vec![
        "-drive".to_owned(),
        format!("file={file},if=none,id=disk"),
        "-device".to_owned(),
        "virtio-blk-pci,drive=disk,bootindex=2".to_owned(),
    ]
}

fn text() -> Vec<u8> {
    format!("\r\n{BOOTED}\r\n\0").into_bytes()
}

/// A disk of a mebibyte with a boot sector.
fn boot_sector() -> Vec<u8> {
    debug_assert_eq!(SECTOR + 0x29, 0x7c29);
    let mut disk = [&BIOS_CODE[..], &text()].concat();
    disk.resize(SECTOR_LENGTH - 2, 0);
    disk.extend([0x55, 0xaa]);
    disk.resize(1 << 20, 0);
    disk
}

/// A PE32+ image of one section, as small as firmware takes it.
fn application() -> Vec<u8> {
    const ALIGNED: usize = 0x200;
    let code = [&UEFI_CODE[..], &text()].concat();
    let mut image = Vec::new();
    let mut put = |fields: &[(usize, u64)]| {
        for (width, value) in fields {
            image.extend_from_slice(&value.to_le_bytes()[..*width]);
        }
    };
    // DOS header: only the magic and where the PE header is.
    put(&[
        (2, 0x5a4d),
        (8, 0),
        (8, 0),
        (8, 0),
        (8, 0),
        (8, 0),
        (8, 0),
        (8, 0),
        (2, 0),
        (4, 0x40),
    ]);
    // COFF header: x86-64, one section, optional header of 240, executable.
    put(&[
        (4, 0x4550),
        (2, 0x8664),
        (2, 1),
        (4, 0),
        (4, 0),
        (4, 0),
        (2, 240),
        (2, 0x22),
    ]);
    // Optional header: sizes, entry point, base; alignments; versions; sizes; EFI application.
    put(&[
        (2, 0x20b),
        (2, 0),
        (4, 0x200),
        (4, 0),
        (4, 0),
        (4, 0x1000),
        (4, 0x1000),
        (8, 0),
    ]);
    put(&[
        (4, 0x1000),
        (4, 0x200),
        (8, 0),
        (8, 0),
        (4, 0x2000),
        (4, 0x200),
        (4, 0),
        (2, 10),
    ]);
    put(&[(2, 0), (8, 0), (8, 0), (8, 0), (8, 0), (4, 0), (4, 16)]);
    // No data directories.
    put(&[(8, 0); 16]);
    // The section: `.text`, at 0x1000 in memory and 0x200 in the file, code to execute and read.
    put(&[
        (8, 0x74_7865_742e),
        (4, 0x200),
        (4, 0x1000),
        (4, 0x200),
        (4, 0x200),
    ]);
    put(&[(8, 0), (4, 0), (4, 0x6000_0020)]);
    image.resize(ALIGNED, 0);
    image.extend(code);
    image.resize(2 * ALIGNED, 0);
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_where_firmware_looks() {
        let disk = boot_sector();
        assert_eq!(disk[510..512], [0x55, 0xaa]);
        let image = application();
        assert_eq!(image.len(), 0x400);
        assert_eq!(image[0x3c..0x44], *b"\x40\0\0\0PE\0\0");
        // The section's name follows 24 octets of COFF and 240 of optional header.
        assert_eq!(image[0x40 + 24 + 240..][..5], *b".text");
        assert_eq!(image[0x200..][..UEFI_CODE.len()], UEFI_CODE);
    }
}
