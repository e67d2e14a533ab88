//! The same decisions for GRUB 2.
//!
//! It fetches by TFTP from the server that a name says, `(tftp,10.77.0.11)/path`: releases before 2.12
//! know no other port of HTTP than 80. A command that fails does not end the script, so each way
//! through it ends in `boot`, or in a loop that reads the script again from all nodes. A script that is
//! read again by that loop does not begin another one.

use std::fmt::Write as _;
use std::net::IpAddr;

use muster_api::template::NodeView;
use muster_storage::model::LocalBoot;

use super::{File, Heading, RETRY_SECS, Task, about, named, plain, waiting};

/// Where distributions and others put what boots from a disk, on its EFI system partition; what is a
/// name of last resort (UEFI 2.10 §3.5.1.1) comes after those that were installed on purpose.
const EFI_LOADERS: [&str; 13] = [
    "debian/shimx64.efi",
    "ubuntu/shimx64.efi",
    "redhat/shimx64.efi",
    "fedora/shimx64.efi",
    "centos/shimx64.efi",
    "rocky/shimx64.efi",
    "almalinux/shimx64.efi",
    "sles/shim.efi",
    "opensuse/shim.efi",
    "debian/grubx64.efi",
    "Microsoft/Boot/bootmgfw.efi",
    "BOOT/BOOTX64.EFI",
    "BOOT/BOOTAA64.EFI",
];

pub(super) fn text(heading: &Heading, task: &Task, nodes: &[NodeView]) -> String {
    let mut script = about(heading);
    line(&mut script, "set muster_read=yes");
    match task {
        Task::Identify => again(&mut script, heading, nodes, RETRY_SECS),
        Task::Local(how) => local(&mut script, heading, *how),
        Task::Hold { lines, wait_secs } => {
            say(&mut script, heading, lines);
            again(&mut script, heading, nodes, *wait_secs);
        }
        Task::Readdress { lines } => {
            say(&mut script, heading, lines);
            line(&mut script, "net_dhcp");
            again(&mut script, heading, nodes, RETRY_SECS);
        }
        Task::Kernel {
            kernel,
            initrds,
            args,
        } => {
            echo(
                &mut script,
                &format!("{} boots {}", named(heading), kernel.path),
            );
            for (position, args) in args.iter().enumerate().take(nodes.len()) {
                let artifact = |file: &File| artifact(file, nodes, position);
                boot(&mut script, artifact, kernel, initrds, args);
            }
            echo(
                &mut script,
                &format!("{} could not boot {}", named(heading), kernel.path),
            );
            again(&mut script, heading, nodes, RETRY_SECS);
        }
    }
    script
}

fn line(script: &mut String, line: &str) {
    script.push_str(line);
    script.push('\n');
}

fn echo(script: &mut String, words: &str) {
    let words = quoted(&format!("muster: {}", plain(words)));
    let _ = writeln!(script, "echo {words}");
}

fn say(script: &mut String, heading: &Heading, lines: &[String]) {
    echo(script, &waiting(heading));
    for line in lines {
        echo(script, line);
    }
}

/// As one word, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn on(node: &NodeView, path: &str) -> String {
    let server = match node.address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    format!("(tftp,{server})/{path}")
}

fn artifact(file: &File, nodes: &[NodeView], position: usize) -> String {
    let path = format!("artifacts/{}?sha256={}", file.path, file.sha256);
    let giver = file.giver(nodes, position);
    quoted(&giver.map_or_else(|| path.clone(), |node| on(node, &path)))
}

fn boot(
    script: &mut String,
    artifact: impl Fn(&File) -> String,
    kernel: &File,
    initrds: &[File],
    args: &str,
) {
    let mut words = vec!["linux".to_owned(), artifact(kernel)];
    words.extend(arguments(args).iter().map(|word| quoted(word)));
    let _ = writeln!(script, "if {}; then", words.join(" "));
    if initrds.is_empty() {
        line(script, "  boot");
    } else {
        let initrds: Vec<String> = initrds.iter().map(&artifact).collect();
        let _ = writeln!(script, "  if initrd {}; then", initrds.join(" "));
        line(script, "    boot");
        line(script, "  fi");
    }
    line(script, "fi");
}

/// The words of a command line. GRUB puts quotes around those with a space itself, and would escape
/// those that are there.
fn arguments(args: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut begun, mut inside) = (String::new(), false, false);
    for c in args.chars() {
        match c {
            '"' => {
                inside = !inside;
                begun = true;
            }
            c if c.is_whitespace() && !inside => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            c => {
                word.push(if c.is_whitespace() { ' ' } else { c });
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// UEFI takes the end of a loader that says no error, and GRUB says none, for a success, and stops at
/// its menu: so GRUB looks for what boots from the disk.
fn local(script: &mut String, heading: &Heading, how: LocalBoot) {
    echo(script, &format!("{} boots its local disk", named(heading)));
    if matches!(how, LocalBoot::Auto | LocalBoot::Sanboot) {
        line(script, "if [ \"$grub_platform\" = efi ]; then");
        let _ = writeln!(script, "  for file in {}; do", EFI_LOADERS.join(" "));
        line(
            script,
            "    if search --no-floppy --file --set=disk /EFI/$file; then",
        );
        line(script, "      chainloader ($disk)/EFI/$file");
        line(script, "      boot");
        line(script, "    fi");
        line(script, "  done");
        line(script, "else");
        line(script, "  set root=hd0");
        line(script, "  chainloader +1");
        line(script, "  boot");
        line(script, "fi");
    }
    line(script, "exit");
}

/// Waits, then reads the script again from the first node that gives it.
fn again(script: &mut String, heading: &Heading, nodes: &[NodeView], wait_secs: u32) {
    let name = match heading.mac {
        Some(mac) => format!("grub/grub.cfg-01-{}", mac.to_string().replace(':', "-")),
        // GRUB writes it with colons.
        None => "grub/grub.cfg-01-$net_default_mac".to_owned(),
    };
    let _ = writeln!(script, "set muster_wait={wait_secs}");
    line(script, "if [ \"$muster_loop\" != yes ]; then");
    line(script, "  set muster_loop=yes");
    line(script, "  while true; do");
    line(script, "    sleep $muster_wait");
    line(script, "    set muster_read=no");
    for node in nodes {
        line(script, "    if [ \"$muster_read\" = no ]; then");
        let _ = writeln!(script, "      source \"{}\"", on(node, &name));
        line(script, "    fi");
    }
    line(script, "  done");
    line(script, "fi");
}
