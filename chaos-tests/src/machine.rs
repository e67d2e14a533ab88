//! Machines that boot from the lab's network: real firmware in QEMU, without hardware acceleration.

use std::fmt::{self, Display};
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lab::{Lab, wait_until};
use crate::wire::Wire;

/// What a machine starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS and the network card's iPXE ROM.
    Bios,
    /// OVMF with its own PXE client.
    Uefi,
    /// OVMF with its own HTTP Boot client, which asks as HTTPClient; PXE is switched off in it.
    UefiHttp,
    /// OVMF that tries HTTP Boot first, then PXE.
    UefiHttpThenPxe,
}

impl Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bios => "BIOS PXE",
            Self::Uefi => "UEFI PXE",
            Self::UefiHttp => "UEFI HTTP",
            Self::UefiHttpThenPxe => "UEFI HTTP, then PXE",
        })
    }
}

/// Arguments that switch OVMF's IPv6 off, as on networks without it: it would wait a minute for it.
const NO_IPV6: [&str; 4] = [
    "-fw_cfg",
    "name=opt/org.tianocore/IPv6PXESupport,string=n",
    "-fw_cfg",
    "name=opt/org.tianocore/IPv6HTTPSupport,string=n",
];

/// How long firmware may take to come to its boot order, emulated on a busy host.
const FIRMWARE: Duration = Duration::from_secs(180);

/// A machine that is switched on; dropping it pulls the plug.
#[derive(Debug)]
pub struct Machine {
    lab: Lab,
    tap: String,
    child: Child,
    powered_on: Instant,
    console: Arc<Mutex<Console>>,
}

/// What a machine wrote to its serial port, without terminal control, and when.
#[derive(Debug, Default)]
struct Console {
    text: String,
    /// (length of `text` after a read, time since power-on), ascending.
    marks: Vec<(usize, Duration)>,
    escape: Escape,
}

/// Where in a terminal control sequence the serial port is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Started,
    Parameters,
}

impl Machine {
    /// Switches a machine on; its only boot device is a network card with this MAC.
    pub fn boot(lab: &Lab, firmware: Firmware, mac: &str) -> Result<Self> {
        Self::start(lab, firmware, mac, &[])
    }

    /// As [`Machine::boot`], with further arguments to QEMU, such as a disk.
    pub fn start(lab: &Lab, firmware: Firmware, mac: &str, arguments: &[&str]) -> Result<Self> {
        let tap = lab.tap()?;
        let mut qemu = lab.on_switch("qemu-system-x86_64");
        qemu.args([
            "-accel", "tcg", "-m", "512", "-display", "none", "-serial", "stdio", "-monitor",
            "none",
        ])
        .args(["-no-reboot", "-nodefaults"])
        .args([
            "-netdev",
            &format!("tap,id=net,ifname={tap},script=no,downscript=no"),
        ]);
        match firmware {
            // graphics=off makes SeaBIOS, and so the ROM's iPXE, write to the serial port.
            Firmware::Bios => qemu.args(["-machine", "pc,graphics=off"]).args([
                "-device",
                &format!("virtio-net-pci,netdev=net,mac={mac},bootindex=1"),
            ]),
            // Without a ROM on the card it is OVMF's own network stack that boots.
            Firmware::Uefi | Firmware::UefiHttp | Firmware::UefiHttpThenPxe => {
                let variables = lab.dir().join(format!("{tap}-vars.fd"));
                let from = match firmware {
                    Firmware::UefiHttpThenPxe => http_first(lab, mac)?,
                    _ => PathBuf::from("/usr/share/OVMF/OVMF_VARS_4M.fd"),
                };
                fs::copy(&from, &variables)
                    .with_context(|| format!("copying {}", from.display()))?;
                qemu.args(["-machine", "q35"])
                    .args([
                        "-drive",
                        "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
                    ])
                    .args([
                        "-drive",
                        &format!("if=pflash,format=raw,file={}", variables.display()),
                    ])
                    .args([
                        "-device",
                        &format!("virtio-net-pci,netdev=net,mac={mac},bootindex=1,romfile="),
                    ])
            }
        };
        if firmware == Firmware::UefiHttp {
            qemu.args(["-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n"]);
        }
        if firmware != Firmware::Bios {
            qemu.args(NO_IPV6);
        }
        let mut child = qemu
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::from(fs::File::create(
                lab.dir().join(format!("{tap}-qemu.log")),
            )?))
            .spawn()
            .context("starting QEMU")?;
        let powered_on = Instant::now();
        let console = Arc::new(Mutex::new(Console::default()));
        let serial = child.stdout.take().context("QEMU has no serial port")?;
        let log = fs::File::create(lab.dir().join(format!("{tap}-serial.log")))?;
        std::thread::spawn({
            let console = Arc::clone(&console);
            move || record(serial, log, &console, powered_on)
        });
        Ok(Self {
            lab: lab.clone(),
            tap,
            child,
            powered_on,
            console,
        })
    }

    /// Its port on the switch.
    pub fn port(&self) -> &str {
        &self.tap
    }

    /// Opens its port, to hear all that passes it.
    pub fn listen(&self) -> Result<Wire> {
        self.lab.inside(|| Wire::on(&self.tap))
    }

    /// Bounds how fast it can download, so that there is a middle to break things in.
    pub fn slow_link(&self, megabits: u32) -> Result<()> {
        self.lab.slow(&self.tap, megabits)
    }

    /// Time since power-on.
    pub fn age(&self) -> Duration {
        self.powered_on.elapsed()
    }

    /// When it was switched on.
    pub fn powered_on(&self) -> Instant {
        self.powered_on
    }

    /// All that it wrote to its serial port so far, without terminal control.
    pub fn serial(&self) -> String {
        self.console().text.clone()
    }

    /// The lines written so far that contain any of `needles`.
    pub fn lines_with(&self, needles: &[&str]) -> Vec<String> {
        let console = self.console();
        let chosen = |line: &&str| needles.iter().any(|needle| line.contains(needle));
        console
            .text
            .lines()
            .filter(chosen)
            .map(|line| line.trim_end().to_owned())
            .collect()
    }

    /// When, since power-on, `text` had been written; None if it has not.
    pub fn seen(&self, text: &str) -> Option<Duration> {
        let console = self.console();
        let end = console.text.find(text)? + text.len();
        console
            .marks
            .iter()
            .find(|(length, _)| *length >= end)
            .map(|(_, at)| *at)
    }

    /// Waits for `text` on the serial port and returns when it came, since power-on.
    pub fn wait_for(&mut self, text: &str, timeout: Duration) -> Result<Duration> {
        let waited = wait_until(&format!("{text:?} on the serial port"), timeout, || {
            let over = self.child.try_wait().context("asking after QEMU")?;
            match (self.seen(text), over) {
                (Some(at), _) => Ok(Some(Ok(at))),
                (None, Some(status)) => Ok(Some(Err(status))),
                (None, None) => Ok(None),
            }
        });
        match waited {
            Ok(Ok(at)) => Ok(at),
            // What it wrote last may still be on its way through the pipe.
            Ok(Err(status)) => wait_until(
                "the last of the serial port",
                Duration::from_millis(500),
                || Ok(self.seen(text)),
            )
            .with_context(|| {
                format!(
                    "the machine ended ({status}) without {text:?}; its serial port:\n{}",
                    self.tail()
                )
            }),
            Err(error) => Err(error.context(format!("serial port:\n{}", self.tail()))),
        }
    }

    /// Waits until the machine has switched itself off.
    pub fn wait_off(&mut self, timeout: Duration) -> Result<ExitStatus> {
        wait_until("the machine to switch off", timeout, || {
            self.child.try_wait().context("asking after QEMU")
        })
        .with_context(|| format!("serial port:\n{}", self.tail()))
    }

    /// Whether it has not switched itself off.
    pub fn is_on(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn tail(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console
            .text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn console(&self) -> MutexGuard<'_, Console> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.lab.remove_tap(&self.tap);
    }
}

