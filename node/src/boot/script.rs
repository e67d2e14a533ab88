//! What iPXE is told: a pure function from what is to be booted to the text of a script.
//!
//! Written for iPXE of 2019 and later. It splits lines at white space only, has no quotes, goes on
//! after a failed command only if `||` follows, and hangs for ever on a silent server without
//! `--timeout`. A script that ends is not run again, so every way through one ends in `boot`,
//! `exit`, or a jump to the part that reads the script again from all nodes.

use std::fmt::Write as _;
use std::net::IpAddr;

use muster_api::template::NodeView;
use muster_storage::model::{Mac, Revision, Sha256};
use sha2::Digest as _;

/// How long a server may be silent, in milliseconds, before iPXE turns to the next.
const SILENCE_MS: u32 = 4000;

/// How long a machine that has nothing to boot waits before it asks again, in seconds.
pub const HOLD_SECS: u32 = 10;

/// How long a machine waits whose boot failed, or whose node did not know enough, in seconds.
pub const RETRY_SECS: u32 = 3;

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
    /// Revision of the state that was read.
    pub revision: Revision,
    /// Whether a quorum confirmed that this revision was the latest.
    pub confirmed: bool,
}

/// What iPXE is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Say which machine it is.
    Identify,
    /// Boot the local disk.
    Local,
    /// Show a text, wait, ask again.
    Hold {
        /// What stands in the way and what to do.
        lines: Vec<String>,
        /// How long to wait.
        wait_secs: u32,
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

/// The script.
pub fn text(heading: &Heading, task: &Task, nodes: &[NodeView]) -> String {
    let mut script = Script::new(heading, nodes);
    match task {
        Task::Identify => script.identify(),
        Task::Local => script.local(heading),
        Task::Hold { lines, wait_secs } => script.hold(heading, lines, *wait_secs),
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
        let confirmed = if heading.confirmed {
            "confirmed by a quorum"
        } else {
            "as this node knows it"
        };
        script.line(&format!(
            "# muster: revision {}, {confirmed}, by node {}",
            heading.revision, heading.node
        ));
        script.line(&format!("# {}", plain(&heading.rule)));
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
    fn local(&mut self, heading: &Heading) {
        let machine = named(heading);
        self.echo(&format!("{machine} boots its local disk"));
        self.line("iseq ${platform} efi && goto firmware ||");
        self.line("sanboot --no-describe --drive 0x80 ||");
        self.line(":firmware");
        self.line("exit 1");
    }

    fn hold(&mut self, heading: &Heading, lines: &[String], wait_secs: u32) {
        let machine = named(heading);
        let mac = heading.mac.map(|mac| mac.to_string()).unwrap_or_default();
        let about = format!(
            "{machine} waits. MAC {mac}, address {}, node {}",
            heading.address, heading.node
        );
        self.echo(&about);
        for line in lines {
            self.echo(line);
        }
        self.again(wait_secs);
    }

    /// The kernel comes last: its command line may name the node, which then has just answered.
    fn kernel(&mut self, heading: &Heading, kernel: &File, initrds: &[File], args: &[String]) {
        let machine = named(heading);
        self.echo(&format!("{machine} boots {}", kernel.path));
        self.line("imgfree");
        let names = file_names(initrds);
        for (position, (initrd, name)) in initrds.iter().zip(&names).enumerate() {
            let next = format!("initrd-{position}");
            for node in self.nodes {
                let url = artifact_url(node, initrd);
                self.line(&format!(
                    "initrd --name {name} --timeout {SILENCE_MS} {url} && goto {next} ||"
                ));
            }
            self.line("goto failed");
            self.line(&format!(":{next}"));
        }
        for (node, args) in self.nodes.iter().zip(args) {
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
    fn again(&mut self, wait_secs: u32) {
        self.line(":wait");
        self.line(&format!("sleep {wait_secs} ||"));
        self.line(":again");
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
    }
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
mod tests {
    use super::*;

    fn nodes() -> Vec<NodeView> {
        [(1, "a"), (2, "b")]
            .map(|(host, name)| NodeView {
                name: name.to_owned(),
                address: IpAddr::from([10, 77, 0, host]),
                boot_port: 8091,
            })
            .into()
    }

    fn heading(machine: Option<&str>) -> Heading {
        Heading {
            machine: machine.map(str::to_owned),
            mac: Some(Mac([0x52, 0x54, 0, 0, 0, 0x50])),
            address: IpAddr::from([10, 77, 0, 100]),
            node: "a".to_owned(),
            rule: "bootenv of machine `m1`: `lab`".to_owned(),
            revision: Revision(512),
            confirmed: true,
        }
    }

    fn file(path: &str) -> File {
        File {
            path: path.to_owned(),
            sha256: Sha256([0xab; 32]),
        }
    }

    /// With the digest shortened, for lines that people can read.
    fn check(heading: &Heading, task: &Task, expected: &str) {
        let digest = "ab".repeat(32);
        assert_eq!(
            text(heading, task, &nodes()).replace(&digest, "ab…"),
            expected
        );
    }

    const AGAIN: &str = "\
:again
chain --replace --autofree --timeout 4000 http://10.77.0.1:8091/boot.ipxe?mac=52:54:00:00:00:50 ||
chain --replace --autofree --timeout 4000 http://10.77.0.2:8091/boot.ipxe?mac=52:54:00:00:00:50 ||
echo muster: no node answers
ifconf -c dhcp ||
chain --replace --autofree --timeout 4000 ${filename} ||
goto wait
";

    #[test]
    fn kernel_falls_back_over_the_nodes_and_reads_the_script_again() {
        let task = Task::Kernel {
            kernel: file("lab/vmlinuz"),
            initrds: vec![file("lab/initrd.img")],
            args: vec![
                "quiet url=http://10.77.0.1:8091/x".to_owned(),
                "quiet url=http://10.77.0.2:8091/x".to_owned(),
            ],
        };
        let expected = "\
#!ipxe
# muster: revision 512, confirmed by a quorum, by node a
# bootenv of machine `m1`: `lab`
echo muster: m1 boots lab/vmlinuz
imgfree
initrd --name initrd.img --timeout 4000 http://10.77.0.1:8091/artifacts/lab/initrd.img?sha256=ab… && goto initrd-0 ||
initrd --name initrd.img --timeout 4000 http://10.77.0.2:8091/artifacts/lab/initrd.img?sha256=ab… && goto initrd-0 ||
goto failed
:initrd-0
kernel --name vmlinuz --timeout 4000 http://10.77.0.1:8091/artifacts/lab/vmlinuz?sha256=ab… quiet url=http://10.77.0.1:8091/x initrd=initrd.img && goto boot ||
kernel --name vmlinuz --timeout 4000 http://10.77.0.2:8091/artifacts/lab/vmlinuz?sha256=ab… quiet url=http://10.77.0.2:8091/x initrd=initrd.img && goto boot ||
goto failed
:boot
boot ||
:failed
imgfree
echo muster: m1 could not boot lab/vmlinuz
:wait
sleep 3 ||
"
        .to_owned()
            + AGAIN;
        check(&heading(Some("m1")), &task, &expected);
    }

    #[test]
    fn local_needs_no_network() {
        check(
            &heading(Some("m1")),
            &Task::Local,
            "\
#!ipxe
# muster: revision 512, confirmed by a quorum, by node a
# bootenv of machine `m1`: `lab`
echo muster: m1 boots its local disk
iseq ${platform} efi && goto firmware ||
sanboot --no-describe --drive 0x80 ||
:firmware
exit 1
",
        );
    }

    #[test]
    fn hold_says_what_to_do_and_asks_again() {
        let task = Task::Hold {
            lines: vec!["run this".to_owned(), "then that".to_owned()],
            wait_secs: 10,
        };
        let expected = "\
#!ipxe
# muster: revision 512, as this node knows it, by node a
# bootenv of machine `m1`: `lab`
echo muster: this machine waits. MAC 52:54:00:00:00:50, address 10.77.0.100, node a
echo muster: run this
echo muster: then that
:wait
sleep 10 ||
"
        .to_owned()
            + AGAIN;
        let heading = Heading {
            confirmed: false,
            ..heading(None)
        };
        check(&heading, &task, &expected);
    }

    #[test]
    fn unidentified_client_is_asked_for_its_address() {
        let heading = Heading {
            mac: None,
            ..heading(None)
        };
        let script = text(&heading, &Task::Identify, &nodes());
        assert!(script.contains("\ngoto again\n"), "{script}");
        assert!(
            script.contains("http://10.77.0.2:8091/boot.ipxe?mac=${netX/mac} ||\n"),
            "{script}"
        );
    }

    #[test]
    fn initrds_of_one_name_are_kept_apart() {
        let names =
            |paths: &[&str]| file_names(&paths.iter().map(|path| file(path)).collect::<Vec<_>>());
        assert_eq!(
            names(&["a/initrd.img", "firmware.cpio"]),
            ["initrd.img", "firmware.cpio"]
        );
        assert_eq!(names(&["a/initrd", "b/initrd"]), ["0-initrd", "1-initrd"]);
    }

    #[test]
    fn own_initrd_argument_is_left_alone() {
        let task = Task::Kernel {
            kernel: file("vmlinuz"),
            initrds: vec![file("initrd.img")],
            args: vec!["initrd=initrd.img quiet".to_owned(); 2],
        };
        let script = text(&heading(None), &task, &nodes());
        assert!(
            script.contains("initrd=initrd.img quiet && goto boot ||\n"),
            "{script}"
        );
    }

    #[test]
    fn texts_of_people_cannot_become_commands() {
        let evil = "a\n||\nexit ; && #b ${net0/mac} \\ \u{e9}";
        let task = Task::Hold {
            lines: vec![evil.to_owned()],
            wait_secs: HOLD_SECS,
        };
        let heading = Heading {
            rule: evil.to_owned(),
            ..heading(None)
        };
        let script = text(&heading, &task, &nodes());
        let plain = "a / exit / / b /{net0/mac} / ?";
        assert!(
            script.contains(&format!("\necho muster: {plain}\n")),
            "{script}"
        );
        assert!(script.contains(&format!("\n# {plain}\n")), "{script}");
    }

    #[test]
    fn arguments_that_ipxe_would_act_upon_are_refused_on_screen() {
        for word in ["||", "&&", ";", "#rest"] {
            let task = Task::Kernel {
                kernel: file("vmlinuz"),
                initrds: Vec::new(),
                args: vec![format!("quiet {word} x"); 2],
            };
            let script = text(&heading(None), &task, &nodes());
            assert!(
                script.contains("kernel arguments have the word"),
                "{script}"
            );
            assert!(!script.contains("\nboot"), "{script}");
        }
    }

    #[test]
    fn arguments_over_several_lines_become_one() {
        let task = Task::Kernel {
            kernel: file("vmlinuz"),
            initrds: Vec::new(),
            args: vec!["a=1\n  b=\"2 3\"\\\n".to_owned(); 2],
        };
        let script = text(&heading(None), &task, &nodes());
        assert!(
            script.contains(" a=1 b=\"2 3\"\\ && goto boot ||\n"),
            "{script}"
        );
    }

    #[test]
    fn this_node_comes_first_and_the_others_differ_by_machine() {
        let all: Vec<NodeView> = ["c", "a", "b", "d", "e"]
            .map(|name| NodeView {
                name: name.to_owned(),
                address: IpAddr::from([10, 77, 0, 1]),
                boot_port: 8091,
            })
            .into();
        let second = |mac: u8| {
            let mut nodes = all.clone();
            order(&mut nodes, Some(Mac([mac; 6])));
            assert_eq!(nodes[0].name, "c");
            nodes[1].name.clone()
        };
        let mut seconds: Vec<String> = (0..64).map(second).collect();
        seconds.sort_unstable();
        seconds.dedup();
        assert_eq!(seconds, ["a", "b", "d", "e"]);
    }
}
