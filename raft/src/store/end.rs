//! How the log of a node ended when it was stopped in good order, noted beside its rows.
//!
//! A log that is cut short looks like one whose end a power cut took: only that what was there is
//! known from elsewhere tells them apart.

use std::io;

use muster_storage::engine::{Engine, Log, Rows};

use super::note;

/// Index of the last entry, purged or not, and the vote as stored.
fn end(log: &dyn Log) -> io::Result<Vec<u8>> {
    let last = log.bounds()?.map_or(0, |bounds| *bounds.end());
    let vote = log.note(note::VOTE)?.unwrap_or_default();
    Ok([&last.to_be_bytes()[..], &vote].concat())
}

/// Notes how the log ends. Nothing may be written to it afterwards.
///
/// # Errors
/// When the disk fails.
pub fn note_end(engine: &Engine) -> io::Result<()> {
    engine.log.sync()?;
    let end = end(&*engine.log)?;
    engine.rows.write(&[], &[(note::LOG_END, end)])?;
    engine.rows.sync()
}

/// Refuses a log that does not end as it did when the node was stopped.
///
/// # Errors
/// Of kind `InvalidData` when it is so; and when the disk fails.
pub fn check_end(log: &dyn Log, rows: &dyn Rows) -> io::Result<()> {
    match rows.note(note::LOG_END)? {
        Some(noted) if !noted.is_empty() && noted != end(log)? => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the log does not end as it did when this node was stopped: its end was lost, or it was \
             put in place from a copy",
        )),
        _ => Ok(()),
    }
}

/// Before the log is written to: what was noted does not hold from now on.
///
/// # Errors
/// When the disk fails.
pub fn forget_end(rows: &dyn Rows) -> io::Result<()> {
    if rows
        .note(note::LOG_END)?
        .is_none_or(|noted| noted.is_empty())
    {
        return Ok(());
    }
    rows.write(&[], &[(note::LOG_END, Vec::new())])?;
    rows.sync()
}
