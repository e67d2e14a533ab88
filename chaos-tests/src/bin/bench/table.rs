//! What was measured, as Markdown.

use std::fmt::Write as _;
use std::time::Duration;

use muster_chaos::summary::{Ratios, median};

use crate::failover::Gaps;
use crate::load::Measured;
use crate::{CHANNELS, Cell, Flags, VALUE_BYTES, Work};

/// What all tables have in common.
pub fn header(flags: &Flags) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Three nodes each on loopback, {cores} cores for all nodes and clients, one disk, values of \
         {VALUE_BYTES} octets, synced by a quorum, TLS with certificates; {} rounds in turns, {} s a \
         figure; gRPC clients share {CHANNELS} connections, REST clients (HTTP/1.1) have one each. \
         Medians; the ratios are Muster's rate by etcd's, round by round.\n",
        flags.rounds, flags.seconds
    )
}

/// One figure in one line, as it is measured.
pub fn cell(work: Work, measured: &Measured) -> String {
    let work = match work {
        Work::PeerWrites => "Muster, writes over the peers' gRPC",
        Work::RestWrites => "Muster, writes over REST",
        Work::RestReads => "Muster, reads over REST",
        Work::EtcdWrites => "etcd, writes",
        Work::EtcdReads => "etcd, reads",
    };
    let mut line = format!(
        "{work}: {:.0}/s, p50 {:.1} ms, p99 {:.1} ms",
        measured.rate(),
        measured.percentile(50),
        measured.percentile(99)
    );
    if let Some(failure) = &measured.failure {
        let _ = write!(line, "; {} failed: {failure}", measured.failed);
    }
    line
}

/// Rates and latencies of one kind of work beside etcd's.
pub fn throughput(
    title: &str,
    clients: &[usize],
    cells: &[Cell],
    ours: Work,
    theirs: Work,
) -> String {
    let mut text = format!(
        "### {title}\n\n\
         | clients | Muster /s | p50 / p99 ms | etcd /s | p50 / p99 ms | ratio | rounds |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for &count in clients {
        let of = |work: Work| -> Vec<&Measured> {
            let same = |cell: &&Cell| cell.work == work && cell.clients == count;
            cells
                .iter()
                .filter(same)
                .map(|cell| &cell.measured)
                .collect()
        };
        let (ours, theirs) = (of(ours), of(theirs));
        let rates = |all: &[&Measured]| -> Vec<f64> { all.iter().map(|one| one.rate()).collect() };
        let ratios = Ratios::of(&rates(&ours), &rates(&theirs));
        let _ = writeln!(
            text,
            "| {count} | {} | {} | {} | {} |",
            columns(&ours),
            columns(&theirs),
            ratios.median(),
            ratios.rounds()
        );
    }
    let failed: usize = cells
        .iter()
        .filter(|cell| cell.work == ours || cell.work == theirs)
        .map(|cell| cell.measured.failed)
        .sum();
    if failed > 0 {
        let _ = writeln!(text, "\n{failed} calls failed and are not counted.");
    }
    text
}

fn columns(measured: &[&Measured]) -> String {
    let of = |figure: &dyn Fn(&Measured) -> f64| {
        let figures: Vec<f64> = measured.iter().map(|measured| figure(measured)).collect();
        median(&figures)
    };
    match (
        of(&Measured::rate),
        of(&|measured| measured.percentile(50)),
        of(&|measured| measured.percentile(99)),
    ) {
        (Some(rate), Some(p50), Some(p99)) => format!("{rate:.0} | {p50:.1} / {p99:.1}"),
        _ => "– | –".to_owned(),
    }
}

/// How long nothing could be written after a leader was killed.
pub fn failover(all: &[Gaps]) -> String {
    let mut text = "### First write after the leader's SIGKILL\n\n\
                    | a follower stands | kills | median ms | least | most |\n|---|---|---|---|---|\n"
        .to_owned();
    for Gaps { name, gaps } in all {
        let millis: Vec<f64> = gaps
            .iter()
            .map(Duration::as_secs_f64)
            .map(|s| s * 1e3)
            .collect();
        if let Some(median) = median(&millis) {
            let least = millis.iter().copied().fold(f64::INFINITY, f64::min);
            let most = millis.iter().copied().fold(0.0, f64::max);
            let _ = writeln!(
                text,
                "| {name} | {} | {median:.0} | {least:.0} | {most:.0} |",
                millis.len()
            );
        }
    }
    text
}
