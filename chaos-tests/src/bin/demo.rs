//! `make demo`: three nodes provision a machine, lose their leader in the middle, and go on.
//!
//! All of it is real: `muster` processes in network namespaces, firmware and a Debian kernel in
//! QEMU, SIGKILL. Every time printed is measured; the machine's CPU is emulated, so it is the gaps
//! that tell, not how long a kernel takes to start. Ends in non-zero if anything failed.

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use muster_chaos::cluster::Cluster;
use muster_chaos::machine::{Firmware, Machine};
use muster_chaos::payload::Payload;
use muster_chaos::{content, invariant, lab};
use nix::sys::signal::{SigSet, Signal};
use serde_json::Value;

/// An emulated machine beside three nodes on two cores takes half a minute; a busy host, longer.
const BOOT: Duration = Duration::from_secs(300);

/// Megabits a second: the kernel of 14 MB takes some six seconds, so that there is a middle to it.
const SLOW: u32 = 20;

/// A machine of the demo.
struct Plan {
    name: &'static str,
    mac: &'static str,
    firmware: Firmware,
    color: &'static str,
}

const M1: Plan = Plan {
    name: "m1",
    mac: "52:54:00:00:00:50",
    firmware: Firmware::Bios,
    color: "blue",
};
const M2: Plan = Plan {
    name: "m2",
    mac: "52:54:00:00:00:51",
    firmware: Firmware::Uefi,
    color: "green",
};

/// What is told, and what of it the summary repeats.
struct Story {
    begun: Instant,
    measured: Vec<(String, Duration)>,
}

fn main() -> ExitCode {
    clean_up_when_interrupted();
    let mut story = Story {
        begun: Instant::now(),
        measured: Vec::new(),
    };
    match tell(&mut story) {
        Ok(()) => {
            println!("\nMeasured:");
            for (what, took) in &story.measured {
                println!("  {:>7.2} s  {what}", took.as_secs_f64());
            }
            println!("\nThe demo went through; everything it made is removed.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nThe demo failed: {error:?}");
            eprintln!("(MUSTER_KEEP=1 keeps the nodes' directories and logs.)");
            ExitCode::FAILURE
        }
    }
}

fn tell(story: &mut Story) -> Result<()> {
    let payload = Payload::assemble()?;

    story.chapter("Three nodes");
    let began = Instant::now();
    let cluster = Cluster::found(3)?;
    story.measure(
        "three nodes: founded, joined, voters, serving",
        began.elapsed(),
    );
    let outcome = provision(story, &cluster, &payload);
    outcome.with_context(|| cluster.logs())
}

fn provision(story: &mut Story, cluster: &Cluster, payload: &Payload) -> Result<()> {
    show_status(story, cluster)?;

    story.chapter("What to boot, by the command line");
    create(story, cluster, "subnets", content::SUBNET)?;
    create(story, cluster, "templates", content::TEMPLATE)?;
    for (file, path) in [
        (payload.kernel(), content::KERNEL),
        (payload.initrd(), content::INITRD),
    ] {
        let file = file.display().to_string();
        story.say(&format!("$ muster artifacts upload {file} --path {path}"));
        cluster
            .cli(&["artifacts", "upload", &file, "--path", path])?
            .ok()?;
    }
    create(story, cluster, "bootenvs", content::BOOTENV)?;
    for plan in [&M1, &M2] {
        let machine = content::machine(plan.name, plan.mac, plan.color);
        create(story, cluster, "machines", &machine)?;
    }

    boot(story, cluster, &M1)?;
    boot(story, cluster, &M2)?;
    let dead = lose_the_leader(story, cluster)?;
    come_back(story, cluster, dead)
}

/// A machine boots and nothing breaks.
fn boot(story: &mut Story, cluster: &Cluster, plan: &Plan) -> Result<()> {
    story.chapter(&format!("{} boots by {}", plan.name, plan.firmware));
    let mut machine = power_on(story, cluster, plan)?;
    wait_for_kernel(story, cluster, &mut machine)?;
    come_up(story, &mut machine, plan, "")
}

fn power_on(story: &mut Story, cluster: &Cluster, plan: &Plan) -> Result<Machine> {
    let machine = Machine::boot(cluster.lab(), plan.firmware, plan.mac)?;
    story.say(&format!("{} is switched on", plan.name));
    Ok(machine)
}

/// Waits until the machine asks for its kernel, and says whom it asks.
fn wait_for_kernel(story: &mut Story, cluster: &Cluster, machine: &mut Machine) -> Result<usize> {
    machine.wait_for("/artifacts/lab/vmlinuz", BOOT)?;
    let address = asked(&machine.serial(), "/artifacts/lab/vmlinuz")
        .context("no node in the kernel's URL")?;
    let node = cluster
        .node_at(address)
        .with_context(|| format!("no node has {address}"))?;
    story.say(&format!(
        "it asks {} for its kernel",
        cluster.node(node).name()
    ));
    Ok(node)
}

/// Waits until the machine has shown its file, called back and switched itself off.
fn come_up(story: &mut Story, machine: &mut Machine, plan: &Plan, how: &str) -> Result<()> {
    let shown = machine.wait_for(&format!("MUSTER-PAYLOAD hello {} from ", plan.name), BOOT)?;
    machine.wait_for("MUSTER-REPORTED", BOOT)?;
    machine.wait_off(BOOT)?;
    let lines = machine.lines_with(&["http://", "MUSTER-"]);
    // The kernel's own messages start with their time; its command line is long and comes twice.
    for line in lines.iter().filter(|line| !line.starts_with('[')) {
        println!("            | {line}");
    }
    let expected = format!("param {}", plan.color);
    let payload = machine.lines_with(&["MUSTER-PAYLOAD"]).join("\n");
    ensure!(
        payload.trim_end().ends_with(&expected),
        "{payload:?} does not end with {expected:?}"
    );
    let what = format!(
        "{} ({}{how}): power-on to its rendered file in user space",
        plan.name, plan.firmware
    );
    story.measure(&what, shown);
    Ok(())
}

