//! What was measured, as Markdown.

use std::fmt::Write as _;

use anyhow::Result;
use muster_chaos::summary::{Ratios, median};

use crate::servers::Kind;
use crate::{Cell, Flags, Part, Work};

const MEBIBYTE: f64 = 1_048_576.0;

/// All tables.
pub fn all(flags: &Flags, cells: &[Cell]) -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let names: Vec<&str> = flags.servers.iter().map(|kind| kind.name()).collect();
    let mut text = format!(
        "{}, in turns, each on a host of its own behind one switch; {cores} cores for all servers and \
         clients; files from page cache; {} rounds, {} s a figure. Of Muster one of three nodes is \
         asked, which does not lead. Medians; ratios are of rates, Muster's by the other's, round by \
         round; \"clients\" is the share of one core that they used.\n",
        names.join(", "),
        flags.rounds,
        flags.seconds
    );
    for part in &flags.parts {
        text.push('\n');
        text += &match part {
            Part::Http => transfers(
                &format!("### An artifact of {} MiB by HTTP", flags.mebibytes),
                flags,
                cells,
                |work| matches!(work, Work::Http { .. }),
            ),
            Part::Tftp => transfers(
                &format!(
                    "### An artifact of {} KiB by TFTP, blocks of {} octets",
                    flags.mebibytes * 64,
                    flags.block
                ),
                flags,
                cells,
                |work| matches!(work, Work::Tftp { .. }),
            ),
            Part::Rendered => rendered(flags, cells),
        };
    }
    Ok(text)
}

/// One figure in one line, as it is measured.
pub fn line(cell: &Cell) -> String {
    let rate = match cell.work {
        Work::Http { .. } | Work::Tftp { .. } => format!("{:.1} MiB/s", cell.rate / MEBIBYTE),
        Work::Scripts { .. } | Work::Files { .. } => {
            let latency = &cell.latency;
            format!(
                "{:.0}/s, p50 {:.1} ms, p99 {:.1} ms",
                cell.rate, latency.p50_ms, latency.p99_ms
            )
        }
    };
    format!(
        "{}, {:?}: {rate}, {} repeats, clients {:.2}",
        cell.kind.name(),
        cell.work,
        cell.repeats,
        cell.clients_busy
    )
}

fn transfers(title: &str, flags: &Flags, cells: &[Cell], chosen: impl Fn(Work) -> bool) -> String {
    let mut text = format!(
        "{title}\n\n\
         | who fetches | from | MiB/s | repeats | clients | Muster's ratio | rounds |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for work in flags.works().into_iter().filter(|work| chosen(*work)) {
        let ours = rates(cells, Kind::Muster, work);
        for &kind in flags.servers.iter().filter(|kind| work.suits(**kind)) {
            let theirs = rates(cells, kind, work);
            let ratios = match kind {
                Kind::Muster => Ratios::default(),
                _ => Ratios::of(&ours, &theirs),
            };
            let repeats: u64 = of(cells, kind, work).map(|cell| cell.repeats).sum();
            let _ = writeln!(
                text,
                "| {} | {} | {:.1} | {repeats} | {:.2} | {} | {} |",
                who(work),
                kind.name(),
                median(&theirs).unwrap_or(f64::NAN) / MEBIBYTE,
                middle(cells, kind, work, |cell| cell.clients_busy),
                ratios.median(),
                ratios.rounds(),
            );
        }
    }
    text
}

fn rendered(flags: &Flags, cells: &[Cell]) -> String {
    let mut text = format!(
        "### Scripts and rendered files of {} machines, a connection for each\n\n\
         | what | at once | /s | p50 ms | p99 ms | p99 ms, round by round |\n|---|---|---|---|---|---|\n",
        flags.machines
    );
    for work in flags.works() {
        let (what, clients) = match work {
            Work::Scripts { clients } => ("scripts", clients),
            Work::Files { clients } => ("rendered files", clients),
            Work::Http { .. } | Work::Tftp { .. } => continue,
        };
        if !flags.servers.contains(&Kind::Muster) {
            continue;
        }
        let rounds: Vec<String> = of(cells, Kind::Muster, work)
            .map(|cell| format!("{:.1}", cell.latency.p99_ms))
            .collect();
        let middle = |figure: fn(&Cell) -> f64| middle(cells, Kind::Muster, work, figure);
        let _ = writeln!(
            text,
            "| {what} | {clients} | {:.0} | {:.1} | {:.1} | {} |",
            middle(|cell| cell.rate),
            middle(|cell| cell.latency.p50_ms),
            middle(|cell| cell.latency.p99_ms),
            rounds.join(" "),
        );
    }
    text
}

fn who(work: Work) -> String {
    let plural = |clients| if clients == 1 { "client" } else { "clients" };
    match work {
        Work::Tftp { clients, window } => {
            format!("{clients} {}, window {window}", plural(clients))
        }
        Work::Http { clients } | Work::Scripts { clients } | Work::Files { clients } => {
            format!("{clients} {}", plural(clients))
        }
    }
}

fn of(cells: &[Cell], kind: Kind, work: Work) -> impl Iterator<Item = &Cell> {
    let same = move |cell: &&Cell| cell.kind == kind && cell.work == work;
    cells.iter().filter(same)
}

fn rates(cells: &[Cell], kind: Kind, work: Work) -> Vec<f64> {
    of(cells, kind, work).map(|cell| cell.rate).collect()
}

fn middle(cells: &[Cell], kind: Kind, work: Work, figure: fn(&Cell) -> f64) -> f64 {
    let figures: Vec<f64> = of(cells, kind, work).map(figure).collect();
    median(&figures).unwrap_or(f64::NAN)
}
