//! One machine from power-on to its callback, as its firmware goes about it: which messages it sends,
//! how often it repeats them, when it gives a server up and what it tries then. The figures are
//! those that were measured of real firmware.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dhcproto::v4::{Architecture, DhcpOption, OptionCode, UnknownOption};

use super::http::{self, Connection, Patience, Url};
use super::ipxe::{self, End, Image, Platform};
use super::line::{self, Collects, Line, Manner};
use super::progress::{Journal, Stage};
use super::tftp;
use crate::dhcp::{Client, Reply};
use crate::lab::Host;
use crate::wire::mac_text;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// PXE 2.1 §2.2.5.
const ROM: Manner = Manner {
    names: ["a PXE ROM's DISCOVER", "a PXE ROM's REQUEST"],
    discover: &[secs(4), secs(8), secs(16), secs(32)],
    request: &[secs(4), secs(8), secs(16), secs(32)],
    collects: Collects::First,
    broadcast: false,
    hears_refusals: true,
};

/// Doubles from a second until more than ten would be waited.
const IPXE: Manner = Manner {
    names: ["iPXE's DISCOVER", "iPXE's REQUEST"],
    discover: &[secs(1), secs(2), secs(4), secs(8)],
    request: &[secs(1), secs(2), secs(4), secs(8)],
    collects: Collects::Last(secs(2)),
    broadcast: false,
    hears_refusals: false,
};

/// OVMF: bound to the server that it chose; gives the boot entry up after a minute.
const OVMF: Manner = Manner {
    names: ["OVMF's DISCOVER", "OVMF's REQUEST"],
    discover: &[secs(4), secs(8), secs(16), secs(36)],
    request: &[secs(4), secs(8), secs(17), secs(36)],
    collects: Collects::FirstOfWait,
    broadcast: true,
    hears_refusals: true,
};

/// `udhcpc -t 30 -T 2`, as in the payload of real machines.
const SYSTEM: Manner = Manner {
    names: ["a system's DISCOVER", "a system's REQUEST"],
    discover: &[secs(2); 30],
    request: &[secs(2); 30],
    collects: Collects::First,
    broadcast: false,
    hears_refusals: true,
};

/// What iPXE tells of itself in option 175: the card's bus and, by tags, what it was built with (PXE
/// extensions, iSCSI, AoE, HTTP, DNS, bzImage, multiboot, TFTP, menus).
const FEATURES: [u8; 39] = [
    177, 5, 1, 26, 244, 16, 0, 235, 3, 1, 0, 0, 16, 1, 2, 17, 1, 1, 18, 1, 1, 19, 1, 1, 23, 1, 1,
    24, 1, 1, 25, 1, 1, 36, 1, 1, 39, 1, 1,
];

/// iPXE and ROMs do not hear that a port is closed: 16 s.
const TFTP_IPXE: tftp::Manner = tftp::Manner {
    block: 1432,
    window: 1,
    probes: false,
    waits: &[millis(250), millis(500), secs(1), secs(2), secs(4), secs(8)],
    hears_refusals: false,
};

const TFTP_OVMF: tftp::Manner = tftp::Manner {
    block: 1468,
    window: 4,
    probes: true,
    waits: &[secs(4); 6],
    hears_refusals: true,
};

/// OVMF's HTTP.
const HTTP_OVMF: Patience = Patience {
    connect: secs(9),
    silence: secs(5),
};

/// How long iPXE tries to connect; on a connection it waits without end.
const CONNECT_IPXE: Duration = millis(16_100);

/// How long the payload waits for one node.
const PAYLOAD: Patience = Patience {
    connect: secs(5),
    silence: secs(5),
};

/// How often the payload asks all nodes, a second apart.
const PAYLOAD_ROUNDS: usize = 20;

/// How long a BIOS with boot sequence retry waits before it begins its boot order anew.
const BIOS_RETRY: Duration = secs(5);

/// What a machine starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Model {
    /// BIOS whose network card has iPXE as its ROM; begins its boot order anew when nothing boots.
    BiosIpxe,
    /// BIOS whose network card has a PXE ROM; begins its boot order anew when nothing boots.
    BiosPxe,
    /// UEFI that tries PXE, then HTTP Boot, then stops in its shell.
    UefiPxe,
    /// UEFI that tries HTTP Boot, then PXE, then stops in its shell.
    UefiHttp,
}

