//! What iPXE is told: a pure function from what is to be booted to the text of a script.
//!
//! Written for iPXE of 2019 and later. It splits lines at white space only, has no quotes, goes on
//! after a failed command only if `||` follows, and hangs for ever on a silent server without
//! `--timeout`. A script that ends is not run again, so every way through one ends in `boot`,
//! `exit`, or a jump to the part that reads the script again from all nodes.

mod grub;
mod pxelinux;

use std::fmt::Write as _;
use std::net::IpAddr;

use muster_api::template::NodeView;
use muster_storage::model::{Loader, LocalBoot, Mac, Platform, Revision, Sha256};
use sha2::Digest as _;

use super::stamp::Stamp;

/// How long a server may be silent, in milliseconds, before iPXE turns to the next.
const SILENCE_MS: u32 = 4000;

/// How long a machine that has nothing to boot waits before it asks again, in seconds.
pub const HOLD_SECS: u32 = 10;

/// How long a machine waits whose boot failed, or whose node did not know enough, in seconds.
pub const RETRY_SECS: u32 = 3;

/// Who reads what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// iPXE.
    Ipxe,
    /// The pxelinux of Syslinux, and its `syslinux.efi`.
    Pxelinux,
    /// GRUB 2.
    Grub,
}

/// What a script says about itself and whom it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heading {
    /// The machine's name, if one owns the MAC.
    pub machine: Option<String>,
    /// Hardware address, as known so far.
    pub mac: Option<Mac>,
    /// Where the request came from.
    pub address: IpAddr,
    /// Name of the node that answers.
    pub node: String,
    /// Which rule chose what is booted.
    pub rule: String,
    /// Of what it is made; absent when that is nothing of the machine's.
    pub stamp: Option<Stamp>,
    /// Revision of the state that was read.
    pub revision: Revision,
    /// Whether a quorum confirmed that this revision was the latest.
    pub confirmed: bool,
    /// The directory that the loader asked in, with a slash at its end; empty at the top.
    pub directory: String,
    /// iPXE that is loaded first, by the platform of the iPXE that loads it.
    pub fuller: Vec<(Platform, Loader)>,
}

/// What iPXE is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Say which machine it is.
    Identify,
    /// Boot the local disk.
    Local(LocalBoot),
    /// Show a text, wait, ask again.
    Hold {
        /// What stands in the way and what to do.
        lines: Vec<String>,
        /// How long to wait.
        wait_secs: u32,
    },
    /// The same, after asking for an address: this one is not the machine's.
    Readdress {
        /// What stands in the way.
        lines: Vec<String>,
    },
    /// Boot a kernel.
    Kernel {
        /// The kernel.
        kernel: File,
        /// Initial RAM disks, in load order.
        initrds: Vec<File>,
        /// Command line, for each of the nodes in their order: it may name the node.
        args: Vec<String>,
    },
}

/// An artifact, pinned to its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Path below `/artifacts/`.
    pub path: String,
    /// Digest of the bytes.
    pub sha256: Sha256,
    /// Names of nodes that are known to lack it.
    pub lacking: Vec<String>,
}

impl File {
    /// The nodes that are told of, with their positions: those that may have it; all, if none is
    /// left then.
    fn givers<'n>(&self, nodes: &'n [NodeView]) -> Vec<(usize, &'n NodeView)> {
        let has = |node: &NodeView| !self.lacking.contains(&node.name);
        let some = nodes.iter().any(has);
        let named = nodes.iter().enumerate();
        named.filter(|(_, node)| !some || has(node)).collect()
    }

    /// Whom to ask for it when it is the turn of the node at `position`: that one, or the first after
    /// it that may have the file.
    fn giver<'n>(&self, nodes: &'n [NodeView], position: usize) -> Option<&'n NodeView> {
        let givers = self.givers(nodes);
        let next = givers.iter().find(|(at, _)| *at >= position);
        next.or(givers.first()).map(|(_, node)| *node)
    }
}

/// Leaves the first node, this one, where it is, and puts the others into an order that differs
/// from machine to machine, so that a dead node's machines spread over all others.
pub fn order(nodes: &mut [NodeView], mac: Option<Mac>) {
    let mac = mac.map_or([0; 6], |mac| mac.0);
    if let Some((_, others)) = nodes.split_first_mut() {
        others.sort_by_cached_key(|node| {
            sha2::Sha256::new()
                .chain_update(mac)
                .chain_update(&node.name)
                .finalize()
        });
    }
}

/// The text in the language of who reads it.
pub fn render(language: Language, heading: &Heading, task: &Task, nodes: &[NodeView]) -> String {
    match language {
        Language::Ipxe => text(heading, task, nodes),
        Language::Pxelinux => pxelinux::text(heading, task, nodes),
        Language::Grub => grub::text(heading, task, nodes),
    }
}

