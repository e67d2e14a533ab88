//! Snapshots that were cut short, tampered with or damaged.

use std::fs::OpenOptions;

use muster_storage::engine::{Engine, RocksRows};
use muster_storage::state::RowWrite;
use muster_storage::{Entry, Revision, Timestamp};
use tempfile::TempDir;

use super::*;
use crate::common::put;

/// Rows of a state in which some profiles were put, as a node writes them.
fn write_rows(rows: &dyn Rows, names: &[&str]) {
    let mut state = State::default();
    let entry = Entry {
        at: Timestamp(1),
        proposals: names.iter().map(|name| put(name)).collect(),
    };
    for (outcome, _) in state.apply(Revision::new(7, 0), &entry) {
        outcome.result.unwrap();
    }
    let last = proto::LogId {
        term: 1,
        node: 1,
        index: 7,
    };
    let notes = [
        (note::APPLIED, last.encode_to_vec()),
        (note::DIGEST, state.digest().0.to_vec()),
    ];
    rows.write(&state.take_rows().unwrap(), &notes).unwrap();
}

/// A directory with rows in `state` and a snapshot of them in `snapshots`.
fn stored() -> (TempDir, Engine, Snapshot) {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(dir.path()).unwrap();
    write_rows(&*engine.rows, &["a", "b"]);
    let snapshot = Snapshot::build(&*engine.rows, &dir.path().join("snapshots")).unwrap();
    (dir, engine, snapshot)
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for path in list(from).unwrap() {
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy_dir(&path, &target),
            false => drop(fs::copy(&path, target).unwrap()),
        }
    }
}

/// Sends files as a peer does, the first `octets` of them.
fn send(
    manifest: &proto::SnapshotManifest,
    files: &Path,
    parent: &Path,
    octets: usize,
    rows: &dyn Rows,
) -> io::Result<Snapshot> {
    let mut stream = Vec::new();
    for file in &manifest.files {
        stream.extend(fs::read(files.join(&file.name))?);
    }
    let mut receiver = Receiver::start(parent, manifest.clone())?;
    for piece in stream[..octets].chunks(1000) {
        receiver.write(piece)?;
    }
    receiver.finish(rows)
}

fn octets(manifest: &proto::SnapshotManifest) -> usize {
    let size: u64 = manifest.files.iter().map(|file| file.size).sum();
    usize::try_from(size).unwrap()
}

#[test]
fn a_transfer_that_was_cut_leaves_nothing_and_the_next_one_succeeds() {
    let (dir, engine, snapshot) = stored();
    let (manifest, files) = (snapshot.manifest(), snapshot.files_dir());
    let parent = dir.path().join("received");
    let all = octets(manifest);
    let mut cuts = vec![0, 1, all - 1];
    let mut end = 0;
    for file in &manifest.files {
        end += usize::try_from(file.size).unwrap();
        cuts.extend([end.saturating_sub(1), end, end + 1]);
    }
    for cut in cuts.into_iter().filter(|cut| *cut < all) {
        let received = send(manifest, &files, &parent, cut, &*engine.rows);
        assert!(received.is_err(), "cut after {cut} of {all}");
        assert_eq!(list(&parent).unwrap(), Vec::<PathBuf>::new());
    }
    let whole = send(manifest, &files, &parent, all, &*engine.rows).unwrap();
    let state = whole.take_state(&*engine.rows).unwrap();
    assert_eq!(state.digest().0[..], manifest.digest[..]);
}

#[test]
fn one_row_that_was_changed_is_found_by_the_digest() {
    let (dir, engine, snapshot) = stored();
    let copy = dir.path().join("copy");
    copy_dir(&snapshot.files_dir(), &copy);
    let other = tempfile::tempdir().unwrap();
    let others = RocksRows::open(&other.path().join("state")).unwrap();
    write_rows(&others, &["a", "c"]);
    {
        let tampered = RocksRows::open(&copy).unwrap();
        let known = tampered.page(None, 100).unwrap();
        let new = others.page(None, 100).unwrap();
        let (key, value) = new.into_iter().find(|row| !known.contains(row)).unwrap();
        let value = Some(value);
        tampered.write(&[RowWrite { key, value }], &[]).unwrap();
        tampered.sync().unwrap();
        tampered.close();
    }
    // Every checksum is right.
    let manifest = proto::SnapshotManifest {
        files: describe(&copy).unwrap(),
        ..snapshot.manifest().clone()
    };
    let parent = dir.path().join("received");
    let before = digest_of(&*engine.rows).unwrap();
    let all = octets(&manifest);
    let refused = send(&manifest, &copy, &parent, all, &*engine.rows).err();
    let refused = refused.map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("digest"), "{refused}");
    assert_eq!(list(&parent).unwrap(), Vec::<PathBuf>::new());
    assert_eq!(digest_of(&*engine.rows).unwrap(), before);
}

