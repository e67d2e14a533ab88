//! The sources of what runs, for tests of what is in them.

use std::path::{Path, PathBuf};

/// The sources of what runs, with their paths.
pub fn all() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for part in ["storage/src", "raft/src", "api/src", "node/src"] {
        collect(&root.join(part), &mut found);
    }
    assert!(found.len() > 200, "{} files", found.len());
    found
}

fn collect(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(dir).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source");
            found.push((path, text));
        }
    }
}