impl Console {
    fn take(&mut self, bytes: &[u8], at: Duration) {
        for byte in bytes {
            match (&self.escape, byte) {
                (Escape::None, 0x1b) => self.escape = Escape::Started,
                (Escape::None, b'\n' | b'\t' | b' '..=b'~') => self.text.push(char::from(*byte)),
                (Escape::None, _) => {}
                (Escape::Started, b'[') => self.escape = Escape::Parameters,
                (Escape::Started, _) => self.escape = Escape::None,
                // A cursor that moves to a place begins a new line for those who read only text.
                (Escape::Parameters, b'H') => {
                    self.escape = Escape::None;
                    if !self.text.ends_with('\n') {
                        self.text.push('\n');
                    }
                }
                (Escape::Parameters, b'@'..=b'~') => self.escape = Escape::None,
                (Escape::Parameters, _) => {}
            }
        }
        self.marks.push((self.text.len(), at));
    }
}

/// Variables of an OVMF that knew HTTP Boot before it knew PXE: its boot order is that in which it
/// came to know them. Made once for each MAC, by a machine that is not plugged in.
fn http_first(lab: &Lab, mac: &str) -> Result<PathBuf> {
    let path = lab
        .dir()
        .join(format!("http-first-{}.fd", mac.replace(':', "")));
    if !path.exists() {
        let mut machine = Machine::boot(lab, Firmware::UefiHttp, mac)?;
        lab.plug(&machine.tap, false)?;
        machine.wait_for("UEFI HTTPv4", FIRMWARE)?;
        let variables = lab.dir().join(format!("{}-vars.fd", machine.tap));
        drop(machine);
        let octets = fs::read(variables).context("reading OVMF's variables")?;
        fs::write(&path, without_ipv6(octets)?).context("keeping OVMF's variables")?;
    }
    Ok(path)
}

/// Switches off the entry of HTTP Boot over IPv6, which [`NO_IPV6`] leaves there: its attributes (UEFI
/// 2.10 §3.1.3) stand 6 octets before its name, and the lowest bit says that it is active.
fn without_ipv6(mut variables: Vec<u8>) -> Result<Vec<u8>> {
    let name: Vec<u8> = "UEFI HTTPv6"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let place = variables
        .windows(name.len())
        .position(|part| part == name)
        .context("OVMF knows no HTTPv6")?;
    let attributes = variables
        .get_mut(place - 6)
        .context("a name without attributes")?;
    *attributes &= !1;
    Ok(variables)
}

fn record(mut serial: impl Read, mut log: fs::File, console: &Mutex<Console>, powered_on: Instant) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = serial.read(&mut buffer) {
        let _ = std::io::Write::write_all(&mut log, &buffer[..length]);
        let mut console = console.lock().unwrap_or_else(PoisonError::into_inner);
        console.take(&buffer[..length], powered_on.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_keeps_the_text_and_drops_terminal_control() {
        let mut console = Console::default();
        console.take(b"\x1b[2J\x1b[01;01HBdsDxe: \x1b[0", Duration::from_secs(1));
        console.take(b";37mloading\r\n", Duration::from_secs(2));
        assert_eq!(console.text, "\nBdsDxe: loading\n");
        assert_eq!(
            console.marks.last(),
            Some(&(console.text.len(), Duration::from_secs(2)))
        );
    }
}