/// The script for iPXE.
pub fn text(heading: &Heading, task: &Task, nodes: &[NodeView]) -> String {
    let mut script = Script::new(heading, nodes);
    match task {
        Task::Identify => script.identify(),
        Task::Local(how) => script.local(heading, *how),
        Task::Hold { lines, wait_secs } => script.hold(heading, lines, *wait_secs),
        Task::Readdress { lines } => script.readdress(heading, lines),
        Task::Kernel {
            kernel,
            initrds,
            args,
        } => match unusable(args) {
            None => script.kernel(heading, kernel, initrds, args),
            Some(word) => script.hold(
                heading,
                &[format!(
                    "the kernel arguments have the word {word}, which iPXE takes for its own: \
                     change kernel_args of the bootenv"
                )],
                HOLD_SECS,
            ),
        },
    }
    script.text
}

/// A word that iPXE would not pass on but act upon.
fn unusable(args: &[String]) -> Option<&str> {
    args.iter()
        .flat_map(|args| args.split_whitespace())
        .find(|word| matches!(*word, "||" | "&&" | ";") || word.starts_with('#'))
}

struct Script<'a> {
    text: String,
    nodes: &'a [NodeView],
    /// `?mac=…` for URLs of scripts.
    query: String,
}

impl<'a> Script<'a> {
    fn new(heading: &Heading, nodes: &'a [NodeView]) -> Self {
        let mut script = Self {
            text: "#!ipxe\n".to_owned(),
            nodes,
            query: match heading.mac {
                Some(mac) => format!("?mac={mac}"),
                // netX is the card that iPXE opened last: the one that it boots from.
                None => "?mac=${netX/mac}".to_owned(),
            },
        };
        script.text.push_str(&about(heading));
        script
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn echo(&mut self, words: &str) {
        let words = plain(words);
        let _ = writeln!(self.text, "echo muster: {words}");
    }

    fn identify(&mut self) {
        self.line("goto again");
        self.again(RETRY_SECS);
    }

    /// BIOS boots the disk from here, because many ROMs do not return well. UEFI goes on with its
    /// next entry only after an error: a success makes it stop at its menu.
    fn local(&mut self, heading: &Heading, how: LocalBoot) {
        let machine = named(heading);
        self.echo(&format!("{machine} boots its local disk"));
        if how == LocalBoot::Auto {
            self.line("iseq ${platform} efi && goto firmware ||");
        }
        if matches!(how, LocalBoot::Auto | LocalBoot::Sanboot) {
            self.line("sanboot --no-describe --drive 0x80 ||");
        }
        if how == LocalBoot::Auto {
            self.line(":firmware");
        }
        self.line("exit 1");
    }

    /// Loads the iPXE that was chosen, unless this is it: of two that ask for this script by the same
    /// packets, the name of the network card's driver tells which. What cannot be loaded is done
    /// without.
    fn fuller(&mut self, heading: &Heading) {
        for (position, (platform, loader)) in heading.fuller.iter().enumerate() {
            let (Some(architecture), Some(chips)) = (architecture(*platform), loader.ipxe_chips())
            else {
                continue;
            };
            let next = format!("own-{position}");
            self.line(&format!("{architecture} || goto {next}"));
            for chip in chips {
                self.line(&format!("iseq ${{netX/chip}} {chip} && goto {next} ||"));
            }
            let urls: Vec<String> = match loader.is_url() {
                true => vec![loader.as_str().to_owned()],
                false => self
                    .nodes
                    .iter()
                    .map(|node| format!("{}/{}", node.url(), loader.as_str()))
                    .collect(),
            };
            for url in urls {
                self.line(&format!("chain --autofree --timeout {SILENCE_MS} {url} ||"));
            }
            self.line(&format!(":{next}"));
        }
    }

    fn hold(&mut self, heading: &Heading, lines: &[String], wait_secs: u32) {
        self.say(heading, lines);
        self.again(wait_secs);
    }

    fn readdress(&mut self, heading: &Heading, lines: &[String]) {
        self.say(heading, lines);
        self.line("ifconf -c dhcp ||");
        self.again(RETRY_SECS);
    }

    fn say(&mut self, heading: &Heading, lines: &[String]) {
        self.echo(&waiting(heading));
        for line in lines {
            self.echo(line);
        }
    }

    /// The kernel comes last: its command line may name the node, which then has just answered.
    fn kernel(&mut self, heading: &Heading, kernel: &File, initrds: &[File], args: &[String]) {
        let machine = named(heading);
        self.fuller(heading);
        self.echo(&format!("{machine} boots {}", kernel.path));
        self.line("imgfree");
        let names = file_names(initrds);
        for (position, (initrd, name)) in initrds.iter().zip(&names).enumerate() {
            let next = format!("initrd-{position}");
            for (_, node) in initrd.givers(self.nodes) {
                let url = artifact_url(node, initrd);
                self.line(&format!(
                    "initrd --name {name} --timeout {SILENCE_MS} {url} && goto {next} ||"
                ));
            }
            self.line("goto failed");
            self.line(&format!(":{next}"));
        }
        for (position, node) in kernel.givers(self.nodes) {
            let Some(args) = args.get(position) else {
                continue;
            };
            let url = artifact_url(node, kernel);
            let mut words: Vec<&str> = args.split_whitespace().collect();
            // EFI kernels look for these files; others ignore the names.
            let added: Vec<String> = names.iter().map(|name| format!("initrd={name}")).collect();
            if !words.iter().any(|word| word.starts_with("initrd=")) {
                words.extend(added.iter().map(String::as_str));
            }
            let line = format!(
                "kernel --name vmlinuz --timeout {SILENCE_MS} {url} {} && goto boot ||",
                words.join(" ")
            );
            self.line(&line);
        }
        self.line("goto failed");
        self.line(":boot");
        self.line("boot ||");
        self.line(":failed");
        self.line("imgfree");
        self.echo(&format!("{machine} could not boot {}", kernel.path));
        self.again(RETRY_SECS);
    }

    /// Waits, then reads the script again from each node; if none answers, asks for an address
    /// again and reads the script that comes with it, because all nodes known here may be gone.
    ///
    /// An iPXE that was loaded by this one and gave up takes the network card with it (the PXE stack is
    /// unloaded, and does not come back): only a new start helps, and where the command for that is not
    /// built in, the firmware's next entry.
    fn again(&mut self, wait_secs: u32) {
        self.line(":wait");
        self.line(&format!("sleep {wait_secs} ||"));
        self.line(":again");
        self.line("isset ${netX/mac} || goto bare");
        for node in self.nodes {
            let chain = format!(
                "chain --replace --autofree --timeout {SILENCE_MS} {}/boot.ipxe{} ||",
                node.url(),
                self.query
            );
            self.line(&chain);
        }
        self.echo("no node answers");
        self.line("ifconf -c dhcp ||");
        self.line(&format!(
            "chain --replace --autofree --timeout {SILENCE_MS} ${{filename}} ||"
        ));
        self.line("goto wait");
        self.line(":bare");
        self.echo("no network card is left: the machine starts anew");
        self.line(&format!("sleep {RETRY_SECS} ||"));
        self.line("reboot ||");
        self.line("exit 1");
    }
}

/// Comments on whom the text is for, in the form that all three languages have.
fn about(heading: &Heading) -> String {
    let confirmed = if heading.confirmed {
        "confirmed by a quorum"
    } else {
        "as this node knows it"
    };
    let stamp = heading.stamp.as_ref();
    let stamp = stamp.map(|stamp| format!("# made of {}\n", plain(&stamp.to_string())));
    format!(
        "# muster: revision {}, {confirmed}, by node {}\n# {}\n{}",
        heading.revision,
        heading.node,
        plain(&heading.rule),
        stamp.unwrap_or_default()
    )
}

/// What is shown on a machine that waits.
fn waiting(heading: &Heading) -> String {
    let mac = heading.mac.map(|mac| mac.to_string()).unwrap_or_default();
    format!(
        "{} waits. MAC {mac}, address {}, node {}",
        named(heading),
        heading.address,
        heading.node
    )
}

/// A command that succeeds in iPXE on a platform, and nowhere else.
fn architecture(platform: Platform) -> Option<&'static str> {
    Some(match platform {
        Platform::IpxeBios => "iseq ${platform} pcbios",
        Platform::IpxeX64 => "iseq ${platform}-${buildarch} efi-x86_64",
        Platform::IpxeIa32 => "iseq ${platform}-${buildarch} efi-i386",
        Platform::IpxeArm64 => "iseq ${platform}-${buildarch} efi-arm64",
        _ => return None,
    })
}

