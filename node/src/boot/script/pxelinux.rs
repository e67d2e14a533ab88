//! The same decisions for pxelinux (Syslinux 5 and 6): a configuration with one entry.
//!
//! It fetches by TFTP from the server that a name says, `10.77.0.11::/path`, or from the one that it
//! was loaded from. When a file cannot be had it runs ONERROR, which here reads the configuration
//! again, from the next node.

use std::fmt::Write as _;

use muster_api::template::NodeView;
use muster_storage::model::LocalBoot;

use super::{File, HOLD_SECS, Heading, RETRY_SECS, Task, about, named, plain, waiting};

/// Longest name of a file (FILENAME_MAX of Syslinux, with its end).
const NAME_MAX: usize = 255;

/// Longest kernel command line (MAX_CMDLINE of Syslinux, with its end).
const COMMAND_LINE_MAX: usize = 2047;

pub(super) fn text(heading: &Heading, task: &Task, nodes: &[NodeView]) -> String {
    let mut config = about(heading);
    match task {
        Task::Identify => hold(&mut config, heading, nodes, &[], RETRY_SECS),
        Task::Local(how) => local(&mut config, heading, *how),
        Task::Hold { lines, wait_secs } => hold(&mut config, heading, nodes, lines, *wait_secs),
        // It asks for no address: whoever sits there has to switch the machine on again.
        Task::Readdress { lines } => hold(&mut config, heading, nodes, lines, HOLD_SECS),
        Task::Kernel {
            kernel,
            initrds,
            args,
        } => {
            // The first node is this one, whose arguments come first.
            let args = args.first().map_or("", String::as_str);
            match entry(nodes, kernel, initrds, args) {
                Ok(entry) => boot(&mut config, heading, nodes, kernel, &entry),
                Err(problem) => hold(&mut config, heading, nodes, &[problem], HOLD_SECS),
            }
        }
    }
    config
}

fn line(config: &mut String, line: &str) {
    config.push_str(line);
    config.push('\n');
}

fn say(config: &mut String, words: &str) {
    let _ = writeln!(config, "SAY muster: {}", plain(words));
}

fn local(config: &mut String, heading: &Heading, how: LocalBoot) {
    say(config, &format!("{} boots its local disk", named(heading)));
    line(config, "DEFAULT local");
    line(config, "PROMPT 0");
    line(config, "NOESCAPE 1");
    if how == LocalBoot::Sanboot {
        // Where chain.c32 is not there, the ROM has to do it.
        line(config, "ONERROR firmware");
        line(config, "LABEL local");
        line(config, "COM32 chain.c32");
        line(config, "APPEND hd0");
        line(config, "LABEL firmware");
    } else {
        line(config, "LABEL local");
    }
    // -1 is interrupt 18: the next boot device by the firmware's own list.
    let kind = if how == LocalBoot::Exit { "-1" } else { "0" };
    line(config, &format!("LOCALBOOT {kind}"));
}

fn hold(
    config: &mut String,
    heading: &Heading,
    nodes: &[NodeView],
    lines: &[String],
    wait_secs: u32,
) {
    say(config, &waiting(heading));
    for line in lines {
        say(config, line);
    }
    line(config, "PROMPT 1");
    again(config, heading, nodes, wait_secs);
}

/// Reads the configuration again after a time without a key, from each node in turn.
fn again(config: &mut String, heading: &Heading, nodes: &[NodeView], wait_secs: u32) {
    // In tenths of a second.
    let _ = writeln!(config, "TIMEOUT {}", u64::from(wait_secs) * 10);
    line(config, "ONTIMEOUT again");
    line(config, "LABEL again");
    // The next node, because this one may be what failed; its configuration names the one after it.
    let node = nodes.get(1).or(nodes.first());
    let server = node.map(|node| node.address.to_string());
    let directory = format!("{}::{}", server.unwrap_or_default(), directory(heading));
    let _ = writeln!(
        config,
        "CONFIG {directory}pxelinux.cfg/{}",
        own_name(heading)
    );
    // Where it loads itself from again.
    let _ = writeln!(config, "APPEND {directory}");
}

/// Where the loader came from, unless that could not be written down.
fn directory(heading: &Heading) -> &str {
    let directory = heading.directory.as_str();
    let fits = directory.len() < NAME_MAX / 2 && directory.bytes().all(|it| it.is_ascii_graphic());
    if fits { directory } else { "" }
}

/// The name under which this configuration is read again.
fn own_name(heading: &Heading) -> String {
    match heading.mac {
        Some(mac) => format!("01-{}", mac.to_string().replace(':', "-")),
        None => "default".to_owned(),
    }
}

fn boot(config: &mut String, heading: &Heading, nodes: &[NodeView], kernel: &File, entry: &str) {
    say(config, &format!("{} boots {}", named(heading), kernel.path));
    line(config, "DEFAULT boot");
    line(config, "PROMPT 0");
    line(config, "NOESCAPE 1");
    line(config, "ONERROR again");
    line(config, "LABEL boot");
    config.push_str(entry);
    again(config, heading, nodes, RETRY_SECS);
}

/// Kernel, initrds and arguments; what is wrong with them when pxelinux could not take them.
fn entry(
    nodes: &[NodeView],
    kernel: &File,
    initrds: &[File],
    args: &str,
) -> Result<String, String> {
    let name = |file: &File| {
        let server = file.giver(nodes, 0).map(|node| node.address.to_string());
        let server = server.unwrap_or_default();
        let name = format!("{server}::/artifacts/{}?sha256={}", file.path, file.sha256);
        let bad = |c: char| c.is_whitespace() || c == ',';
        if name.len() > NAME_MAX || file.path.contains(bad) {
            return Err(format!(
                "pxelinux cannot load {}: its name must be shorter, without space and comma",
                file.path
            ));
        }
        Ok(name)
    };
    let kernel = name(kernel)?;
    let initrds = initrds.iter().map(name).collect::<Result<Vec<_>, _>>()?;
    let initrds = initrds.join(",");
    let args = args.split_whitespace().collect::<Vec<_>>().join(" ");
    // It adds `BOOT_IMAGE=` and `initrd=` with these names.
    let added = "BOOT_IMAGE= initrd= ".len() + kernel.len() + initrds.len();
    if args.len() + added > COMMAND_LINE_MAX {
        return Err(format!(
            "the kernel arguments have {} octets, and pxelinux takes {}",
            args.len(),
            COMMAND_LINE_MAX.saturating_sub(added)
        ));
    }
    let mut entry = format!("KERNEL {kernel}\n");
    if !initrds.is_empty() {
        let _ = writeln!(entry, "INITRD {initrds}");
    }
    if !args.is_empty() {
        let _ = writeln!(entry, "APPEND {args}");
    }
    Ok(entry)
}