/// The leader dies while a machine fetches its kernel from it; returns the dead node.
fn lose_the_leader(story: &mut Story, cluster: &Cluster) -> Result<usize> {
    story.chapter("The leader dies while a machine boots through it");
    let mut machine = power_on(story, cluster, &M1)?;
    machine.slow_link(SLOW)?;
    let server = wait_for_kernel(story, cluster, &mut machine)?;
    let name = cluster.node(server).name();
    if cluster.leader()? != server {
        story.say(&format!(
            "$ muster cluster transfer {name}   (so that it is the leader that dies)"
        ));
        cluster.transfer(server)?;
    }
    ensure!(
        machine.seen("Linux version").is_none(),
        "the kernel was there before its server could die"
    );
    let killed = cluster.node(server).kill()?;
    story.say(&format!(
        "SIGKILL to {name}, the leader, which sends that kernel"
    ));

    let next = cluster.wait_leader(Duration::from_secs(60))?;
    story.measure(
        "SIGKILL of the leader to the next one, as the command line sees it",
        killed.elapsed(),
    );
    story.say(&format!("{} leads", cluster.node(next).name()));

    let urls: Vec<String> = cluster
        .running()
        .map(|node| format!("{}/artifacts/lab/vmlinuz", node.boot_url()))
        .collect();
    let went_on = lab::wait_until("the machine to ask another node", BOOT, || {
        Ok(urls.iter().find_map(|url| machine.seen(url)))
    })
    .with_context(|| machine.serial())?;
    let gap = (machine.powered_on() + went_on).saturating_duration_since(killed);
    story.measure(
        "SIGKILL of the leader to the machine asking another node for its kernel",
        gap,
    );
    come_up(
        story,
        &mut machine,
        &M1,
        &format!(", link slowed to {SLOW} Mbit/s, leader killed"),
    )?;
    Ok(server)
}

/// The dead node misses a change, returns, and has it.
fn come_back(story: &mut Story, cluster: &Cluster, dead: usize) -> Result<()> {
    story.chapter("The dead node returns");
    let node = cluster.node(dead);
    story.say("$ muster machines patch m1 -f -   (while it is away: color red)");
    let survivor = cluster.running().next().context("no node runs")?;
    survivor
        .cli_with(
            &["machines", "patch", M1.name, "-f", "-"],
            "params: {color: red}\n",
        )?
        .ok()?;
    let revision = survivor.status()?.revision;

    let began = Instant::now();
    node.start()?;
    story.say(&format!("{} is started again", node.name()));
    node.wait_applied(revision, Duration::from_secs(60))?;
    story.measure(
        "restart of the dead node to having all that it missed",
        began.elapsed(),
    );
    cluster.wait_settled(Duration::from_secs(60))?;
    let rendered = node.cli(&["render", M1.name, "hello.cfg"])?.ok()?.stdout;
    ensure!(
        rendered.contains("param red"),
        "{} renders {rendered:?}",
        node.name()
    );
    story.say(&format!(
        "{} would now serve: {}",
        node.name(),
        rendered.trim()
    ));

    invariant::one_owner_everywhere(cluster)?;
    story.say("all three nodes hold the same leases, each with one owner");
    show_status(story, cluster)
}

fn create(story: &Story, cluster: &Cluster, resource: &str, document: &str) -> Result<()> {
    let name = document
        .lines()
        .find_map(|line| line.strip_prefix("name: "))
        .unwrap_or_default();
    story.say(&format!("$ muster {resource} create -f -   # {name}"));
    let node = cluster.running().next().context("no node runs")?;
    node.cli_with(&[resource, "create", "-f", "-"], document)?
        .ok()
        .map(drop)
}

fn show_status(story: &Story, cluster: &Cluster) -> Result<()> {
    let status = cluster.cli(&["cluster", "status"])?.ok()?.stdout;
    let status: Value = serde_json::from_str(&status).context("reading the status")?;
    story.say("$ muster cluster status");
    let Some(nodes) = status["nodes"].as_array() else {
        bail!("no nodes in {status}")
    };
    for node in nodes {
        let field = |name: &str| match &node[name] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        println!(
            "            | {:<4} {:<12} {:<8} revision {:<8} lag {:<4} live {}",
            field("name"),
            field("address"),
            field("role"),
            field("revision"),
            field("lag"),
            field("live")
        );
    }
    Ok(())
}

/// The node that the first URL with this path names.
fn asked(serial: &str, path: &str) -> Option<Ipv4Addr> {
    let before = &serial[..serial.find(path)?];
    let url = &before[before.rfind("http://")? + "http://".len()..];
    url.split([':', '/']).next()?.parse().ok()
}

impl Story {
    fn chapter(&self, title: &str) {
        println!("\n== {title}");
    }

    fn say(&self, text: &str) {
        println!("[{:>7.2} s] {text}", self.begun.elapsed().as_secs_f64());
    }

    fn measure(&mut self, what: &str, took: Duration) {
        self.say(&format!("{what}: {:.2} s", took.as_secs_f64()));
        self.measured.push((what.to_owned(), took));
    }
}

/// Takes the lab down on Ctrl-C or SIGTERM, which would end the program without dropping it.
fn clean_up_when_interrupted() {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    // Blocked before any thread is made, so that only the one below takes them.
    if signals.thread_block().is_err() {
        return;
    }
    std::thread::spawn(move || {
        let _ = signals.wait();
        lab::sweep(|pid| pid == std::process::id());
        std::process::exit(130);
    });
}
