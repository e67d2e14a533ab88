//! The reference in the repository is the one that the code writes.
use std::collections::{BTreeMap, BTreeSet};
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

/// A row of the catalogue of metrics.
struct Row {
    name: String,
    kind: String,
    unit: String,
    meaning: String,
}

fn catalogue() -> Vec<Row> {
    let pages = muster_node::cli::reference::pages();
    let page = pages.get("metrics.md").expect("a page of metrics");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let rows: Vec<Row> = rows
        .map(|line| {
            let mut cells = line.trim_matches('|').split(" | ").map(str::trim);
            let mut cell = || cells.next().expect("four cells").to_owned();
            Row {
                name: cell().trim_matches('`').to_owned(),
                kind: cell(),
                unit: cell(),
                meaning: cell(),
            }
        })
        .collect();
    assert!(rows.len() > 60, "{} metrics", rows.len());
    rows
}

/// Whose metrics are not ours, and named by another convention.
fn is_foreign(name: &str) -> bool {
    name.starts_with("process_")
}

/// A name ends with its unit, and a counter with `total`, as Prometheus has it.
#[test]
fn metrics_are_named_by_their_units() {
    for row in catalogue() {
        let Row {
            name,
            kind,
            unit,
            meaning,
        } = row;
        assert!(meaning.len() > 10, "{name} is not explained");
        if is_foreign(&name) {
            continue;
        }
        assert!(name.starts_with("muster_"), "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        let stem = name.trim_end_matches("_total");
        let by_name = match stem.rsplit('_').next() {
            Some("seconds") => "seconds",
            Some("bytes") => "bytes",
            _ => "count",
        };
        assert_eq!(unit, by_name, "the unit of {name}");
    }
}

/// What the code measures is in the catalogue, as the same kind, and what is in the catalogue is
/// measured.
#[test]
fn the_catalogue_is_what_is_measured() {
    let rows = catalogue();
    let known: BTreeMap<&str, &str> = rows
        .iter()
        .filter(|row| !is_foreign(&row.name))
        .map(|row| (row.name.as_str(), row.kind.as_str()))
        .collect();
    let mut measured: BTreeSet<String> = muster_node::scrape::names().map(str::to_owned).collect();
    let sources = crate::sources::all();
    let elsewhere: Vec<_> = sources.iter().map(|(_, text)| constants(text)).collect();
    for (path, source) in &sources {
        let constants = constants(source);
        for kind in ["counter", "gauge", "histogram"] {
            for argument in arguments(source, kind) {
                let name = match argument.strip_prefix('"') {
                    Some(literal) => literal.trim_end_matches('"').to_owned(),
                    // The name of a function's argument is no name of a metric.
                    None if argument == "name" => continue,
                    None => {
                        let constant = argument.rsplit("::").next().unwrap_or_default();
                        let other = || elsewhere.iter().find_map(|all| all.get(constant));
                        let found = constants.get(constant).or_else(other);
                        found
                            .unwrap_or_else(|| panic!("{path:?}: {argument}"))
                            .clone()
                    }
                };
                let described = known.get(name.as_str());
                assert_eq!(described, Some(&kind), "{name} in {}", path.display());
                measured.insert(name);
            }
        }
    }
    let known: BTreeSet<String> = known.into_keys().map(str::to_owned).collect();
    assert_eq!(known, measured);
}

/// The first arguments of a macro's calls; `describe_counter!` is no call of `counter!`.
fn arguments<'a>(source: &'a str, name: &str) -> Vec<&'a str> {
    let call = format!("{name}!(");
    let calls = source.match_indices(&call).filter(|(at, _)| {
        let before = source.get(..*at).and_then(|text| text.chars().last());
        before != Some('_')
    });
    calls
        .filter_map(|(at, call)| {
            let rest = source.get(at + call.len()..)?.trim_start();
            let end = rest.find([',', ')'])?;
            Some(rest.get(..end)?.trim())
        })
        .collect()
}

/// The constants of a file that are names of metrics.
fn constants(source: &str) -> BTreeMap<&str, String> {
    let lines = source.lines().filter_map(|line| {
        let (name, value) = line.split_once("const ")?.1.split_once(": &str = \"")?;
        let is_metric = value.starts_with("muster_");
        is_metric.then(|| (name, value.trim_end_matches("\";").to_owned()))
    });
    lines.collect()
}
