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

fn halve(path: &Path) {
    cut(path, length(path) / 2);
}

/// Damage of the log, after which a node must not take part any more.
const fn log(name: &'static str, damage: fn(&Path)) -> Case {
    refused(name, damage, &["log"], "join anew")
}

/// Damage after which a node does not start, and says this.
const fn refused(
    name: &'static str,
    damage: fn(&Path),
    found: &'static [&'static str],
    says: &'static str,
) -> Case {
    Case {
        name,
        damage,
        found,
        start: Refuses(says),
    }
}

/// Damage that a node makes good by itself.
const fn healed(name: &'static str, damage: fn(&Path), found: &'static [&'static str]) -> Case {
    Case {
        name,
        damage,
        found,
        start: Heals,
    }
}

/// What damages a node whose log reaches back to the beginning.
pub const WITH_WHOLE_LOG: &[Case] = &[
    healed("nothing", |_| {}, &[]),
    log("a bit in the log's write-ahead log", |dir| {
        let wal = largest(&dir.join("log"), ".log");
        flip(&wal, length(&wal) / 2);
    }),
    log("a bit in a file of the log", |dir| {
        flip(&largest(&dir.join("log"), ".sst"), 20)
    }),
    log("the log's write-ahead log cut to a half", |dir| {
        halve(&largest(&dir.join("log"), ".log"))
    }),
    log("the log's write-ahead log emptied", |dir| {
        cut(&largest(&dir.join("log"), ".log"), 0)
    }),
    log("a file of the log cut", |dir| {
        halve(&largest(&dir.join("log"), ".sst"))
    }),
    log("a file of the log missing", |dir| {
        fs::remove_file(largest(&dir.join("log"), ".sst")).unwrap()
    }),
    log("the log missing", |dir| {
        fs::remove_dir_all(dir.join("log")).unwrap()
    }),
    healed(
        "a bit in a file of the rows",
        |dir| flip(&largest(&dir.join("state"), ".sst"), 20),
        &["state"],
    ),
    healed(
        "a file of the rows cut",
        |dir| halve(&largest(&dir.join("state"), ".sst")),
        &["state"],
    ),
    healed(
        "a file of the rows missing",
        |dir| fs::remove_file(largest(&dir.join("state"), ".sst")).unwrap(),
        &["state"],
    ),
    healed(
        "the rows' list of files cut",
        |dir| cut(&manifest(&dir.join("state")), 0),
        &["state"],
    ),
    healed(
        "the rows missing",
        |dir| fs::remove_dir_all(dir.join("state")).unwrap(),
        &["state"],
    ),
    refused(
        "node.json missing",
        |dir| fs::remove_file(dir.join("node.json")).unwrap(),
        &["identity"],
        "restore the file, or empty the directory and join anew",
    ),
    refused(
        "node.json cut",
        |dir| cut(&dir.join("node.json"), 20),
        &["identity"],
        "restore it from a copy, or empty the directory and join anew",
    ),
    refused(
        "another node's node.json",
        |dir| {
            let path = dir.join("node.json");
            let mut identity: serde_json::Value =
                serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            identity["node_id"] = 77.into();
            fs::write(&path, identity.to_string()).unwrap();
        },
        &["log"],
        "another node's",
    ),
    refused(
        "the key missing",
        |dir| fs::remove_file(dir.join("node.key")).unwrap(),
        &["identity"],
        "node.key",
    ),
    refused(
        "the keyring cut",
        |dir| cut(&dir.join("keyring"), 10),
        &["identity"],
        "keyring",
    ),
    refused(
        "the authority's certificate missing",
        |dir| fs::remove_file(dir.join("ca.pem")).unwrap(),
        &["identity"],
        "ca.pem",
    ),
    healed(
        "the certificate missing",
        |dir| fs::remove_file(dir.join("node.crt")).unwrap(),
        &[],
    ),
];

/// What damages a node that gave up the beginning of its log.
pub const WITH_SNAPSHOT: &[Case] = &[
    healed("nothing", |_| {}, &[]),
    healed(
        "the rows missing",
        |dir| fs::remove_dir_all(dir.join("state")).unwrap(),
        &["state"],
    ),
    healed(
        "a bit in a file of the rows",
        |dir| flip(&largest(&dir.join("state"), ".sst"), 20),
        &["state"],
    ),
    healed(
        "the rows' write-ahead log emptied",
        |dir| cut(&largest(&dir.join("state"), ".log"), 0),
        &[],
    ),
    healed(
        "a bit in a file of the snapshot",
        |dir| flip(&largest(&snapshot(dir).join("files"), ".sst"), 20),
        &["snapshots"],
    ),
    healed(
        "the snapshot's manifest cut",
        |dir| halve(&snapshot(dir).join("manifest")),
        &["snapshots"],
    ),
    healed(
        "the snapshots missing",
        |dir| fs::remove_dir_all(dir.join("snapshots")).unwrap(),
        &[],
    ),
    refused(
        "the rows and the snapshots missing",
        |dir| {
            fs::remove_dir_all(dir.join("state")).unwrap();
            fs::remove_dir_all(dir.join("snapshots")).unwrap();
        },
        &["state"],
        "join anew",
    ),
    refused(
        "a bit in a file that rows and snapshot share",
        |dir| {
            flip(&largest(&snapshot(dir).join("files"), ".sst"), 20);
            flip(&largest(&dir.join("state"), ".sst"), 20);
        },
        &["state", "snapshots"],
        "join anew",
    ),
];
