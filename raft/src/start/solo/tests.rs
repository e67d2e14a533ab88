//! A node on a disk that fails.

use std::io;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use muster_storage::engine::{Log, MemoryLog, MemoryRows};
use muster_storage::{Actor, Command, Proposal, RequestId};

use super::*;
use crate::Error;

/// A disk whose syncs fail from some moment on.
#[derive(Default)]
struct Failing {
    log: MemoryLog,
    fails: AtomicBool,
}

impl Log for Failing {
    fn bounds(&self) -> io::Result<Option<RangeInclusive<u64>>> {
        self.log.bounds()
    }

    fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<(u64, Vec<u8>)>> {
        self.log.read(range, max_bytes)
    }

    fn append(&self, entries: &[(u64, Vec<u8>)], note: Option<(&str, &[u8])>) -> io::Result<()> {
        self.log.append(entries, note)
    }

    fn truncate(&self, first: u64) -> io::Result<()> {
        self.log.truncate(first)
    }

    fn purge(&self, last: u64, note: (&str, &[u8])) -> io::Result<()> {
        self.log.purge(last, note)
    }

    fn note(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.log.note(name)
    }

    fn set_note(&self, name: &str, value: &[u8]) -> io::Result<()> {
        self.log.set_note(name, value)
    }

    fn sync(&self) -> io::Result<()> {
        if self.fails.load(Ordering::Acquire) {
            return Err(io::Error::other("no space left on device"));
        }
        Ok(())
    }

    fn close(&self) {}
}

fn join_token() -> Proposal {
    Proposal {
        request: RequestId(Uuid::new_v4()),
        actor: Actor("test".into()),
        if_match: None,
        remember: None,
        command: Command::RevokeJoinTokens,
    }
}

#[tokio::test]
async fn a_node_whose_disk_fails_acknowledges_nothing_more() {
    let log = Arc::new(Failing::default());
    let engine = Engine {
        log: Arc::clone(&log) as _,
        rows: Arc::new(MemoryRows::default()),
    };
    let cluster = solo_on(engine, None).await;
    assert!(cluster.propose(join_token()).await.is_ok());
    log.fails.store(true, Ordering::Release);
    let error = cluster.propose(join_token()).await.err();
    assert!(
        matches!(error, Some(Error::Timeout | Error::Stopped(_))),
        "{error:?}"
    );
    let mut view = cluster.inner.view.clone();
    view.wait_for(|view| view.fault.is_some()).await.unwrap();
    assert!(!cluster.has_quorum());
    assert!(cluster.fault().unwrap().contains("no space left"));
    assert!(matches!(
        cluster.propose(join_token()).await,
        Err(Error::Stopped(_))
    ));
}
