//! Whether all that is stored in a node's directory is whole, and what to do where it is not.

use std::io;
use std::path::Path;
use std::sync::Arc;

use muster_storage::engine::{Engine, Log, RocksLog, RocksRows, Rows, load_state};
use prost::Message;
use serde::Serialize;
use tempfile::TempDir;

use super::inspect::{copy_parts, decode};
use super::{LogStore, Snapshot, check_end, claim, note};
use crate::Error;
use crate::disk::Disk;
use crate::host::Host;
use crate::identity::{Files, Identity};
use crate::start::{join_anew, lost, of_log};
use crate::tls::NodeKey;
use crate::types::LogId;
use crate::wire::proto;

/// Octets of log entries read at a time.
const PAGE_BYTES: usize = 4 << 20;

/// A part of a node's directory that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// `identity`, `log`, `state` or `snapshots`.
    pub part: &'static str,
    /// What is wrong, and what to do.
    pub problem: String,
}

impl Damage {
    fn new(part: &'static str, problem: impl ToString) -> Self {
        Self {
            part,
            problem: problem.to_string(),
        }
    }
}

/// Reads everything in the directory of a stopped node, and says what is damaged. Nothing there is
/// changed.
///
/// # Errors
/// When it is no node's directory, or cannot be read at all.
pub fn damages(dir: &Path) -> Result<Vec<Damage>, Error> {
    let files = Files::at(dir);
    let mut found = check_identity(&files);
    let identity = files.identity().ok().flatten();
    if found.is_empty() && !identity.is_some_and(|identity| identity.complete) {
        return Err(Error::NoCluster(dir.to_owned()));
    }
    let copy = TempDir::new().map_err(Error::io("making room for a copy"))?;
    let doing = || Error::io(format!("reading {}", dir.display()));
    copy_parts(dir, copy.path()).map_err(doing())?;
    let rows = RocksRows::open(&copy.path().join("state")).map_err(doing())?;
    let snapshots = Snapshot::check(&dir.join("snapshots"), &rows).map_err(doing())?;

    let log = open_log(dir, copy.path(), identity);
    // Without a log nothing can be put back.
    let purged = log.as_ref().ok().map(|log| purged(&**log));
    let purged = purged.transpose().map_err(doing())?;
    let checked = log.and_then(|log| check_log(log, &rows).map_err(|error| of_log(dir, error)));
    found.extend(checked.err().map(|error| Damage::new("log", error)));

    let whole = snapshots.iter().filter_map(|(_, last)| last.as_ref().ok());
    let spare = whole.copied().max().unwrap_or(0);
    let state = dir.join("state");
    let problem = match check_rows(&rows, purged.unwrap_or(0)) {
        Ok(()) if state.is_dir() => None,
        Ok(()) => Some("the directory is missing".to_owned()),
        Err(error) => Some(error.to_string()),
    };
    found.extend(problem.map(|problem| {
        let remedy = match purged.is_some_and(|purged| spare >= purged) {
            true => {
                "start the node: it puts the state back from its snapshot and its log".to_owned()
            }
            false => format!("it cannot be put back from here: {}", join_anew(dir)),
        };
        Damage::new("state", format!("{}: {problem}; {remedy}", state.display()))
    }));
    for (path, last) in snapshots {
        found.extend(last.err().map(|error| {
            let path = path.display();
            let problem = format!("{path}: {error}; remove it: the node makes another");
            Damage::new("snapshots", problem)
        }));
    }
    Ok(found)
}

fn check_identity(files: &Files) -> Vec<Damage> {
    let key = || match files.node_key()? {
        Some(pem) => NodeKey::from_pem(&pem).map(drop),
        None => Err(files.bad("node.key", "the file is missing")),
    };
    let diverged = || match files.diverged()? {
        Some(why) => Err(Error::Diverged(why)),
        None => Ok(()),
    };
    let identity = files.identity();
    if matches!(identity, Ok(None)) {
        return Vec::new();
    }
    [
        identity.map(drop),
        files.sealer().map(drop),
        key(),
        files.ca_pem().map(drop),
        diverged(),
    ]
    .into_iter()
    .filter_map(Result::err)
    .map(|error| Damage::new("identity", error))
    .collect()
}

fn open_log(dir: &Path, copy: &Path, identity: Option<Identity>) -> Result<Arc<dyn Log>, Error> {
    let log = copy.join("log");
    if !log.join("CURRENT").exists() {
        let problem = format!("{} had a log and has none now", dir.join("log").display());
        return Err(lost(dir, &problem));
    }
    let open = || -> io::Result<Arc<dyn Log>> {
        let log = RocksLog::open_existing(&log)?;
        if let Some(identity) = identity {
            claim(&log, &identity.mark(), identity.has_log)?;
        }
        Ok(Arc::new(log))
    };
    open().map_err(|error| of_log(dir, error))
}

fn purged(log: &dyn Log) -> io::Result<u64> {
    let noted = log.note(note::PURGED)?.unwrap_or_default();
    let id = proto::LogId::decode(&*noted).map_err(invalid)?;
    Ok(id.index)
}

fn applied(rows: &dyn Rows) -> io::Result<Option<LogId>> {
    let noted = rows.note(note::APPLIED)?;
    let id = noted.map(|bytes| proto::LogId::decode(&*bytes)).transpose();
    Ok(id.map_err(invalid)?.map(LogId::from))
}

/// Reads every entry: what is applied already would be sent to a peer.
fn check_log(log: Arc<dyn Log>, rows: &RocksRows) -> io::Result<()> {
    let mut next = 0;
    loop {
        let page = log.read(next..u64::MAX, PAGE_BYTES)?;
        let Some((last, _)) = page.last() else {
            break;
        };
        next = last.saturating_add(1);
        for (_, bytes) in page {
            decode(&bytes).map_err(invalid)?;
        }
    }
    // Rows that cannot be read say nothing about the log.
    if let Ok(applied) = applied(rows) {
        check_end(&*log, rows)?;
        let engine = Engine {
            log,
            rows: Engine::memory().rows,
        };
        LogStore::open(&engine, &Disk::default(), &Host::Real, true)?.check_vote(applied)?;
    }
    Ok(())
}

/// Reads every row. They must reach as far as entry `needed`.
fn check_rows(rows: &dyn Rows, needed: u64) -> io::Result<()> {
    let state = load_state(rows)?;
    if let Some(digest) = rows.note(note::DIGEST)?
        && digest != state.digest().0
    {
        return Err(invalid(
            "the rows do not have the digest that was written with them",
        ));
    }
    let reached = applied(rows)?.map_or(0, |id| proto::LogId::from(&id).index);
    if reached < needed {
        return Err(invalid(format!(
            "it reaches to log entry {reached} only, and the log begins after {needed}"
        )));
    }
    Ok(())
}

fn invalid(problem: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}