/// One entry of a boot order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Pxe,
    Http,
    Ipxe,
}

impl Model {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::BiosIpxe, Self::BiosPxe, Self::UefiPxe, Self::UefiHttp];

    /// For reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::BiosIpxe => "BIOS, iPXE ROM",
            Self::BiosPxe => "BIOS, PXE ROM",
            Self::UefiPxe => "UEFI PXE",
            Self::UefiHttp => "UEFI HTTP",
        }
    }

    fn entries(self) -> &'static [Entry] {
        match self {
            Self::BiosIpxe => &[Entry::Ipxe],
            Self::BiosPxe => &[Entry::Pxe],
            Self::UefiPxe => &[Entry::Pxe, Entry::Http],
            Self::UefiHttp => &[Entry::Http, Entry::Pxe],
        }
    }

    fn is_bios(self) -> bool {
        matches!(self, Self::BiosIpxe | Self::BiosPxe)
    }

    /// How it names itself before its loader runs.
    fn class(self, entry: Entry) -> (&'static str, u16) {
        match (self.is_bios(), entry) {
            (true, _) => ("PXEClient:Arch:00000:UNDI:002001", 0),
            (false, Entry::Http) => ("HTTPClient:Arch:00016:UNDI:003000", 16),
            (false, _) => ("PXEClient:Arch:00007:UNDI:003000", 7),
        }
    }
}

/// What machines boot: files that tell when octets are missing, doubled or of another file.
#[derive(Debug)]
pub struct Content {
    /// The kernel.
    pub kernel: Vec<u8>,
    /// Its initial RAM disk.
    pub initrd: Vec<u8>,
}

/// A machine that is switched on.
pub struct Machine<'a> {
    /// What it is.
    pub model: Model,
    /// Its MAC, and nothing else that it has in common with others.
    pub client: Client,
    /// The host that has its addresses.
    pub host: &'a Host,
    /// Where it asks for them.
    pub line: &'a Line<'a>,
    /// What it is to boot.
    pub content: &'a Content,
    /// When nobody waits for it any more.
    pub end: Instant,
}

/// What firmware has when it begins to load a file.
struct Booting<'a, 'b> {
    machine: &'b Machine<'a>,
    journal: &'b mut Journal,
    address: Ipv4Addr,
    /// Where a file without a scheme is, and the file.
    server: Ipv4Addr,
    file: String,
}

impl<'a> Machine<'a> {
    /// Boots until it has called back, or its firmware has nothing left to try.
    pub fn run(&self, journal: &mut Journal) -> Result<()> {
        loop {
            for entry in self.model.entries() {
                match self.boot(*entry, journal) {
                    Ok(()) => return Ok(()),
                    Err(error) => journal.failed(&error),
                }
            }
            let left = self.end.saturating_duration_since(Instant::now());
            if !self.model.is_bios() || left < BIOS_RETRY {
                bail!("nothing is left to boot");
            }
            journal.begins_anew();
            std::thread::sleep(BIOS_RETRY);
        }
    }

    /// One entry of the boot order, to the callback.
    fn boot(&self, entry: Entry, journal: &mut Journal) -> Result<()> {
        let mut image = match entry {
            Entry::Ipxe => self.loader(journal)?,
            _ => {
                self.firmware(entry, journal)?;
                self.loader(journal)?
            }
        };
        loop {
            image = match image {
                End::Boot {
                    kernel,
                    initrds,
                    args,
                } => {
                    self.check(&kernel, &initrds)?;
                    journal.done(Stage::Kernel);
                    return self.system(&args, journal);
                }
                End::Loader(_) => self.loader(journal)?,
                End::Disk => bail!("it boots its disk"),
                End::Exit { code } => bail!("its script exits with {code}"),
            }
        }
    }

