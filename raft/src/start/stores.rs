//! Taking a node's stores into use: what is damaged is put back, or the node does not start.

use std::io;
use std::path::{Path, PathBuf};

use muster_storage::engine::{Engine, Rows};

use super::join_anew;
use crate::Error;
use crate::disk::Disk;
use crate::host::Host;
use crate::store::{LogStore, Machine, Snapshot, check_end, forget_end};

/// Takes the log and the rows of an engine into use. The log is the only copy of what this node
/// promised, and must be whole; rows are put back from the snapshot and the log.
pub fn take(
    engine: &Engine,
    disk: &Disk,
    host: &Host,
    dir: &Path,
    snapshots: PathBuf,
    unsafe_no_sync: bool,
) -> Result<(Machine, LogStore), Error> {
    let log =
        LogStore::open(engine, disk, host, unsafe_no_sync).map_err(|error| of_log(dir, error))?;
    let reading = || Error::io("reading stored data");
    let open = |snapshots| Machine::open(engine, disk, snapshots, host.clone());
    let machine = match open(snapshots.clone()) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            put_aside(&*engine.rows, dir, &snapshots, log.purged(), &error)?;
            open(snapshots).map_err(reading())?
        }
        opened => opened.map_err(reading())?,
    };
    let rows = &*engine.rows;
    log.check_vote(machine.applied())
        .and_then(|()| check_end(&*engine.log, rows))
        .map_err(|error| of_log(dir, error))?;
    check_reach(machine.memory().reach(), log.purged(), dir)?;
    forget_end(rows).map_err(reading())?;
    machine.cover(log.last(), log.purged()).map_err(reading())?;
    Ok((machine, log))
}

/// What is wrong with a log, and what to do.
pub fn of_log(dir: &Path, error: io::Error) -> Error {
    let log = dir.join("log");
    match error.kind() {
        io::ErrorKind::InvalidData => lost(dir, &format!("{}: {error}", log.display())),
        _ => Error::io(format!("opening {}", log.display()))(error),
    }
}

/// The log does not hold what this node promised.
pub fn lost(dir: &Path, problem: &str) -> Error {
    Error::Corrupt(format!(
        "{problem}; a node that forgot its votes and entries must not take part: {}",
        join_anew(dir)
    ))
}

/// Rows that cannot be read make room, if snapshot and log reach back to where they began.
fn put_aside(
    rows: &dyn Rows,
    dir: &Path,
    snapshots: &Path,
    purged: u64,
    why: &io::Error,
) -> Result<(), Error> {
    let state = dir.join("state");
    let doing = || Error::io(format!("putting {} aside", state.display()));
    let spare = Snapshot::find(snapshots).map_err(doing())?;
    let spare = spare.and_then(|snapshot| snapshot.sound(rows));
    let last = spare.and_then(|snapshot| snapshot.manifest().last);
    if last.map_or(0, |last| last.index) < purged {
        return Err(Error::Corrupt(format!(
            "{}: {why}; neither log nor snapshot reach back far enough to put it back: {}",
            state.display(),
            join_anew(dir)
        )));
    }
    tracing::error!(
        dir = %state.display(),
        error = %why,
        "the rows are damaged: they are put aside as state.damaged, and put back from snapshot and \
         log; look after the disk"
    );
    rows.set_aside().map_err(doing())
}

/// What the log has given up must be in the rows, or in a snapshot that puts them back. Rows that
/// were lost would else be taken for a state in which nothing was ever written.
fn check_reach(reach: u64, purged: u64, dir: &Path) -> Result<(), Error> {
    if reach >= purged {
        return Ok(());
    }
    Err(Error::Corrupt(format!(
        "{} reaches to log entry {reach} only, and the log begins after {purged}: state has been \
         lost; {}",
        dir.join("state").display(),
        join_anew(dir)
    )))
}