fn named(heading: &Heading) -> &str {
    heading.machine.as_deref().unwrap_or("this machine")
}

fn artifact_url(node: &NodeView, file: &File) -> String {
    format!(
        "{}/artifacts/{}?sha256={}",
        node.url(),
        file.path,
        file.sha256
    )
}

/// The last part of each path; where two are equal, with their position before it.
fn file_names(files: &[File]) -> Vec<String> {
    let last = |file: &File| {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        name.to_owned()
    };
    let names: Vec<String> = files.iter().map(last).collect();
    names
        .iter()
        .enumerate()
        .map(|(position, name)| {
            let unique = names.iter().filter(|other| *other == name).count() == 1;
            if unique {
                name.clone()
            } else {
                format!("{position}-{name}")
            }
        })
        .collect()
}

/// Text that iPXE shows as it is: one line of printable ASCII without what it would act upon.
fn plain(text: &str) -> String {
    let words = text.split_whitespace().map(|word| match word {
        "||" | "&&" | ";" => "/".to_owned(),
        word => {
            let word = word.strip_prefix('#').unwrap_or(word);
            word.chars()
                .map(|c| match c {
                    '$' | '\\' => '/',
                    ' '..='~' => c,
                    _ => '?',
                })
                .collect()
        }
    });
    words.collect::<Vec<String>>().join(" ")
}

#[cfg(test)]
mod tests;
