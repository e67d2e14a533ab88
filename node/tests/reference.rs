//! The reference in the repository is the one that the code writes.
#![allow(clippy::expect_used)]

use std::path::Path;

#[test]
fn the_reference_is_not_stale() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference");
    for (name, text) in muster_node::cli::reference::pages() {
        let kept = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        assert!(
            kept == text,
            "docs/reference/{name} is stale: muster reference --dir docs/reference"
        );
    }
}

/// Every metric is called by its subject and described, and none by two names.
#[test]
fn metrics_are_named_alike() {
    let pages = muster_node::cli::reference::pages();
    let metrics = pages.get("metrics.md").expect("a page of metrics");
    let names: Vec<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(name.starts_with("muster_"), "{name}");
    }
}