    /// What the ROM or UEFI does: it loads a loader.
    fn firmware(&self, entry: Entry, journal: &mut Journal) -> Result<()> {
        let (class, architecture) = self.model.class(entry);
        let mut client = self.pxe(class, architecture);
        let manner = if self.model.is_bios() { ROM } else { OVMF };
        if self.model.is_bios() {
            client = client.with_id(&[&[1], &self.client.mac[..]].concat());
        }
        let acceptable = |offer: &Reply| {
            line::boot_file(offer).is_some() && (entry != Entry::Http || line::is_for_http(offer))
        };
        let ack = self.acquire(&client, &manner, acceptable)?;
        journal.done(Stage::Address);
        let (server, file) = line::boot_file(&ack).context("an ACK without a boot file")?;
        let octets = match (entry, self.model.is_bios()) {
            (Entry::Http, _) => self.load_by_http(ack.address(), &file)?,
            (_, true) => tftp::read(ack.address(), server, &file, &TFTP_IPXE)?,
            (_, false) => tftp::read(ack.address(), server, &file, &TFTP_OVMF)?,
        };
        ensure!(!ipxe::is_script(&octets), "{file} is no loader");
        ensure!(!octets.is_empty(), "{file} is empty");
        journal.done(Stage::Loader);
        Ok(())
    }

    /// HEAD for the size, then GET on the same connection.
    fn load_by_http(&self, from: Ipv4Addr, url: &str) -> Result<Vec<u8>> {
        let url = Url::parse(url)?;
        let mut connection = Connection::open(from, url.server, HTTP_OVMF)?;
        let length = connection.ask("HEAD", &url.path, b"")?.length;
        let loader = connection.ask("GET", &url.path, b"")?;
        ensure!(
            loader.length == length,
            "HEAD says {length} octets and GET {}",
            loader.length
        );
        Ok(loader.body)
    }

    /// What iPXE does, in the ROM or loaded: it asks for an address and boots what comes with it.
    fn loader(&self, journal: &mut Journal) -> Result<End> {
        let mut booting = Booting {
            machine: self,
            journal,
            address: Ipv4Addr::UNSPECIFIED,
            server: Ipv4Addr::UNSPECIFIED,
            file: String::new(),
        };
        booting.configure()?;
        let uri = booting.file.clone();
        let octets = booting.fetch(&uri, None)?;
        if !ipxe::is_script(&octets) {
            booting.journal.done(Stage::Loader);
            return Ok(End::Loader(Image { name: uri, octets }));
        }
        ipxe::run(&mut booting, &octets)
    }

    /// What the kernel and its payload do: ask for an address, call back.
    fn system(&self, args: &[String], journal: &mut Journal) -> Result<()> {
        let mut client = self.client.clone();
        client
            .options
            .push(DhcpOption::ClassIdentifier(b"udhcp 1.35.0".to_vec()));
        let ack = self.acquire(&client, &SYSTEM, |_| true)?;
        ensure!(!ack.boots(), "an operating system is told what to boot");
        journal.done(Stage::System);
        let value = |name| args.iter().find_map(|word| word.strip_prefix(name));
        let first = value("lab.report=").context("no lab.report")?;
        let others = value("lab.urls=").unwrap_or_default().split(',');
        let others = others.map(|url| format!("{url}/report"));
        let others: Vec<String> = others.filter(|url| url != first).collect();
        let urls = [&[first.to_owned()][..], &others].concat();
        for _ in 0..PAYLOAD_ROUNDS {
            for url in &urls {
                let body = format!("{} is up", mac_text(self.client.mac));
                match http::post(ack.address(), url, body.as_bytes(), PAYLOAD) {
                    Ok(()) => {
                        journal.done(Stage::Callback);
                        return Ok(());
                    }
                    Err(error) => journal.fell_back(&error),
                }
            }
            std::thread::sleep(secs(1));
        }
        bail!("no node takes its callback")
    }

    /// Whether all that is in memory is what was uploaded, octet by octet.
    fn check(&self, kernel: &Image, initrds: &[Image]) -> Result<()> {
        let [initrd] = initrds else {
            bail!("it boots with {} initrds", initrds.len());
        };
        ensure!(
            kernel.octets == self.content.kernel,
            "its kernel is another"
        );
        ensure!(
            initrd.octets == self.content.initrd,
            "its initrd is another"
        );
        Ok(())
    }

