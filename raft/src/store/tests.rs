//! openraft's own suite for storages, against ours, on disk and in memory.

use muster_storage::engine::Engine;
use openraft::StorageError;
use openraft::errors::ErrorSource;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::{LogStore, Machine};
use crate::disk::Disk;
use crate::host::Host;
use crate::types::TypeConfig;

struct OnDisk;
struct InMemory;

fn failed(error: std::io::Error) -> StorageError<TypeConfig> {
    StorageError::read(ErrorSource::from_error(&error))
}

fn build(engine: &Engine, dir: &TempDir) -> Result<(LogStore, Machine), StorageError<TypeConfig>> {
    let snapshots = dir.path().join("snapshots");
    std::fs::create_dir_all(&snapshots).map_err(failed)?;
    let log = LogStore::open(engine, &Disk::default(), &Host::Real, false).map_err(failed)?;
    let machine = Machine::open(engine, &Disk::default(), snapshots, Host::Real).map_err(failed)?;
    Ok((log, machine))
}

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().map_err(failed)?;
        let engine = Engine::open(dir.path()).map_err(failed)?;
        let (log, machine) = build(&engine, &dir)?;
        Ok((dir, log, machine))
    }
}

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for InMemory {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().map_err(failed)?;
        let (log, machine) = build(&Engine::memory(), &dir)?;
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_on_disk_pass_the_suite_of_openraft() {
    Suite::test_all(OnDisk).await.expect("the suite");
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_in_memory_pass_the_suite_of_openraft() {
    Suite::test_all(InMemory).await.expect("the suite");
}

#[tokio::test]
async fn rows_that_outlived_the_end_of_the_log_are_covered_by_a_snapshot() {
    use openraft::storage::RaftStateMachine;
    use prost::Message;

    use super::note;
    use crate::wire::proto;

    let dir = tempfile::tempdir().expect("a directory");
    let engine = Engine::memory();
    let applied = |index| {
        let id = proto::LogId {
            term: 1,
            node: 1,
            index,
        };
        let notes = [(note::APPLIED, id.encode_to_vec())];
        engine.rows.write(&[], &notes).expect("a note");
    };
    applied(7);
    let (_, machine) = build(&engine, &dir).expect("stores");
    machine.cover(None, 0).expect("a first snapshot");
    applied(9);
    let (log, mut machine) = build(&engine, &dir).expect("stores");
    let last = async |machine: &mut Machine| {
        let snapshot = machine.get_current_snapshot().await.expect("a look");
        snapshot.and_then(|snapshot| snapshot.meta.last_log_id.map(|id| id.index()))
    };
    assert_eq!(last(&mut machine).await, Some(7));
    machine.cover(log.last(), 0).expect("a snapshot");
    assert_eq!(last(&mut machine).await, Some(9));
}
