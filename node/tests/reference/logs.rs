//! A field of the log has one name and one meaning: those in docs/reference/logs.md, and no others.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

#[test]
fn every_field_is_in_the_table() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/logs.md");
    let page = std::fs::read_to_string(page).expect("docs/reference/logs.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let known: BTreeSet<String> = rows
        .filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect();

    let mut used: BTreeMap<String, String> = BTreeMap::new();
    for (path, source) in crate::sources::all() {
        for level in LEVELS {
            for event in events(&source, level) {
                for field in fields(event) {
                    used.insert(field, format!("{}: {event}", path.display()));
                }
            }
        }
    }
    assert!(used.len() > 25, "{} fields", used.len());
    for (field, place) in &used {
        assert!(
            known.contains(field),
            "`{field}` is not in docs/reference/logs.md: {place}"
        );
    }
    let used: BTreeSet<String> = used.into_keys().collect();
    let unused: Vec<&String> = known.difference(&used).collect();
    assert!(
        unused.is_empty(),
        "docs/reference/logs.md has {unused:?}, and nothing logs them"
    );
}

/// What is between the parentheses of the events of a level.
fn events<'a>(source: &'a str, level: &str) -> Vec<&'a str> {
    let call = format!("tracing::{level}!(");
    let begins = source
        .match_indices(&call)
        .map(|(at, call)| at + call.len());
    begins
        .filter_map(|begin| {
            let rest = source.get(begin..)?;
            rest.get(..end_of(rest, |depth, letter| depth == 0 && letter == ')'))
        })
        .collect()
}

/// The names of the fields of an event: what stands before its message.
fn fields(event: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = event.trim_start();
    while !rest.is_empty() && !rest.starts_with('"') {
        let end = end_of(rest, |depth, letter| depth == 0 && letter == ',');
        let (field, after) = rest.split_at(end);
        let name = field.split('=').next().unwrap_or_default().trim();
        if !name.starts_with("target:") {
            let name = name.trim_start_matches(['%', '?']);
            let plain = |letter: char| {
                letter.is_ascii_lowercase() || letter == '_' || letter.is_ascii_digit()
            };
            assert!(name.chars().all(plain), "no name of a field: {field}");
            names.push(name.to_owned());
        }
        rest = after.trim_start_matches(',').trim_start();
    }
    names
}

/// Where the first letter is that `stop` takes, outside of texts; `stop` is told how deep it is within
/// parentheses.
fn end_of(text: &str, stop: impl Fn(usize, char) -> bool) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for (at, letter) in text.char_indices() {
        if quoted {
            quoted = letter != '"' || escaped;
            escaped = letter == '\\' && !escaped;
            continue;
        }
        if stop(depth, letter) {
            return at;
        }
        match letter {
            '"' => quoted = true,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

#[test]
fn fields_are_found_before_the_message() {
    let source = "tracing::warn!(\n target: \"t\",\n %a, b = f(x, y[1]), ?c,\n \"say, {d}: \\\"(\",\n d = 1\n); tracing::info!(\"no\");";
    let warnings = events(source, "warn");
    assert_eq!(warnings.len(), 1);
    let names: Vec<String> = warnings.into_iter().flat_map(fields).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert!(
        events(source, "info")
            .into_iter()
            .flat_map(fields)
            .next()
            .is_none()
    );
}
