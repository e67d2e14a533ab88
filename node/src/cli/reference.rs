//! The reference, written from the code: commands, metrics, problems, routes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use clap::CommandFactory as _;
use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};
use muster_api::problem::CODES;

use crate::config::Cli;
use crate::telemetry;

/// Columns of help texts, whatever the terminal.
const WIDTH: usize = 100;

/// Writes the reference into a directory.
///
/// # Errors
/// When it cannot be written.
pub fn write(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for (name, text) in pages() {
        std::fs::write(dir.join(name), text)?;
    }
    Ok(())
}

/// File names and contents.
pub fn pages() -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("commands.md", commands()),
        ("metrics.md", metrics()),
        ("problems.md", problems()),
        (
            "openapi.json",
            format!("{:#}\n", muster_api::rest::openapi_document()),
        ),
    ])
}

const NOTE: &str = "<!-- Written by `muster reference --dir docs/reference`; do not edit. -->\n";

fn commands() -> String {
    let mut text = format!(
        "# Commands\n\n{NOTE}\nA flag with `[env: NAME]` can also be set in the environment.\n"
    );
    let mut root = Cli::command().term_width(WIDTH);
    root.build();
    let global: Vec<String> = root
        .get_arguments()
        .filter(|argument| argument.is_global_set())
        .map(|argument| argument.get_id().to_string())
        .collect();
    command(&mut text, &root, &global, true);
    text
}

fn command(text: &mut String, found: &clap::Command, global: &[String], root: bool) {
    // The environment of whoever writes the reference is no part of it.
    let mut shown = found
        .clone()
        .term_width(WIDTH)
        .mut_args(|argument| argument.hide_env_values(true));
    if !root {
        // Said once, at the top.
        for id in global {
            if shown
                .get_arguments()
                .any(|argument| argument.get_id() == id.as_str())
            {
                shown = shown.mut_arg(id, |argument| argument.hide(true));
            }
        }
    }
    let name = shown.get_bin_name().unwrap_or(shown.get_name()).to_owned();
    let help = shown.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(
        text,
        "\n## `{name}`\n\n```text\n{}\n```\n",
        help.join("\n").trim()
    );
    for inner in found.get_subcommands() {
        if !inner.is_hide_set() && inner.get_name() != "help" {
            command(text, inner, global, false);
        }
    }
}

fn metrics() -> String {
    let described = Described::default();
    with_local_recorder(&described, telemetry::describe);
    let mut text = format!(
        "# Metrics\n\n{NOTE}\nServed at `/metrics` of the API in the text format of Prometheus \
         ([monitoring](../operate/monitoring.md)). Where the unit is `count`, a gauge may tell yes (1) from no (0).\n\n\
         | name | kind | unit | meaning |\n|---|---|---|---|\n"
    );
    let rows = described
        .0
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    for (name, (kind, unit, meaning)) in rows {
        let unit = unit.map_or("count", |unit| unit.as_str());
        let _ = writeln!(text, "| `{name}` | {kind} | {unit} | {meaning} |");
    }
    text
}

fn problems() -> String {
    let mut text = format!(
        "# Problems\n\n{NOTE}\nErrors of the API are `application/problem+json` (RFC 9457) with these codes.\n\n\
         | code | status | title |\n|---|---|---|\n"
    );
    for (code, status, title) in CODES {
        let _ = writeln!(text, "| `{code}` | {} | {title} |", status.as_u16());
    }
    text
}

/// Kind, unit and meaning of metrics by name.
type Rows = BTreeMap<String, (&'static str, Option<Unit>, String)>;

/// Takes down what is described, and records nothing.
#[derive(Default)]
struct Described(Mutex<Rows>);

impl Described {
    fn add(&self, key: &KeyName, kind: &'static str, unit: Option<Unit>, meaning: &SharedString) {
        let row = (kind, unit, meaning.to_string());
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rows.insert(key.as_str().to_owned(), row);
    }
}

impl Recorder for Described {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, meaning: SharedString) {
        self.add(&key, "counter", unit, &meaning);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, meaning: SharedString) {
        self.add(&key, "gauge", unit, &meaning);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, meaning: SharedString) {
        self.add(&key, "histogram", unit, &meaning);
    }

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