    fn pxe(&self, class: &str, architecture: u16) -> Client {
        let mut client = self.client.clone();
        client.options.extend([
            DhcpOption::ClassIdentifier(class.as_bytes().to_vec()),
            DhcpOption::ClientSystemArchitecture(Architecture::from(architecture)),
            DhcpOption::ClientNetworkInterface(1, 3, 0),
        ]);
        client
    }

    /// Asks for an address, and has the host answer for it from then on.
    fn acquire(
        &self,
        client: &Client,
        manner: &Manner,
        acceptable: impl Fn(&Reply) -> bool,
    ) -> Result<Reply> {
        let ack = self.line.acquire(client, manner, acceptable)?;
        let address = format!("{}/32", ack.address());
        self.host
            .run("ip", &["address", "replace", &address, "dev", "eth0"])?;
        Ok(ack)
    }
}

impl Booting<'_, '_> {
    /// How long a step may take that its client waits for without end.
    fn left(&self) -> Duration {
        let left = self.machine.end.saturating_duration_since(Instant::now());
        left.max(millis(1))
    }
}

impl Platform for Booting<'_, '_> {
    fn setting(&self, name: &str) -> String {
        let bios = self.machine.model.is_bios();
        match name {
            "netX/mac" | "net0/mac" | "mac" => mac_text(self.machine.client.mac),
            "netX/ip" | "net0/ip" | "ip" => self.address.to_string(),
            "filename" => self.file.clone(),
            "next-server" => self.server.to_string(),
            "platform" => if bios { "pcbios" } else { "efi" }.to_owned(),
            "buildarch" => if bios { "i386" } else { "x86_64" }.to_owned(),
            "version" => "1.0.0+".to_owned(),
            _ => String::new(),
        }
    }

    fn fetch(&mut self, uri: &str, silence: Option<Duration>) -> Result<Vec<u8>> {
        ensure!(Instant::now() < self.machine.end, "nobody waits any more");
        let octets = if uri.starts_with("http://") {
            let patience = Patience {
                connect: silence.unwrap_or(CONNECT_IPXE).min(CONNECT_IPXE),
                silence: silence.unwrap_or_else(|| self.left()),
            };
            http::get(self.address, uri, patience)
        } else {
            let (server, path) = match uri.strip_prefix("tftp://") {
                Some(rest) => {
                    let (server, path) = rest.split_once('/').context("a URI without a path")?;
                    (server.parse().context("a URI without an address")?, path)
                }
                None => (self.server, uri),
            };
            tftp::read(self.address, server, path, &TFTP_IPXE)
        };
        match octets {
            Ok(octets) => {
                let stage = match uri {
                    _ if ipxe::is_script(&octets) => Some(Stage::Script),
                    _ if octets == self.machine.content.initrd => Some(Stage::Initrd),
                    _ => None,
                };
                if let Some(stage) = stage {
                    self.journal.done(stage);
                }
                Ok(octets)
            }
            Err(error) => {
                self.journal.fell_back(&error);
                Err(error)
            }
        }
    }

    fn configure(&mut self) -> Result<()> {
        let machine = self.machine;
        let bios = machine.model.is_bios();
        let (class, architecture) = if bios {
            ("PXEClient:Arch:00000:UNDI:002001", 0)
        } else {
            ("PXEClient:Arch:00007:UNDI:003010", 7)
        };
        let mut client = machine
            .pxe(class, architecture)
            .with_id(&[&[1], &machine.client.mac[..]].concat());
        let wanted = [
            1, 3, 6, 7, 12, 15, 17, 43, 60, 66, 67, 119, 128, 129, 175, 203,
        ];
        client.options.extend([
            DhcpOption::UserClass(b"iPXE".to_vec()),
            DhcpOption::ParameterRequestList(wanted.map(OptionCode::from).to_vec()),
            DhcpOption::Unknown(UnknownOption::new(OptionCode::from(175), FEATURES.to_vec())),
        ]);
        let ack = machine.acquire(&client, &IPXE, |_| true)?;
        self.journal.done(Stage::LoaderAddress);
        self.address = ack.address();
        let (server, file) = line::boot_file(&ack).context("an ACK without a boot file")?;
        (self.server, self.file) = (server, file);
        Ok(())
    }

    fn sleep(&mut self, time: Duration) {
        std::thread::sleep(time.min(self.left()));
    }
}
