use super::*;
use crate::engine::{MemoryRows, Rows as _};
use crate::state::RowWrite;

fn backup() -> Vec<u8> {
    let rows = MemoryRows::default();
    let writes: Vec<RowWrite> = (0..3000u32)
        .map(|number| RowWrite {
            key: number.to_be_bytes().to_vec(),
            value: Some(vec![7; 4000]),
        })
        .collect();
    rows.write(&writes, &[]).unwrap();
    let header = Header {
        format: FORMAT,
        version: "test".into(),
        cluster_id: Uuid::nil(),
        revision: Revision(7),
        applied: 1,
        at: Timestamp(1),
        digest: Digest::default(),
    };
    let mut writer = Writer::new(Vec::new());
    writer
        .section(HEADER, &serde_json::to_vec(&header).unwrap())
        .unwrap();
    writer.section(KEYS, b"keys").unwrap();
    writer.rows(&rows, |_, _| Ok(())).unwrap();
    writer.stream("artifacts/x", 5, &b"bytes"[..]).unwrap();
    writer.finish().unwrap()
}

fn check(bytes: &[u8]) -> Result<Header, Error> {
    read(bytes, |_, _| Ok::<_, Error>(()))
}

#[test]
fn what_was_written_is_read() {
    let bytes = backup();
    let mut names = Vec::new();
    let mut found = Vec::new();
    let header = read(&bytes[..], |name, contents| {
        names.push(name.to_owned());
        if name.starts_with(ROWS) {
            found.extend(rows(name, contents)?);
        } else if name == KEYS {
            let mut keys = String::new();
            contents.read_to_string(&mut keys)?;
            assert_eq!(keys, "keys");
        }
        Ok::<_, Error>(())
    })
    .unwrap();
    assert_eq!(header.revision, Revision(7));
    assert_eq!(found.len(), 3000);
    assert!(found.is_sorted());
    assert!(found.iter().all(|(_, value)| *value == [7; 4000]));
    // More than one section, so that memory is bounded.
    assert!(names.iter().any(|name| name == "rows/000001"), "{names:?}");
}

#[test]
fn a_file_that_is_shorter_than_announced_is_not_taken() {
    let mut writer = Writer::new(Vec::new());
    assert!(writer.stream("artifacts/x", 6, &b"bytes"[..]).is_err());
}

#[test]
fn damage_is_found_and_named() {
    let whole = backup();
    // Of the contents: tar fills up each section to blocks of 512 octets, and ends with two.
    let flip = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        check(&bytes).unwrap_err()
    };
    let at = |text: &[u8]| {
        let mut windows = whole.windows(text.len());
        windows.position(|window| window == text).unwrap()
    };
    let rows = flip(at(&[7; 100]) + 50);
    assert!(
        matches!(&rows, Error::Damaged { section, .. } if section == "rows/000000"),
        "{rows}"
    );
    let keys = flip(at(b"keys\0"));
    assert!(keys.to_string().contains("keys.json"), "{keys}");
    let bytes = flip(at(b"bytes\0"));
    assert!(bytes.to_string().contains("artifacts/x"), "{bytes}");
    let sums = flip(at(b"  keys.json\n") - 1);
    assert!(sums.to_string().contains("SHA256SUMS"), "{sums}");
    for name in [&b"rows/000000"[..], b"artifacts/x\0", b"END\0"] {
        flip(at(name));
    }
}

#[test]
fn a_backup_that_is_cut_short_is_refused_wherever_it_is_cut() {
    let whole = backup();
    let end = whole.len() - 1024;
    let cuts = (0..end).step_by(end / 20 + 1);
    for cut in cuts.chain([1, 511, 512, 513, 1024]) {
        check(&whole[..cut]).unwrap_err();
    }
    let header = &whole[512..1024];
    let length = header.iter().position(|octet| *octet == 0).unwrap();
    let mut small = Writer::new(Vec::new());
    small.section(HEADER, &header[..length]).unwrap();
    small.section(KEYS, b"keys").unwrap();
    let small = small.finish().unwrap();
    check(&small).unwrap();
    for cut in 0..small.len() - 1024 - 512 {
        check(&small[..cut]).unwrap_err();
    }
    let why = check(&whole[..end / 2]).unwrap_err();
    assert!(matches!(why, Error::Truncated(_)), "{why}");
}

#[test]
fn what_is_no_backup_or_a_newer_one_says_so() {
    assert!(matches!(check(b"").unwrap_err(), Error::Other(_)));
    assert!(matches!(check(&[b'x'; 5000]).unwrap_err(), Error::Other(_)));
    let mut writer = Writer::new(Vec::new());
    writer.section(HEADER, br#"{"format": 2}"#).unwrap();
    let newer = writer.finish().unwrap();
    assert!(matches!(check(&newer).unwrap_err(), Error::Newer(2)));
}
