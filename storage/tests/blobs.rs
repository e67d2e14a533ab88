//! Content-addressed files are whole, verified, or not there.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::ErrorKind;

use muster_storage::blobs::Blobs;
use muster_storage::model::Sha256;

/// SHA-256 of `abc` (FIPS 180-2, B.1).
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn abc() -> Sha256 {
    ABC.parse().unwrap()
}

#[test]
fn finished_file_is_found_by_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    assert_eq!(blobs.size(&abc()), None);
    let mut writer = blobs.writer().unwrap();
    writer.write(b"a").unwrap();
    writer.write(b"bc").unwrap();
    assert_eq!(blobs.size(&abc()), None, "not there before it is whole");
    assert_eq!(writer.finish(None).unwrap(), (abc(), 3));
    assert_eq!(blobs.size(&abc()), Some(3));
    assert_eq!(fs::read(blobs.path(&abc())).unwrap(), b"abc");
    assert_eq!(blobs.list().unwrap(), [abc()]);
    assert!(blobs.path(&abc()).ends_with(format!("artifacts/ba/{ABC}")));
}

#[test]
fn other_bytes_than_expected_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let mut writer = blobs.writer().unwrap();
    writer.write(b"abd").unwrap();
    let error = writer.finish(Some(abc())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(blobs.list().unwrap().is_empty());
    assert_eq!(temporary_files(dir.path()), 0);
}

#[test]
fn dropped_writer_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let mut writer = blobs.writer().unwrap();
    writer.write(b"abc").unwrap();
    assert_eq!(temporary_files(dir.path()), 1);
    drop(writer);
    assert_eq!(temporary_files(dir.path()), 0);
    assert!(blobs.list().unwrap().is_empty());
}

#[test]
fn open_keeps_files_and_removes_what_a_crash_left() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let mut writer = blobs.writer().unwrap();
    writer.write(b"abc").unwrap();
    writer.finish(Some(abc())).unwrap();
    fs::write(dir.path().join("artifacts/tmp/17"), b"half").unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    assert_eq!(temporary_files(dir.path()), 0);
    assert_eq!(blobs.list().unwrap(), [abc()]);
}

#[test]
fn two_writers_of_the_same_bytes_both_succeed() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let (mut one, mut two) = (blobs.writer().unwrap(), blobs.clone().writer().unwrap());
    one.write(b"abc").unwrap();
    two.write(b"abc").unwrap();
    assert_eq!(one.finish(None).unwrap(), (abc(), 3));
    assert_eq!(two.finish(Some(abc())).unwrap(), (abc(), 3));
    assert_eq!(blobs.list().unwrap(), [abc()]);
}

#[test]
fn removed_file_is_gone_and_may_be_removed_again() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let mut writer = blobs.writer().unwrap();
    writer.write(b"abc").unwrap();
    writer.finish(None).unwrap();
    blobs.remove(&abc()).unwrap();
    blobs.remove(&abc()).unwrap();
    assert_eq!(blobs.size(&abc()), None);
    assert!(blobs.list().unwrap().is_empty());
}

#[test]
fn empty_file_is_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let (sha256, length) = blobs.writer().unwrap().finish(None).unwrap();
    assert_eq!((blobs.size(&sha256), length), (Some(0), 0));
}

fn temporary_files(dir: &std::path::Path) -> usize {
    fs::read_dir(dir.join("artifacts/tmp")).unwrap().count()
}
