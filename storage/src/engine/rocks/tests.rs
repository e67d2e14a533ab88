//! What both kinds of stores must do, and what only a disk can get wrong.

use super::*;

pub fn log_contract(log: &dyn Log) {
    assert_eq!(log.bounds().unwrap(), None);
    let entry = |index: u64| (index, vec![u8::try_from(index % 251).unwrap(); 100]);
    log.append(&(5..15).map(entry).collect::<Vec<_>>(), None)
        .unwrap();
    assert_eq!(log.bounds().unwrap(), Some(5..=14));
    assert_eq!(log.read(7..9, usize::MAX).unwrap(), [entry(7), entry(8)]);
    assert_eq!(log.read(7..15, 0).unwrap(), [entry(7)]);
    assert_eq!(log.read(0..100, usize::MAX).unwrap().len(), 10);
    log.truncate(12).unwrap();
    assert_eq!(log.bounds().unwrap(), Some(5..=11));
    log.append(&[(12, vec![9])], None).unwrap();
    log.purge(8, ("purged", b"x")).unwrap();
    assert_eq!(log.bounds().unwrap(), Some(9..=12));
    assert_eq!(log.note("purged").unwrap().as_deref(), Some(&b"x"[..]));
    log.set_note("vote", b"v").unwrap();
    log.sync().unwrap();
    assert_eq!(log.note("vote").unwrap().as_deref(), Some(&b"v"[..]));
    log.purge(12, ("purged", b"y")).unwrap();
    assert_eq!(log.bounds().unwrap(), None);
}

fn put(key: &[u8], value: &[u8]) -> RowWrite {
    RowWrite {
        key: key.to_vec(),
        value: Some(value.to_vec()),
    }
}

pub fn rows_contract(rows: &dyn Rows) {
    rows.write(
        &[put(&[1], b"a"), put(&[1, 0], b"b"), put(&[9, 9], b"c")],
        &[("applied", vec![7])],
    )
    .unwrap();
    let page = rows.page(None, 2).unwrap();
    assert_eq!(page.len(), 2);
    let rest = rows.page(Some(&page[1].0), 10).unwrap();
    assert_eq!(rest, [(vec![9, 9], b"c".to_vec())]);
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    rows.checkpoint(&copy).unwrap();
    rows.write(
        &[RowWrite {
            key: vec![1],
            value: None,
        }],
        &[("applied", vec![8])],
    )
    .unwrap();
    {
        let old = rows.open_checkpoint(&copy).unwrap();
        assert_eq!(old.page(None, 10).unwrap().len(), 3);
        assert_eq!(old.note("applied").unwrap(), Some(vec![7]));
    }
    rows.replace(&copy).unwrap();
    assert_eq!(rows.page(None, 10).unwrap().len(), 3);
    assert_eq!(rows.note("applied").unwrap(), Some(vec![7]));
    assert!(!copy.exists());
    rows.write(&[put(&[2], b"after")], &[]).unwrap();
    rows.sync().unwrap();
}

#[test]
fn keeps_the_contract_of_a_log() {
    let dir = tempfile::tempdir().unwrap();
    log_contract(&RocksLog::open(dir.path()).unwrap());
    let reopened = RocksLog::open(dir.path()).unwrap();
    assert_eq!(reopened.bounds().unwrap(), None);
    assert_eq!(reopened.note("purged").unwrap().as_deref(), Some(&b"y"[..]));
}

#[test]
fn keeps_the_contract_of_rows() {
    let dir = tempfile::tempdir().unwrap();
    rows_contract(&RocksRows::open(&dir.path().join("state")).unwrap());
}

#[test]
fn refuses_a_log_with_a_hole_or_damage() {
    let dir = tempfile::tempdir().unwrap();
    {
        let log = RocksLog::open(dir.path()).unwrap();
        log.append(&[(1, vec![1]), (2, vec![2])], None).unwrap();
        let damaged = b"\x01\0\0\0\0damaged";
        log.db
            .with(|db| db.put(entry_key(2), damaged).map_err(failed))
            .unwrap();
        let error = log.read(1..3, usize::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        log.append(&[(4, vec![4])], None).unwrap();
    }
    assert!(RocksLog::open(dir.path()).is_err());
}

#[test]
fn a_replacement_that_is_interrupted_at_any_step_leaves_old_rows_or_new_ones() {
    /// What happens on the disk, in order; below a directory.
    const STEPS: [fn(&Path); 6] = [
        |dir| fs::rename(dir.join("copy"), dir.join("state.new")).unwrap(),
        // What an earlier replacement may have left.
        |dir| fs::remove_dir_all(dir.join("state.old")).unwrap(),
        |dir| fs::rename(dir.join("state"), dir.join("state.old")).unwrap(),
        |dir| fs::rename(dir.join("state.new"), dir.join("state")).unwrap(),
        |dir| fs::remove_file(dir.join("state.old/CURRENT")).unwrap(),
        |dir| fs::remove_dir_all(dir.join("state.old")).unwrap(),
    ];
    for done in 0..=STEPS.len() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let path = dir.join("state");
        fs::create_dir(dir.join("state.old")).unwrap();
        fs::write(dir.join("state.old/left"), "behind").unwrap();
        {
            let rows = RocksRows {
                path: path.clone(),
                db: Closable::new(RocksRows::open_db(&path)),
            };
            rows.write(&[put(&[1], b"new")], &[]).unwrap();
            rows.checkpoint(&dir.join("copy")).unwrap();
            rows.write(&[put(&[1], b"old")], &[]).unwrap();
        }
        for step in &STEPS[..done] {
            step(dir);
        }
        let expected: &[u8] = if done == 0 { b"old" } else { b"new" };
        for _ in 0..2 {
            let rows = RocksRows::open(&path).unwrap();
            let found = rows.page(None, 9).unwrap();
            assert_eq!(found, [(vec![1], expected.to_vec())], "after {done} steps");
            assert!(!dir.join("state.new").exists() && !dir.join("state.old").exists());
        }
    }
}

#[test]
fn damaged_rows_say_so_and_can_be_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    {
        let rows = RocksRows::open(&path).unwrap();
        rows.write(&[put(&[1], b"a")], &[]).unwrap();
    }
    fs::write(path.join("CURRENT"), "MANIFEST-999999\n").unwrap();
    let rows = RocksRows::open(&path).unwrap();
    for error in [
        rows.page(None, 9).unwrap_err(),
        rows.note("applied").unwrap_err(),
        rows.write(&[put(&[1], b"b")], &[]).unwrap_err(),
        rows.sync().unwrap_err(),
    ] {
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
    rows.set_aside().unwrap();
    assert_eq!(rows.page(None, 9).unwrap(), []);
    rows.write(&[put(&[1], b"c")], &[]).unwrap();
    assert!(dir.path().join("state.damaged/CURRENT").exists());
}
