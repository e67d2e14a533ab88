//! What can be damaged, and what is to become of it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use self::Outcome::{Heals, Refuses};

/// What becomes of a node that starts on damaged data.
pub enum Outcome {
    /// It has the state of its peers in the end.
    Heals,
    /// It does not start, and says this.
    Refuses(&'static str),
}

pub struct Case {
    pub name: &'static str,
    pub damage: fn(&Path),
    /// Parts that the check finds damaged, in order.
    pub found: &'static [&'static str],
    pub start: Outcome,
}

fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .ends_with(ending)
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no {ending} in {}", dir.display());
    files
}

pub fn largest(dir: &Path, ending: &str) -> PathBuf {
    let files = files(dir, ending);
    let size = |path: &PathBuf| fs::metadata(path).unwrap().len();
    files.into_iter().max_by_key(size).unwrap()
}

fn manifest(dir: &Path) -> PathBuf {
    let current = fs::read_to_string(dir.join("CURRENT")).unwrap();
    dir.join(current.trim())
}

pub fn snapshot(dir: &Path) -> PathBuf {
    let mut snapshots = fs::read_dir(dir.join("snapshots")).unwrap();
    snapshots.next().unwrap().unwrap().path()
}

/// Changes one bit of an octet, through no link that another file shares.
pub fn flip(path: &Path, at: u64) {
    let copy = path.with_extension("copy");
    fs::copy(path, &copy).unwrap();
    fs::rename(&copy, path).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut octet = [0];
    file.read_exact_at(&mut octet, at).unwrap();
    file.write_all_at(&[octet[0] ^ 1], at).unwrap();
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

fn cut(path: &Path, length: u64) {
    let copy = path.with_extension("copy");
    fs::copy(path, &copy).unwrap();
    fs::rename(&copy, path).unwrap();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(length).unwrap();
}

/// What damages a node whose log reaches back to the beginning.
pub const WITH_WHOLE_LOG: &[Case] = &[
    Case {
        name: "nothing",
        damage: |_| {},
        found: &[],
        start: Heals,
    },
    Case {
        name: "a bit in the log's write-ahead log",
        damage: |dir| {
            let wal = largest(&dir.join("log"), ".log");
            flip(&wal, length(&wal) / 2);
        },
        found: &["log"],
        start: Refuses("join anew"),
    },
    Case {
        name: "a bit in a file of the log",
        damage: |dir| flip(&largest(&dir.join("log"), ".sst"), 20),
        found: &["log"],
        start: Refuses("join anew"),
    },
    Case {
        name: "the log's write-ahead log cut to a half",
        damage: |dir| {
            let wal = largest(&dir.join("log"), ".log");
            cut(&wal, length(&wal) / 2);
        },
        found: &["log"],
        start: Refuses("join anew"),
    },
    Case {
        name: "the log's write-ahead log emptied",
        damage: |dir| cut(&largest(&dir.join("log"), ".log"), 0),
        found: &["log"],
        start: Refuses("join anew"),
    },
    Case {
        name: "a file of the log cut",
        damage: |dir| {
            let sst = largest(&dir.join("log"), ".sst");
            cut(&sst, length(&sst) / 2);
        },
        found: &["log"],
        start: Refuses("join anew"),
    },
    Case {
        name: "a file of the log missing",
        damage: |dir| fs::remove_file(largest(&dir.join("log"), ".sst")).unwrap(),
        found: &["log"],
        start: Refuses("join anew"),
    },
    Case {
        name: "the log missing",
        damage: |dir| fs::remove_dir_all(dir.join("log")).unwrap(),
        found: &["log"],
        start: Refuses("join anew"),
    },
    Case {
        name: "a bit in a file of the rows",
        damage: |dir| flip(&largest(&dir.join("state"), ".sst"), 20),
        found: &["state"],
        start: Heals,
    },
    Case {
        name: "a file of the rows cut",
        damage: |dir| {
            let sst = largest(&dir.join("state"), ".sst");
            cut(&sst, length(&sst) / 2);
        },
        found: &["state"],
        start: Heals,
    },
    Case {
        name: "a file of the rows missing",
        damage: |dir| fs::remove_file(largest(&dir.join("state"), ".sst")).unwrap(),
        found: &["state"],
        start: Heals,
    },
    Case {
        name: "the rows' list of files cut",
        damage: |dir| cut(&manifest(&dir.join("state")), 0),
        found: &["state"],
        start: Heals,
    },
    Case {
        name: "the rows missing",
        damage: |dir| fs::remove_dir_all(dir.join("state")).unwrap(),
        found: &["state"],
        start: Heals,
    },
    Case {
        name: "node.json missing",
        damage: |dir| fs::remove_file(dir.join("node.json")).unwrap(),
        found: &["identity"],
        start: Refuses("restore the file, or empty the directory and join anew"),
    },
    Case {
        name: "node.json cut",
        damage: |dir| cut(&dir.join("node.json"), 20),
        found: &["identity"],
        start: Refuses("restore it from a copy, or empty the directory and join anew"),
    },
    Case {
        name: "another node's node.json",
        damage: |dir| {
            let path = dir.join("node.json");
            let mut identity: serde_json::Value =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            identity["node_id"] = 77.into();
            fs::write(&path, identity.to_string()).unwrap();
        },
        found: &["log"],
        start: Refuses("another node's"),
    },
    Case {
        name: "the key missing",
        damage: |dir| fs::remove_file(dir.join("node.key")).unwrap(),
        found: &["identity"],
        start: Refuses("node.key"),
    },
    Case {
        name: "the keyring cut",
        damage: |dir| cut(&dir.join("keyring"), 10),
        found: &["identity"],
        start: Refuses("keyring"),
    },
    Case {
        name: "the authority's certificate missing",
        damage: |dir| fs::remove_file(dir.join("ca.pem")).unwrap(),
        found: &["identity"],
        start: Refuses("ca.pem"),
    },
    Case {
        name: "the certificate missing",
        damage: |dir| fs::remove_file(dir.join("node.crt")).unwrap(),
        found: &[],
        start: Heals,
    },
];

/// What damages a node that gave up the beginning of its log.
pub const WITH_SNAPSHOT: &[Case] = &[
    Case {
        name: "nothing",
        damage: |_| {},
        found: &[],
        start: Heals,
    },
    Case {
        name: "the rows missing",
        damage: |dir| fs::remove_dir_all(dir.join("state")).unwrap(),
        found: &["state"],
        start: Heals,
    },
    Case {
        name: "a bit in a file of the rows",
        damage: |dir| flip(&largest(&dir.join("state"), ".sst"), 20),
        found: &["state"],
        start: Heals,
    },
    Case {
        name: "the rows' write-ahead log emptied",
        damage: |dir| cut(&largest(&dir.join("state"), ".log"), 0),
        found: &[],
        start: Heals,
    },
    Case {
        name: "a bit in a file of the snapshot",
        damage: |dir| flip(&largest(&snapshot(dir).join("files"), ".sst"), 20),
        found: &["snapshots"],
        start: Heals,
    },
    Case {
        name: "the snapshot's manifest cut",
        damage: |dir| {
            let manifest = snapshot(dir).join("manifest");
            cut(&manifest, length(&manifest) / 2);
        },
        found: &["snapshots"],
        start: Heals,
    },
    Case {
        name: "the snapshots missing",
        damage: |dir| fs::remove_dir_all(dir.join("snapshots")).unwrap(),
        found: &[],
        start: Heals,
    },
    Case {
        name: "the rows and the snapshots missing",
        damage: |dir| {
            fs::remove_dir_all(dir.join("state")).unwrap();
            fs::remove_dir_all(dir.join("snapshots")).unwrap();
        },
        found: &["state"],
        start: Refuses("join anew"),
    },
    Case {
        name: "a bit in a file that rows and snapshot share",
        damage: |dir| {
            flip(&largest(&snapshot(dir).join("files"), ".sst"), 20);
            flip(&largest(&dir.join("state"), ".sst"), 20);
        },
        found: &["state", "snapshots"],
        start: Refuses("join anew"),
    },
];