fn cut(path: &Path, length: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(length).unwrap();
}

/// Files below a directory.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let (dirs, mut files): (Vec<_>, Vec<_>) = list(dir)
        .unwrap()
        .into_iter()
        .partition(|path| path.is_dir());
    files.extend(dirs.iter().flat_map(|dir| files_below(dir)));
    files
}

#[test]
fn a_snapshot_whose_files_are_cut_or_gone_is_taken_for_unfinished() {
    let (dir, engine, snapshot) = stored();
    let whole = dir.path().join("snapshots");
    let found = Snapshot::find(&whole).unwrap().unwrap();
    assert!(found.sound(&*engine.rows).is_some());
    drop(snapshot);
    for original in files_below(&whole) {
        let name = original.strip_prefix(&whole).unwrap();
        let length = fs::metadata(&original).unwrap().len();
        let cuts: Vec<Option<u64>> = match name.ends_with(MANIFEST) {
            true => (0..length).map(Some).chain([None]).collect(),
            false => vec![
                Some(0),
                Some(1),
                Some(length / 2),
                Some(length.saturating_sub(1)),
                None,
            ],
        };
        for at in cuts
            .into_iter()
            .filter(|at| at.is_none_or(|at| at < length))
        {
            let copy = tempfile::tempdir().unwrap();
            copy_dir(&whole, copy.path());
            match at {
                Some(at) => cut(&copy.path().join(name), at),
                None => fs::remove_file(copy.path().join(name)).unwrap(),
            }
            let checked = Snapshot::check(copy.path(), &*engine.rows).unwrap();
            assert!(checked[0].1.is_err(), "{} cut at {at:?}", name.display());
            let found = Snapshot::find(copy.path()).unwrap();
            assert!(found.is_none(), "{} cut at {at:?}", name.display());
            assert_eq!(list(copy.path()).unwrap(), Vec::<PathBuf>::new());
        }
    }
}

#[test]
fn a_snapshot_in_which_an_octet_changed_is_not_installed() {
    let (dir, engine, snapshot) = stored();
    let files = snapshot.files_dir();
    let sst = list(&files).unwrap().into_iter();
    let sst = sst.filter(|path| path.extension().is_some_and(|e| e == "sst"));
    let sst: Vec<PathBuf> = sst.collect();
    assert!(!sst.is_empty());
    for path in sst {
        let mut bytes = fs::read(&path).unwrap();
        bytes[10] ^= 1;
        // Not through the link that it shares with the rows.
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    let checked = Snapshot::check(&dir.path().join("snapshots"), &*engine.rows).unwrap();
    assert!(checked[0].1.is_err());
    assert!(snapshot.sound(&*engine.rows).is_none());
    assert_eq!(
        list(&dir.path().join("snapshots")).unwrap(),
        Vec::<PathBuf>::new()
    );
}

#[test]
fn rows_that_rotted_become_no_snapshot() {
    let (dir, engine, snapshot) = stored();
    let sst = files_below(&dir.path().join("state"));
    let sst = sst
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "sst"));
    let rotten: Vec<&PathBuf> = sst.collect();
    assert!(!rotten.is_empty());
    drop(snapshot);
    engine.close();
    for path in rotten {
        let mut bytes = fs::read(path).unwrap();
        bytes[10] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let engine = Engine::open(dir.path()).unwrap();
    let parent = dir.path().join("more");
    assert!(Snapshot::build(&*engine.rows, &parent).is_err());
    assert!(Snapshot::find(&parent).unwrap().is_none());
}
